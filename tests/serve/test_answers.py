"""What clients are answered: the labels that ``predict`` gives, as they ask for them, or one line why not."""

import asyncio
import base64
import io
import json
import socket

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason='fastapi is not installed: pip install "stdc-fast[serve]"')
pytest.importorskip("httpx", reason="httpx is not installed: the test client needs it")
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from served import LONG, Gated, png, until

import stdc_fast
from stdc_fast import encode, images, serve
from stdc_fast.errors import UserError
from stdc_fast.serve import Settings, create_app, outputs


@pytest.fixture(scope="module")
def client(tiny_model):
    with TestClient(create_app(tiny_model, Settings(max_pixels=1_000_000, max_bytes=200_000))) as client:
        asyncio.run(until(lambda: client.get("/readyz").status_code == 200))
        yield client


def form(content, name="street.png"):
    return {"files": {"file": (name, content)}}


def raw(content, kind="image/png", **headers):
    return {"content": content, "headers": {"Content-Type": kind, **headers}}


def test_a_picture_by_form_and_as_body(client, model, photo):
    content = png(photo())
    want = encode.labels(model.predict(content))
    for how in (form(content), raw(content)):
        answer = client.post("/predict?output=labels", **how)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        assert answer.content == want
        assert answer.headers["x-model"] == model.name
        stages = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
        assert list(stages) == ["receive", "read", "queue", "label", "write"]
        assert float(stages["label"]) > 0 and all(float(took) >= 0 for took in stages.values())


def test_overlays(client, model, photo):
    content, result = png(photo()), model.predict(photo())
    answer = client.post("/predict?format=png&alpha=0.3&legend=true&side_by_side=true", **form(content))
    assert answer.content == encode.picture(result.overlay(0.3, True, True), "png")
    answer = client.post("/predict?output=overlay&format=webp&quality=50", **form(content))
    assert answer.headers["content-type"] == "image/webp"
    assert answer.content == encode.picture(result.overlay(), "webp", 50)


def test_json(client, model, photo):
    content, result = png(photo()), model.predict(photo())
    answer = client.post("/predict", **form(content)).json()
    want = result.to_dict() | {"name": "street.png", "model": model.name, "remarks": []}
    assert answer.pop("seconds") > 0 and want.pop("seconds") > 0
    assert answer == want
    for what, colours in (("labels", result.classes.palette), ("colours", result.classes.shown)):
        found = client.post(f"/predict?output=json&embed={what}", **form(content)).json()["embedded"]
        with Image.open(io.BytesIO(base64.b64decode(found.removeprefix("data:image/png;base64,")))) as image:
            assert np.array_equal(np.array(image), result.labels)
            assert np.array_equal(np.array(image.convert("RGB")), np.array(colours, np.uint8)[result.labels])


def test_coco(client, model, photo):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    answer = client.post("/predict?output=coco", **form(png(photo())))
    want = model.predict(photo()).to_coco_rle("street.png")
    assert answer.json() == json.loads(json.dumps(want))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/png", "image/png"),
        ("image/webp", "image/webp"),
        ("text/html, image/jpeg;q=0.5", "image/jpeg"),
        ("image/png;q=0.2, image/jpeg;q=0.9", "image/jpeg"),
        ("application/json;q=0, */*", "image/png"),
        ("*/*", "application/json"),
        ("image/*", "image/png"),
        ("application/json;q=x, image/png;q=0.1", "image/png"),
    ],
)
def test_accept(client, photo, accept, kind):
    answer = client.post("/predict", **raw(png(photo()), Accept=accept))
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)


def test_accept_chooses_the_format_of_overlays(client, photo):
    answer = client.post("/predict?output=overlay", **raw(png(photo()), Accept="image/webp"))
    assert answer.headers["content-type"] == "image/webp"


def jpeg(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG")
    return file.getvalue()


def deep(values):
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(file, "PNG")
    return file.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("query", "how", "status", "words"),
    [
        ("", lambda c, a: raw(c, "application/x-www-form-urlencoded"), 415, "urlencoded is neither"),
        ("", lambda c, a: raw(c, "text/plain"), 415, "curl -F file=@"),
        ("", lambda c, a: {"content": c}, 415, "(none)"),
        ("", lambda c, a: raw(c, **{"Content-Encoding": "gzip"}), 415, "Content-Encoding"),
        ("?output=labels", lambda c, a: raw(c, Accept="image/jpeg"), 406, "takes none"),
        ("?output=mask", lambda c, a: raw(c), 422, "output must be one of labels"),
        ("?output=overlay&alpha=2", lambda c, a: raw(c), 422, "alpha must lie between 0 and 1, not 2.0"),
        ("?alpha=much", lambda c, a: raw(c), 422, "parameter alpha"),
        ("?format=tiff", lambda c, a: raw(c), 422, "not 'tiff'"),
        ("?output=labels&format=jpg", lambda c, a: raw(c), 422, "format is for output overlay, not labels"),
        ("?output=labels&quality=500", lambda c, a: raw(c), 422, "quality is for output overlay, not labels"),
        ("?format=png&quality=3", lambda c, a: raw(c), 422, "no quality"),
        ("?embed=labels&output=labels", lambda c, a: raw(c), 422, "embed is for output json"),
        ("?outptu=labels", lambda c, a: raw(c), 422, "no parameter 'outptu'"),
        ("?output=labels&alpha=0.5", lambda c, a: raw(c), 422, "alpha is for output overlay, not labels"),
        ("?legend=true", lambda c, a: raw(c), 422, "legend is for output overlay, not json"),
        ("?output=labels&output=json", lambda c, a: raw(c), 422, "output is given more than once"),
        ("", lambda c, a: raw(b""), 422, "0 bytes"),
        ("", lambda c, a: raw(b"no picture"), 422, "not an image"),
        ("", lambda c, a: form(jpeg(a)[:700], "half.jpg"), 422, "half.jpg: can not be decoded"),
        ("", lambda c, a: form(png(a[:20, :20]), "s.png"), 422, "s.png: 20x20 is too small"),
        ("", lambda c, a: raw(deep(np.arange(4096).reshape(64, 64))), 422, "range"),
        ("", lambda c, a: raw(EPS, "image/eps"), 422, "not an image"),
        ("", lambda c, a: {"files": {"picture": ("a.png", c)}}, 422, "no file named file"),
        ("", lambda c, a: {"data": {"file": "a.png"}, "files": {"b": ("b", b"")}}, 400, "Too many fields"),
        ("", lambda c, a: {"files": [("file", ("a", c)), ("file", ("b", c))]}, 400, "Too many files"),
        ("", lambda c, a: raw(c, "multipart/form-data"), 400, "boundary"),
        ("", lambda c, a: raw(c, "multipart/form-data; boundary=x"), 400, "form can not be read"),
        ("", lambda c, a: raw(bytes(200_001)), 413, "more than 200000 bytes"),
        ("", lambda c, a: form(bytes(200_001)), 413, "more than 200000 bytes"),
        ("", lambda c, a: form(bytes(400_000)), 413, "more than 200000 bytes"),
        ("", lambda c, a: raw(png(np.zeros((1000, 1001, 3), np.uint8))), 413, "1001x1000 has 1.0 million"),
    ],
)  # fmt: skip
def test_refused_in_one_line(client, photo, query, how, status, words):
    answer = client.post(f"/predict{query}", **how(png(photo()), photo()))
    (message,) = answer.json().values()
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert words in message and "\n" not in message


def test_other_methods_and_paths(client):
    for method, path, status in (("GET", "/predict", 405), ("POST", "/", 405), ("GET", "/nothing", 404)):
        answer = client.request(method, path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])


@pytest.mark.parametrize(
    ("path", "status"), [("/", 200), ("/healthz", 200), ("/metrics", 200), ("/predict", 405)]
)
def test_head_has_the_headers_alone(client, path, status):
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (status, b"")
    assert answer.headers["Content-Length"] != "0"


@pytest.mark.parametrize(("side", "words"), [(10_000, "10000x10000"), (40_000, "hundreds of millions")])
def test_a_header_that_says_huge_sizes_is_not_decoded(client, huge_png, tmp_path, monkeypatch, side, words):
    content = huge_png(tmp_path / "bomb.png", side, side).read_bytes()
    monkeypatch.setattr(images, "read_image", lambda *_, **__: pytest.fail("decoded"))
    answer = client.post("/predict", **form(content, "bomb.png"))
    assert answer.status_code == 413 and words in answer.json()["error"] and len(content) < 200


def test_remarks_reach_each_client(client, photo):
    """The log has a line once for all pictures of a kind; a client is told each time."""
    file, frames = io.BytesIO(), [Image.fromarray(photo(seed=seed)) for seed in (0, 1)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    for _ in range(2):
        answer = client.post("/predict", **form(file.getvalue(), "two.gif"))
        assert answer.json()["remarks"] == ["two.gif: holds 2 pictures; the first is taken"]
        assert answer.headers["x-remarks"] == "two.gif: holds 2 pictures; the first is taken"


def test_names_of_files_are_for_messages_only(client):
    answer = client.post("/predict", **form(b"none", "../../etc/\x1b[31mred\r\nX: y.png"))
    line = answer.json()["error"]
    assert "/" not in line.split(":")[0] and "\x1b" not in line and "\n" not in line


def test_info(client, model):
    info = client.get("/info").json()
    assert (info["model"], info["backend"], info["dtype"]) == (model.name, model.backend, "float32")
    assert [one["name"] for one in info["classes"]] == list(model.classes.names)
    assert [tuple(one["colour"]) for one in info["classes"]] == list(model.classes.palette)
    assert info["input_size"]["short_side"] == 64
    assert info["limits"]["max_pixels"] == 1_000_000 and info["limits"]["max_batch"] == 1


def test_metrics(client, photo):
    def read():
        text = client.get("/metrics")
        assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = text_string_to_metric_families(text.text)
        return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}

    before = read()
    client.post("/predict", **form(png(photo())))
    client.post("/predict", **form(b"none"))
    client.get("/nothing/at/all")
    after = read()
    for key, more in {
        ("stdc_fast_requests_total", "/predict", "200"): 1,
        ("stdc_fast_requests_total", "/predict", "422"): 1,
        ("stdc_fast_requests_total", "404", "other"): 1,
        ("stdc_fast_batch_pictures_count",): 1,
        ("stdc_fast_stage_seconds_count", "label"): 1,
        ("stdc_fast_stage_seconds_count", "write"): 1,
    }.items():
        assert after[key] - before.get(key, 0) == more, key
    assert after["stdc_fast_queue_pictures",] == after["stdc_fast_accepted_pictures",] == 0
    assert ("process_resident_memory_bytes",) in after


def test_the_page_is_one_file(client):
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert (
        "http:" not in answer.text
        and "https:" not in answer.text
        and '<link rel="stylesheet' not in answer.text
    )
    assert 'lang="en"' in answer.text and 'aria-live="polite"' in answer.text


def test_it_describes_itself(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/healthz", "/readyz", "/metrics", "/info"} <= set(paths)
    body = paths["/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"image/*", "multipart/form-data"}


def test_mounted_in_another_application(model, photo):
    outer = FastAPI()
    inner = create_app(model)
    outer.mount("/labels", inner)
    try:
        with TestClient(outer) as client:
            asyncio.run(until(lambda: client.get("/labels/readyz").status_code == 200))
            answer = client.post("/labels/predict?output=labels", **form(png(photo())))
            assert answer.content == encode.labels(model.predict(photo()))
            assert (
                'stdc_fast_requests_total{path="/predict",status="200"} 1.0'
                in client.get("/labels/metrics").text
            )
    finally:
        inner.state.service.close()


def test_it_is_not_ready_while_it_loads(model, photo):
    gated = Gated(model)
    gated.gate.clear()
    with TestClient(create_app(lambda: gated.model)) as client:
        assert gated.inside.wait(LONG)
        for answer in (
            client.get("/readyz"),
            client.post("/predict", **form(png(photo()))),
            client.get("/info"),
        ):
            assert (answer.status_code, answer.json()) == (503, {"error": "the model is being loaded"})
        assert client.get("/healthz").status_code == 200
        gated.gate.set()
        asyncio.run(until(lambda: client.get("/readyz").status_code == 200))


@pytest.mark.parametrize(
    ("error", "said"),
    [(UserError("a.pth: no such file"), "a.pth: no such file"), (OSError("secret"), "could not be loaded")],
)
def test_a_model_that_does_not_load(error, said):
    def load():
        raise error

    with TestClient(create_app(load)) as client:
        asyncio.run(until(lambda: client.get("/healthz").status_code == 503))
        answer = client.get("/readyz")
        assert answer.status_code == 503 and said in answer.json()["error"]
        assert "secret" not in answer.text


def test_an_error_of_ours_is_no_traceback_to_clients(model, photo, monkeypatch):
    monkeypatch.setattr(outputs, "render", lambda *_: 1 / 0)
    with TestClient(create_app(model), raise_server_exceptions=False) as client:
        asyncio.run(until(lambda: client.get("/readyz").status_code == 200))
        answer = client.post("/predict", **form(png(photo())))
        assert (answer.status_code, list(answer.json())) == (500, ["error"])
        assert "Zero" not in answer.text
        assert client.get("/metrics").text.count('status="500"} 1.0') == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"queue": 0}, "queue must be"),
        ({"max_batch": 1000}, "max_batch must be"),
        ({"workers": 1.5}, "workers must be"),
        ({"max_pixels": 10**9}, "max_pixels must be"),
        ({"max_wait": -1}, "max_wait must be"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"scale": 1, "size": (64, 64)}, "not both"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(UserError, match=words):
        Settings(**settings)


def test_without_the_extra(model, monkeypatch):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"fastapi.*stdc-fast\[serve\]"):
        create_app(model)
    assert stdc_fast.load  # the library itself needs none of them


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-m", "nothing.pth"), "nothing.pth"),
        (("--host", "203.0.113.7"), "choose another --host or --port"),
        (("--queue", "0"), "queue must be"),
        (("--size", "large"), "--size must be HEIGHTxWIDTH"),
    ],
)
def test_what_can_not_start_says_why(run_cli, arguments, words):
    done = run_cli("serve", "--port", 0, *arguments)
    assert done.code == 2 and words in done.err and len(done.lines) == 1


def test_two_that_start_at_once_on_one_port():
    """A port that is bound is not yet taken: a second process could bind it too, and fail later."""
    from stdc_fast.serve.run import _bound

    with _bound("127.0.0.1", 0) as first, pytest.raises(UserError, match="in use; choose another"):
        _bound("127.0.0.1", first.getsockname()[1])


def test_a_port_that_is_taken(run_cli):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run_cli("serve", "--port", taken.getsockname()[1])
    assert done.code == 2 and "in use" in done.err and len(done.lines) == 1
