"""Sound files of every kind, small, as their usual tools write them: what is mutated."""

import io
import shutil
import subprocess
from pathlib import Path

import folders
import numpy as np
import torch
from checkpoint_files import thin
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, features

import stdc_fast

SIZE = (64, 48)  # width, height
WEIGHTS = Path(stdc_fast.__file__).parent / "weights" / "stdc1_camvid.safetensors"


def picture(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize(SIZE, Image.Resampling.BICUBIC).convert(mode)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def images() -> dict[str, bytes]:
    """Content by file name."""
    rgb, frames = picture(), [picture().rotate(90 * i) for i in range(1, 3)]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = 6, "camera"
    told = PngImagePlugin.PngInfo()
    told.add(b"gAMA", (100000).to_bytes(4, "big"))
    told.add(
        b"cHRM",
        b"".join(n.to_bytes(4, "big") for n in (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    )
    deep = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20)
    real = Image.fromarray(np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64))
    made = {
        "a.jpg": _saved(rgb, "JPEG", quality=90, icc_profile=profile, exif=exif),
        "b.jpg": _saved(picture("CMYK"), "JPEG"),
        "c.jpg": _saved(rgb, "JPEG", progressive=True),
        "a.png": _saved(rgb, "PNG", icc_profile=profile, exif=exif),
        "b.png": _saved(rgb, "PNG", pnginfo=told),
        "c.png": _saved(picture("P"), "PNG", transparency=3),
        "d.png": _saved(deep, "PNG"),
        "e.png": _saved(rgb, "PNG", save_all=True, append_images=frames),
        "a.tif": _saved(rgb, "TIFF", compression="tiff_lzw", exif=exif),
        "b.tif": _saved(deep, "TIFF", compression="tiff_deflate"),
        "c.tif": _saved(real, "TIFF"),
        "d.tif": _saved(rgb, "TIFF", compression="jpeg", icc_profile=profile),
        "e.tif": _saved(rgb, "TIFF", tiffinfo={TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: 2}),
        "a.bmp": _saved(rgb, "BMP"),
        "a.gif": _saved(picture("P"), "GIF"),
        "b.gif": _saved(rgb, "GIF", save_all=True, append_images=frames),
        "a.webp": _saved(rgb, "WEBP", exif=exif),
        "b.webp": _saved(rgb, "WEBP", lossless=True, save_all=True, append_images=frames),
        "a.tga": _saved(rgb, "TGA", compression="tga_rle"),
        "a.ppm": _saved(rgb, "PPM"),
        "a.mpo": _saved(rgb, "MPO", save_all=True, append_images=frames),
    }  # fmt: skip
    if features.check("avif"):
        made["a.avif"] = _saved(rgb, "AVIF", icc_profile=profile)
    if features.check("jpg_2000"):
        made["a.jp2"] = _saved(rgb, "JPEG2000")
    return made


def labels() -> dict[str, bytes]:
    """Label files of three classes, their ids or colours as ``described`` of :mod:`targets` has them."""
    _, ids = folders.scene(np.random.default_rng(0), SIZE[1], SIZE[0])
    indexed = Image.fromarray(ids).convert("P")
    indexed.putpalette(folders.COLOURS.tobytes())
    return {
        "grey.png": _saved(Image.fromarray(ids), "PNG"),
        "palette.png": _saved(indexed, "PNG"),
        "colour.png": _saved(Image.fromarray(folders.COLOURS[ids]), "PNG"),
        "deep.png": _saved(Image.fromarray(ids.astype(np.uint16)), "PNG"),
        "bits.png": _saved(Image.fromarray(ids > 0), "PNG"),
        "grey.tif": _saved(Image.fromarray(ids), "TIFF", compression="tiff_lzw"),
        "grey.bmp": _saved(Image.fromarray(ids), "BMP"),
    }


def descriptions() -> dict[str, bytes]:
    """data.yaml, data.json, classes.txt and lists of names."""
    return {
        "data.yaml": b"names: [Sky, Wall, Road]\npalette: [[120, 170, 230], [130, 40, 30], [90, 90, 100]]\n"
        b"ignore: [255, 11]\nmapping: {0: Sky, 1: Wall, 2: Road}\nimages: '{split}'\nlabels: '{split}annot'\n"
        b"splits: {train: [f0, f1], val: val.txt}\n",
        "short.yaml": b"names:\n  0: Sky\n  1: Wall\n  2: Road\nignore: 11\n",
        "data.json": b'{"names": ["Sky", "Wall", "Road"], "ignore": [11], '
        b'"mapping": {"0": "Sky", "1": "Wall", "2": "Road"}}',
        "classes.txt": b"\xef\xbb\xbf0 Sky\n1 Wall\n2 Road\n11 Void\n",
        "train.txt": b"train/f0.png trainannot/f0.png\nf1\n\nf2.png\n",
    }


def videos() -> dict[str, bytes]:
    """As FFmpeg writes them; empty where it is not installed."""
    if shutil.which("ffmpeg") is None:
        return {}
    kinds = {
        "a.mp4": ["-c:v", "libx264", "-bf", "2", "-pix_fmt", "yuv420p"],
        "b.mp4": ["-c:v", "mpeg4"],
        "a.mkv": ["-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p"],
        "b.mkv": ["-c:v", "ffv1"],
        "a.avi": ["-c:v", "mjpeg", "-pix_fmt", "yuvj420p"],
        "b.avi": ["-c:v", "mpeg4", "-bf", "2"],
        "a.ts": ["-c:v", "mpeg2video", "-flags", "+ilme+ildct"],
        "a.mov": ["-c:v", "prores_ks"],
        "a.mxf": ["-c:v", "mpeg2video", "-bf", "2"],
        "a.flv": ["-c:v", "flv1"],
        "a.y4m": ["-pix_fmt", "yuv420p"],
        "a.h264": ["-c:v", "libx264"],
        "hdr.mp4": ["-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=0",
                    "-colorspace", "bt2020nc", "-color_primaries", "bt2020", "-color_trc", "smpte2084"],
    }  # fmt: skip
    made = {}
    for name, encoding in kinds.items():
        source = ["-f", "lavfi", "-i", f"testsrc=size={SIZE[0]}x{SIZE[1]}:rate=25:duration=0.28"]
        target = Path(name)
        subprocess.run(
            ["ffmpeg", "-v", "error", "-y", *source, *encoding, name], check=True, capture_output=True
        )
        made[name] = target.read_bytes()
        target.unlink()
    return made


def checkpoints() -> dict[str, bytes]:
    """Of frameworks, each tensor one number that is repeated; a safetensors file lacks its zeros."""

    def torch_file(content: object, **options: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        return buffer.getvalue()

    names = [f"class {i}" for i in range(19)]
    return {
        "official.pth": torch_file(thin("official")),
        "legacy.pth": torch_file(thin("official"), _use_new_zipfile_serialization=False),
        "mmseg.pth": torch_file({"state_dict": thin("mmseg"), "meta": {"CLASSES": names, "PALETTE": None}}),
        "super_gradients.pth": torch_file({"net": thin("super-gradients")}),
        "a.safetensors": header(WEIGHTS),
    }


def header(path: Path) -> bytes:
    """The first bytes of a safetensors file, before the tensors."""
    with open(path, "rb") as file:
        size = file.read(8)
        return size + file.read(int.from_bytes(size, "little"))
