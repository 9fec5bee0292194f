"""Downloads from a server on loopback, whole and broken, and files that were put there by hand."""

import dataclasses
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types

import pytest
from paths import ROOT
from web import Remote, serve

from stdc_fast import UserError, download, registry
from stdc_fast import web as requests

CONTENT = bytes(range(256)) * 1200 + b"the end"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
#: A name whose file has no published address and no published hash: a mirror gives it.
MANUAL = "stdc1_seg50_cityscapes.official"
FILE = registry.RECORDS[MANUAL].file


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty STDC_FAST_HOME, and no setting of the user's."""
    for name in ("STDC_FAST_MIRROR", "STDC_FAST_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STDC_FAST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def remote():
    with serve(Remote(CONTENT)) as running:
        yield running


@pytest.fixture
def record(remote):
    """A published file on the server, whose hash is known as far as mmsegmentation's names have it."""
    known = registry.RECORDS["stdc1_cityscapes.mmseg"]
    return dataclasses.replace(known, urls=(f"{remote.address}/a/{known.file}",), sha256=DIGEST[:8])


@pytest.fixture
def unhashed(record):
    return dataclasses.replace(record, sha256=None)


def refusal(record):
    """The message with which fetching fails: one line that says what to put where by hand."""
    with pytest.raises(UserError) as caught:
        download.fetch(record)
    message = str(caught.value)
    assert "\n" not in message
    assert record.name in message and f"as {download.place(record)}" in message
    assert not download.place(record).exists()
    return message


def files(record):
    """What lies in the folder of a record, but for the lock, whose file may stay."""
    folder = download.place(record).parent
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock")) if folder.exists() else []


def part(record):
    path = download.place(record)
    return path.with_name(path.name + ".part")


def test_a_good_file(remote, record, home):
    assert download.status(record) == "download" and download.local(record) is None
    path = download.fetch(record)
    assert path == home / "models" / record.name / record.file
    assert path.read_bytes() == CONTENT
    assert files(record) == [record.file]
    assert download.status(record) == "cached"
    assert download.find(record) == download.fetch(record) == path
    assert len(remote.asked) == 1


def test_a_first_hash_is_recorded_and_said(unhashed, caplog):
    path = download.fetch(unhashed)
    note = path.with_name(path.name + ".sha256")
    assert note.read_text() == f"{DIGEST}  {path.name}\n"
    (said,) = caplog.messages
    assert DIGEST in said and str(note) in said and "no hash is published" in said
    caplog.clear()
    assert download.find(unhashed) == path and caplog.messages == []
    path.write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match=rf"at the first use it was {DIGEST}.*{note.name}"):
        download.find(unhashed)
    # A remote file that was exchanged is none that was trusted, either.
    path.unlink()
    note.write_text("0" * 64)
    assert "0000; get it again" in refusal(unhashed)
    note.write_text("")
    with pytest.raises(UserError, match=f"remove {note}"):
        download.fetch(unhashed)
    note.unlink()
    assert download.fetch(unhashed) == path


@pytest.mark.parametrize("length", [True, False], ids=["content-length", "no length"])
def test_a_wrong_hash(remote, record, length):
    remote.content, remote.length = CONTENT + b"!", length
    said = refusal(record)
    assert hashlib.sha256(remote.content).hexdigest() in said
    assert f"published one starts with {DIGEST[:8]}" in said and "removed" in said
    assert not part(record).exists()
    remote.content = CONTENT
    assert download.fetch(record).read_bytes() == CONTENT


def test_a_truncated_file_goes_on_at_the_next_try(remote, record):
    remote.stop_after = 100_000
    said = refusal(record)
    assert f"100000 of {len(CONTENT)} bytes" in said and "0.1 MB are kept" in said
    assert part(record).read_bytes() == CONTENT[:100_000]
    remote.stop_after = None
    assert download.fetch(record).read_bytes() == CONTENT
    assert [r for _, r in remote.asked] == [None, "bytes=100000-"]
    assert remote.sent == len(CONTENT)
    assert files(record) == [record.file]


def test_a_changed_remote_starts_again(remote, unhashed):
    remote.stop_after = 100_000
    refusal(unhashed)
    remote.content, remote.etag, remote.stop_after = CONTENT[::-1], '"2"', None
    assert download.fetch(unhashed).read_bytes() == CONTENT[::-1]
    assert [r for _, r in remote.asked] == [None, "bytes=100000-", None]


@pytest.mark.parametrize(
    "change",
    [
        {"ranges": False},
        {"content": CONTENT[:50_000], "etag": '"2"'},  # the range is past its end: 416
    ],
    ids=["no ranges", "shorter"],
)
def test_what_can_not_go_on_starts_again(change, remote, unhashed):
    remote.stop_after = 100_000
    refusal(unhashed)
    for name, value in {**change, "stop_after": None}.items():
        setattr(remote, name, value)
    assert download.fetch(unhashed).read_bytes() == remote.content


def test_a_server_that_answers_with_another_range(remote, record):
    remote.always = 5
    assert "a part of the file" in refusal(record)
    remote.always, remote.stop_after = None, 100_000
    refusal(record)
    remote.always = 99_999
    assert "a part of the file" in refusal(record)
    assert not part(record).exists()


@pytest.mark.parametrize("modified", [None, "Sat, 01 Jan 2022 00:00:00 GMT"])
def test_only_a_remote_file_that_can_be_told_goes_on(modified, remote, record):
    remote.etag, remote.modified, remote.stop_after = None, modified, 100_000
    refusal(record)
    remote.stop_after = None
    assert download.fetch(record).read_bytes() == CONTENT
    assert remote.asked[1][1] == ("bytes=100000-" if modified else None)


@pytest.mark.parametrize("text", ["", "[]", '{"url": 1}', "{"], ids=["empty", "list", "keys", "cut"])
def test_a_damaged_note_of_a_part_starts_again(text, remote, record):
    remote.stop_after = 100_000
    refusal(record)
    path = part(record)
    path.write_bytes(b"?" * 100_000)
    path.with_name(path.name + ".json").write_text(text)
    remote.stop_after = None
    assert download.fetch(record).read_bytes() == CONTENT


def test_404_and_others(remote, record):
    for status, words in ((404, "404 (Not Found)"), (403, "403 (Forbidden)"), (503, "503 (")):
        remote.status = status
        assert f"{record.urls[0]} answers {words}" in refusal(record)
    assert files(record) == []


def test_a_web_page_is_no_file(remote, unhashed):
    remote.kind = "text/html; charset=utf-8"
    assert "a web page" in refusal(unhashed)


def test_a_file_of_unknown_size_and_hash_is_refused(remote, record, unhashed):
    remote.length = False
    assert "does not say how large" in refusal(unhashed)
    assert download.fetch(record).read_bytes() == CONTENT


def test_a_server_that_hangs(remote, record, monkeypatch):
    monkeypatch.setattr(requests, "TIMEOUT", 0.2)
    remote.pause = 1
    assert "sent nothing for 0.2 s" in refusal(record)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes the connection, and that is all
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        assert "sent nothing for 0.2 s" in refusal(dataclasses.replace(record, urls=(url,)))


def test_nobody_there(record):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    said = refusal(dataclasses.replace(record, urls=(f"http://127.0.0.1:{port}/file",)))
    assert "can not be reached (Connection refused)" in said
    said = refusal(dataclasses.replace(record, urls=("http://no-such-host.invalid/file",)))
    assert "can not be reached" in said


def test_redirects(remote, record):
    with serve(Remote(moved=record.urls[0])) as old:
        assert download.fetch(dataclasses.replace(record, urls=(f"{old.address}/x",))).is_file()


def test_no_way_from_a_protected_address_to_an_unprotected_one(record, monkeypatch):
    class Opener:
        def open(self, *_, **__):
            answer = io.BytesIO(CONTENT)
            answer.geturl = lambda: "http://elsewhere.test/file"
            return answer

    monkeypatch.setattr("urllib.request.build_opener", lambda *_: Opener())
    said = refusal(dataclasses.replace(record, urls=("https://here.test/file",)))
    assert "https://here.test/file leads to an unprotected address (http://elsewhere.test/file)" in said


def test_no_proxy_for_this_machine(remote, record, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert download.fetch(record).is_file()


# ---------------------------------------------------------------- mirrors, offline, by hand


def test_a_mirror_goes_first(remote, record, monkeypatch):
    with serve(Remote(CONTENT)) as mirror:
        monkeypatch.setenv("STDC_FAST_MIRROR", f"{mirror.address}/copies/")
        download.fetch(record)
        assert mirror.asked == [(f"/copies/{record.name}/{record.file}", None)]
    assert remote.asked == []


def test_a_mirror_that_fails_is_passed_over(remote, record, monkeypatch, caplog):
    with serve(Remote(status=404)) as empty, serve(Remote(b"wrong")) as wrong:
        monkeypatch.setenv("STDC_FAST_MIRROR", f"{empty.address} {wrong.address}")
        assert download.fetch(record).read_bytes() == CONTENT
        assert ["404" in m or "wrong file" in m for m in caplog.messages] == [True, True]
        download.place(record).unlink()
        remote.status = 500
        said = refusal(record)
        assert said.index(empty.address) < said.index(wrong.address) < said.index(remote.address)


def test_a_part_of_a_mirror_is_not_gone_on_with_elsewhere(remote, record, monkeypatch):
    with serve(Remote(b"?" * len(CONTENT), stop_after=100_000)) as mirror:
        monkeypatch.setenv("STDC_FAST_MIRROR", mirror.address)
        assert download.fetch(record).read_bytes() == CONTENT
    assert remote.asked[0][1] is None


def test_a_mirror_gives_what_is_published_for_hands_only(remote, monkeypatch):
    record = registry.RECORDS[MANUAL]
    assert "no address that a program can fetch" in refusal(record)
    with pytest.raises(UserError, match="by hand") as caught:
        download.find(record)
    assert "download=True" not in str(caught.value)
    monkeypatch.setenv("STDC_FAST_MIRROR", remote.address)
    with pytest.raises(UserError, match=f"stdc-fast download {MANUAL}.*by hand"):
        download.find(record)
    assert download.fetch(record).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "mirror",
    [
        "ftp://a/b",
        "/a/folder",
        "http://",
        "http://a:port/",
        "http://[::1/",
        "http://a b",
        "http://u:p@a",
        "http://a/ä",
    ],
)
def test_a_mirror_that_is_no_address(mirror, record, monkeypatch):
    monkeypatch.setenv("STDC_FAST_MIRROR", mirror)
    with pytest.raises(UserError, match="STDC_FAST_MIRROR must hold http or https addresses"):
        download.fetch(record)


def test_offline(remote, record, monkeypatch):
    monkeypatch.setenv("STDC_FAST_OFFLINE", "1")
    assert "STDC_FAST_OFFLINE forbids" in refusal(record)
    assert remote.asked == []
    monkeypatch.setenv("STDC_FAST_OFFLINE", "maybe")
    with pytest.raises(UserError, match="STDC_FAST_OFFLINE must be 1 or 0, not 'maybe'"):
        download.fetch(record)
    monkeypatch.setenv("STDC_FAST_OFFLINE", "0")
    path = download.fetch(record)
    monkeypatch.setenv("STDC_FAST_OFFLINE", "TRUE")
    assert download.fetch(record) == path


def test_by_hand(remote, record, unhashed, caplog):
    path = download.place(record)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert download.fetch(record) == download.find(record) == path
    path.write_bytes(b"another file")
    for look in (download.find, download.fetch):
        with pytest.raises(UserError, match=f"{hashlib.sha256(b'another file').hexdigest()}.*{DIGEST[:8]}"):
            look(record)
    assert path.read_bytes() == b"another file"  # who put it there may want it
    assert caplog.messages == []
    assert download.find(unhashed) == path and "no hash is published" in caplog.text
    assert remote.asked == []


# ---------------------------------------------------------------- folders


@pytest.fixture
def open_home(monkeypatch):
    """An STDC_FAST_HOME that every user can read, but its owner only can write; tmp_path is root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv("STDC_FAST_HOME", folder)
        yield


def test_a_folder_that_can_not_be_written(open_home, record, unprivileged):
    download.place(record).parents[2].chmod(0o555)
    with unprivileged():
        assert "Permission denied); set STDC_FAST_HOME to another folder" in refusal(record)


def test_a_folder_that_can_not_be_written_serves_what_it_has(open_home, unhashed, unprivileged, caplog):
    path = download.place(unhashed)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    path.parent.chmod(0o555)
    with unprivileged():
        assert download.fetch(unhashed) == path
    path.parent.chmod(0o755)
    assert "not recorded" in caplog.text and files(unhashed) == [path.name]


def test_a_file_in_place_of_the_folder(record, home):
    home.write_text("")
    with pytest.raises(UserError, match=r"can not be written.*set STDC_FAST_HOME"):
        download.fetch(record)


def test_no_space(remote, record, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=100_000))
    with pytest.raises(UserError, match=r"0\.3 MB do not fit into .*which has 0\.1 MB; make room"):
        download.fetch(record)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_space_that_ends_meanwhile(remote, record):
    part(record).parent.mkdir(parents=True)
    part(record).symlink_to("/dev/full")
    assert "No space left on device" in refusal(record)


def test_the_folder(monkeypatch, tmp_path, record):
    monkeypatch.setenv("STDC_FAST_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert download.place(record).parents[2] == tmp_path / "x" / "stdc_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification has ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.place(record).parents[2] == tmp_path / ".cache" / "stdc_fast"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert download.place(record).parents[2] == tmp_path / "Library" / "Caches" / "stdc_fast"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert download.place(record).parents[2] == tmp_path / "local" / "stdc_fast"
    monkeypatch.setenv("STDC_FAST_HOME", "~/weights")
    assert download.place(record).parents[2] == tmp_path / "weights"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STDC_FAST_HOME", "weights")
    assert download.place(record).parents[2] == tmp_path / "weights"
    monkeypatch.setenv("STDC_FAST_HOME", "~nobody-of-that-name/weights")
    with pytest.raises(UserError, match="set STDC_FAST_HOME"):
        download.fetch(record)
    assert download.status(record) == "download"


# ---------------------------------------------------------------- several at once


def test_threads_at_once(remote, record, caplog):
    remote.pause = 0.02
    found, start = [], threading.Barrier(3)

    def fetch():
        start.wait()
        found.append(download.fetch(record))

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [download.place(record)] * 3
    assert len(remote.asked) == 1 and remote.sent == len(CONTENT)
    assert sum("waiting for another download" in m for m in caplog.messages) == 2


def program(*arguments, home, mirror):
    """``stdc-fast ARGUMENTS`` as a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"PYTHONPATH": str(ROOT), "STDC_FAST_HOME": str(home), "STDC_FAST_MIRROR": mirror}
    return subprocess.Popen(
        [sys.executable, "-m", "stdc_fast", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_processes_at_once(remote, home):
    remote.pause = 0.1
    running = [program("download", MANUAL, home=home, mirror=remote.address) for _ in range(2)]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out == f"{home / 'models' / MANUAL / FILE}: {len(CONTENT) / 1e6:.1f} MB, sha256 {DIGEST}\n"
    assert [r for _, r in remote.asked] == [None]


def test_killed_half_way_and_resumed(remote, home):
    remote.pause, remote.block = 0.01, 1000
    process = program("download", MANUAL, home=home, mirror=remote.address)
    path = part(registry.RECORDS[MANUAL])
    deadline = time.monotonic() + 100
    while not (path.exists() and path.stat().st_size > 50_000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    kept = path.stat().st_size
    assert 50_000 <= kept < len(CONTENT)
    assert path.read_bytes() == CONTENT[:kept]
    assert json.loads(path.with_name(path.name + ".json").read_text())["etag"] == '"1"'
    remote.pause, remote.block = 0, 1 << 14
    process = program("download", MANUAL, "-q", home=home, mirror=remote.address)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert DIGEST in out
    assert [r for _, r in remote.asked] == [None, f"bytes={kept}-"]
    assert path.with_suffix("").read_bytes() == CONTENT


def test_an_interrupted_download_leaves_its_part(remote, record, monkeypatch):
    blocks = iter([CONTENT[:1000]])

    def block(_):
        for one in blocks:
            return one
        raise KeyboardInterrupt

    monkeypatch.setattr(requests, "block", block)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(record)
    assert part(record).read_bytes() == CONTENT[:1000]
