"""The Hugging Face Hub: what huggingface_hub fetches from and sends to a stand-in for it, on loopback."""

import json
import os
import sys
import tempfile

import numpy as np
import pytest
import torch
from hub_server import TOKEN, serve
from refusals import refusal

import stdc_fast
from stdc_fast import Segmenter, checkpoints, hub
from stdc_fast.classes import CAMVID

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def server():
    """The package reads its variables when it is imported, so they are set before that, for this process."""
    if "huggingface_hub" in sys.modules:
        pytest.skip("huggingface_hub is imported already, for another Hub")
    with serve() as running, pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as home:
        for name in [n for n in os.environ if n.startswith(("HF_", "HUGGING"))]:
            patch.delenv(name)
        patch.setenv("HF_ENDPOINT", running.address)
        patch.setenv("HF_HOME", home)
        patch.setenv("HF_HUB_DISABLE_XET", "1")  # whose protocol is not for stand-ins
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed; make test-ecosystem")
        yield running


def new_sessions():
    """Releases before 1.0 ask whether they are offline once, when they make a session."""
    from huggingface_hub import utils

    getattr(utils, "reset_sessions", lambda: None)()


@pytest.fixture
def remote(server, tmp_path, monkeypatch):
    """The Hub without repositories, and an empty cache."""
    import huggingface_hub.constants

    new_sessions()
    monkeypatch.delenv("STDC_FAST_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    server.repositories, server.asked, server.broken, server.wrong_card = {}, [], None, None
    return server


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """The files of the small model."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def load(name, **options):
    return Segmenter.from_pretrained(name, device="cpu", dtype="float32", **options)


def alike(a, b):
    theirs = checkpoints.inference_state(b.network)
    return all(torch.equal(v, theirs[k]) for k, v in checkpoints.inference_state(a.network).items())


# ---------------------------------------------------------------- fetching


def test_a_repository(remote, saved, model, photo):
    remote.add("me/streets", saved)
    found = load("me/streets")
    assert alike(found, model) and found.name == "me/streets"
    assert found.classes == model.classes and found.input_size == model.input_size
    assert np.array_equal(found.predict(photo()).labels, model.predict(photo()).labels)
    assert {path.split("/")[-1] for _, path, _ in remote.asked} == {"model.safetensors", "config.json"}
    count = len(remote.asked)
    assert alike(load("hf://me/streets"), model)
    assert all(method == "HEAD" for method, _, _ in remote.asked[count:])  # all of it is in the cache


def test_revisions(remote, saved, model):
    repository = remote.add("me/streets", {"README.md": b""})
    old = repository.commit(saved, "v1")
    assert alike(load("me/streets", revision="v1"), model)
    assert alike(load(f"hf://me/streets@{old}"), model)
    repository.commit(saved, "refs/pr/3")
    assert alike(load("hf://me/streets@refs/pr/3/model.safetensors"), model)
    assert "has no revision v2" in refusal(load, "me/streets", revision="v2")
    assert "has no model.safetensors, and no other file of weights" in refusal(load, "me/streets")
    assert "give it once" in refusal(load, "hf://me/streets@v1", revision="v1")


def test_a_pickle_alone_is_read_without_running_it(remote, saved, model, tmp_path):
    torch.save(checkpoints.inference_state(model.network), tmp_path / "w.bin")
    state = {**model.network.state_dict()}
    torch.save(state, tmp_path / "w.bin")
    remote.add("me/pickle", {"pytorch_model.bin": (tmp_path / "w.bin").read_bytes()})
    assert alike(load("me/pickle", classes="camvid"), model)


def test_several_files(remote, saved, model):
    weights = saved["model.safetensors"]
    remote.add("me/several", {"a.safetensors": weights, "b/c.safetensors": weights, "config.json": b"{}"})
    said = refusal(load, "me/several")
    assert "2 files may be the weights (a.safetensors, b/c.safetensors); give hf://me/several/FILE" in said
    assert alike(load("me/several", filename="b/c.safetensors"), model)
    assert alike(load("hf://me/several/a.safetensors"), model)
    assert "has no such file" in refusal(load, "hf://me/several/d.safetensors")


def test_private_and_gated_ones(remote, saved, model, monkeypatch):
    remote.add("me/private", saved, private=True)
    remote.add("me/gated", saved, gated=True)
    said = refusal(load, "me/private")
    assert "has no such repository, or it is private; check the name, or log in" in said
    assert said == refusal(load, "me/none").replace("me/none", "me/private")
    said = refusal(load, "me/gated")
    assert f"is gated; accept its terms on {remote.address}/me/gated, then log in" in said
    for name in ("me/private", "me/gated"):
        assert alike(load(name, token=TOKEN), model)
    remote.asked.clear()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    load("me/private", force_download=True)
    assert {token for _, _, token in remote.asked} == {TOKEN}
    remote.asked.clear()
    assert "private" in refusal(load, "me/private", token=False, force_download=True)
    assert {token for _, _, token in remote.asked} == {None}


def test_no_downloads(remote, saved, model, monkeypatch):
    remote.add("me/streets", saved)
    for options in ({"local_files_only": True}, {}):
        if not options:
            monkeypatch.setenv("STDC_FAST_OFFLINE", "1")
        assert "is not in the cache of this machine" in refusal(load, "me/streets", **options)
        assert remote.asked == []
    monkeypatch.setenv("STDC_FAST_OFFLINE", "0")
    load("me/streets")
    remote.asked.clear()
    assert alike(load("me/streets", local_files_only=True), model)
    monkeypatch.setenv("STDC_FAST_OFFLINE", "1")
    assert alike(load("me/streets"), model)
    assert remote.asked == []


def test_the_packages_own_switch(remote, saved, model, monkeypatch):
    import huggingface_hub.constants

    remote.add("me/streets", saved)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    new_sessions()
    assert "by local_files_only or HF_HUB_OFFLINE" in refusal(load, "me/streets")
    assert "HF_HUB_OFFLINE" in refusal(model.push_to_hub, "me/streets", token=TOKEN)
    assert remote.asked == []


def test_a_hub_that_fails(remote, saved, monkeypatch):
    remote.add("me/streets", saved)
    for code, words in ((400, "Bad request: out of order"), (409, "409 ")):  # 500 is asked again for 23 s
        remote.broken = code
        said = refusal(load, "me/streets")
        assert said.startswith("hf://me/streets: can not be read (") and words in said
        assert said.endswith("), and it is not in the cache of this machine")
    import huggingface_hub.constants
    import huggingface_hub.file_download

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    address = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    for module in (huggingface_hub.constants, huggingface_hub.file_download):  # of releases before 1.0
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", address, raising=False)
    assert "http://127.0.0.1:9 can not be reached" in refusal(load, "me/streets")


def test_load_downloads_when_asked_only(remote, saved, model):
    remote.add("me/streets", saved)
    for name in ("hf://me/streets", "hf://me/streets@main", "hf://me/streets/model.safetensors"):
        said = refusal(stdc_fast.load, name)
        assert said == f"{name}: is not in the cache of this machine; load it with download=True"
    assert remote.asked == []
    assert alike(stdc_fast.load("hf://me/streets", download=True, device="cpu"), model)
    remote.asked.clear()
    assert alike(stdc_fast.load("hf://me/streets", device="cpu"), model)
    assert remote.asked == []


# ---------------------------------------------------------------- sending


def test_push(remote, saved, model):
    address = model.push_to_hub("me/new", token=TOKEN, private=True, commit_message="First")
    repository = remote.repositories["me/new"]
    assert address == f"{remote.address}/me/new/commit/{repository.branches['main']}"
    assert repository.private and repository.messages[-1] == "First"
    files = repository.files
    assert sorted(files) == FILES
    assert files["config.json"] == saved["config.json"]
    assert files["README.md"] == saved["README.md"].replace(b"OWNER/NAME", b"me/new")
    assert {token for method, _, token in remote.asked if method != "PUT"} == {TOKEN}
    assert {token for method, _, token in remote.asked if method == "PUT"} == {None}  # of the storage
    assert len(repository.commits) == 2  # of which the first is that of creation
    found = load("me/new", token=TOKEN)  # whose header has its values in any order
    assert alike(found, model) and found.metadata == model.metadata


def test_push_again(remote, model, tmp_path):
    repository = remote.add("me/old", {"README.md": b"my own words", "notes.txt": b"x"})
    model.push_to_hub("me/old", token=TOKEN)
    assert repository.files["README.md"] == b"my own words" and repository.files["notes.txt"] == b"x"
    assert sorted(repository.files) == ["README.md", "config.json", "model.safetensors", "notes.txt"]
    model.push_to_hub("me/old", token=TOKEN, replace_card=True, metadata={"terms": "MIT"})
    assert b"license: mit" in repository.files["README.md"]
    before = repository.branches["main"]
    address = model.push_to_hub("me/old", token=TOKEN, create_pr=True, metadata={"miou": 0.5})
    assert repository.branches["main"] == before and "refs/pr/1" in repository.branches
    assert repository.branches["refs/pr/1"] in address
    address = model.save_pretrained(tmp_path / "own", repo_id="me/own", push_to_hub=True, token=TOKEN)
    assert sorted(remote.repositories["me/own"].files) == FILES == sorted(os.listdir(tmp_path / "own"))


def test_a_card_that_the_hub_refuses(remote, model):
    remote.wrong_card = "license is not one of the list"
    said = refusal(model.push_to_hub, "me/new", token=TOKEN)
    assert "can not be written to" in said and "README.md" in said
    assert remote.repositories["me/new"].files == {}


def test_who_may_not(remote, model):
    said = refusal(model.push_to_hub, "me/new", token="hf_wrong")
    assert said.startswith("hf://me/new: can not be written to (") and "401" in said and "log in" in said
    assert "me/new" not in remote.repositories
    said = refusal(model.push_to_hub, "me/new/x", token=TOKEN)
    assert "\n" not in said and "me/new/x" in said


# ---------------------------------------------------------------- the card, as the package reads it


def test_the_package_reads_the_card(remote, embedded):
    import huggingface_hub.constants

    network = stdc_fast.load(embedded, device="cpu", dtype="float32")
    network.push_to_hub("me/streets", token=TOKEN)
    text = remote.repositories["me/streets"].files["README.md"].decode()
    data = huggingface_hub.ModelCard(text).data
    assert (data.library_name, data.license, data.pipeline_tag) == (
        "stdc-fast", "cc-by-nc-4.0", "image-segmentation",
    )  # fmt: skip
    assert data.datasets == ["camvid"] and data.metrics == ["mean_iou"]
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("mean_iou", network.metadata["miou"])
    assert result.dataset_name == network.metadata["miou_split"]
    config = json.loads(remote.repositories["me/streets"].files["config.json"])
    assert tuple(config["id2label"].values()) == CAMVID.names


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("hf://a/b", ("a/b", None, None)),
        ("hf://models/a/b@v1", ("a/b", "v1", None)),
        ("hf://a/b@refs/pr/2/x/y.pth", ("a/b", "refs/pr/2", "x/y.pth")),
        ("hf://a/b@feature%2Fx/y.pth", ("a/b", "feature/x", "y.pth")),
        ("hf://a-1/b.c/y.safetensors", ("a-1/b.c", None, "y.safetensors")),
    ],
)
def test_addresses(address, place, server):
    assert hub.parse(address) == place
    uris = pytest.importorskip("huggingface_hub.utils._hf_uris", reason="of releases from 1.20 or so")
    theirs = uris.parse_hf_uri(address)
    assert (theirs.id, theirs.revision, theirs.path_in_repo or None) == place
