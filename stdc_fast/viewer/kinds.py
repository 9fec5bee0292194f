"""How each kind of op is shown: in words, and by its colour."""

from __future__ import annotations

from collections.abc import Callable

from stdc_fast.plan.ops import Conv, Op, Quantise, Stem, View
from stdc_fast.plan.plan import Plan

#: Cool, by sort of op (:func:`stdc_fast.viewer.facts.sort_of`); those of maps are warm.
COLOURS = {
    "stem": "#0b5d3b",
    "down": "#35a04a",
    "conv 3x3": "#1f4e9c",
    "conv 1x1": "#8ec1ea",
    "conv 2x2 up": "#14b3b8",
    "conv depthwise": "#6a8fd8",
    "quantise": "#e8b4b8",
    "gate": "#3d3d3d",
    "upsample": "#9a9a9a",
    "normalise": "#b9dfc0",
    "norm": "#d5d9e4",
    "pool": "#a7cf5a",
    "mean": "#7a6fb0",
    "concat": "#c9b8e8",
    "scale": "#b98fd0",
    "add": "#8a4fa8",
    "resize": "#7fd8d8",
}


def _levels(op: Op) -> str:
    """Whether it multiplies levels of 8 bits."""
    return "8 bits" if getattr(op, "multipliers", None) else ""


def _conv(plan: Plan, op: Conv) -> str:
    flags = {"dw": op.depthwise, "s2": op.stride == 2, "up": op.up}
    does = _join(f"{op.kernel}x{op.kernel}", *(word for word, on in flags.items() if on), _act(op.act))
    prologue = _join("*scale" if op.scale else "", f"+{_sort(plan, op.add)}" if op.add else "")
    several = f"{len(op.inputs)} inputs" if len(op.inputs) > 1 else ""
    return _join(does, prologue, several, "mean" if op.mean else "", _levels(op), by=", ")


def _quantise(plan: Plan, op: Quantise) -> str:
    prologue = _join("*scale" if op.scale else "", f"+{_sort(plan, op.add)}" if op.add else "")
    return _join("to levels", prologue, by=", ")


def _stem(plan: Plan, op: Stem) -> str:
    return _join("" if op.offset is None else "image - mean,", "3x3 s2", _act(op.act))


def _join(*words: str, by: str = " ") -> str:
    return by.join(filter(None, words))


def _act(act: str) -> str:
    return "" if act == "none" else act


def _sort(plan: Plan, view: View) -> str:
    return "map" if plan.buffers[view.buffer].stride else "vector"


#: What an op does, in a few words.
WORDS: dict[str, Callable[[Plan, Op], str]] = {
    "conv": _conv,
    "stem": _stem,
    "down": lambda plan, op: _join(
        "1x1 relu, 3x3 dw s2" + (" + pool" if op.pooled else ""), _levels(op), by=", "
    ),
    "quantise": _quantise,
    "gate": lambda plan, op: ", ".join(_join("matvec", _act(act)) for act in op.acts),
    "upsample": lambda plan, op: f"bilinear x{plan.buffers[op.input.buffer].stride}, argmax",
    "normalise": lambda plan, op: "(x / 255 - mean) / std",
    "norm": lambda plan, op: _join("batch norm", _act(op.act)),
    "pool": lambda plan, op: "average 3x3 s2",
    "mean": lambda plan, op: "mean over the image",
    "concat": lambda plan, op: f"{len(op.inputs)} inputs",
    "scale": lambda plan, op: "map * vector",
    "add": lambda plan, op: f"map + {_sort(plan, op.other)}",
    "resize": lambda plan, op: "nearest x2",
}
