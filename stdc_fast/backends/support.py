"""Which plans native backends run: those of STDC1, STDC2 and their blocks."""

from __future__ import annotations

from stdc_fast.plan.ops import Add, Conv, Down, Gate, Scale, Stem, Upsample
from stdc_fast.plan.plan import Plan


def unfit(plan: Plan) -> str | None:
    """Why no native backend runs a plan, or None; some have reasons of their own besides."""
    if len(plan.outputs) != 1:
        return "plans with training heads are left to eager"
    averages = {op.mean.buffer for op in plan.ops if isinstance(op, Conv) and op.mean}
    ends = {op.output: op.input for op in plan.ops if isinstance(op, Upsample)}
    output = ends.get(plan.outputs[0], plan.outputs[0])
    if plan.buffers[output.buffer].stride == 0:
        return "its output is a vector"
    wide = {b.name for b in plan.buffers.values() if b.store == "float32" and b.stride} - set(plan.inputs)
    if wide - {output.buffer} or (wide and output != plan.whole(output.buffer)):
        return "it has maps in float32 besides its logits"
    for op in plan.ops:
        if not isinstance(op, (Stem, Conv, Down, Gate, Scale, Add, Upsample)):
            return f"{op.kind} {op.name}: not one of its ops"
        if isinstance(op, Conv):
            if op.depthwise or op.act not in ("none", "relu") or len(op.inputs) > 2:
                return f"{op.kind} {op.name}: depthwise or another activation"
            if op.up and op.kernel != 2:
                return f"{op.kind} {op.name}: up-sampling is not in the sub-pixel form"
            if plan.buffers[op.output.buffer].stride == 0:
                return f"{op.kind} {op.name}: of a vector"
            if len(op.inputs) > 1 and (op.kernel == 2 or op.scale or op.add):
                return f"{op.kind} {op.name}: two inputs with a prologue or up-sampling"
            store = plan.buffers[op.output.buffer].store
            if store == "float32" and op.output != plan.whole(op.output.buffer):
                return f"{op.kind} {op.name}: a part of the logits"
        if isinstance(op, Gate) and len(op.layers) > 2:
            return f"{op.kind} {op.name}: more than two layers"
        if isinstance(op, Upsample) and op.input.channels > 256:
            return f"{op.kind} {op.name}: more than 256 classes do not fit into uint8"
        if not isinstance(op, Gate) and any(v.buffer in averages for v in op.reads):
            return f"{op.kind} {op.name}: reads an average"
        if isinstance(op, Stem) and (op.act != "relu" or plan.weights[op.weight].shape[1] != 3):
            return f"{op.kind} {op.name}: not of RGB"
    return None
