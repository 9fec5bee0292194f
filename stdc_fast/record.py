"""What ``stdc-fast predict`` writes: videos of overlays, names of files, and the lines about a result."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stdc_fast import draw, video
from stdc_fast.errors import UserError
from stdc_fast.pipeline import until_interrupted
from stdc_fast.segmenter import Segmenter


def record(
    segmenter: Segmenter,
    source: str | Path | int,
    target: Path | None,
    *,
    scale: float | None = None,
    size: str | tuple[int, int] | None = None,
    alpha: float = 0.55,
    legend: bool = False,
    side_by_side: bool = False,
    max_frames: int | None = None,
    matrix: str | None = None,
    progress: bool = True,
) -> dict[str, object]:
    """Label all frames, at most ``max_frames``, and write their overlays to the video ``target``, if any.

    The written video has the source's size, times and shape of pixels; ``legend`` adds a strip below,
    ``side_by_side`` the frame itself to the left. A live source is recorded until Ctrl-C (or
    SIGTERM); what it shows while the network is busy is skipped. ``matrix`` is as for
    :func:`stdc_fast.video.read`.

    Returns plain values: name, sizes, frames, dropped, fps (of the source), seconds (all in all, as a clock
    shows), frames_per_second (labelled), classes (pixels and shares over all frames), overlay (the file), and
    ``error`` where the source broke off, or a file was interrupted: what was labelled until then is kept; and
    ``signal``, the number of what interrupted it.

    Raises UserError if not even one frame can be labelled, or the video can not be written: there is none.
    """
    classes = segmenter.classes
    pixels = np.zeros(len(classes), np.int64)
    failure, first, count = None, None, 0
    with contextlib.ExitStack() as stack:
        reader = video.read(source, matrix=matrix)  # the stream closes it, in its own thread
        stream = stack.enter_context(segmenter.stream(reader, scale=scale, size=size))
        writer = None
        if target is not None:
            writer = stack.enter_context(video.Writer(target, reader.fps, reader.aspect))
        interrupted = stack.enter_context(until_interrupted(stream.stop))
        total = min((n for n in (reader.frames, max_frames) if n), default=None)
        bar = stack.enter_context(tqdm(None, reader.name, total, unit="frame", disable=not progress or None))
        start = time.perf_counter()
        results = itertools.islice(stream, max_frames)
        while True:
            try:
                result = next(results, None)
            except UserError as error:
                if not count:
                    raise
                failure = str(error)
                break
            if result is None:
                break
            first = first or result
            count += 1
            pixels += np.bincount(result.labels.ravel(), minlength=len(classes))
            if writer is not None:
                picture = result.overlay(alpha, side_by_side=side_by_side)
                if legend:
                    picture = draw.add_legend(picture, result.shares(), classes, steady=True)
                writer.write(picture, result.time)
            bar.update()
        if interrupted and not reader.live:
            if not count:
                raise KeyboardInterrupt
            failure = f"{reader.name}: interrupted; its first {count} frames are labelled and kept"
        if not count:
            raise UserError(f"{reader.name}: stopped before its first frame was labelled")
        if writer is not None:
            writer.close()
        seconds = time.perf_counter() - start
    height, width = first.labels.shape
    row = {
        "name": reader.name,
        "width": width,
        "height": height,
        "input_width": first.input_size[1],
        "input_height": first.input_size[0],
        "frames": count,
        "dropped": stream.dropped,
        "fps": round(float(reader.fps), 3),
        "seconds": round(seconds, 6),
        "frames_per_second": round(count / seconds, 3),
        "classes": [
            {
                "id": int(i),
                "name": classes.names[i],
                "pixels": int(pixels[i]),
                "share": round(pixels[i] / pixels.sum(), 6),
            }
            for i in sorted(np.flatnonzero(pixels), key=lambda i: -pixels[i])
        ],
    }
    if target is not None:
        row["overlay"] = str(target)
    if failure is not None:
        row["error"] = failure
    if interrupted and not reader.live:
        row["signal"] = interrupted[0]
    return row


def output_names(sources: list[Path | str], folders: list[Path] | None = None) -> list[str]:
    """A distinct stem for each path, camera or address: its own, with suffix and number where it is taken.

    ``folders`` are those of the results, one a source; they become part of the stems.
    """
    taken: set[str] = set()
    names = []
    for source, folder in zip(sources, folders or [Path()] * len(sources), strict=True):
        path = source if isinstance(source, Path) else video.stem(source)
        numbered = (f"{path.stem}_{i}" for i in itertools.count(2))
        options = itertools.chain([path.stem, f"{path.stem}_{path.suffix.lstrip('.')}"], numbered)
        name = next(name for option in options if (name := os.path.join(folder, option)) not in taken)
        taken.add(name)
        names.append(name)
    return names


def print_result(row: dict, model: str) -> None:
    """What was found in one image (``Segmentation.to_dict()`` and its files) or video (:func:`record`)."""
    print(f"{row['name']}: {row['width']}x{row['height']}, network input "
          f"{row['input_width']}x{row['input_height']}, {model}")  # fmt: skip
    for entry in row["classes"]:
        print(f"  {entry['name']:<16} {entry['share']:7.2%}")
    if "frames" in row:
        dropped = f", {row['dropped']} skipped" if row["dropped"] else ""
        print(f"  {row['frames']} frames labelled in {row['seconds']:.2f} s, "
              f"{row['frames_per_second']:.1f} frames a second{dropped}")  # fmt: skip
    else:
        print(f"  labelled in {row['seconds'] * 1000:.0f} ms")
    for key in ("overlay", "labels"):
        if key in row:
            print(f"  {key}: {row[key]}")
