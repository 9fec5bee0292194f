"""What a model has of dtypes and of 8 bits: its ranges, and the plan that is packed."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from stdc_fast import checkpoints
from stdc_fast.calibration.record import Calibration
from stdc_fast.errors import UserError
from stdc_fast.plan import Plan
from stdc_fast.plan.quantise import Ranges, candidates, quantise, wanted
from stdc_fast.precision import Like, Precision, choose, precision_of

if TYPE_CHECKING:
    from stdc_fast.backends import Decision
    from stdc_fast.reference import STDCSeg

log = logging.getLogger(__name__)


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
        before = self.precision, self.why_precision
        self.precision, self.why_precision = choose(dtype, self.device)[0], "set after loading"
        try:
            say_if_none(self.name, self.precision, self.ops_in_levels())
        except UserError:
            self.precision, self.why_precision = before
            raise

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
        names = self.ops_in_levels(plan)  # which checks the ranges
        return quantise(plan, self._calibration.ranges, names)

    def ops_in_levels(self, plan: Plan | None = None) -> list[str]:
        """Names of the ops that run in 8 bits here, in order. UserError as of :meth:`ranges`, and for ranges
        of another version's plans. None of them outside of int8.
        """
        if not self.precision.levels:
            return []
        plan = self.kept_plan() if plan is None else plan
        chosen = self.decision.backend.levels(plan, self.precision, self._small)
        return ops_in_levels(self.name, self.network, plan, self._calibration, chosen)

    def _said_of_levels(self) -> str:
        """For :attr:`~stdc_fast.Segmenter.reason`."""
        if not self.precision.levels:
            return ""
        try:
            return f"; {len(self.ops_in_levels())} ops in 8 bits"
        except UserError as error:
            return f"; {error}"


def say_if_none(name: str, precision: Precision, ops: Collection[str]) -> None:
    """Warn of int8 without any op in 8 bits."""
    if precision.levels and not ops:
        said = "%s: nothing is faster in 8 bits here, or all was left out: int8 is %s"
        log.warning(said, name, precision.maps)


def ranges_of(name: str, network: STDCSeg, found: Calibration | None) -> Ranges:
    """What a calibration has for a network. UserError if there is none, or if it is of other weights."""
    if found is None:
        raise UserError(
            f"{name}: int8 needs ranges of the network's maps, and it has none; run: stdc-fast "
            f"calibrate {name} FOLDER --out FILE.safetensors, or give frames: load(..., calibrate=FOLDER)"
        )
    if found.fingerprint != checkpoints.fingerprint(network):
        raise UserError(
            f"{name}: its {found} are of other weights than it has; calibrate it again, with "
            "stdc-fast calibrate or model.calibrate(frames)"
        )
    return found.ranges


def ops_in_levels(
    name: str, network: STDCSeg, plan: Plan, found: Calibration | None, chosen: Collection[str]
) -> list[str]:
    """Those that a backend chose, but for what the calibration leaves out.

    UserError as of :func:`ranges_of`, and if the ranges are those of another version's plans.
    """
    ranges, known = ranges_of(name, network, found), candidates(plan)
    problems = [f"there is no op {op} to leave out" for op in found.keep if op not in known]
    for key, channels in wanted(plan, known).items():
        if key not in ranges:
            problems.append(f"there is no range of {key}")
        elif len(ranges[key].low) != channels:
            problems.append(f"the range of {key} has {len(ranges[key].low)} channels instead of {channels}")
    if problems:
        raise UserError(
            f"{name}: its {found} do not fit ({problems[0]}); calibrate it again, with "
            "stdc-fast calibrate or model.calibrate(frames)"
        )
    return [op for op in chosen if op not in found.keep]
