"""``stdc_fast.calibrate``: ranges of a network's maps from frames, by the best of several methods."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import torch

from stdc_fast import backends, checkpoints
from stdc_fast.calibration import frames as pictures
from stdc_fast.calibration import sensitivity, statistics
from stdc_fast.calibration.record import Calibration
from stdc_fast.calibration.sensitivity import Floats, Judge, Progress, Row
from stdc_fast.errors import UserError
from stdc_fast.placement import on_cpu
from stdc_fast.plan.plan import Plan
from stdc_fast.plan.quantise import candidates, wanted
from stdc_fast.precision import choose
from stdc_fast.version import __version__

if TYPE_CHECKING:
    from stdc_fast.segmenter import Segmenter

#: Frames that are taken where nobody says how many.
COUNT = 32
#: An op whose error alone is larger than this share of :data:`TARGET` is left out of 8 bits.
SHARE = 0.6
#: The error of logits that all ops in 8 bits together are to stay below.
TARGET = 1e-2
#: Frames on which each op alone is looked at.
ALONE = 4


def _silent(items: Iterable, what: str, total: int) -> Iterable:
    return items


@on_cpu
@torch.inference_mode(False)
@torch.no_grad()
def calibrate(
    model: Segmenter,
    frames: object,
    *,
    count: int = COUNT,
    seed: int = 0,
    bgr: bool = False,
    range: tuple[float, float] | None = None,
    method: str = "best",
    keep: Collection[str] = (),
    limit: float | None = SHARE * TARGET,
    progress: Progress = _silent,
) -> Calibration:
    """The ranges that int8 needs, from frames like those to be labelled. The model stays as it is.

        model.calibration = stdc_fast.calibrate(model, "camvid/train")

    A quarter of the frames, eight at most, is held out: by them methods are compared, and ops that lose too
    much are found. Frames are read one at a time. The network sees each at two sizes, the model's own and one
    an eighth of it: what it knows of the whole image reaches further in small images.

    Args:
        model: in any dtype.
        frames: a folder, paths, arrays and whatever else :meth:`~stdc_fast.Segmenter.predict` takes as
            pictures. The network sees them as it does there. Iterators are read to their end.
        count: frames at most; they are drawn by ``seed``.
        bgr, range: of the frames, as for :meth:`~stdc_fast.Segmenter.predict`.
        method: "max", "mse" (clips where the squared error of 8 bits is least), "percentile:99.99" or
            another percentile, or "best": the one of these with the least error of logits.
        keep: names of ops that are to be left out of 8 bits, also without ``cp.backbone.`` and ``.conv``.
        limit: an op is left out, too, if it alone moves logits by more; None leaves none out so.
        progress: see :data:`stdc_fast.calibration.sensitivity.Progress`.

    Raises UserError, in one line, for no frames, ones that can not be read or hold NaN, frames that are all
    of one flat colour, a network that gives NaN or nothing but zeros, and unknown methods or ops.
    """
    from stdc_fast.levels import Levels

    method = statistics.check_method(method)
    if not isinstance(model, Levels):
        raise UserError(f"expected a loaded model, not {model!r}; see stdc_fast.load")
    if isinstance(keep, str) or not isinstance(keep, Iterable):
        raise UserError(f"keep must be a list of names of ops, not {keep!r}; write [{keep!r}]")
    if limit is not None and not (isinstance(limit, (int, float)) and 0 < limit < math.inf):
        raise UserError(
            f"limit must be a positive error of logits, or None to leave nothing out, not {limit!r}"
        )
    plan = model.plan()
    names = candidates(plan)
    if not names:
        raise UserError(f"{model.name}: has no op that can run in 8 bits")
    by_hand = tuple(dict.fromkeys(_resolve(name, names) for name in keep))
    taken = pictures.choose(frames, count, seed, bgr, range)
    flat = [shown.flat for shown in progress(taken.shown_to(model), "frames", len(taken))]
    looked, held = pictures.split(taken, flat, seed)
    floats = Floats(model)
    histograms = _statistics(floats, plan, looked, progress)
    judge = Judge(floats, held, progress)
    used = _used(model, plan)
    methods = statistics.METHODS if method == "best" else (method,)
    ranges = {one: histograms.ranges(one) for one in methods}

    def compared(kept: Collection[str]) -> list[Row]:
        together = [name for name in used if name not in kept]
        return [
            judge.row(one, sensitivity.in_levels(model, ranges[one], together))
            for one in progress(methods, "methods", len(methods))
        ]

    rows = compared(by_hand)
    best = _least(rows)
    # All that can multiply levels: another machine, or other memory, may use others than these.
    alone = sensitivity.each(judge, ranges[best.name], names, ALONE, progress)
    alone = [dataclasses.replace(row, kept=_why(row, by_hand, limit)) for row in alone]
    kept = tuple(dict.fromkeys([*by_hand, *(row.name for row in alone if row.kept)]))
    if set(kept) & set(used) - set(by_hand):  # what lost most is gone: another method may be the best now
        rows = compared(kept)
        best = _least(rows)
    about = {
        "seed": seed,
        "held_out": len(taken) - len(looked),
        "compared": [{"method": r.name, "error": r.error, "agreement": r.agreement} for r in rows],
        "limit": limit,
        "ops": [name for name in used if name not in kept],
        "error": best.error,
        "agreement": best.agreement,
        "alone": [dataclasses.asdict(row) for row in alone],
        "alone_frames": min(ALONE, len(held)),
    }
    mark = checkpoints.fingerprint(model.network)
    return Calibration(
        ranges[best.name], best.name, len(looked), taken.source, mark, __version__, kept, about
    )


def _statistics(
    floats: Floats, plan: Plan, looked: pictures.Frames, progress: Progress
) -> statistics.Histograms:
    """Of all maps that any op may read as levels, in two passes over the frames."""
    needed = wanted(plan, candidates(plan))
    extremes = statistics.Extremes(needed)
    _run(floats, looked, extremes, progress, "greatest values")
    histograms = statistics.Histograms(extremes.ranges())
    _run(floats, looked, histograms, progress, "histograms")
    return histograms


def _run(
    floats: Floats, looked: pictures.Frames, looks: statistics.Looks, progress: Progress, what: str
) -> None:
    """Run the frames in float32 past ``looks``."""
    for shown in progress(looked.shown_to(floats.model), what, len(looked)):
        for one in shown.sizes():
            floats.logits(one, looks)


def _used(model: Segmenter, plan: Plan) -> list[str]:
    """The ops that would multiply levels here, if nothing were left out."""
    precision, _ = choose("int8", model.device)
    backend = backends.select(plan, precision, model.device, environment=False).backend
    return backend.levels(plan, precision, model.memory == "small")


def _resolve(name: str, known: list[str]) -> str:
    """The op of a name, which may be short. UserError, with the nearest, if there is none."""
    short = {_short(op): op for op in known}
    if name in known or name in short:
        return short.get(name, name)
    near = difflib.get_close_matches(str(name), [*short, *known], 3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(short)}"
    raise UserError(f"no op that can run in 8 bits is called {name!r}; {hint}")


def _short(op: str) -> str:
    return op.removeprefix("cp.").removeprefix("backbone.").removesuffix(".conv")


def _least(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: row.error)


def _why(row: Row, by_hand: Collection[str], limit: float | None) -> str:
    if row.name in by_hand:
        return "asked for"
    return f"alone over {limit:.1e}" if limit is not None and not row.error <= limit else ""
