"""Label files of every kind of pixel: ids and colours are read where they are certain, else refused."""

import numpy as np
import pytest
from PIL import Image

from stdc_fast.datasets.coding import Coding, UnknownValues, summary
from stdc_fast.errors import UserError

IDS = np.repeat(np.arange(3, dtype=np.uint8), 4 * 8).reshape(8, 12)
IDS[0, :2] = 255
PALETTE = np.array([(128, 64, 128), (64, 0, 128), (60, 60, 60)], np.uint8)
VALUES = {0: 0, 1: 1, 2: 2, 255: 255}
COLOURS = {**{tuple(c): i for i, c in enumerate(PALETTE.tolist())}, (0, 0, 0): 255}
BY_IDS, BY_COLOURS = Coding(VALUES), Coding({}, COLOURS)
COLOURED = np.vstack([PALETTE, np.zeros((253, 3), np.uint8)])[IDS]


def save(tmp_path, image, suffix=".png", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(tmp_path / f"l{suffix}", **options)
    return tmp_path / f"l{suffix}"


def palette_image(ids, palette):
    image = Image.fromarray(ids).convert("P")
    image.putpalette(np.vstack([palette, np.zeros((256 - len(palette), 3), np.uint8)]).tobytes())
    return image


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_ids_of_one_channel(tmp_path, suffix):
    assert np.array_equal(BY_IDS.read(save(tmp_path, IDS, suffix)), IDS)
    assert np.array_equal(BY_IDS.read(save(tmp_path, palette_image(IDS, PALETTE), suffix)), IDS)


def test_a_gif_has_colours_only(tmp_path):
    """Pillow itself leaves out colours that do not occur, and so numbers the others anew."""
    path = save(tmp_path, palette_image((IDS == 2).astype(np.uint8) * 2, PALETTE), ".gif", optimize=True)
    assert np.array_equal(BY_COLOURS.read(path), (IDS == 2) * 2)
    assert np.array_equal(Coding(VALUES, COLOURS).read(path), (IDS == 2) * 2)
    with pytest.raises(UserError, match="its values are no certain ids"):
        BY_IDS.read(path)


def test_ids_in_wider_files(tmp_path):
    wide = IDS.astype(np.uint16)
    grey = np.repeat(IDS[..., None], 3, 2)
    for image, suffix in ((wide, ".png"), (wide * 257, ".png"), (IDS.astype(np.int32), ".tif"),
                          (IDS.astype(np.float32), ".tif"), (grey, ".png")):  # fmt: skip
        assert np.array_equal(BY_IDS.read(save(tmp_path, image, suffix)), IDS), (image.dtype, suffix)
    alpha = np.dstack([grey, np.full_like(IDS, 255)])
    assert np.array_equal(BY_IDS.read(save(tmp_path, alpha)), IDS)
    assert np.array_equal(BY_IDS.read(save(tmp_path, grey, ".webp", lossless=True)), IDS)
    large = Coding({7: 0, 8: 1, 26001: 2, 0: 255})
    stored = np.array([7, 8, 26001], np.uint16)[IDS.clip(0, 2)]
    assert np.array_equal(large.read(save(tmp_path, stored)), IDS.clip(0, 2))


def test_declared_transparency_changes_no_ids(tmp_path):
    """Only an alpha channel is refused; a colour that PNG declares transparent is read as it is stored."""
    for image in (IDS, palette_image(IDS, PALETTE)):
        path = save(tmp_path, image, transparency=1)
        assert "transparency" in Image.open(path).info
        assert np.array_equal(BY_IDS.read(path), IDS)
    path = save(tmp_path, COLOURED, transparency=tuple(PALETTE[1].tolist()))
    assert np.array_equal(BY_COLOURS.read(path), IDS)


def test_ids_of_one_bit(tmp_path):
    """White is 1 where 1 is a class, else 255."""
    bits = IDS == 1
    path = save(tmp_path, Image.fromarray(bits))
    assert Image.open(path).mode == "1"
    assert np.array_equal(BY_IDS.read(path), bits)
    assert np.array_equal(Coding({0: 0, 255: 1}).read(path), bits)


def test_grey_of_four_bits(tmp_path):
    """Pillow scales its samples by 17, as some writers mean it; others store ids in them."""
    from struct import pack
    from zlib import compress, crc32

    def chunk(kind, data):
        return pack(">I", len(data)) + kind + data + pack(">I", crc32(kind + data))

    def write(*samples):
        rows = b"".join(b"\0" + bytes([a << 4 | b]) for a, b in samples)
        head = chunk(b"IHDR", pack(">IIBBBBB", 2, len(samples), 4, 0, 0, 0, 0))
        parts = head + chunk(b"IDAT", compress(rows)) + chunk(b"IEND", b"")
        (tmp_path / "l.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
        return tmp_path / "l.png"

    assert BY_IDS.read(write((0, 1), (2, 0))).tolist() == [[0, 1], [2, 0]]
    assert Coding({0: 0, 17: 1, 34: 2}).read(write((0, 1), (2, 0))).tolist() == [[0, 1], [2, 0]]
    both = Coding({i: i for i in range(40)})
    assert both.read(write((0, 0))).tolist() == [[0, 0]]
    with pytest.raises(UserError, match="grey of fewer than 8 bits"):
        both.read(write((0, 1)))


def test_palettes_of_greys(tmp_path):
    """Programs that shrink PNG make a palette of a grey file's levels, sorted as it compresses best.

    So does oxipng 9.1; tests/media has its file.
    """
    order = np.array([2, 255, 0, 1], np.uint8)
    numbers = np.argsort(order)[np.searchsorted(np.sort(order), IDS)].astype(np.uint8)
    assert np.array_equal(order[numbers], IDS) and not np.array_equal(numbers, IDS)
    shrunk = palette_image(numbers, np.repeat(order[:, None], 3, 1))
    path = save(tmp_path, shrunk)
    with pytest.raises(UserError, match=r"palette of greys.* write coding: greys .* coding: ids"):
        Coding(VALUES | {3: 255}).read(path)
    assert np.array_equal(Coding(VALUES).read(path), IDS)  # 3 is no class
    assert np.array_equal(Coding(VALUES | {3: 255}, only="greys").read(path), IDS)
    numbered = Coding({i: i for i in range(4)}, only="ids")
    assert np.array_equal(numbered.read(path), numbers)
    # Greys that are no ids say nothing against the numbers.
    shades = palette_image(IDS.clip(0, 2), np.array([[0] * 3, [90] * 3, [180] * 3], np.uint8))
    assert np.array_equal(BY_IDS.read(save(tmp_path, shades)), IDS.clip(0, 2))
    assert np.array_equal(BY_IDS.read(save(tmp_path, shrunk, ".gif")), IDS)


def test_colours(tmp_path):
    assert np.array_equal(BY_COLOURS.read(save(tmp_path, COLOURED)), IDS)
    plain = IDS.clip(0, 2)
    for palette in (PALETTE, PALETTE[::-1]):
        found = BY_COLOURS.read(save(tmp_path, palette_image(plain, palette)))
        assert np.array_equal(found, plain if palette is PALETTE else 2 - plain)
    # A file of which all colours are grey is stored as grey by some programs.
    grey = np.where(IDS == 2, 60, 0).astype(np.uint8)
    assert np.array_equal(BY_COLOURS.read(save(tmp_path, grey)) == 2, IDS == 2)


def test_ids_and_colours_that_differ(tmp_path):
    """A program may have numbered the colours of a palette anew."""
    both = Coding(VALUES, COLOURS)
    path = save(tmp_path, palette_image(IDS.clip(0, 2), PALETTE))
    assert np.array_equal(both.read(path), IDS.clip(0, 2))
    path = save(tmp_path, palette_image(IDS.clip(0, 2), PALETTE[::-1]))
    with pytest.raises(UserError, match=r"write coding: ids or coding: colours into data\.yaml"):
        both.read(path)
    assert np.array_equal(Coding(VALUES, COLOURS, "ids").read(path), IDS.clip(0, 2))
    assert np.array_equal(Coding(VALUES, COLOURS, "colours").read(path), 2 - IDS.clip(0, 2))
    # Colours that are no class's say nothing against ids.
    assert np.array_equal(both.read(save(tmp_path, palette_image(IDS, PALETTE + 1))), IDS)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".jpg", {"quality": 100}), (".webp", {"quality": 100}), (".tif", {"compression": "jpeg"})],
)
def test_lossy_files_are_refused(tmp_path, suffix, options):
    path = save(tmp_path, np.repeat(IDS[..., None], 3, 2), suffix, **options)
    for coding in (BY_IDS, BY_COLOURS):
        with pytest.raises(
            UserError, match=r"l\.\w+: labels are lossy (JPEG|WEBP|TIFF), .* export them as PNG"
        ):
            coding.read(path)


@pytest.mark.parametrize(
    ("coding", "image", "said"),
    [
        (BY_IDS, IDS + 1, r"32 pixels have the value 3 and 2 have 1 others|32 pixels have the value 3, "),
        (BY_IDS, COLOURED, "is a colour image, of 4 colours, and no colours of classes are known"),
        (
            BY_COLOURS,
            COLOURED + 1,
            'have the colour .* others, which is no class\'s and not ignored .* written "61 61 61", and mind',
        ),
        (BY_COLOURS, IDS, "have the colour 1 1 1 and 64 have 2 others|have the colour"),
        (BY_COLOURS, np.full((4, 4), 700, np.uint16), "16 pixels have the value 700"),
        (BY_IDS, IDS.astype(np.int32) - 1, "values from -1 to 254"),
        (BY_IDS, IDS + np.float32(0.5), "must be whole numbers"),
        (BY_IDS, np.dstack([IDS, IDS, IDS, IDS]), "transparent pixels"),
        (BY_IDS, Image.new("CMYK", (4, 4)), "not CMYK"),
    ],
)
def test_what_is_refused(tmp_path, coding, image, said):
    deep = getattr(image, "dtype", None) in (np.int32, np.float32) or getattr(image, "mode", "") == "CMYK"
    with pytest.raises(UserError, match=said) as refusal:
        coding.read(save(tmp_path, image, ".tif" if deep else ".png"))
    assert "\n" not in str(refusal.value)


def test_several_files_are_one_refusal(tmp_path):
    errors = []
    for value in (77, 77, 9):
        stored = IDS.copy()
        stored[7, : value // 9] = value
        with pytest.raises(UnknownValues) as refusal:
            BY_IDS.read(save(tmp_path, stored))
        errors.append(refusal.value)
    said = str(summary(errors, 5))
    assert "as 3 of 5 label files: 16 pixels have the value 77 and 1 have 1 others" in said
    assert "under mapping or ignore in data.yaml" in said
    assert summary(errors[:1], 5) is errors[0]


def test_a_label_file_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    path = save(tmp_path, Image.fromarray(IDS), exif=exif)
    assert np.array_equal(BY_IDS.read(path), IDS[::-1, ::-1])
