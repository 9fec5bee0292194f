"""What of a network its tensors do not show: read from files, or told by whoever loads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from reprlib import repr as short

from torch import nn

from stdc_fast.errors import UserError


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _eps(value: object) -> bool:
    parts = value.values() if isinstance(value, Mapping) else (value,)
    known = not isinstance(value, Mapping) or set(value) <= set(PARTS)
    return known and bool(parts) and all(_number(v) and 0 < v < 1 for v in parts)


def _three(least: float) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        three = isinstance(value, (list, tuple)) and len(value) == 3
        return three and all(_number(v) and v >= least for v in value)

    return check


#: Parts of the network whose norms may differ in eps, and how their names start; the first that fits counts.
PARTS = {
    "backbone": "cp.backbone.",
    "arms": "cp.arm",
    "context": "cp.",
    "fusion": "ffm.",
    "head": "conv_out.",
}

#: By option: whether a value is one, what it must be, and what the published networks have.
OPTIONS: dict[str, tuple[Callable[[object], bool], str, object]] = {
    "align_corners": (_flag, "true or false", True),
    "conv_last": (_flag, "true or false", False),
    "count_include_pad": (_flag, "true or false", True),
    "eps": (_eps, f"a number between 0 and 1, or one for each of {', '.join(PARTS)}", 1e-5),
    "mean": (_three(-1e3), "three numbers, RGB of 0..1", [0.485, 0.456, 0.406]),
    "std": (_three(1e-4), "three positive numbers, RGB of 0..1", [0.229, 0.224, 0.225]),
    "threshold": (lambda v: _number(v) and 0 < v < 1, "a probability between 0 and 1", None),
    "batch_norm": (lambda v: v in ("plain", "in-place"), "'plain' or 'in-place'", None),
}


def check(options: Mapping[str, object]) -> dict[str, object]:
    """The options that are not None, each checked; UserError for an unknown one or a value that is none."""
    given = {k: v for k, v in options.items() if v is not None}
    for name, value in given.items():
        if name not in OPTIONS:
            raise UserError(f"there is no option {name!r} of a network; known are {', '.join(OPTIONS)}")
        valid, wanted, _ = OPTIONS[name]
        if not valid(value):
            raise UserError(f"{name} must be {wanted}, not {short(value)}")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}


def agree(read: Mapping[str, object], told: Mapping[str, object]) -> dict[str, object]:
    """Options of both; UserError where the file says one thing and the caller another.

    A threshold is no property of the weights, so that the caller's counts.
    """
    for name, value in told.items():
        if name in read and read[name] != value and name != "threshold":
            raise UserError(
                f"says {name}={short(read[name])}, but {name}={short(value)} was asked for; leave that out"
            )
    return {**read, **told}


def eps_of(eps: object, name: str) -> float:
    """Of the norm of that name, where ``eps`` is a number or one for some of the parts."""
    if not isinstance(eps, Mapping):
        return eps
    return next((eps[p] for p, start in PARTS.items() if p in eps and name.startswith(start)), 1e-5)


def differing(options: Mapping[str, object]) -> dict[str, object]:
    """The options that are not what the published networks have."""
    return {k: v for k, v in options.items() if k in OPTIONS and v != OPTIONS[k][2]}


def of_network(network: nn.Module) -> dict[str, object]:
    """The options that a reference network has, :class:`stdc_fast.reference.STDCSeg`, but those of its files.

    UserError where its norms differ in more than their parts.
    """
    norms = {n: m.eps for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    eps: object = next(iter(norms.values()))
    if len(set(norms.values())) > 1:
        firsts: dict[str, float] = {}
        for name, value in norms.items():
            part = next((p for p, start in PARTS.items() if name.startswith(start)), None)
            if part is not None:
                firsts.setdefault(part, value)
        eps = firsts
    if any(eps_of(eps, name) != value for name, value in norms.items()):
        raise UserError("norms of one part of the network differ in eps, which no file can say")
    pools = {m.count_include_pad for m in network.modules() if isinstance(m, nn.AvgPool2d)} or {True}
    if len(pools) > 1:
        raise UserError("average pools of the network differ in count_include_pad, which no file can say")
    return {
        "align_corners": network.align_corners,
        "conv_last": network.cp.backbone.uses_conv_last,
        "count_include_pad": pools.pop(),
        "eps": eps,
        "mean": list(network.mean),
        "std": list(network.std),
    }
