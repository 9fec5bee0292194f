"""Videos as FFmpeg writes them: their colours beside the same picture as PNG, and their times."""

import functools
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

import stdc_fast
from tests.media.case import Case

STREET = Path(stdc_fast.__file__).parent / "assets" / "street.jpg"
HD, SD = (1280, 720), (1024, 576)
RATE = 25
#: H.264 at crf 6 agrees with the PNG for 98.8 % of the pixels; less 0.3 points.
FLOOR = 0.985
ACCURATE = "accurate_rnd+full_chroma_int+full_chroma_inp"


def ffmpeg(*arguments: object, given: bytes | None = None) -> None:
    command = ["ffmpeg", "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, input=given, capture_output=True)


@functools.cache
def model():
    return stdc_fast.load("stdc1_camvid", device="cpu")


@functools.cache
def picture(size: tuple[int, int]) -> np.ndarray:
    """RGB uint8 [H, W, 3]."""
    with Image.open(STREET) as image:
        width = image.height * size[0] // size[1]
        return np.array(image.convert("RGB").crop((0, 0, width, image.height)).resize(size))


@functools.cache
def labels(size: tuple[int, int]) -> np.ndarray:
    return model().predict(picture(size)).labels


def scaled(matrix: str, out_range: str = "tv", more: str = "") -> str:
    """A filter that converts by FFmpeg's swscale, rounding to the nearest."""
    return f"scale=out_color_matrix={matrix}:out_range={out_range}:sws_flags={ACCURATE}{more}"


def tags(matrix: str, primaries: str = "bt709", transfer: str = "bt709", levels: str = "tv") -> list[str]:
    return [
        "-colorspace", matrix, "-color_primaries", primaries, "-color_trc", transfer, "-color_range", levels,
    ]  # fmt: skip


def agreement(folder: Path, name: str, size: tuple[int, int], *encoding: str) -> float:
    """Share of equal labels of the last of three frames and of the same picture as PNG."""
    Image.fromarray(picture(size)).save(folder / "picture.png")
    ffmpeg("-loop", 1, "-r", RATE, "-t", 3 / RATE, "-i", folder / "picture.png", *encoding, folder / name)
    return compare(folder / name, size)


def compare(path: Path, size: tuple[int, int]) -> float:
    found = list(model().predict(str(path), stream=True))
    return float((found[-1].labels == labels(size)).mean())


X264 = ["-c:v", "libx264", "-crf", "6", "-preset", "veryfast"]
X265 = ["-c:v", "libx265", "-preset", "veryfast", "-x265-params", "crf=6:log-level=0"]
HDR = "zscale=tin=bt709:pin=bt709:min=gbr:rin=full:p=bt2020:m=bt2020nc:r=limited:npl=203"


def colour(name: str, file: str, size: tuple[int, int], *encoding: str, target: float = FLOOR) -> Case:
    return Case(name, "ffmpeg", lambda folder: agreement(folder, file, size, *encoding), target)


def hlg(folder: Path) -> float:
    """HLG as ITU-R BT.2100 defines it: the zscale filter takes its system gamma of each colour by itself."""
    white, peak = 203 / 1000, 1 / 12
    bt709_to_bt2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    light = (picture(HD) / 255) ** 2.4 @ np.array(bt709_to_bt2020).T * white
    brightness = light @ np.array([0.2627, 0.6780, 0.0593])
    scene = light * np.maximum(brightness, 1e-9)[..., None] ** (1 / 1.2 - 1)
    logarithm = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    signal = np.where(scene <= peak, np.sqrt(3 * scene), logarithm)
    frames = np.round(signal * 65535).astype(np.uint16)[None].repeat(3, 0)
    ffmpeg(
        "-f", "rawvideo", "-pix_fmt", "rgb48le", "-s", f"{HD[0]}x{HD[1]}", "-r", RATE, "-i", "-",
        "-vf", scaled("bt2020"), "-pix_fmt", "yuv420p10le", *X265,
        *tags("bt2020nc", "bt2020", "arib-std-b67"), folder / "a.mp4", given=frames.tobytes(),
    )  # fmt: skip
    return compare(folder / "a.mp4", HD)


# ---------------------------------------------------------------- times


def right_times(path: Path, count: int, read=None) -> float:
    """Share of frames whose time is that of their number, in a video of so many."""
    from stdc_fast import video

    times = []
    with video.read(str(path)) as reader:
        times.extend(reader.time for _ in reader)
    expected = np.arange(count) / RATE
    return float(np.mean(np.abs(np.array(times) - expected) < 2e-3)) if len(times) == count else 0.0


def timed(name: str, file: str, *encoding: str) -> Case:
    """24 frames with B-frames."""

    def measure(folder: Path) -> float:
        source = ["-f", "lavfi", "-i", f"testsrc=size=128x96:rate={RATE}:duration={24 / RATE}"]
        ffmpeg(*source, "-pix_fmt", "yuv420p", *encoding, folder / file)
        return right_times(folder / file, 24)

    return Case(name, "ffmpeg", measure, 1.0)


def ntsc_rate(folder: Path) -> str:
    """Raw DV says its rate in a way that FFmpeg guesses from."""
    from stdc_fast import video

    ffmpeg("-f", "lavfi", "-i", "testsrc=size=720x480:rate=30000/1001:duration=0.5", "-pix_fmt", "yuv411p",
           "-an", "-target", "ntsc-dv", folder / "a.dv")  # fmt: skip
    with video.read(str(folder / "a.dv")) as reader:
        return f"{reader.fps} frames a second"


B_FRAMES = ["-c:v", "libx264", "-bf", "3", "-b_strategy", "0", "-sc_threshold", "0"]
MPEG2 = ["-c:v", "mpeg2video", "-bf", "2", "-g", "12", "-q:v", "3"]

COLOURS = [
    colour("H.264, BT.709, 1280x720", "a.mp4", HD, "-vf", scaled("bt709"), "-pix_fmt", "yuv420p", *X264,
           *tags("bt709")),
    colour("H.264, untagged, 1280x720, BT.709", "a.mp4", HD, "-vf", scaled("bt709"), "-pix_fmt", "yuv420p",
           *X264, "-bsf:v",
           "h264_metadata=matrix_coefficients=2:colour_primaries=2:transfer_characteristics=2"),
    colour("H.264, untagged, 1024x576, BT.601", "a.mp4", SD, "-vf", scaled("bt601"),
           "-pix_fmt", "yuv420p", *X264),
    colour("H.264, BT.601, 1280x720", "a.mp4", HD, "-vf", scaled("bt601"), "-pix_fmt", "yuv420p", *X264,
           *tags("smpte170m", "smpte170m", "smpte170m")),
    colour("H.264, full range", "a.mp4", HD, "-vf", scaled("bt709", "pc"), "-pix_fmt", "yuvj420p", *X264,
           *tags("bt709", levels="pc")),
    colour("H.264, 4:4:4", "a.mkv", SD, "-vf", scaled("bt601"), "-pix_fmt", "yuv444p", *X264,
           *tags("smpte170m")),
    colour("HEVC, 10 bits, BT.709", "a.mp4", HD, "-vf", scaled("bt709"), "-pix_fmt", "yuv420p10le", *X265,
           *tags("bt709")),
    colour("HEVC, BT.2020", "a.mp4", HD, "-vf", f"{HDR}:t=bt709", "-pix_fmt", "yuv420p10le", *X265,
           *tags("bt2020nc", "bt2020", "bt2020-10")),
    colour("HEVC, PQ", "a.mp4", HD, "-vf", f"{HDR}:t=smpte2084", "-pix_fmt", "yuv420p10le", *X265,
           *tags("bt2020nc", "bt2020", "smpte2084")),
    Case("HEVC, HLG", "ffmpeg", hlg, FLOOR),
    colour("ProRes 4:2:2, 10 bits", "a.mov", HD, "-vf", scaled("bt709"), "-pix_fmt", "yuv422p10le",
           "-c:v", "prores_ks", "-profile:v", "3", *tags("bt709")),
    colour("FFV1, 4:2:0", "a.mkv", HD, "-vf", scaled("bt709"), "-pix_fmt", "yuv420p", "-c:v", "ffv1",
           *tags("bt709")),
    colour("raw NV12", "a.nut", SD, "-vf", scaled("bt601"), "-pix_fmt", "nv12", "-c:v", "rawvideo"),
    # FFmpeg's own conversion of what it wrote gives 98.5 % here: the codec costs that.
    colour("MPEG-2", "a.mpg", SD, "-vf", scaled("bt601"), "-pix_fmt", "yuv420p", "-c:v", "mpeg2video",
           "-q:v", "1", "-qmin", "1", target=0.982),
    colour("Motion JPEG", "a.avi", HD, "-vf", scaled("bt601", "pc"), "-pix_fmt", "yuvj420p", "-c:v", "mjpeg",
           "-q:v", "1", "-qmin", "1"),
    colour("YUV4MPEG2", "a.y4m", SD, "-vf", scaled("bt601"), "-pix_fmt", "yuv420p"),
]  # fmt: skip

TIMES = [
    timed("B-frames in AVI", "a.avi", *B_FRAMES),
    timed("B-frames in ASF", "a.asf", *B_FRAMES),
    timed("B-frames in MXF", "a.mxf", *MPEG2),
    timed("B-frames in MP4", "a.mp4", *B_FRAMES),
    timed("H.264 without a container", "a.h264", *B_FRAMES),
    timed("MPEG-2 in VOB", "a.vob", *MPEG2),
    timed("Matroska that starts at 4 s", "a.mkv", *B_FRAMES, "-output_ts_offset", "4"),
    Case("NTSC DV", "ffmpeg", ntsc_rate, "30000/1001 frames a second"),
]

CASES = [*COLOURS, *TIMES]
