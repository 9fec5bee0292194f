"""Plans on levels of 8 bits, with the ranges of random inputs: what tests of all engines share."""

import functools

import torch
from cases import CONVS, DOWNS, PROLOGUES, SUBPIXEL
from oracle import FULL, given
from plans import error
from sketch import pair, plain, sketched

from stdc_fast.backends import eager
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.calibration import run
from stdc_fast.numerics import tolerance
from stdc_fast.plan.ops import View
from stdc_fast.plan.quantise import Range, candidates, quantise
from stdc_fast.precision import FLOAT32

SHAPES = ((1, 1, 1), (3, 3, 5), (1, 8, 6), (2, 9, 34), (1, 41, 67))


class Seen:
    """Rounds nothing; keeps the range of each map, by channel."""

    tiles = frozenset()

    def __init__(self, plan):
        self.plan, self.ranges = plan, {}

    def tensor(self, key, x, offset=0):
        buffer = self.plan.buffers.get(key)
        count = buffer.channels if buffer else x.shape[1]
        low, high, mean = self.ranges.setdefault(key, torch.zeros(3, count, dtype=torch.float64))
        part = slice(offset, offset + x.shape[1])
        flat = x.transpose(0, 1).flatten(1).double()
        low[part] = torch.minimum(low[part], flat.amin(1))
        high[part] = torch.maximum(high[part], flat.amax(1))
        mean[part] += flat.mean(1)
        return x

    def weight(self, op, name, weight):
        return weight


def seen(plan, inputs):
    """Ranges of everything that a plan keeps, over some inputs."""
    looks = Seen(plan)
    executable = eager.compile(plan, FLOAT32, rounding=looks)
    for x in inputs:
        executable(*x)
    return {key: Range(low, high, mean / len(inputs)) for key, (low, high, mean) in looks.ranges.items()}


@functools.cache
def case(make, names=None):
    """(The plan on levels, the plan, inputs of each shape)."""
    plan = make()
    inputs = [given(plan, FULL, *shape, seed=i) for i, shape in enumerate(SHAPES)]
    # Channels of the input that its ranges are of, too.
    ranges = seen(plan, inputs)
    for i, name in enumerate(plan.inputs):
        if plan.buffers[name].store == "act":
            flat = torch.cat([x[i].transpose(0, 1).flatten(1) for x in inputs], 1).double()
            ranges[name] = Range(flat.amin(1), flat.amax(1), flat.mean(1))
    return quantise(plan, ranges, candidates(plan) if names is None else names), plan, inputs


@sketched(8)
def levels_between(s, x):
    """Convolutions that write nothing but levels: direct, and into parts of one buffer."""
    both = s.buffer(40, 1)
    s.conv(x, View(both.buffer, 0, 24), 3)
    s.conv(View(both.buffer, 0, 24), View(both.buffer, 24, 16), 3)
    return s.conv(both, 36, 1, act="none")


@sketched(8)
def levels_of_a_stage(s, x):
    """The outputs of a `down`, of which one may be negative."""
    both = s.buffer(48, 2)
    y = s.buffer(24, 2)
    s.down(x, y, View(both.buffer, 0, 24))
    s.conv(y, View(both.buffer, 24, 24), 3)
    return s.conv(both, 20, 1)


@sketched(64)
def tiles_to_levels(s, x):
    """Winograd's tiles that write levels; the first one stays as it is."""
    return s.conv(s.conv(x, 64, 3), 20, 1)


@sketched(24)
def both_signs(s, x):
    """Two inputs, of which one may be negative: the second one, then the first."""
    y = s.conv([s.conv(x, 40, 3), x], 16, 3)
    return s.conv([x, y], 36, 1)


@sketched(3, store="uint8")
def stem_to_levels(s, x):
    return s.conv(s.stem(x, 32, (123.675, 116.28, 103.53)), 64, 3, 2)


MORE = {
    "levels between": levels_between,
    "levels of a stage": levels_of_a_stage,
    "stem to levels": stem_to_levels,
    "128 to 70, 3x3": plain(128, 70, 3, 1),
    "64 and 128 to 40": pair(64, 128, 40, 1, 1),
}
ALL = {name: make for table in (CONVS, DOWNS, SUBPIXEL, PROLOGUES, MORE) for name, make in table.items()}
FIT = {name: make for name, make in ALL.items() if candidates(make())}


def leave_ops_alone(patch):
    """Calibration does not measure each op alone, which takes longer than all else, for who does not look."""
    patch.setattr(run.sensitivity, "each", lambda *how: [])


def agrees(engine, make, shapes, dtype, names=None, tiles=None):
    """The oracle's results on the same levels, of shapes by their places in SHAPES; gives the executable."""
    plan, floats, inputs = case(make, names)
    executable = engine.compile(plan, dtype, **({} if tiles is None else {"tiles": tiles}))
    for place in shapes:
        x = [part if part.dtype == torch.uint8 else part.to(dtype) for part in inputs[place]]
        wide = [part if part.dtype == torch.uint8 else part.float() for part in x]
        got, want = executable(*map(engine.put, x)).cpu(), exact(plan, dtype)(*wide)
        most = limit(plan, want, exact(floats, FULL)(*wide), dtype, prologues=True)
        assert error(got, want) <= most, (list(x[0].shape), error(got, want), most)
    return executable


def signs(plan):
    """Kinds of levels that a plan keeps."""
    return {buffer.store for buffer in plan.buffers.values()} & {"u8", "s8"}


def exact(plan, dtype, tiles=()):
    return eager.compile(plan, FLOAT32, rounding=None if dtype == FULL else Rounding(dtype, tiles))


def limit(plan, want, floats, dtype, prologues=False):
    """How far an engine may be from the oracle on the same levels: where an op reads what another op made of
    levels, one beside a tie may be another one. ``want`` is the oracle's result, and ``floats`` that of the
    plan without levels. ``prologues``: the engine computes what is scaled and added otherwise, too.
    """
    several = sum(bool(getattr(op, "multipliers", None)) for op in plan.ops) > 1 or any(
        getattr(op, "levels", None)
        for op in plan.ops
        if op.kind != "quantise" or (prologues and (op.scale or op.add))
    )
    found = tolerance(dtype).op
    return max(found, error(want, floats) / 10) if several else found
