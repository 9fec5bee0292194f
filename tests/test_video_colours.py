"""Colours of videos: the engine's and FFmpeg's conversion beside float64, and what is guessed."""

import logging

import numpy as np
import pytest
from videos import av

from stdc_fast import UserError, _native, video
from stdc_fast.video import colour, hdr

MATRIX = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
SHAPES = {"420": (2, 2), "422": (2, 1), "444": (1, 1), "nv12": (2, 2), "nv16": (2, 1), "p010": (2, 2)}
TAGS = {"bt601": 6, "bt709": 1, "bt2020": 9}


def enlarged(chroma, shape, ratio, centred):
    """Bilinear, with the edges repeated."""
    for axis, centre in ((0, True), (1, centred)):
        if shape[axis] != chroma.shape[axis] or ratio[1 - axis] == 2:
            at = np.clip((np.arange(shape[axis]) - centre / 2) / 2, 0, chroma.shape[axis] - 1)
            low = at.astype(int)
            high = np.minimum(low + 1, chroma.shape[axis] - 1)
            share = (at - low)[:, None] if axis == 0 else at - low
            chroma = np.take(chroma, low, axis) * (1 - share) + np.take(chroma, high, axis) * share
    return chroma


def expected(y, u, v, ratio, matrix, full, centred, bits):
    """RGB float64 by the definition in ITU-T H.273."""
    red, blue = MATRIX[matrix]
    unit = 2 ** (bits - 8)
    black, luma, chroma = (0, 2**bits - 1, 2**bits - 1) if full else (16 * unit, 219 * unit, 224 * unit)
    y = (y.astype(float) - black) / luma
    u, v = ((enlarged(c.astype(float), y.shape, ratio, centred) - 128 * unit) / chroma for c in (u, v))
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    return 255 * np.clip(np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], -1), 0, 1)


def make_frame(name, height, width, matrix="bt709", full=False):
    """(Frame, Y, U, V) of random samples; padding between the rows is something else."""
    kind = next(k for k in SHAPES if k in name)
    ratio = SHAPES[kind]
    bits = 10 if "10" in name else 8
    dtype = np.uint16 if bits > 8 else np.uint8
    rng = np.random.default_rng(0)
    rows, columns = -(-height // ratio[1]), -(-width // ratio[0])
    y, u, v = (
        rng.integers(0, 2**bits, shape).astype(dtype)
        for shape in ((height, width), (rows, columns), (rows, columns))
    )
    shift = 6 if kind == "p010" else 0
    planes = [y, u, v] if not kind.startswith(("nv", "p0")) else [y, np.stack([u, v], -1).reshape(rows, -1)]
    frame = av.VideoFrame(width, height, name)
    for plane, values in zip(frame.planes, planes, strict=True):
        raw = np.full((plane.height, plane.line_size // dtype().itemsize), 77, dtype)
        raw[: values.shape[0], : values.shape[1]] = values << shift
        plane.update(raw.tobytes())
    frame.colorspace, frame.color_range = TAGS[matrix], 2 if full else 1
    return frame, y, u, v, ratio, bits


FORMATS = (
    "yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "nv16", "yuv420p10le", "yuv422p10le", "p010le",
)  # fmt: skip


@pytest.mark.parametrize("size", [(64, 96), (37, 131)])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("matrix", "full"), [("bt601", False), ("bt709", True), ("bt2020", False)])
def test_the_engine(matrix, full, name, size):
    if _native.why_not():
        pytest.skip("there is no native module")
    if size[1] % 2 and name in ("nv12", "nv16", "p010le"):
        size = (38, 130)
    frame, y, u, v, ratio, bits = make_frame(name, *size, matrix, full)
    full, centred = full or name.startswith("yuvj"), name.startswith("yuvj")
    right = expected(y, u, v, ratio, matrix, full, centred, bits)
    assert np.abs(video.colour.Colours("a").rgb(frame) - right).max() < 0.51  # rounded to the nearest


def test_every_instruction_set(monkeypatch):
    if _native.why_not():
        pytest.skip("there is no native module")
    for isa in _native.module().isas():
        monkeypatch.setenv("STDC_FAST_CPU_ISA", isa)
        for name in ("yuv420p", "yuv420p10le", "nv12"):
            frame, y, u, v, ratio, bits = make_frame(name, 38, 202)
            right = expected(y, u, v, ratio, "bt709", False, False, bits)
            assert np.abs(colour.Colours("a").rgb(frame) - right).max() < 0.51, isa
        with pytest.raises(ValueError, match="is too short"):
            plane = bytes(37 * 202), 0, 202
            half = bytes(19 * 101), 0, 101
            numbers = colour.coefficients("bt709", False)
            rgb = np.zeros((38, 202, 3), np.uint8)
            _native.module().yuv_to_rgb([plane, half, half], rgb, (2, 2), 1, False, False, numbers)


@pytest.mark.parametrize("name", ["yuv420p", "yuv422p", "nv12"])
def test_ffmpeg_where_there_is_no_engine(name, monkeypatch):
    """Its chroma is not quite bilinear, so the frame has smooth colours."""
    monkeypatch.setattr(_native, "why_not", lambda: "hidden")
    frame = make_frame(name, 64, 96)[0]
    for plane, value in zip(frame.planes, (120, 90, 170), strict=False):
        plane.update(bytes([value]) * plane.buffer_size)
    for matrix, full in (("bt601", False), ("bt709", False), ("bt709", True), ("bt2020", False)):
        frame.colorspace, frame.color_range = TAGS[matrix], 2 if full else 1
        grey = [np.full((2, 2), value) for value in (120, 90, 170 if name != "nv12" else 90)]
        right = expected(*grey, (1, 1), matrix, full, False, 8)[0, 0]
        assert np.abs(colour.Colours("a").rgb(frame) - right).max() <= 1


def said(caplog, frame, **more):
    """(RGB, lines of the log) of a frame."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        colours = colour.Colours("a.mp4", **more)
        image = colours.rgb(frame)
        colours.rgb(frame)
    return image, [record.getMessage() for record in caplog.records]


def test_what_is_guessed(caplog):
    for size, matrix in (((576, 1024), "bt601"), ((578, 64), "bt709"), ((64, 1026), "bt709")):
        frame, *rest = make_frame("yuv420p", *size)
        frame.colorspace = 2
        image, lines = said(caplog, frame)
        assert np.abs(image - expected(*rest[:4], matrix, False, False, 8)).max() < 0.51 or _native.why_not()
        assert len(lines) == (matrix == "bt709")
        for line in lines:
            assert "does not say its colour matrix; BT.709 is taken" in line
            assert 'matrix="bt601" overrules that' in line
        overruled, lines = said(caplog, frame, matrix="bt2020")
        frame.colorspace = 9
        assert np.array_equal(overruled, said(caplog, frame)[0])
        assert lines == []
    frame.colorspace, frame.color_primaries = 2, 6  # those of BT.601 say it as well
    guessed = said(caplog, frame)
    frame.colorspace = 6
    assert np.array_equal(guessed[0], said(caplog, frame)[0])
    assert guessed[1] == []
    frame.colorspace, frame.color_primaries = 2, 2
    assert said(caplog, frame, camera=True)[1] == []


def test_colours_that_are_refused():
    frame = make_frame("yuv420p", 64, 96)[0]
    frame.colorspace = 14  # ICtCp
    with pytest.raises(UserError, match=r"a\.mp4: its colours have matrix 14 .*ffmpeg -i IN"):
        colour.Colours("a.mp4").rgb(frame)
    with pytest.raises(UserError, match="matrix must be one of bt601, bt709, bt2020, not 'bt470'"):
        colour.Colours("a.mp4", matrix="bt470")


def test_high_dynamic_range():
    """Values of ITU-R BT.2100 and BT.2408: white is 58 % of PQ and 75 % of HLG, and stays nearly white."""
    for transfer, white, black in ((hdr.PQ, 0.5807, 0.0), (hdr.HLG, 0.75, 0.0)):
        found = hdr.to_sdr(np.array([[white] * 3, [black] * 3, [1.0] * 3]), transfer, 9)
        assert np.allclose(found[0], 0.979, atol=0.005)
        assert np.allclose(found[1:], [[0] * 3, [1] * 3], atol=1e-6)
    assert hdr.to_sdr(np.array([0.5] * 3), hdr.PQ, 9) == pytest.approx((92.25 / 203) ** (1 / 2.4), rel=1e-3)
    # Half grey of HLG: 1 / 12 of the scene's light, with the system's gamma of 1.2.
    assert hdr.to_sdr(np.array([0.5] * 3), hdr.HLG, 9) == pytest.approx(
        (1000 / 203 * (1 / 12) ** 1.2) ** (1 / 2.4), rel=1e-6
    )
    # Wide gamut: white stays white, and what both can show is less saturated in the wider one.
    assert hdr.to_sdr(np.ones(3), 1, 9) == pytest.approx(1, abs=1e-3)
    assert hdr.to_sdr(np.array([0.7, 0.3, 0.3]), 1, 9)[0] > 0.72


@pytest.mark.parametrize("transfer", [hdr.PQ, hdr.HLG, 1])
def test_the_table_is_close_to_the_formula(transfer):
    frame, *rest = make_frame("yuv420p10le", 64, 96, "bt2020")
    for i in range(2):  # a smooth picture, with colours that exist
        values = np.add.outer(np.arange(32), np.arange(48)) + 430 + 30 * i
        raw = np.zeros((frame.planes[1].height, frame.planes[1].line_size // 2), np.uint16)
        raw[:, :48] = rest[1 + i][:] = values
        frame.planes[1 + i].update(raw.tobytes())
    frame.color_primaries, frame.color_trc = 9, transfer
    encoded = expected(*rest[:4], "bt2020", False, False, 10) / 255
    right = 255 * hdr.to_sdr(encoded, transfer, 9)
    image = colour.Colours("a").rgb(frame)
    assert np.abs(image - right).mean() < 1
