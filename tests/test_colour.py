"""Colours become sRGB: profiles, codes, gamma, EXIF; damaged and HDR ones are said."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from stdc_fast import UserError, colour, errors
from stdc_fast.images import read_image

P3 = colour._PRIMARIES[12]
#: Linear P3 to linear sRGB (CSS Color 4).
P3_TO_SRGB = np.array(
    [[1.2249401, -0.2249402, 0], [-0.0420569, 1.0420571, 0], [-0.0196376, -0.0786361, 1.0982735]]
)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(errors, "_said", type(errors._said)(maxlen=4))


def stored(array, kind="PNG", **save):
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, kind, **save)
    return buffer.getvalue()


def with_chunks(png, **chunks):
    """A PNG with more chunks behind its header."""
    parts = b""
    for kind, data in chunks.items():
        kind = kind.encode()
        parts += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + parts + png[33:]


def light(values):
    x = values / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def values(linear):
    x = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)
    return np.clip(np.rint(x * 255), 0, 255)


def apart(found, expected):
    return np.abs(found.astype(int) - expected).max()


@pytest.fixture
def expected(photo):
    """The photo's values as those of Display P3, in sRGB."""
    return values(light(photo()) @ P3_TO_SRGB.T)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_a_profile_is_converted(kind, photo, expected):
    profile = colour._made(P3, None)
    save = (
        {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    )
    if kind == "AVIF":
        save = {"quality": 100, "subsampling": "4:4:4"}
    found = read_image(stored(photo(), kind, icc_profile=profile, **save))
    assert np.abs(found - expected).mean() < (1.5 if kind in ("AVIF", "JPEG") else 0.4)
    assert np.abs(photo() - expected).mean() > 5


def test_a_made_profile_is_what_its_numbers_say(photo, expected):
    assert apart(read_image(stored(photo(), icc_profile=colour._made(P3, None))), expected) <= 1
    assert colour._made(colour._SRGB, None) is None
    for gamma in (1.0, 1.8, 2.2):
        found = read_image(stored(photo(), icc_profile=colour._made(colour._SRGB, gamma)))
        assert apart(found, values((photo() / 255) ** gamma)) <= 1


def test_srgb_is_left_as_it_is(photo):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert colour._transform(profile, "RGB") is None
    assert np.array_equal(read_image(stored(photo(), icc_profile=profile)), photo())


def test_grey_palette_and_alpha_have_profiles_too(photo, expected):
    profile, picture = colour._made(colour._SRGB, 1.8), Image.fromarray(photo())
    for mode in ("L", "LA", "P", "RGBA"):
        image = picture.convert(mode)
        plain = np.asarray(image.convert("L" if mode == "LA" else "RGB").convert("RGB"))
        buffer = io.BytesIO()
        image.save(buffer, "PNG", icc_profile=profile)
        assert apart(read_image(buffer.getvalue()), values((plain / 255) ** 1.8)) <= 1


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (b"no profile", "not used .it is damaged."),
        (colour._made(P3, None)[:200], "not used"),
        (
            colour._made(P3, None).replace(b"RGB ", b"CMYK", 1),
            "not used .*it is for CMYK colours, the picture has RGB",
        ),
    ],
)
def test_profiles_that_can_not_be_used_are_said(profile, said, photo, caplog):
    assert np.array_equal(read_image(stored(photo(), icc_profile=profile), name="a.png"), photo())
    (line,) = caplog.messages
    assert line.startswith("a.png: its colour profile is ")
    assert re.search(said, line)


# ---------------------------------------------------------------- PNG


def test_png_codes(photo, expected, caplog):
    png = stored(photo())
    assert apart(read_image(with_chunks(png, cICP=bytes([12, 13, 0, 1]))), expected) <= 1
    assert np.array_equal(read_image(with_chunks(png, cICP=bytes([1, 13, 0, 1]))), photo())
    with pytest.raises(UserError, match=r"a.png: is an HDR picture .PQ."):
        read_image(with_chunks(png, cICP=bytes([9, 16, 0, 1])), name="a.png")
    with pytest.raises(UserError, match="HLG"):
        read_image(with_chunks(png, cICP=bytes([9, 18, 0, 1])))
    with pytest.raises(UserError, match="99/13"):
        read_image(with_chunks(png, cICP=bytes([99, 13, 0, 1])))
    assert not caplog.messages


def test_png_codes_go_before_its_profile(photo):
    png = stored(photo(), icc_profile=colour._made(P3, None))
    assert np.array_equal(read_image(with_chunks(png, cICP=bytes([1, 13, 0, 1]))), photo())


def points(*numbers):
    return struct.pack(">8I", *(round(1e5 * n) for n in numbers))


def test_png_gamma_and_chromaticities(photo, expected, caplog):
    png, srgb = stored(photo()), points(0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
    gamma = lambda g: struct.pack(">I", round(1e5 * g))  # noqa: E731
    assert np.array_equal(read_image(with_chunks(png, gAMA=gamma(0.45455))), photo())
    assert np.array_equal(read_image(with_chunks(png, gAMA=gamma(0.45455), cHRM=srgb)), photo())
    assert apart(read_image(with_chunks(png, gAMA=gamma(1))), values(photo() / 255)) <= 1
    assert apart(read_image(with_chunks(png, cHRM=points(*P3[6:], *P3[:6]))), expected) <= 1
    # sRGB goes first.
    assert np.array_equal(read_image(with_chunks(png, sRGB=b"\0", gAMA=gamma(1))), photo())
    assert not caplog.messages
    read = read_image(with_chunks(png, gAMA=gamma(0.6), cHRM=points(*[0.3] * 8)), name="a.png")
    assert np.array_equal(read, photo())
    (line,) = caplog.messages
    assert line == "a.png: its gamma or chromaticities are damaged; its colours are taken as sRGB"


# ---------------------------------------------------------------- other files


def test_hdr_profiles_are_refused(photo):
    profile = colour._made(P3, None)
    assert colour._codes_of_profile(profile) is None
    count = int.from_bytes(profile[128:132], "big")
    end = 132 + 12 * count
    entry = struct.pack(">4sII", b"cicp", len(profile) + 12, 12)
    hdr = profile[:128] + struct.pack(">I", count + 1) + profile[132:end] + entry + profile[end:]
    hdr += b"cicp\0\0\0\0\x09\x10\x00\x01"
    with pytest.raises(UserError, match=r"HDR picture .PQ."):
        read_image(stored(photo(), icc_profile=hdr))


def test_a_profile_in_jp2(photo, expected):
    """As ISO 15444-1 stores it; Pillow does not pass it on."""
    jp2 = stored(photo(), "JPEG2000", irreversible=False)
    at = jp2.index(b"colr") - 4
    length = int.from_bytes(jp2[at : at + 4], "big")
    body = b"colr\2\0\0" + colour._made(P3, None)
    box = struct.pack(">I", len(body) + 4) + body
    head = jp2.index(b"jp2h") - 4
    size = int.from_bytes(jp2[head : head + 4], "big") + len(box) - length
    changed = jp2[:head] + struct.pack(">I", size) + jp2[head + 4 : at] + box + jp2[at + length :]
    assert np.array_equal(read_image(jp2), photo())
    assert apart(read_image(changed), expected) <= 1


def test_adobe_rgb_by_exif(photo):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03", 2: b"0100"}
    plain = read_image(stored(photo(), "JPEG", quality=100, subsampling=0))
    found = read_image(stored(photo(), "JPEG", quality=100, subsampling=0, exif=exif))
    matrix = np.array([[1.3983557, -0.3983557, 0], [0, 1, 0], [0, -0.0429290, 1.0429290]])
    assert apart(found, values((plain / 255) ** (563 / 256) @ matrix.T)) <= 1
    exif.get_ifd(0x8769)[0xA005] = {1: "R98", 2: b"0100"}
    assert np.array_equal(read_image(stored(photo(), "JPEG", quality=100, subsampling=0, exif=exif)), plain)


def test_sixteen_bit_colours_that_are_dark_are_refused(photo):
    """Pillow keeps their high bytes: of 12 bits four are left."""
    header = struct.pack(">IIBBBBB", 96, 64, 16, 2, 0, 0, 0)

    def png(samples):
        rows = np.concatenate(
            [np.zeros((64, 1), np.uint8), samples.astype(">u2").view(np.uint8).reshape(64, -1)], 1
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
        )

    wide = photo().astype(np.uint16)
    assert np.array_equal(read_image(png(wide * 257)), photo())
    with pytest.raises(UserError, match="go to 15 of 255: 14 bits or fewer"):
        read_image(png(wide * 16))
    with pytest.raises(UserError, match="only the high bytes"):
        read_image(png(wide * 16), (0, 4095))
    assert read_image(png(wide * 0)).max() == 0


def test_a_range_holds_for_bytes_too(photo):
    """Of video's 16 to 235, for example."""
    limited = np.rint(16 + photo() * (219 / 255)).astype(np.uint8)
    assert apart(read_image(stored(limited), (16, 235)), photo()) <= 1


@pytest.mark.parametrize(
    ("kind", "largest", "said"),
    [
        ("P5", 4095, "says itself"),
        ("P5", 100, "says itself"),
        ("P6", 1000, "says itself"),
        ("P5", 255, "8 bits"),
    ],
)
def test_a_range_that_a_file_can_not_have_is_refused(kind, largest, said):
    """Pillow 13 has stretched what a PGM or PPM file says is white to 255 or 65535."""
    values = np.linspace(0, largest, 64 * 48 * (3 if kind == "P6" else 1)).round()
    content = f"{kind} 64 48 {largest}\n".encode() + values.astype(">u2" if largest > 255 else "u1").tobytes()
    assert read_image(content).max() == 255
    with pytest.raises(UserError, match=said):
        read_image(content, (0, 4095))


def test_a_range_of_grey_jp2_and_of_cmyk_is_refused(photo):
    deep = Image.fromarray(np.linspace(0, 65535, 64 * 48).round().astype(np.uint16).reshape(48, 64))
    with pytest.raises(UserError, match="says itself"):
        read_image(stored(deep, "JPEG2000"), (0, 4095))
    with pytest.raises(UserError, match="CMYK"):
        read_image(stored(Image.fromarray(photo()).convert("CMYK"), "JPEG"), (0, 100))
