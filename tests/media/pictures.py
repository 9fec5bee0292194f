"""Pictures as cameras, editors and scientific tools write them, against the same picture stored plainly."""

from __future__ import annotations

import functools
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms

import stdc_fast

from .case import Case

PROFILES = Path("/usr/share/color/icc/ghostscript")  # Ghostscript's, which ImageMagick's package brings
#: JPEG of quality 98 without subsampling and AVIF of crf 8 in RGB change 0.3 and 0.5 % of the labels of the
#: plain photo. Converting adds less than that.
FLOOR = 0.99
#: Rows of P3's matrix from linear sRGB (CSS Color 4).
P3 = np.array([[0.8224622, 0.1775380, 0], [0.0331942, 0.9668058, 0], [0.0170826, 0.0723974, 0.9105199]])


@functools.cache
def model():
    return stdc_fast.load("stdc1_camvid", device="cpu", dtype="float32")


@functools.cache
def street() -> np.ndarray:
    """The embedded photo, RGB uint8 [512, 1024, 3]."""
    with Image.open(Path(stdc_fast.__file__).parent / "assets" / "street.jpg") as image:
        return np.asarray(image.convert("RGB").reduce(2))


@functools.cache
def grey() -> np.ndarray:
    return np.asarray(Image.fromarray(street()).convert("L"))


@functools.cache
def expected(kind: str) -> np.ndarray:
    return model().predict(street() if kind == "colour" else np.repeat(grey()[..., None], 3, 2)).labels


def agreement(source, kind: str = "colour", **options) -> float | str:
    """Share of equal labels, or the refusal."""
    try:
        result = model().predict(source, **options)
    except stdc_fast.UserError as error:
        return str(error)
    return float((result.labels == expected(kind)).mean())


def said(source, **options) -> str:
    """Refusals and lines of the log about a source."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("stdc_fast")
    log.addHandler(handler)
    try:
        model().predict(source, **options)
    except stdc_fast.UserError as error:
        lines.append(str(error))
    finally:
        log.removeHandler(handler)
    return "; ".join(lines) or "labelled without a word"


def linear(values: np.ndarray) -> np.ndarray:
    """Light 0..1 of sRGB bytes."""
    x = values / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def curve(light: np.ndarray) -> np.ndarray:
    """sRGB values 0..1 of light."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)


def as_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


def p3() -> np.ndarray:
    return as_bytes(curve(linear(street()) @ P3.T))


def run(*command) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def plain(folder: Path, array: np.ndarray | None = None) -> Path:
    Image.fromarray(street() if array is None else array).save(folder / "plain.png")
    return folder / "plain.png"


def profiled(profile: str, suffix: str, **save):
    """The photo in another RGB space, with its profile."""

    def measure(folder: Path):
        target = ImageCms.ImageCmsProfile(str(PROFILES / profile))
        image = ImageCms.profileToProfile(Image.fromarray(street()), ImageCms.createProfile("sRGB"), target)
        image.save(
            folder / f"a{suffix}", **({"quality": 98, "subsampling": 0} | save), icc_profile=target.tobytes()
        )
        return agreement(folder / f"a{suffix}")

    return measure


def converted(name: str, *options, kind: str = "colour", **predict):
    """A file that ImageMagick makes of the photo, or of its grey form."""

    def measure(folder: Path):
        source = plain(folder, grey() if kind == "grey" else None)
        run("convert", source, *options, folder / name)
        return agreement(folder / name, kind, **predict)

    return measure


def adobe_by_exif(folder: Path):
    target = ImageCms.ImageCmsProfile(str(PROFILES / "a98.icc"))
    image = ImageCms.profileToProfile(Image.fromarray(street()), ImageCms.createProfile("sRGB"), target)
    image.info.clear()
    image.save(folder / "_DSC0001.jpg", quality=98, subsampling=0)
    run("exiftool", "-q", "-overwrite_original", "-ColorSpace=Uncalibrated", "-InteropIndex=R03",
        folder / "_DSC0001.jpg")  # fmt: skip
    return agreement(folder / "_DSC0001.jpg")


def p3_png(folder: Path):
    points = ("-red-primary", "0.68,0.32", "-green-primary", "0.265,0.69", "-blue-primary", "0.15,0.06")
    chunks = ("-define", "png:include-chunk=cHRM,gAMA")
    run("convert", plain(folder, p3()), *points, *chunks, folder / "a.png")
    return agreement(folder / "a.png")


def avif(folder: Path, array: np.ndarray, primaries: str, transfer: str, matrix: str, pixels: str) -> Path:
    tags = ("-color_primaries", primaries, "-color_trc", transfer, "-colorspace", matrix)
    run("ffmpeg", "-loglevel", "error", "-i", plain(folder, array), "-frames:v", "1", "-c:v", "libaom-av1",
        "-cpu-used", "8", "-crf", "8", "-pix_fmt", pixels, *tags, folder / "a.avif")  # fmt: skip
    return folder / "a.avif"


def p3_avif(folder: Path):
    return agreement(avif(folder, p3(), "smpte432", "iec61966-2-1", "rgb", "gbrp"))


def hdr_avif(folder: Path):
    return said(avif(folder, street()[:256, :256], "bt2020", "smpte2084", "bt2020nc", "yuv420p10le"))


def negative(folder: Path):
    Image.fromarray((255 - grey()).astype(np.uint16) * 257).save(folder / "a.tif")
    run("exiftool", "-q", "-overwrite_original", "-PhotometricInterpretation=WhiteIsZero", folder / "a.tif")
    return agreement(folder / "a.tif", "grey")


def gamma(folder: Path):
    """Values of gamma 1.8, as old Macs had, and the chunk that says so."""
    source = plain(folder, as_bytes(linear(street()) ** (1 / 1.8)))
    run(
        "convert",
        source,
        "-set",
        "gamma",
        str(1 / 1.8),
        "-define",
        "png:include-chunk=gAMA",
        folder / "a.png",
    )
    return agreement(folder / "a.png")


def stored(name: str, array, kind: str = "grey", measure=agreement, **predict):
    """An array as Pillow writes it."""

    def write(folder: Path):
        Image.fromarray(array()).save(folder / name)
        return measure(folder / name, kind, **predict) if measure is agreement else measure(folder / name)

    return write


def given(source, kind: str = "colour", **predict):
    """An array or tensor."""
    return lambda folder: agreement(source(), kind, **predict)


def frames(name: str, **save):
    def measure(folder: Path):
        first, second = Image.fromarray(street()), Image.fromarray(street()[:, ::-1])
        first.save(folder / name, save_all=True, append_images=[second], **save)
        return said(folder / name)

    return measure


def raw(folder: Path):
    Image.fromarray(street()).reduce(4).save(folder / "thumbnail.tif")
    run("exiftool", "-q", "-overwrite_original", "-DNGVersion=1.4.0.0", "-SubfileType=1", "-Make=Camera",
        folder / "thumbnail.tif")  # fmt: skip
    return said(folder / "thumbnail.tif")


def folder_of_kinds(folder: Path):
    """Share of the pictures in a folder that are labelled."""
    suffixes = ("avif", "jfif", "jpe", "jp2", "ppm", "gif", "tga", "qoi", "bmp", "webp")
    for suffix in suffixes:
        Image.fromarray(street()).resize((128, 64)).save(folder / f"{suffix}.{suffix}")
    return len(model().predict(folder)) / len(suffixes)


def command(folder: Path, *arguments, **options) -> subprocess.CompletedProcess:
    python = (sys.executable, "-m", "stdc_fast", "predict", *map(str, arguments))
    path = {**os.environ, "PYTHONPATH": str(Path(stdc_fast.__file__).parent.parent)}
    return subprocess.run(python, capture_output=True, cwd=folder, env=path, **options)


def by_stdin(source: str):
    def measure(folder: Path):
        done = command(folder, source, "--device", "cpu", "--dtype", "float32", "--out", folder / "out",
                       input=plain(folder).read_bytes())  # fmt: skip
        if done.returncode:
            return done.stderr.decode().strip().split("\n")[-1]
        (file,) = (folder / "out").glob("*_labels.png")
        return float((np.asarray(Image.open(file)) == expected("colour")).mean())

    return measure


def twice_in_place(folder: Path):
    plain(folder)
    for _ in range(2):
        done = command(folder, folder, "--out", folder)
    return f"{len(list(folder.iterdir()))} files; {done.stderr.decode().strip()}"


def normalised(scale: float, bias: float = 0.0):
    def tensor():
        return torch.tensor(street()).permute(2, 0, 1) / 255 * scale + bias

    return tensor


PIL = "pillow"


def large(call) -> float:
    """A frame of 2048x1024 for a network input of 512x256: share of labels that equal those of `val`."""
    from stdc_fast.inference import label
    from stdc_fast.protocol import Protocol

    with Image.open(Path(stdc_fast.__file__).parent / "assets" / "street.jpg") as image:
        frame = np.asarray(image.convert("RGB").resize((2048, 1024)))
    scored = label(model(), frame, Protocol(size=(256, 512))).cpu().numpy()
    return float((np.asarray(call(frame)) == scored).mean())


def by_label(frame: np.ndarray) -> np.ndarray:
    return model().label(frame[None], size=(256, 512))[0].cpu().numpy()


CASES = [
    Case("2048x1024 at 512x256, predict() and val", "numpy",
         lambda _: large(lambda frame: model().predict(frame, size=(256, 512)).labels), 0.9999),
    Case("2048x1024 at 512x256, label() and val", "numpy", lambda _: large(by_label), 0.9999),
    Case("JPEG with an Adobe RGB profile", PIL, profiled("a98.icc", ".jpg"), FLOOR),
    Case("TIFF with an Adobe RGB profile", PIL, profiled("a98.icc", ".tif"), FLOOR),
    Case("PNG with a ProPhoto profile", PIL, profiled("rommrgb.icc", ".png"), FLOOR),
    Case("WebP with an sRGB profile", PIL, profiled("srgb.icc", ".webp", lossless=True), 0.9999),
    Case("JPEG in Adobe RGB by EXIF", "exiftool", adobe_by_exif, FLOOR),
    # Some colours cannot be printed: 95.0 % when ImageMagick itself converts it back.
    Case("CMYK JPEG with a SWOP profile", "convert",
         converted("a.jpg", "-profile", PROFILES / "srgb.icc", "-profile", PROFILES / "default_cmyk.icc",
                   "-quality", "95"), 0.95),
    Case("Lab TIFF", "convert", converted("a.tif", "-colorspace", "Lab"), "Lab colours"),
    Case("PNG with gAMA of 1.8", "convert", gamma, FLOOR),
    Case("PNG in P3 with cHRM", "convert", p3_png, FLOOR),
    Case("AVIF in P3 by colour codes", "ffmpeg", p3_avif, FLOOR),
    Case("HDR AVIF (PQ)", "ffmpeg", hdr_avif, "HDR"),
    Case("float TIFF of 0..1", PIL, stored("a.tif", lambda: grey().astype(np.float32) / 255), FLOOR),
    Case("float TIFF of 0..1, ImageMagick", "convert",
         converted("a.tif", "-depth", "32", "-define", "quantum:format=floating-point", kind="grey"), FLOOR),
    Case("16-bit TIFF, white is zero", "exiftool", negative, FLOOR),
    Case("12-bit TIFF", "convert", converted("a.tif", "-depth", "12", kind="grey"), FLOOR),
    Case("12-bit PGM", "convert", converted("a.pgm", "-depth", "12", kind="grey"), FLOOR),
    Case("16-bit PNG", "convert", converted("a.png", "-depth", "16", kind="grey"), FLOOR),
    Case("12 bits in a 16-bit PNG", PIL,
         stored("a.png", lambda: grey().astype(np.uint16) * 16, measure=said), "range=(0, 4095)"),
    Case("12 bits in a 16-bit PNG, range given", PIL,
         stored("a.png", lambda: grey().astype(np.uint16) * 16, range=(0, 4080)), FLOOR),
    Case("int32 TIFF of the full range", PIL,
         stored("a.tif", lambda: grey().astype(np.int32) * 8421504), FLOOR),
    Case("12 bits in a 16-bit colour PNG", "convert",
         converted("a.png", "-evaluate", "Divide", "16", "-define", "png:bit-depth=16"), "14 bits or fewer"),
    Case("grey array [H, W]", "numpy", given(grey, "grey"), FLOOR),
    Case("uint16 array", "numpy", given(lambda: street().astype(np.uint16) * 257), FLOOR),
    Case("12 bits in a uint16 array", "numpy",
         given(lambda: street().astype(np.uint16) * 16), "range=(0, 4095)"),
    Case("float tensor of 0..1", "torch", given(normalised(1)), "range=(0, 1)"),
    Case("float tensor of 0..1, range given", "torch", given(normalised(1), range=(0, 1)), FLOOR),
    Case("float tensor of 0..255", "torch", given(normalised(255)), "range=(0, 255)"),
    Case("float tensor with NaN", "torch", given(normalised(float("nan"))), "NaN"),
    Case("thumbnail of a DNG", "exiftool", raw, "raw data"),
    Case("animated WebP", PIL, frames("a.webp"), "holds 2 pictures; the first"),
    Case("animated PNG", PIL, frames("a.png"), "holds 2 pictures; the first"),
    Case("TIFF of two pages", PIL, frames("a.tif"), "holds 2 pictures; the first"),
    Case("folder of ten kinds of pictures", PIL, folder_of_kinds, 1.0),
    Case("bytes", PIL, lambda folder: agreement(plain(folder).read_bytes()), 1.0),
    Case("BytesIO", PIL, lambda folder: agreement(io.BytesIO(plain(folder).read_bytes())), 1.0),
    Case("open file", PIL, lambda folder: agreement(plain(folder).open("rb")), 1.0),
    Case("/dev/stdin", PIL, by_stdin("/dev/stdin"), 1.0),
    Case("- for stdin", PIL, by_stdin("-"), 1.0),
    Case("--out in the input folder, twice", PIL, twice_in_place, "results of an earlier run are left out"),
]  # fmt: skip
