"""Fewer kernels: ops that the launch of another op computes too, where the model says that it pays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from stdc_fast.plan.ops import Conv, Op, Stem
from stdc_fast.plan.plan import Plan

if TYPE_CHECKING:
    from stdc_fast.backends.cuda.launches import CudaLaunch, CudaLowered

MIDDLE = 32  # channels between the first two convolutions, at most, as kMiddle in csrc/cuda/stem_conv.cu


@dataclasses.dataclass(frozen=True)
class Fusion:
    """Op ``op`` of a plan is computed by the launch of op ``into``; both by name.

    Attributes:
        kind: "stem".
    """

    kind: str
    op: str
    into: str


def possible(plan: Plan) -> Iterator[Fusion]:
    """All that there are kernels for."""
    for op in plan.ops:
        if isinstance(op, Stem):
            yield from _of_stem(plan, op)


def _readers(plan: Plan, op: Op) -> list[Op]:
    """Ops that read what an op writes; itself if the plan gives it away."""
    written = {view.buffer for view in op.writes}
    found = [other for other in plan.ops if any(view.buffer in written for view in other.reads)]
    return found + [op for view in plan.outputs if view.buffer in written]


def _of_stem(plan: Plan, op: Stem) -> Iterator[Fusion]:
    """Of 3x3 stride 2, of which nothing else reads the input."""
    (reader, *others) = _readers(plan, op) or [op]
    if others or not isinstance(reader, Conv) or op.output.channels > MIDDLE:
        return
    form = dataclasses.replace(reader, name="", inputs=(), output=op.output, weight="", bias=None, act="none")
    plain = Conv(name="", inputs=(), output=op.output, weight="", kernel=3, stride=2)
    if form == plain and reader.inputs == (op.output,) and plan.buffers[reader.output.buffer].store == "act":
        yield Fusion("stem", op.name, reader.name)


def fuse(lowered: CudaLowered, fusions: Iterator[Fusion]) -> list[CudaLaunch]:
    """The launches of ``lowered``, unfused, with those of fused ops left out."""
    launches = {launch.op.name: launch for launch in lowered.launches}
    for fusion in fusions:
        launches[fusion.into] = _FUSE[fusion.kind](lowered, launches.pop(fusion.op), launches[fusion.into])
    return list(launches.values())


def chosen(lowered: CudaLowered, pays: Callable[[list[CudaLaunch]], float]) -> tuple[Fusion, ...]:
    """Those that lessen the time of all launches, one after the other."""
    found: list[Fusion] = []
    best = pays(lowered.launches)
    for fusion in possible(lowered.plan):
        seconds = pays(fuse(lowered, [*found, fusion]))
        if seconds < best:
            best = seconds
            found.append(fusion)
    return tuple(found)


def _copied(native: ModuleType, kind: str, source: Any, names: str, **fields: Any) -> Any:
    """Arguments of a kind with some fields of others."""
    made = getattr(native, kind)()
    for name, value in {**{name: getattr(source, name) for name in names.split()}, **fields}.items():
        setattr(made, name, value)
    return made


def _stem_conv(lowered: CudaLowered, stem: CudaLaunch, conv: CudaLaunch) -> CudaLaunch:
    first, second = stem.arguments, conv.arguments
    work = dataclasses.replace(conv.work, kind="stem_conv")
    about, sized, _ = lowered.cut(conv.op, work)
    made = _copied(
        lowered.native, "StemConvArgs", first,
        "type image is_float weight bias offset outside frame_height frame_width height width scale_y "
        "scale_x act",
        weight2=second.weight, bias2=second.bias, y=second.y, out_pitch=second.out_pitch, act2=second.act,
        **sized,
    )  # fmt: skip
    return dataclasses.replace(conv, arguments=made, also=(stem.op,), **about)


_FUSE = {"stem": _stem_conv}
