"""Files are written whole, where they were asked for, or not at all."""

import os

import pytest

from stdc_fast.errors import UserError
from stdc_fast.files import writable, write_atomic


def write(path):
    path.write_text("new")


def test_a_link_stays_one(tmp_path):
    target, link = tmp_path / "there" / "file.txt", tmp_path / "link.txt"
    target.parent.mkdir()
    link.symlink_to(target)
    for there in (False, True):
        assert writable(link) == there and target.exists() == there
        write_atomic(link, write)
        assert link.is_symlink() and target.read_text() == "new"
    assert os.listdir(target.parent) == ["file.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_devices_and_pipes_are_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, said in (("pipe", "a device or a pipe"), ("folder", "a folder")):
        for act in (lambda path: write_atomic(path, write), writable):
            with pytest.raises(UserError, match=f"can not be written .it is {said}.; choose another place"):
                act(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo() and sorted(os.listdir(tmp_path)) == ["folder", "pipe"]
