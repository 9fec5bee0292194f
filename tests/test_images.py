"""Reading images: formats, orientation, damage, and the sources that ``predict`` takes."""

import io
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from stdc_fast import UserError, images, listing
from stdc_fast.colour import to_srgb
from stdc_fast.images import normalise

# What EXIF orientation 1..8 means for the stored pixels (EXIF 2.3, tag 0x0112).
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def jpeg(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def one_line(error):
    """The message, after checking that it is a single line that the command line can print."""
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_files_come_back_exactly(suffix, photo, tmp_path):
    array = photo()
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(array).save(path, lossless=True)
    read = images.read_image(path)
    assert read.dtype == np.uint8
    assert np.array_equal(read, array)
    assert np.array_equal(images.read_image(str(path)), array)


def test_grey_is_repeated(photo, tmp_path):
    grey = photo()[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(images.read_image(tmp_path / "a.png"), np.stack([grey] * 3, 2))


def test_alpha_is_dropped_not_blended(photo, tmp_path):
    array = photo()
    alpha = photo(seed=1)[:, :, 0]
    Image.fromarray(np.dstack([array, alpha])).save(tmp_path / "a.png")
    assert np.array_equal(images.read_image(tmp_path / "a.png"), array)
    Image.fromarray(np.dstack([array[:, :, 0], alpha])).save(tmp_path / "la.png")
    assert np.array_equal(images.read_image(tmp_path / "la.png"), np.stack([array[:, :, 0]] * 3, 2))


def test_palette_is_looked_up(photo, tmp_path):
    picture = Image.fromarray(photo()).quantize(17)
    picture.save(tmp_path / "a.png")
    read = images.read_image(tmp_path / "a.png")
    table = np.array(picture.getpalette()).reshape(-1, 3)
    assert np.array_equal(read, table[np.asarray(picture)])


def test_black_and_white(tmp_path):
    bits = np.random.default_rng(0).random((40, 50)) < 0.5
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "1"
    assert np.array_equal(images.read_image(tmp_path / "a.png")[:, :, 1], bits * 255)


def test_cmyk_jpeg_has_the_right_colours(tmp_path):
    array = np.empty((64, 96, 3), np.uint8)
    array[:, :48], array[:, 48:] = (200, 40, 90), (20, 160, 220)
    Image.fromarray(array).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    # An inverted channel, the usual mistake, would be off by a hundred.
    assert np.abs(images.read_image(tmp_path / "a.jpg").astype(int) - array).mean() < 4


def test_sixteen_bits_use_the_whole_range(tmp_path):
    values = np.linspace(0, 65535, 64 * 96).reshape(64, 96).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    read = images.read_image(tmp_path / "a.png")
    assert np.array_equal(read[:, :, 0], np.round(values / 257.0))
    assert np.array_equal(read[:, :, 0], read[:, :, 2])
    # A dark one may have fewer bits: it stays dark where that is asked for.
    Image.fromarray(values // 512).save(tmp_path / "dark.png")
    with pytest.raises(UserError, match=r"dark.png: .* 0 to 127 of 65535 .*range=\(0, 255\) or \(0, 65535\)"):
        images.read_image(tmp_path / "dark.png")
    assert images.read_image(tmp_path / "dark.png", (0, 65535)).max() == 0
    assert images.read_image(tmp_path / "dark.png", (0, 127)).max() == 255


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation(orientation, photo, tmp_path):
    array = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path, exif=exif)
    expected = ORIENTATIONS[orientation](array)
    assert np.array_equal(images.read_image(path), expected)
    with Image.open(path) as picture:
        assert np.array_equal(to_srgb(picture), expected)
        assert picture.size == (96, 64)  # the caller's object is not turned
        assert picture.getexif()[0x0112] == orientation


def odd_images(photo):
    """(name, bytes) of images that are fine but make Pillow warn."""
    palette = Image.fromarray(photo()).quantize(256)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=bytes(range(256)))
    yield "palette with transparency", buffer.getvalue()
    broken_exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x01\0\0\0"
    yield "damaged EXIF", jpeg(photo(), exif=broken_exif)


@pytest.mark.parametrize("index", [0, 1])
def test_harmless_oddities_are_read_without_a_warning(index, photo, tmp_path):
    name, content = list(odd_images(photo))[index]
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert images.read_image(path).shape == (64, 96, 3)
    assert not [str(w.message) for w in caught], name


# ---------------------------------------------------------------- damage


def damaged(folder, photo, huge_png):
    """Files that must be refused: name to what the message must say."""
    whole = jpeg(photo(200, 300), quality=95)
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not an image\n")
    (folder / "zero.png").write_bytes(b"")
    (folder / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("RGB", (16, 16)).save(folder / "small.png")
    Image.new("RGB", (400, 31)).save(folder / "flat.png")
    huge_png(folder / "huge.png", 60000, 60000)
    huge_png(folder / "large.png", 9000, 9000)  # below Pillow's own limit
    (folder / "folder.png").mkdir()
    return {
        "truncated.jpg": "can not be decoded",
        "text.jpg": "not an image",
        "zero.png": "empty",
        "header.png": "not an image|can not be decoded",
        "small.png": "16x16 is too small.*32",
        "flat.png": "400x31 is too small.*32",
        "huge.png": "more than 64 million pixels|3600.0 million pixels",
        "large.png": "9000x9000 has 81.0 million pixels",
        "folder.png": "is a folder",
        "missing.png": "no such file",
    }


def test_damaged_files_are_refused_in_one_line(photo, huge_png, tmp_path):
    for name, reason in damaged(tmp_path, photo, huge_png).items():
        start = time.process_time()
        with pytest.raises(UserError, match=reason) as error:
            images.read_image(tmp_path / name)
        assert name in one_line(error)
        # Decoding 60000x60000 would take ten gigabytes and minutes.
        assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".jpg", "x" * 5000, "a\0b.jpg"], ids=["file too long", "path too long", "NUL"]
)
def test_impossible_names_are_refused(name):
    with pytest.raises(UserError) as error:
        files, _ = listing.expand(name)
        images.read_image(files[0])
    assert name[:100] in one_line(error)


def test_forbidden_files_and_folders_are_refused(photo, tmp_path, unprivileged):
    inside = tmp_path / "private"
    inside.mkdir()
    Image.fromarray(photo()).save(inside / "a.png")
    inside.chmod(0)
    try:
        with unprivileged():
            for path in (inside / "a.png", inside):
                with pytest.raises(UserError, match="private") as error:
                    files, _ = listing.expand(path)
                    images.read_image(files[0])
                one_line(error)
    finally:
        inside.chmod(0o755)


def test_damaged_pil_images_are_refused(photo):
    """Pillow decodes at first use, so an opened image can be damaged or huge as well."""
    whole = jpeg(photo(200, 300), quality=95)
    with pytest.raises(UserError, match="decoded") as error:
        images.open_item(Image.open(io.BytesIO(whole[: len(whole) // 2])), "image")
    one_line(error)
    with pytest.raises(UserError, match="too small"):
        images.open_item(Image.new("RGB", (16, 16)), "image")


def test_a_huge_pil_image_is_refused_before_it_is_decoded(huge_png, tmp_path):
    picture = Image.open(huge_png(tmp_path / "large.png", 9000, 9000))
    with picture, pytest.raises(UserError, match=r"81\.0 million pixels"):
        images.open_item(picture, "image")


# ---------------------------------------------------------------- arrays and tensors


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 64, 96), np.uint8), r"uint8 \[2, 64, 96\]"),
        (np.zeros((64, 96, 3), np.complex64), "complex64"),
        (np.zeros((64, 96, 4), np.uint8), r"\[64, 96, 4\]"),
        (np.zeros((3, 64, 96), np.uint8), r"\[3, 64, 96\]"),
        (np.zeros((31, 96, 3), np.uint8), "96x31 is too small"),
        (np.zeros((65537, 32, 3), np.uint8), "32x65537: a side has at most 65536 pixels"),
        (np.broadcast_to(np.uint8(0), (9000, 9000, 3)), "81.0 million"),
    ],
)
def test_wrong_arrays_are_refused(array, reason):
    with pytest.raises(UserError, match=reason) as error:
        images.check_array(array, "item 3")
    assert "item 3" in one_line(error)


def test_grey_and_deeper_arrays(photo):
    array = photo()
    grey = array[:, :, 0]
    assert np.array_equal(images.check_array(grey, "a", bgr=True), np.stack([grey] * 3, 2))
    assert np.array_equal(images.check_array(array.astype(np.uint16) * 257, "a"), array)
    for values, range in (
        (array * 16.0, (0, 4080)),
        (array / 255, (0, 1)),
        (array.astype(np.uint16) * 16, (0, 4080)),
    ):
        assert np.array_equal(images.check_array(values, "a", range=range), array)
        assert np.array_equal(images.check_array(values, "a", True, range), array[:, :, ::-1])


def test_raw_float_tensors_need_their_range(photo):
    array = photo()
    for tensor in (torch.tensor(array) / 255, torch.tensor(array).permute(2, 0, 1)[None].bfloat16() / 255):
        (found,) = images.tensor_images(tensor, range=(0, 1))
        assert np.abs(found.astype(int) - array).max() <= (1 if tensor.dtype == torch.bfloat16 else 0)


def test_bgr_reverses_the_channels(photo):
    array = photo()
    assert np.array_equal(images.check_array(array, "a", bgr=True), array[:, :, ::-1])
    assert images.check_array(array, "a").shape == array.shape


def test_tensors_of_every_layout_give_the_same_images(photo):
    batch = np.stack([photo(seed=0), photo(seed=1)])
    hwc = torch.from_numpy(batch)
    chw = hwc.permute(0, 3, 1, 2)
    for tensor in (hwc, chw, chw.contiguous()):
        for found, expected in zip(images.tensor_images(tensor), batch, strict=True):
            assert np.array_equal(found, expected)
        (single,) = images.tensor_images(tensor[1])
        assert np.array_equal(single, batch[1])
        (reversed_,) = images.tensor_images(tensor[1], bgr=True)
        assert np.array_equal(reversed_, batch[1][:, :, ::-1])


def test_float_tensors_are_passed_on(photo):
    x = normalise(torch.from_numpy(photo())[None])
    for tensor in (x, x[0]):
        (found,) = images.tensor_images(tensor)
        assert torch.equal(found, x[0])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(64, 96),
        torch.zeros(64, 96, 3),  # float is [3, H, W] only: the network's own layout
        torch.zeros(1, 1, 3, 64, 96),
        torch.zeros(3, 64, 96, dtype=torch.int64),
        torch.zeros(3, 64, 96, dtype=torch.bool),
        torch.zeros(1, 64, 96, dtype=torch.uint8),
        torch.zeros(4, 64, 96, dtype=torch.uint8),
        torch.zeros(3, 16, 96),
        torch.zeros(3, 16, 96, dtype=torch.uint8),
    ],
    ids=lambda t: f"{t.dtype}{list(t.shape)}",
)
def test_wrong_tensors_are_refused(tensor):
    with pytest.raises(UserError, match=str(tensor.shape[-1])) as error:
        images.tensor_images(tensor)
    one_line(error)


def test_bgr_is_refused_for_normalised_tensors():
    with pytest.raises(UserError, match="bgr"):
        images.tensor_images(torch.zeros(3, 64, 96), bgr=True)


def test_denormalise_undoes_normalise(photo):
    array = photo()
    for dtype in (torch.float32, torch.float64):
        x = normalise(torch.from_numpy(array)[None], dtype)
        assert np.array_equal(images.denormalise(x[0]), array)
    assert images.denormalise(torch.full((3, 2, 2), 1e9)).min() == 255
    assert images.denormalise(torch.full((3, 2, 2), float("nan"))).dtype == np.uint8


# ---------------------------------------------------------------- folders, globs, lists


@pytest.fixture
def folder(photo, tmp_path):
    for name in ("b.png", "a.JPG", "c.jpeg", ".hidden.png", "deep/d.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo()).save(path)
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / "drive.mp4").write_text("x")
    (tmp_path / "in" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "in" / "trap.png").mkdir()
    (tmp_path / "empty").mkdir()
    return tmp_path / "in"


def names(paths):
    return [p.name for p in paths]


def test_a_folder_gives_its_images_in_order(folder):
    files, several = listing.expand(folder)
    assert names(files) == ["a.JPG", "b.png", "c.jpeg"]
    assert several
    assert listing.expand(str(folder)) == (files, True)


def test_what_a_folder_has_besides_is_named(folder, caplog):
    listing.expand(folder)
    (line,) = caplog.messages
    named = "drive.mp4 (a video, which goes by its own name), gone.jpg, notes.txt"
    assert line == f"{folder}/: 3 files are not taken: {named}"
    listing.expand(folder)
    assert len(caplog.messages) == 1


def test_folders_give_all_kinds_of_pictures(photo, tmp_path):
    kinds = ("avif", "jfif", "jpe", "jp2", "ppm", "gif", "tga", "qoi", "bmp", "webp", "tiff")
    for kind in kinds:
        Image.fromarray(photo()).save(tmp_path / f"a.{kind}")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    film = [Image.fromarray(photo(seed=i)) for i in range(2)]
    film[0].save(tmp_path / "film.gif", save_all=True, append_images=film[1:])  # a video
    files, _ = listing.expand(tmp_path)
    assert names(files) == sorted(f"a.{kind}" for kind in kinds)
    assert all(images.read_image(file).shape == (64, 96, 3) for file in files)


def test_a_glob_gives_what_matches(folder):
    assert names(listing.expand(f"{folder}/*.png")[0]) == ["b.png"]
    assert listing.expand(f"{folder}/*.png")[1]
    assert names(listing.expand(f"{folder}/**/*.png")[0]) == ["b.png", "d.png"]
    assert names(listing.expand(f"{folder}/[ab].*")[0]) == ["a.JPG", "b.png"]


def test_a_file_is_itself_even_with_brackets_in_its_name(folder, photo):
    assert listing.expand(folder / "b.png") == ([folder / "b.png"], False)
    odd = folder / "x[1].png"
    Image.fromarray(photo()).save(odd)
    assert listing.expand(str(odd)) == ([odd], False)


@pytest.mark.parametrize("source", ["../empty", "*.gif", "nowhere/*"])
def test_nothing_found_is_an_error(source, folder):
    with pytest.raises(UserError) as error:
        listing.expand(folder / source)
    assert source in one_line(error)


def test_names_of_items(folder, photo):
    def found(source):
        items, several = images.iterate(source)
        return [name for name, _ in items], several

    array, path = photo(), folder / "b.png"
    assert found(path) == ([str(path)], False)
    assert found(str(folder)) == ([str(folder / n) for n in ("a.JPG", "b.png", "c.jpeg")], True)
    assert found(array) == (["array"], False)
    assert found(np.stack([array, array])) == (["array[0]", "array[1]"], True)
    assert found(torch.from_numpy(array)) == (["tensor"], False)
    assert found(torch.from_numpy(array)[None]) == (["tensor[0]"], True)
    assert found(Image.fromarray(array)) == (["image"], False)
    with Image.open(path) as picture:
        assert found(picture) == ([str(path)], False)
    assert found([array, str(path), Image.fromarray(array)]) == (["item 0", str(path), "item 2"], True)
    assert found((array,)) == (["item 0"], True)
    assert found(iter([array])) == (["item 0"], True)


@pytest.mark.parametrize("source", [None, 3, {"a": 1}, object()])
def test_other_types_are_refused(source):
    with pytest.raises(UserError, match=type(source).__name__):
        images.iterate(source)


def test_relative_paths_stay_relative(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert [str(p) for p in listing.expand(".")[0]] == ["a.JPG", "b.png", "c.jpeg"]
    assert [str(p) for p in listing.expand("b.png")[0]] == ["b.png"]
    assert [str(p) for p in listing.expand("*.png")[0]] == ["b.png"]
