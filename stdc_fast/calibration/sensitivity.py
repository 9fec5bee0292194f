"""How far 8 bits move a network's logits: all of its ops together, and each of them alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from stdc_fast import backends
from stdc_fast.backends import eager
from stdc_fast.backends.base import Executable
from stdc_fast.calibration.frames import Frames, Shown
from stdc_fast.calibration.statistics import Looks, Passing
from stdc_fast.errors import UserError
from stdc_fast.plan.plan import Plan
from stdc_fast.plan.quantise import Ranges, quantise
from stdc_fast.postprocess import resize_argmax
from stdc_fast.precision import FLOAT32, INT8_FLOAT32

if TYPE_CHECKING:
    from stdc_fast.segmenter import Segmenter

#: ``progress(items, what, total)`` gives the items, and may show how far they are.
Progress: TypeAlias = Callable[[Iterable, str, int], Iterable]


@dataclasses.dataclass(frozen=True)
class Row:
    """What 8 bits cost.

    Attributes:
        name: of the op, or of the method by which ranges were taken.
        error: of the logits, ``||a - b|| / ||b||`` over all frames, against the network in float32. It is
            the larger one of two: at the model's size and much smaller (:meth:`~.frames.Shown.sizes`).
        agreement: share of labels that are the same, at the model's size.
        kept: whether the op is left out of 8 bits, and why; "" where it is not.
    """

    name: str
    error: float
    agreement: float
    kept: str = ""


class Floats:
    """The network in float32, for raw frames and normalised images. Its maps are looked at, and others
    are compared with its logits.
    """

    def __init__(self, model: Segmenter):
        self.model = model
        self.plans: dict[bool, Plan] = {}
        self._runs: dict[bool, Executable] = {}
        self._passing = Passing()

    def logits(self, shown: Shown, looks: Looks | None = None) -> Tensor:
        """Of a frame, while ``looks`` is shown its maps."""
        if shown.raw not in self._runs:
            plan = self.plans[shown.raw] = self.model.plan(shown.raw)
            runs = eager.compile(plan, FLOAT32, self.model.device, rounding=self._passing)
            self._runs[shown.raw] = runs
        self._passing.looks = looks
        return self._runs[shown.raw].logits(shown.image, shown.seen)


class Judge:
    """Frames with what the network in float32 says of them."""

    def __init__(self, floats: Floats, frames: Frames, progress: Progress):
        self.model, self.plans = floats.model, floats.plans
        #: By frame: as it is shown, logits and labels, at each size.
        self.known: list[list[tuple[Shown, Tensor, Tensor]]] = []
        for shown in progress(frames.shown_to(self.model), "float32", len(frames)):
            found = [(one, floats.logits(one)) for one in shown.sizes()]
            self.known.append([(one, logits, self._labels(logits, one)) for one, logits in found])
        by_size = zip(*self.known, strict=True)
        norms = [sum(float(logits.double().norm()) for _, logits, _ in found) for found in by_size]
        if not all(0 < norm < math.inf for norm in norms):
            said = "zero everywhere" if 0 in norms else "NaN or infinite in places"
            raise UserError(
                f"{self.model.name}: its logits are {said} on these frames, so that errors mean nothing; "
                "load trained weights"
            )

    def _labels(self, logits: Tensor, shown: Shown) -> Tensor:
        return resize_argmax(logits, shown.seen, align_corners=self.model.network.align_corners)[0]

    @torch.no_grad()
    def row(self, name: str, make: Callable[[Plan], Executable], count: int | None = None) -> Row:
        """Of what ``make`` makes of the plan, on the first ``count`` frames."""
        runs = {raw: make(self.plans[raw]) for raw in {sizes[0][0].raw for sizes in self.known}}
        errors, shares = [], []
        for size in zip(*self.known[:count], strict=True):
            error = norm = same = pixels = 0.0
            for shown, expected, labels in size:
                logits = runs[shown.raw].logits(shown.image, shown.seen)
                error += float((logits - expected).double().square().sum())
                norm += float(expected.double().square().sum())
                same += int((self._labels(logits, shown) == labels).sum())
                pixels += labels.numel()
            errors.append((error / norm) ** 0.5)
            shares.append(same / pixels)
        return Row(name, max(errors), shares[0])


def in_levels(model: Segmenter, ranges: Ranges, names: Collection[str]) -> Callable[[Plan], Executable]:
    """What runs a plan with these ops in 8 bits and all else in float32: the model's backend, else eager."""

    def make(plan: Plan) -> Executable:
        made = quantise(plan, ranges, names)
        chosen = backends.select(made, INT8_FLOAT32, model.device, environment=False)
        return chosen.backend.compile(made, INT8_FLOAT32, model.device)

    return make


def each(judge: Judge, ranges: Ranges, names: Collection[str], count: int, progress: Progress) -> list[Row]:
    """A row for each of these ops alone, in order, on the first ``count`` frames."""
    return [
        judge.row(name, in_levels(judge.model, ranges, [name]), count)
        for name in progress(list(names), "each op alone", len(names))
    ]
