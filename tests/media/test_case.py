"""Which programs count as the tools: by what they say, not by their names alone."""

import pytest

from tests.media.case import version, why_not


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a program that prints a text in the place of all others."""
    monkeypatch.setenv("PATH", str(tmp_path))
    version.cache_clear()

    def make(name, says, code=0):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
        path.chmod(0o755)
        return path

    yield make
    version.cache_clear()


@pytest.mark.parametrize(
    ("name", "says", "found"),
    [
        ("convert", "Version: ImageMagick 6.9.11-60", "Version: ImageMagick 6.9.11-60"),
        ("ffmpeg", "ffmpeg version 5.1.9 Copyright", "ffmpeg version 5.1.9 Copyright"),
        ("exiftool", "12.57", "exiftool 12.57"),
    ],
)
def test_a_tool_is_known_by_its_words(name, says, found, program):
    program(name, says)
    assert version(name) == found and why_not(name) is None


@pytest.mark.parametrize(
    ("name", "says", "code", "whose"),
    [
        ("convert", "GraphicsMagick 1.4", 0, "ImageMagick"),
        ("convert", "this stands in for ImageMagick", 1, "ImageMagick"),
        ("ffmpeg", "avconv version 12", 0, "FFmpeg"),
        ("exiftool", "usage: exiftool", 0, "ExifTool"),
    ],
)
def test_another_program_of_that_name_is_none(name, says, code, whose, program):
    path = program(name, says, code)
    assert version(name) is None
    assert why_not(name) == f"{path} is not {whose}'s {name}"


def test_what_is_not_there(program):
    assert [why_not(name) for name in ("convert", "nothing")] == ["no convert", "no nothing"]
