"""Exact rewrites, ``Plan -> Plan``, one function each: the same numbers over the reals, less to do.

A rewrite changes what it recognises and leaves the rest as it is, so they compose in any order; each is
proven alone in float64 against the network. :func:`optimise` applies them in the order that leaves only
the kinds that every backend runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from stdc_fast.plan.ops import (
    Add,
    Concat,
    Conv,
    Down,
    Gate,
    Mean,
    Norm,
    Normalise,
    Op,
    Pool,
    Resize,
    Scale,
    Stem,
    View,
)
from stdc_fast.plan.plan import Plan


def drop_training(plan: Plan) -> Plan:
    """Keep the main output and what it needs."""
    needed = {plan.outputs[0].buffer}
    kept: list[Op] = []
    for op in reversed(plan.ops):
        if any(view.buffer in needed for view in op.writes):
            kept.append(op)
            needed |= {view.buffer for view in op.reads}
    return plan.replace(reversed(kept), outputs=plan.outputs[:1])


def fold_batch_norm(plan: Plan) -> Plan:
    """Batch norm into the convolution before it: weights times ``gamma / sqrt(var + eps)``, and a bias."""
    changes: dict[str, Op | None] = {}
    weights: dict[str, Tensor] = {}
    for norm in plan.ops:
        if not isinstance(norm, Norm):
            continue
        conv = plan.source(norm.input)
        if not isinstance(conv, (Conv, Stem)) or conv.act != "none":
            continue
        if not plan.only_read_by(norm.input, norm):
            continue
        factor = (plan.weights[norm.var] + norm.eps).rsqrt()
        if norm.gamma:
            factor = factor * plan.weights[norm.gamma]
        bias = -plan.weights[norm.mean] * factor
        if norm.beta:
            bias = bias + plan.weights[norm.beta]
        if conv.bias:
            bias = bias + plan.weights[conv.bias] * factor
        # Trailing dimensions of every layout: out, in, rows, columns of the kernel.
        weights[conv.weight] = plan.weights[conv.weight] * factor.view(-1, 1, 1, 1)
        weights[f"{conv.name}.bias"] = bias
        changes[conv.name] = replace(conv, output=norm.output, act=norm.act, bias=f"{conv.name}.bias")
        changes[norm.name] = None
    return plan.substitute(changes, weights=weights)


def fold_normalisation(plan: Plan) -> Plan:
    """``(x / 255 - mean) / std`` into the first convolution, which becomes a stem.

    Padding is zero after normalisation, that is, it equals the pixel ``255 * mean``: the stem subtracts
    that first. A normalised image is read as it is.
    """
    changes: dict[str, Op | None] = {}
    weights: dict[str, Tensor] = {}
    for conv in plan.ops:
        if not isinstance(conv, Conv) or conv.kernel != 3 or conv.stride != 2 or len(conv.inputs) != 1:
            continue
        image = conv.inputs[0]
        if (
            plan.buffers[image.buffer].store != "float32"
            or conv.depthwise
            or conv.scale
            or conv.add
            or conv.mean
        ):
            continue
        offset, source = None, plan.source(image)
        if isinstance(source, Normalise) and plan.only_read_by(image, conv):
            weight = plan.weights[conv.weight]
            deviation = weight.new_tensor(source.std).view(1, -1, 1, 1)
            weights[conv.weight] = weight / (255 * deviation)
            offset, image = tuple(255 * m for m in source.mean), source.input
            changes[source.name] = None
        elif image.buffer not in plan.inputs:
            continue
        changes[conv.name] = Stem(
            name=conv.name, input=image, output=conv.output, weight=conv.weight, bias=conv.bias,
            act=conv.act, offset=offset,
        )  # fmt: skip
    return plan.substitute(changes, weights=weights)


def split_products(plan: Plan) -> Plan:
    """A convolution over a concatenation of two: it reads both and adds up two products."""
    changes: dict[str, Op | None] = {}
    for conv in plan.ops:
        if not isinstance(conv, Conv) or len(conv.inputs) != 1 or conv.depthwise or conv.scale or conv.add:
            continue
        concat = plan.source(conv.inputs[0])
        if isinstance(concat, Concat) and len(concat.inputs) == 2 and plan.only_read_by(concat.output, conv):
            changes[conv.name] = replace(conv, inputs=concat.inputs)
            changes[concat.name] = None
    return plan.substitute(changes)


def concat_views(plan: Plan) -> Plan:
    """Concatenated buffers become views of one, which their producers write into."""
    places: dict[str, View] = {}
    changes: dict[str, Op | None] = {}
    for concat in plan.ops:
        if not isinstance(concat, Concat):
            continue
        names = [view.buffer for view in concat.inputs]
        movable = all(
            view == plan.whole(view.buffer) and view.buffer not in plan.inputs and view.buffer not in places
            for view in concat.inputs
        )
        if not movable or len(set(names)) != len(names):
            continue
        offset = concat.output.offset
        for view in concat.inputs:
            places[view.buffer] = View(concat.output.buffer, offset, view.channels)
            offset += view.channels
        changes[concat.name] = None

    def place(view: View) -> View:
        while view.buffer in places:
            into = places[view.buffer]
            view = View(into.buffer, into.offset + view.offset, view.channels)
        return view

    moved = {op.name: op.with_views(place) for op in plan.ops}
    return plan.substitute(moved | changes, outputs=tuple(map(place, plan.outputs)))


def fuse_prologues(plan: Plan) -> Plan:
    """Scaling, addition and nearest up-sampling into the convolution that alone reads the result."""
    while (found := _prologue(plan)) is not None:
        plan = plan.substitute(found)
    return plan


def _prologue(plan: Plan, kinds: tuple[type, ...] = (Resize, Add, Scale)) -> dict[str, Op | None] | None:
    """The first such fusion there is. A prologue is ``up(input * scale + add)``, so it grows from its end."""
    for conv in plan.ops:
        if not isinstance(conv, Conv) or len(conv.inputs) != 1 or conv.depthwise:
            continue
        view = conv.inputs[0]
        op = plan.source(view)
        if not isinstance(op, kinds) or not plan.only_read_by(view, conv):
            continue
        if isinstance(op, Resize) and conv.kernel == 3 and conv.stride == 1:
            if not (conv.up or conv.scale or conv.add):
                return {conv.name: replace(conv, inputs=(op.input,), up=True), op.name: None}
        elif isinstance(op, Add) and not (conv.scale or conv.add):
            return {conv.name: replace(conv, inputs=(op.input,), add=op.other), op.name: None}
        elif isinstance(op, Scale) and not conv.scale:
            return {conv.name: replace(conv, inputs=(op.input,), scale=op.scale), op.name: None}
    return None


def subpixel(plan: Plan) -> Plan:
    """Nearest x2 and 3x3 as four 2x2 convolutions of the small map, one for each parity of the output.

    An even row 2i of the output reads rows i - 1, i, i of the small map, an odd row i, i, i + 1: two taps
    each, one of them a sum. The last row of an odd height is even, but the row below it is outside of the
    image, so that its sum lacks a term: a third set. Columns alike.
    """
    while (found := _prologue(plan, (Resize,))) is not None:
        plan = plan.substitute(found)
    changes: dict[str, Op | None] = {}
    weights: dict[str, Tensor] = {}
    for conv in plan.ops:
        if isinstance(conv, Conv) and conv.up and conv.kernel == 3:
            changes[conv.name] = replace(conv, kernel=2)
            weights[conv.weight] = subpixel_weights(plan.weights[conv.weight])
    return plan.substitute(changes, weights=weights)


def subpixel_weights(weight: Tensor) -> Tensor:
    """``[out, in, 3, 3]`` to ``[3, 3, out, in, 2, 2]``: even, odd, last even row by such column."""
    # By set: which of the three taps fall on the first and on the second pixel.
    sets = [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0]]]
    fall = torch.tensor(sets, dtype=weight.dtype, device=weight.device)
    return torch.einsum("oiyx,ray,cbx->rcoiab", weight, fall, fall)


def fuse_down(plan: Plan) -> Plan:
    """1x1 and ReLU, read by a depthwise 3x3 stride 2 and an average pool only: one op, no map between."""
    changes: dict[str, Op | None] = {}
    for conv in plan.ops:
        if not isinstance(conv, Conv) or conv.kernel != 1 or conv.stride != 1 or conv.act != "relu":
            continue
        if len(conv.inputs) != 1 or conv.scale or conv.add or conv.mean:
            continue
        readers = plan.readers(conv.output)
        depthwise = [op for op in readers if isinstance(op, Conv) and op.depthwise and op.stride == 2]
        pools = [op for op in readers if isinstance(op, Pool)]
        whole = all(op.reads == [conv.output] for op in readers)
        if len(depthwise) != 1 or len(pools) > 1 or not whole:
            continue
        if not plan.only_read_by(conv.output, *depthwise, *pools):
            continue
        second = depthwise[0]
        unfolded = any(isinstance(op, Norm) for op in plan.readers(second.output))
        if second.act != "none" or second.mean or unfolded:
            continue
        changes[conv.name] = Down(
            name=conv.name, input=conv.inputs[0], output=second.output,
            pooled=pools[0].output if pools else None, weight=conv.weight, bias=conv.bias,
            depthwise_weight=second.weight, depthwise_bias=second.bias,
            count_include_pad=pools[0].count_include_pad if pools else True,
        )  # fmt: skip
        changes |= {op.name: None for op in [second, *pools]}
    return plan.substitute(changes)


def fuse_means(plan: Plan) -> Plan:
    """Global averages into the epilogues of the convolutions that write what is averaged."""
    changes: dict[str, Op | None] = {}
    for mean in plan.ops:
        if not isinstance(mean, Mean):
            continue
        whole, producers = mean.input, plan.writers(mean.input)
        if not producers or not all(
            isinstance(op, Conv)
            and not op.mean
            and op.output.mask & ~whole.mask == 0
            and op.name not in changes
            for op in producers
        ):
            continue
        for op in producers:
            offset = mean.output.offset + op.output.offset - whole.offset
            view = View(mean.output.buffer, offset, op.output.channels)
            changes[op.name] = replace(op, mean=view)
        changes[mean.name] = None
    return plan.substitute(changes)


def fuse_gates(plan: Plan) -> Plan:
    """Convolutions of vectors, one or two in a row, as a gate."""
    changes: dict[str, Op | None] = {}
    for last in plan.ops:
        if not _is_layer(plan, last) or last.name in changes:
            continue
        if any(_is_layer(plan, op) for op in plan.readers(last.output)):
            continue  # not the last of its chain, unless the chain is longer than two
        chain = [last]
        before = plan.source(last.inputs[0])
        if before is not None and _is_layer(plan, before) and plan.only_read_by(before.output, last):
            chain.insert(0, before)
        changes |= {op.name: None for op in chain}
        changes[last.name] = Gate(
            name=last.name, input=chain[0].inputs[0], output=last.output,
            layers=tuple(op.weight for op in chain), biases=tuple(op.bias for op in chain),
            acts=tuple(op.act for op in chain),
        )  # fmt: skip
    return plan.substitute(changes)


def _is_layer(plan: Plan, op: Op) -> bool:
    """Whether it is a matrix-vector product that a gate can take, its batch norm folded."""
    return (
        isinstance(op, Conv)
        and plan.buffers[op.output.buffer].stride == 0
        and len(op.inputs) == 1
        and not (op.scale or op.add or op.mean or op.depthwise)
        and op.kernel == 1
        and not any(isinstance(reader, Norm) for reader in plan.readers(op.output))
    )


REWRITES: tuple[Callable[[Plan], Plan], ...] = (
    drop_training,
    fold_batch_norm,
    fold_normalisation,
    split_products,
    concat_views,
    fuse_prologues,
    subpixel,
    fuse_down,
    fuse_means,
    fuse_gates,
)


def optimise(plan: Plan) -> Plan:
    """All rewrites in order."""
    for rewrite in REWRITES:
        plan = rewrite(plan)
    return plan
