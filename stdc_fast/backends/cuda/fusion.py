"""Fewer kernels: ops that the launch of another op computes too, where the model says that it pays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from stdc_fast.backends.cuda.tiles import CLOCK, EXTRA, Form, blocks
from stdc_fast.backends.gpu.model import LATENCY, Device, Prediction
from stdc_fast.plan.ops import Conv, Gate, Op, Stem
from stdc_fast.plan.plan import Plan

if TYPE_CHECKING:
    from stdc_fast.backends.cuda.launches import CudaLaunch, CudaLowered

#: What the model assumes of gates: cycles of a scheduler for eight products of each lane, and seconds from
#: barrier to barrier. And as kTogether, kGateOutputs and kMostResident of csrc/cuda/gate.cuh.
CYCLES_OF_8, STEPS = 28, 0.2e-6
TOGETHER, OUTPUTS, RESIDENT = 8, 16, 64 << 10
CLASSES = 32  # at most, as kClasses in csrc/cuda/classifier.cuh
MIDDLE = 32  # channels between the first two convolutions, at most, as kMiddle in csrc/cuda/stem_conv.cu


@dataclasses.dataclass(frozen=True)
class Fusion:
    """Op ``op`` of a plan is computed by the launch of op ``into``; both by name.

    Attributes:
        kind: "stem": the first two convolutions. "scale": each block computes the gate that gives its scale.
            "beside": further blocks compute a gate of which the convolution needs nothing. "logits": the
            classifier on the head's map, which is not written.
    """

    kind: str
    op: str
    into: str


def possible(plan: Plan) -> Iterator[Fusion]:
    """All that there are kernels for."""
    # Kernels that multiply levels compute nothing else.
    levelled = {op.name for op in plan.ops if getattr(op, "multipliers", None)}
    yield from (one for one in _candidates(plan) if not {one.op, one.into} & levelled)


def _candidates(plan: Plan) -> Iterator[Fusion]:
    for op in plan.ops:
        if isinstance(op, Stem):
            yield from _of_stem(plan, op)
    for op in plan.ops:
        if isinstance(op, Gate):
            yield from _of_gate(plan, op)
        if isinstance(op, Conv) and op.kernel == 1:
            yield from _of_classifier(plan, op)


def _of_classifier(plan: Plan, op: Conv) -> Iterator[Fusion]:
    """Of a convolution whose output nothing else reads."""
    plain = Conv(name="", inputs=op.inputs, output=op.output, weight=op.weight, bias=op.bias, kernel=1)
    logits = plan.buffers[op.output.buffer].store == "float32" and op.output.channels <= CLASSES
    for head in plan.ops:
        if (
            logits and dataclasses.replace(op, name="") == plain and isinstance(head, Conv)
            and op.inputs == (head.output,) and head.kernel != 2 and head.mean is None
            and plan.buffers[head.output.buffer].store == "act" and _readers(plan, head) == [op]
        ):  # fmt: skip
            yield Fusion("logits", op.name, head.name)


def prolong(plan: Plan, lives: dict[str, tuple[int, int]]) -> None:
    """Logits may be written as early as the head is computed."""
    index = {op.name: i for i, op in enumerate(plan.ops)}
    for one in possible(plan):
        name = plan.ops[index[one.op]].output.buffer
        if one.kind == "logits" and name in lives:
            lives[name] = index[one.into], lives[name][1]


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
    form = dataclasses.replace(
        reader, name="", inputs=(), output=op.output, weight="", bias=None, act="none", levels=None
    )
    plain = Conv(name="", inputs=(), output=op.output, weight="", kernel=3, stride=2)
    stored = plan.buffers[reader.output.buffer].store != "float32"
    if form == plain and reader.inputs == (op.output,) and stored:
        yield Fusion("stem", op.name, reader.name)


def _of_gate(plan: Plan, op: Gate) -> Iterator[Fusion]:
    """Of one layer, of averages, which stay as long as the plan's memory: the gate runs later than the plan
    has it. Their rows are whole vectors of four.
    """
    averages = {other.mean.buffer for other in plan.ops if isinstance(other, Conv) and other.mean}
    readers = _readers(plan, op)
    aligned = plan.buffers[op.input.buffer].channels % 4 == op.input.offset % 4 == op.input.channels % 4 == 0
    if op.input.buffer not in averages or not readers or len(op.layers) > 1 or not aligned:
        return
    (reader, *others) = readers
    place = plan.ops.index(op)
    if (
        not others and isinstance(reader, Conv) and reader.scale == op.output and reader.kernel > 1
        and _resident(op.input.channels, op.output.channels)
    ):  # fmt: skip
        yield Fusion("scale", op.name, reader.name)
    # The next convolution, in front of all that reads the gate.
    after = plan.ops[place + 1 : min(map(plan.ops.index, readers))]
    if after and isinstance(after[0], Conv) and _resident(op.input.channels, OUTPUTS):
        yield Fusion("beside", op.name, after[0].name)


def _resident(channels: int, outputs: int) -> bool:
    """Whether the weights fit into shared memory, as lay_out of csrc/cuda/gate.cuh has them."""
    return (-(-channels // 64) * 128 + 64) * outputs <= RESIDENT


class Part:
    """What a launch computes besides its convolution, for the model."""

    def seconds(self, alone: Prediction, form: Form, device: Device) -> float:
        """More than the convolution takes ``alone``."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Classifier(Part):
    """The head's map is not written.

    ``written``: bytes of partial logits; ``saved``: those of the map, less those of the logits.
    """

    written: int
    saved: int

    def seconds(self, alone: Prediction, form: Form, device: Device) -> float:
        wait = LATENCY if self.written else 0
        return EXTRA + wait + (2 * self.written - self.saved) / device.cache


@dataclasses.dataclass(frozen=True)
class FusedGate(Part):
    """What a gate costs a convolution that computes it on the way.

    Attributes:
        macs: multiply-adds of a block, and ``weights`` and ``averages``, the bytes that it reads.
        rows: of averages that a thread adds up, one after the other.
        blocks: that compute nothing else, or None: all blocks of the convolution compute it.
    """

    macs: int
    weights: int
    averages: int
    rows: int
    blocks: int | None

    def seconds(self, alone: Prediction, form: Form, device: Device) -> float:
        # Eight products, with their loads and conversions, in each of the lanes of four schedulers.
        one = self.macs / (8 * 32 * 4) * CYCLES_OF_8 / CLOCK
        start = STEPS + LATENCY / 2 * (-(-self.rows // TOGETHER) - 1)
        moved = self.averages + (0 if device.dependent else self.weights)
        number = alone.programs if self.blocks is None else self.blocks
        busy = min(alone.programs, device.processors)
        fetch = moved / min(device.cache / busy, device.port)
        rounds = -(-number // device.processors)
        if self.blocks is None:
            together = max(1, min(rounds, device.shared // (form.shared + 1024)))
            return -(-rounds // together) * start + rounds * (one + fetch)
        # Beside the others, and longer than these where it is long.
        own = device.node + LATENCY + start + one + (self.averages + self.weights) / device.port
        return max(number / device.processors * (one + fetch), own - alone.seconds)


def together(fusions: Iterable[Fusion]) -> tuple[Fusion, ...]:
    """Those that go with the ones before them: an op has one place, and a launch takes one op of a kind."""
    found: list[Fusion] = []
    for new in fusions:
        if all(new.op != one.op and (new.kind, new.into) != (one.kind, one.into) for one in found):
            found.append(new)
    return tuple(found)


def fuse(lowered: CudaLowered, fusions: Iterable[Fusion]) -> list[CudaLaunch]:
    """The launches of ``lowered``, unfused, with those of fused ops left out where tiles allow it."""
    launches = {launch.op.name: launch for launch in lowered.launches}
    for fusion in fusions:
        made = _FUSE[fusion.kind](lowered, launches[fusion.op], launches[fusion.into])
        if made is not None:
            launches[fusion.into] = made
            del launches[fusion.op]
    return list(launches.values())


def chosen(lowered: CudaLowered, pays: Callable[[list[CudaLaunch]], float]) -> tuple[Fusion, ...]:
    """Those that lessen the time of all launches, one after the other."""
    found: tuple[Fusion, ...] = ()
    best = pays(lowered.launches)
    for one in possible(lowered.plan):
        trial = together([*found, one])
        seconds = pays(fuse(lowered, trial))
        if seconds < best:
            best, found = seconds, trial
    return found


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
        inverse=second.inverse, out_negative=second.out_negative,
        **sized,
    )  # fmt: skip
    return dataclasses.replace(conv, arguments=made, also=(stem.op,), **about)


def _gated(lowered: CudaLowered, gate: CudaLaunch, conv: CudaLaunch, field: str) -> CudaLaunch:
    native, g = lowered.native, gate.arguments
    made = native.ConvArgs(conv.arguments)
    setattr(made, field, g)
    blocks = None if field == "gate" else g.images * -(-g.outputs // OUTPUTS)
    outputs = g.outputs if blocks is None else OUTPUTS
    macs = g.channels * outputs
    quads = -(-g.channels // 4)
    groups = max(1, min(g.rows, conv.form.warps * 32 // quads))
    cost = FusedGate(macs, 2 * macs, 4 * g.rows * g.channels, -(-g.rows // groups), blocks)
    form = dataclasses.replace(conv.form, shared=native.shared_bytes(made))
    return dataclasses.replace(
        conv, arguments=made, also=(*conv.also, gate.op), form=form, parts=(*conv.parts, cost)
    )


def _classified(lowered: CudaLowered, classifier: CudaLaunch, head: CudaLaunch) -> CudaLaunch | None:
    native, form, tiles = lowered.native, head.form, head.tiles
    pixels, channels = tiles.block[:2]
    outputs, classes = head.op.output.channels, classifier.op.output.channels
    # As kClassifies of csrc/cuda/classifier.cuh: whole blocks of 16 pixels for each warp.
    planar = classifier.arguments.planar
    if not planar or outputs % channels or tiles.split > 1 or pixels // 16 % form.warps:
        return None
    made = native.ConvArgs(head.arguments)
    second, parts = classifier.arguments, outputs // channels
    # NOTE: fragments, also where a kernel of its own would have core matrices of wgmma.
    made.classifier = lowered.packed[classifier.op.name].weight.data_ptr()
    made.classifier_bias, made.classes = second.bias, classes
    made.logits = second.y
    number = blocks(head.work, tiles) // parts
    written = number * outputs // channels * pixels * 4 * CLASSES if parts > 1 else 0
    if parts > 1:
        made.workspace, made.arrivals = lowered.shared_tiles(number, written // 4)
    form = dataclasses.replace(form, shared=native.shared_bytes(made))
    w = head.work
    saved = w.images * w.height * w.width * (outputs * w.written - classes * 4)
    return dataclasses.replace(
        head, arguments=made, also=(*head.also, classifier.op), form=form,
        parts=(*head.parts, Classifier(written, saved)),
    )  # fmt: skip


_FUSE = {
    "logits": _classified,
    "stem": _stem_conv,
    "scale": functools.partial(_gated, field="gate"),
    "beside": functools.partial(_gated, field="beside"),
}
