"""What a model has of dtypes and of 8 bits: its ranges, and the plan that is packed."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from stdc_fast import checkpoints
from stdc_fast.calibration.record import Calibration
from stdc_fast.errors import UserError
from stdc_fast.plan import Plan
from stdc_fast.plan.quantise import Ranges, quantise
from stdc_fast.precision import Like, Precision, choose, precision_of

if TYPE_CHECKING:
    from stdc_fast.backends import Decision
    from stdc_fast.reference import STDCSeg


class Levels:
    """What :class:`stdc_fast.Segmenter` computes in, and the ranges that int8 needs for it."""

    precision: Precision
    why_precision: str
    name: str
    network: STDCSeg
    device: torch.device
    decision: Decision
    _small: bool
    _calibration: Calibration | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the maps between the network's ops; setting it chooses another precision."""
        return self.precision.maps

    @dtype.setter
    def dtype(self, dtype: Like) -> None:
        precision_of(dtype)  # "auto" is none
        precision, _ = choose(dtype, self.device)
        if precision.levels:
            self.ranges()
        self.precision, self.why_precision = precision, "set after loading"

    @property
    def calibration(self) -> Calibration | None:
        """Ranges of the network's maps, which int8 needs; setting others packs the weights anew."""
        return self._calibration

    @calibration.setter
    def calibration(self, calibration: Calibration | None) -> None:
        if not (calibration is None or isinstance(calibration, Calibration)):
            raise UserError(f"expected a Calibration, not {type(calibration).__name__}; see calibrate()")
        before, self._calibration = self._calibration, calibration
        if before is not None:  # else nothing is in 8 bits
            self.repack()

    def calibrate(self, frames: object, **options: object) -> Calibration:
        """Take the ranges that int8 needs from frames like those to be labelled, and use them from now on.

        Arguments are those of :func:`stdc_fast.calibrate`. UserError as there; the model is then as it was.
        """
        from stdc_fast.calibration.run import calibrate

        self.calibration = calibrate(self, frames, **options)
        return self.calibration

    def ranges(self) -> Ranges:
        """Those of the network as it is now. UserError if it has none, or if they are of other weights."""
        return ranges_of(self.name, self.network, self._calibration)

    def compiled_plan(self, frames: bool = True) -> Plan:
        """The plan that the backend packs, for raw frames or normalised images: in int8 with the ops that it
        multiplies in 8 bits. UserError as of :meth:`ranges`.
        """
        plan = self.kept_plan() if frames else self.plan(False)
        if not self.precision.levels:
            return plan
        chosen = self.decision.backend.levels(plan, self.precision, self._small)
        return in_levels(self.name, self.network, plan, self._calibration, chosen)


def ranges_of(name: str, network: STDCSeg, found: Calibration | None) -> Ranges:
    """What a calibration has for a network. UserError if there is none, or if it is of other weights."""
    if found is None:
        raise UserError(
            f"{name}: int8 needs ranges of the network's maps, and it has none; run: stdc-fast "
            f"calibrate {name} FOLDER --out FILE, or give frames: load(..., calibrate=FOLDER)"
        )
    if found.fingerprint != checkpoints.fingerprint(network):
        raise UserError(
            f"{name}: its {found} are of other weights than it has; calibrate it again, with "
            "stdc-fast calibrate or model.calibrate(frames)"
        )
    return found.ranges


def in_levels(
    name: str, network: STDCSeg, plan: Plan, found: Calibration | None, chosen: Collection[str]
) -> Plan:
    """A plan of this network with the ops that a backend chose in 8 bits, but for those to be left out.

    UserError as of :func:`ranges_of`, and if the ranges are those of another version's plans.
    """
    ranges = ranges_of(name, network, found)
    try:
        return quantise(plan, ranges, [op for op in chosen if op not in found.keep])
    except ValueError as error:  # of another version, whose plans had other ops
        raise UserError(
            f"{name}: its {found} do not fit ({error}); calibrate it again, with "
            "stdc-fast calibrate or model.calibrate(frames)"
        ) from None
