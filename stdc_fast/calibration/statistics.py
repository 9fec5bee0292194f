"""What is found of a network's maps while frames run through it, and the ranges that come of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from stdc_fast.errors import UserError
from stdc_fast.plan.ops import LEVELS
from stdc_fast.plan.quantise import Range, Ranges

#: Bins of a channel's magnitudes, from 0 to the greatest.
BINS = 2048
#: Methods that are compared, the best of which is taken.
METHODS = ("max", "percentile:99.999", "percentile:99.99", "mse")
# Of a channel's greatest magnitude, where "mse" tries to clip.
_CLIPS = torch.arange(8, 65, dtype=torch.float64) / 64


def check_method(method: object) -> str:
    """The method, or "best". UserError for none that there is."""
    if isinstance(method, str):
        if method in ("best", "max", "mse"):
            return method
        found = re.fullmatch(r"percentile:(\d{1,3}(?:\.\d{1,9})?)", method)
        if found and 50 <= float(found[1]) <= 100:
            return method
    raise UserError(f"method must be best, max, mse or percentile:P with P from 50 to 100, not {method!r}")


class Passing:
    """A rounding of :mod:`stdc_fast.backends.eager.rounding` that changes nothing, and shows each map to
    ``looks``, where there is one.
    """

    tiles: frozenset[str] = frozenset()
    looks: Looks | None = None

    def tensor(self, key: str, x: Tensor, offset: int = 0) -> Tensor:
        if self.looks is not None and key in self.looks.wanted:
            self.looks.look(key, x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), offset)
        return x

    def weight(self, op, name: str, weight: Tensor) -> Tensor:
        return weight


class Looks:
    """What looks at maps.

    Args:
        wanted: channels of a map by its key, as of :func:`stdc_fast.plan.quantise.wanted`.
    """

    def __init__(self, wanted: Mapping[str, int]):
        self.wanted = dict(wanted)

    def look(self, key: str, x: Tensor, offset: int) -> None:
        """At pixels ``[P, c]``, the channels from ``offset`` on of the map of that key."""
        raise NotImplementedError


class Extremes(Looks):
    """Least, greatest and average value of each channel."""

    def __init__(self, wanted: Mapping[str, int]):
        super().__init__(wanted)
        self.low = {key: torch.full((n,), torch.inf, dtype=torch.float64) for key, n in self.wanted.items()}
        self.high = {key: -low for key, low in self.low.items()}
        self.sum = {key: torch.zeros_like(low) for key, low in self.low.items()}
        self.count = {key: torch.zeros_like(low) for key, low in self.low.items()}

    def look(self, key: str, x: Tensor, offset: int) -> None:
        part = slice(offset, offset + x.shape[1])
        low, high = (v.double().cpu() for v in torch.aminmax(x, dim=0))
        self.low[key][part] = torch.minimum(self.low[key][part], low)
        self.high[key][part] = torch.maximum(self.high[key][part], high)
        self.sum[key][part] += x.sum(0, dtype=torch.float64).cpu()
        self.count[key][part] += len(x)

    def ranges(self) -> dict[str, Range]:
        """Those of method "max". UserError where a map holds NaN or infinities, or was never seen."""
        found = {}
        for key in self.wanted:
            mean = self.sum[key] / self.count[key]
            if not bool((self.low[key] + self.high[key] + mean).isfinite().all()):
                raise UserError(
                    f"the map {key} has NaN or infinite values on these frames; mend frames or weights"
                )
            # As files keep them.
            found[key] = Range(*(v.float().double() for v in (self.low[key], self.high[key], mean)))
        return found


class Histograms(Looks):
    """How often each magnitude is there, by channel, in :data:`BINS` up to what :class:`Extremes` found."""

    def __init__(self, extremes: Ranges):
        super().__init__({key: len(found.low) for key, found in extremes.items()})
        self.extremes = extremes
        self.reach = {k: torch.maximum(f.high, -f.low).clamp_min(0) for k, f in extremes.items()}
        self.counts = {k: torch.zeros((n, BINS), dtype=torch.int64) for k, n in self.wanted.items()}

    def look(self, key: str, x: Tensor, offset: int) -> None:
        channels = x.shape[1]
        reach = self.reach[key][offset : offset + channels].to(x.device, torch.float32)
        # Not times BINS / reach, which is infinite for channels that weight decay has all but put out.
        shares = x.abs() / torch.where(reach > 0, reach, 1)
        bins = (shares * BINS).int().clamp_(max=BINS - 1)
        bins += torch.arange(channels, dtype=torch.int32, device=x.device) * BINS
        counts = torch.bincount(bins.flatten(), minlength=channels * BINS).view(channels, BINS)
        self.counts[key][offset : offset + channels] += counts.cpu()

    def ranges(self, method: str) -> dict[str, Range]:
        """By a method of :data:`METHODS`, or another percentile."""
        if method == "max":
            return dict(self.extremes)
        found = {}
        for key, extreme in self.extremes.items():
            if method == "mse":
                share = _least_error(self.counts[key], extreme.low < 0)
            else:
                share = _percentile(self.counts[key], float(method.partition(":")[2]))
            clip = (share * self.reach[key]).float().double()
            found[key] = Range(
                torch.maximum(extreme.low, -clip), torch.minimum(extreme.high, clip), extreme.mean
            )
        return found


def _percentile(counts: Tensor, percent: float) -> Tensor:
    """Share ``[C]`` of the greatest magnitude below which so many of a channel's values lie.

    Those in the lowest bin do not count: most maps are zero for the most part.
    """
    counts = counts.clone()
    counts[:, 0] = 0
    below = counts.cumsum(1).double()
    enough = below >= below[:, -1:] * (percent / 100)
    return (enough.double().argmax(1) + 1) / BINS


def _least_error(counts: Tensor, negative: Tensor) -> Tensor:
    """Share ``[C]`` of the greatest magnitude at which clipping leaves the least squared error of 8 bits.

    Args:
        counts: ``[C, BINS]``.
        negative: ``[C]``, of channels that have values on both sides.
    """
    points = (torch.arange(4 * BINS, dtype=torch.float64) + 0.5) / (4 * BINS)
    shares = torch.empty(len(counts), dtype=torch.float64)
    for store, which in (("u8", ~negative), ("s8", negative)):
        steps = _CLIPS[:, None] / LEVELS[store][1]
        rounded = (points / steps).round().clamp_max(LEVELS[store][1]) * steps
        errors = (points - rounded).square().view(len(_CLIPS), BINS, 4).mean(2)
        total = counts[which].double() @ errors.T
        shares[which] = _CLIPS[total.argmin(1)]
    return shares
