"""What is kept of a calibration: the ranges, how they came about, and of which weights they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short

import torch
from torch import Tensor

from stdc_fast.errors import UserError
from stdc_fast.plan.quantise import Range

#: How names of tensors with ranges start, in files of weights too.
PREFIX = "ranges/"
#: How names of files of ranges alone end.
SUFFIX = ".ranges.safetensors"
#: Of the metadata of a file: the key of what is said of its ranges.
KEY = "calibration"


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Ranges of a network's maps, and where they come from.

    Attributes:
        ranges: by the keys of :func:`stdc_fast.plan.quantise.wanted`, for all ops that can multiply levels.
        method: how they were taken from the frames, such as "mse".
        frames: number of frames.
        source: where these come from, in words.
        fingerprint: of the weights, :func:`stdc_fast.checkpoints.fingerprint`.
        version: of the library.
        keep: names of ops that are to be left out of 8 bits.
        about: more about it, JSON values: what was compared, what each op alone costs.
    """

    ranges: Mapping[str, Range]
    method: str
    frames: int
    source: str
    fingerprint: str
    version: str
    keep: tuple[str, ...] = ()
    about: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        count = "1 frame" if self.frames == 1 else f"{self.frames} frames"
        return f"ranges by {self.method} of {count} of {self.source}"

    def facts(self) -> dict[str, object]:
        """All but the ranges, as JSON values."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "ranges"}
        return {**found, "keep": list(self.keep), "about": dict(self.about)}

    def tensors(self) -> dict[str, Tensor]:
        """The ranges as float32 ``[3, C]`` by name: lows, highs, averages."""
        return {
            f"{PREFIX}{key}": torch.stack([found.low, found.high, found.mean]).float()
            for key, found in self.ranges.items()
        }

    @staticmethod
    def of(tensors: Mapping[str, Tensor], facts: object) -> Calibration:
        """That of a file's tensors, which may have others besides, and of :meth:`facts`.

        UserError, without the file's name, for what is damaged.
        """
        texts = dict.fromkeys(("method", "source", "fingerprint", "version"), str)
        kinds = {**texts, "frames": int, "keep": list, "about": dict}
        if not isinstance(facts, Mapping):
            raise UserError(f"damaged ranges (said of them is {short(facts)}); calibrate again")
        for name, kind in kinds.items():
            if not isinstance(facts.get(name), kind):
                raise UserError(f"damaged ranges ({name} is {short(facts.get(name))}); calibrate again")
        if not all(isinstance(name, str) for name in facts["keep"]):
            raise UserError(f"damaged ranges (keep is {short(facts['keep'])}); calibrate again")
        ranges = {}
        for name, tensor in tensors.items():
            if not name.startswith(PREFIX):
                continue
            fits = tensor.ndim == 2 and len(tensor) == 3 and tensor.is_floating_point()
            if not (fits and bool(tensor.isfinite().all()) and bool((tensor[0] <= tensor[1]).all())):
                raise UserError(f"damaged ranges ({name} is not of finite numbers [3, C]); calibrate again")
            ranges[name.removeprefix(PREFIX)] = Range(*tensor.double())
        if not ranges:
            raise UserError("damaged ranges (there are none); calibrate again")
        values = {name: facts[name] for name in kinds}
        return Calibration(ranges, **{**values, "keep": tuple(facts["keep"])})


def beside(weights: Path) -> Path:
    """Where the ranges of a file of weights are looked for, if it has none itself."""
    return weights.with_name(f"{weights.stem}{SUFFIX}")
