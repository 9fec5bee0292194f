"""Plans of 8 bits: which ops can, what becomes levels, and sums of whole numbers, as NumPy finds them too."""

import functools

import numpy as np
import pytest
import torch
from plans import error
from sketch import plain, sketched, small_network

from stdc_fast.backends import eager
from stdc_fast.backends.base import not_tiled
from stdc_fast.backends.eager.memory import Pieces
from stdc_fast.plan import build, optimise
from stdc_fast.plan.ops import LEVELS, Conv, Down, Quantise, View
from stdc_fast.plan.quantise import LEAST, Range, candidates, quantise, wanted
from stdc_fast.precision import FLOAT32
from stdc_fast.reference import STDCSeg


class Looks:
    """Rounds nothing; keeps every map by its key, whole."""

    tiles = frozenset()

    def __init__(self):
        self.maps = {}

    def tensor(self, key, x, offset=0):
        self.maps.setdefault(key, {})[offset] = x.double()
        return x

    def weight(self, op, name, weight):
        return weight


def ranges_of(plan, *inputs):
    """Those of one call, by channel."""
    looks = Looks()
    eager.compile(plan, FLOAT32, rounding=looks)(*inputs)
    maps = {key: torch.cat([parts[i] for i in sorted(parts)], 1) for key, parts in looks.maps.items()}
    maps |= {name: x.double() for name, x in zip(plan.inputs, inputs, strict=True)}
    return {k: Range(v.amin((0, 2, 3)), v.amax((0, 2, 3)), v.mean((0, 2, 3))) for k, v in maps.items()}


def noise(plan, height=9, width=11, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = [plan.buffers[name].channels for name in plan.inputs]
    return [torch.randn(batch, n, height, width, generator=generator) + 0.25 for n in channels]


def kept(plan, *inputs):
    """Every buffer of a plan, as the eager backend leaves it, in float32."""
    executable = eager.compile(plan, FLOAT32)
    memory = Pieces()
    memory.free = lambda buffer: None
    executable._memory = lambda *_: memory
    executable(*inputs)
    return {name: memory.read(plan.whole(name)) for name in memory.buffers}


# Which ops can.


@pytest.fixture(scope="module")
def network():
    return optimise(build(STDCSeg("stdc1", 11).eval()))


def test_the_ops_of_a_network(network):
    names = candidates(network)
    left = {op.name for op in network.ops if isinstance(op, (Conv, Down))} - set(names)
    assert left == {"conv_out.conv_out"}  # whose input is an ordinary map, and whose output are logits
    assert len(names) == len(set(names)) > 25
    tiled = {op.name for op in network.ops if getattr(op, "kernel", 0) == 2}
    tiled |= {op.name for op in network.ops if getattr(op, "kernel", 0) == 3 and op.stride == 1}
    assert not_tiled(network) == [name for name in names if name not in tiled]
    assert len(not_tiled(network)) == 8


@pytest.mark.parametrize(
    ("make", "fits"),
    [
        (plain(8, 10, 3, 1), True),
        (plain(8, 10, 1, 2), True),
        (plain(6, 8, 3, 1), False),  # no multiple of four
        (plain(8, 10, 1, 1, store="float32", act="none"), False),  # logits
        (sketched(12)(lambda s, x: s.conv(View(x.buffer, 4, 8), 10, 1)), True),
        (sketched(12)(lambda s, x: s.conv(View(x.buffer, 2, 8), 10, 1)), False),  # begins in between
        (sketched(8)(lambda s, x: s.down(x, 12)), True),
        (sketched(8, 4)(lambda s, x, y: s.conv([x, y], 10, 3)), True),
        (sketched(8, 6)(lambda s, x, y: s.conv([x, y], 10, 3)), False),
        (plain(7308, 1, 3, 1), True),
        (plain(7312, 1, 3, 1), False),  # 65,808 products, which might not fit into 32 bits
    ],
)
def test_what_fits(make, fits):
    plan = make()
    assert bool(candidates(plan)) == fits
    if not fits:
        with pytest.raises(ValueError, match="no op op 0 that can run in 8 bits"):
            quantise(plan, {}, ["op 0"])


def test_no_names_change_nothing(network):
    assert quantise(network, {}, []).ops == network.ops


def test_ranges_that_do_not_fit():
    plan = plain(8, 10, 3, 1)()
    (key,) = wanted(plan, ["op 0"])
    good = ranges_of(plan, *noise(plan))
    assert wanted(plan, ["op 0"]) == {key: 8}
    with pytest.raises(ValueError, match=f"no range of {key}"):
        quantise(plan, {}, ["op 0"])
    short = Range(*(v[:7] for v in (good[key].low, good[key].high, good[key].mean)))
    with pytest.raises(ValueError, match="not of 8 channels"):
        quantise(plan, {key: short}, ["op 0"])
    for field in ("low", "high", "mean"):
        for value in (torch.nan, torch.inf):
            values = {f: getattr(good[key], f).clone() for f in ("low", "high", "mean")}
            values[field][3] = value
            with pytest.raises(ValueError, match="not finite"):
                quantise(plan, {key: Range(**values)}, ["op 0"])


def test_a_plan_of_levels_has_no_candidates_left():
    plan = plain(8, 10, 3, 1)()
    assert candidates(quantise(plan, ranges_of(plan, *noise(plan)), ["op 0"])) == []


# What is made of a plan.


@sketched(8)
def between(s, x):
    """Two writers of one buffer, which only levels are read of; then one that may be negative."""
    both = s.buffer(40, 1)
    s.conv(x, View(both.buffer, 0, 24), 3)
    s.conv(View(both.buffer, 0, 24), View(both.buffer, 24, 16), 1, act="none")
    return s.conv(both, 12, 1)


def test_a_buffer_that_only_levels_are_read_of_is_kept_as_levels():
    plan = between()
    inputs = noise(plan)
    whole = quantise(plan, ranges_of(plan, *inputs), candidates(plan))
    (both,) = [name for name, buffer in plan.buffers.items() if buffer.channels == 40]
    assert whole.buffers[both].store == "s8"  # one of its writers has no activation
    writers = [op for op in whole.ops if any(v.buffer == both for v in op.writes)]
    assert [op.kind for op in writers] == ["conv", "conv"] and all(op.levels for op in writers)
    steps = torch.cat([whole.weights[op.levels] for op in writers])
    assert torch.equal(steps, torch.cat([whole.weights[writers[0].levels], whole.weights[writers[1].levels]]))
    quantises = [op for op in whole.ops if isinstance(op, Quantise)]
    assert [op.input.buffer for op in quantises] == list(plan.inputs)  # nothing else is turned into levels


def test_a_buffer_that_somebody_else_reads_stays_as_it_is():
    plan = between()
    inputs = noise(plan)
    names = [name for name in candidates(plan) if name != "op 1"]
    whole = quantise(plan, ranges_of(plan, *inputs), names)
    (both,) = [name for name, buffer in plan.buffers.items() if buffer.channels == 40]
    assert whole.buffers[both].store == "act"
    assert sum(isinstance(op, Quantise) for op in whole.ops) == 2
    (levels,) = [op for op in whole.ops if isinstance(op, Quantise) and op.input.buffer == both]
    assert whole.ops.index(levels) < [op.name for op in whole.ops].index("op 2")


def test_levels_of_a_view_are_made_once():
    @sketched(16)
    def make(s, x):
        first = s.conv(x, 8, 3)
        return s.conv([first, s.conv(x, 12, 1)], 4, 1)

    plan = make()
    whole = quantise(plan, ranges_of(plan, *noise(plan)), candidates(plan))
    assert [op.kind for op in whole.ops].count("quantise") == 1
    (levels,) = [op.output for op in whole.ops if isinstance(op, Quantise)]
    assert sum(levels in op.reads for op in whole.ops) == 2


def test_dead_channels_get_a_step():
    """Channels that were zero where the range was taken, one of them and all of them."""
    plan = plain(8, 10, 1, 1)()
    (key,) = wanted(plan, ["op 0"])
    some = torch.tensor([4.0, 0, 2, 1, 3, 1, 1, 1], dtype=torch.float64)
    whole = quantise(plan, {key: Range(-some, some, 0 * some)}, ["op 0"])
    (op,) = [op for op in whole.ops if isinstance(op, Quantise)]
    steps = whole.weights[op.levels]
    assert steps[1] == steps.max() * LEAST and torch.equal(steps[2:3], steps[:1] / 2)
    nothing = quantise(plan, {key: Range(*[0 * some] * 3)}, ["op 0"])
    x = noise(plan)
    assert bool(eager.compile(nothing, FLOAT32)(*x).isfinite().all())


def test_biases_make_up_for_rounded_weights():
    """A map that is its average everywhere is multiplied as if weights were not rounded."""
    plan = plain(16, 24, 1, 1, act="none")()
    mean = torch.linspace(0.6, 2, 16, dtype=torch.float64)
    x = mean.view(1, 16, 1, 1).expand(1, 16, 5, 7)
    (key,) = wanted(plan, ["op 0"])
    reach = 127 * mean / 60  # so that averages are levels
    whole = quantise(plan, {key: Range(-reach, reach, mean)}, ["op 0"])
    exact = eager.compile(plan, torch.float64)(x)
    assert error(eager.compile(whole, torch.float64)(x), exact) < 1e-12
    bias = {k: v for k, v in whole.weights.items() if k == plan.ops[0].bias}
    uncorrected = whole.replace(weights={k: plan.weights[k] for k in bias})
    assert error(eager.compile(uncorrected, torch.float64)(x), exact) > 1e-4


# Sums of whole numbers, as NumPy finds them.


def convolved(x, weight, stride):
    """Integers ``[N, C, H, W]`` and ``[O, C, k, k]``; zeros around."""
    k = weight.shape[-1]
    height, width = (-(-n // stride) for n in x.shape[2:])
    x = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    y = np.zeros((len(x), len(weight), height, width), np.int64)
    for i in range(k):
        for j in range(k):
            part = x[
                :, :, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride
            ]
            y += np.einsum("nchw,oc->nohw", part, weight[:, :, i, j])
    return y


def doubled(x, weight, size):
    """The sub-pixel form, a pixel at a time: see :class:`stdc_fast.plan.ops.Conv`."""

    def reads(at, count, n):
        which = 2 if count % 2 and at == count - 1 else at % 2
        first = at // 2 - 1 + at % 2
        return which, [(tap, first + tap) for tap in range(2) if 0 <= first + tap < n]

    y = np.zeros((len(x), weight.shape[2], *size), np.int64)
    for row in range(size[0]):
        a, rows = reads(row, size[0], x.shape[2])
        for column in range(size[1]):
            b, columns = reads(column, size[1], x.shape[3])
            for i, h in rows:
                for j, w in columns:
                    y[:, :, row, column] += x[:, :, h, w] @ weight[a, b, :, :, i, j].T
    return y


def whole_numbers(weight):
    assert bool((weight == weight.round()).all()) and weight.abs().max() == 127
    return weight.numpy().astype(np.int64)


def finished(plan, op, sums):
    """Sums with multiplier, bias and ReLU, each in the dtype that the engines have."""
    multiplier, bias = (
        plan.weights[name].numpy().astype(np.float32).astype(np.float64)[:, None, None]
        for name in (op.multipliers, op.bias)
    )
    assert np.abs(sums).max() < 2**24  # so that none of them is rounded
    y = (sums * multiplier + bias).astype(np.float32)
    return np.maximum(y, 0) if getattr(op, "act", "relu") == "relu" else y


def levels_of(x, steps, store):
    inverse = (1 / steps.numpy().astype(np.float32)).astype(np.float32)[:, None, None]
    found = np.rint((x.numpy() * inverse).astype(np.float32))
    return np.clip(found, *LEVELS[store]).astype(np.int64)


@functools.cache
def prologue(add):
    @sketched(8)
    def make(s, x):
        mean = s.vector(16)
        y = s.conv(x, 16, 3, 2, mean=mean)
        gate = s.gate(mean, (16,), ("sigmoid",))
        other = s.conv(x, 16, 1, 2) if add == "map" else s.gate(mean, (16,), ("none",)) if add else None
        return s.conv(y, 12, 2, scale=gate, add=other)

    return make


SINGLE = {
    "1x1": plain(8, 10, 1, 1),
    "1x1, stride 2, no activation": plain(12, 6, 1, 2, act="none"),
    "3x3": plain(8, 10, 3, 1),
    "3x3, stride 2, no bias": plain(8, 10, 3, 2, bias=False),
    "part of a buffer": sketched(20)(lambda s, x: s.conv(View(x.buffer, 4, 8), 10, 3)),
    "two inputs": sketched(8, 4)(lambda s, x, y: s.conv([x, y], 10, 3)),
    "sub-pixel": sketched(8)(lambda s, x: s.conv(s.conv(x, 16, 3, 2), 12, 2)),
    "sub-pixel after a map that is kept": sketched(8)(
        lambda s, x: s.conv([y := s.conv(x, 16, 3, 2), s.conv(y, 8, 1)][0], 12, 2)
    ),
    "sub-pixel after scale": prologue(None),
    "sub-pixel after scale and vector": prologue("vector"),
    "sub-pixel after scale and map": prologue("map"),
}


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("name", SINGLE)
def test_sums_are_those_of_whole_numbers(name, size):
    plan = SINGLE[name]()
    op = plan.ops[-1]
    inputs = noise(plan, *size)
    whole = quantise(plan, ranges_of(plan, *inputs), [op.name])
    maps, made = kept(whole, *inputs), whole.ops[-1]
    assert made.multipliers and not (made.scale or made.add)
    parts = []
    for view in made.inputs:
        (writer,) = whole.writers(view)
        if not isinstance(writer, Quantise):  # another op's output is kept as levels
            parts.append(maps[view.buffer].numpy().astype(np.int64))
            continue
        x = maps[writer.input.buffer][:, writer.input.offset : writer.input.offset + view.channels]
        if writer.scale:
            x = x * maps[writer.scale.buffer]
        if writer.add:
            x = x + maps[writer.add.buffer]
        store = whole.buffers[view.buffer].store
        parts.append(levels_of(x, whole.weights[writer.levels], store))
        assert np.array_equal(maps[view.buffer].numpy(), parts[-1])
    x, weight = np.concatenate(parts, 1), whole_numbers(whole.weights[made.weight])
    got = maps[made.output.buffer].numpy()
    sums = doubled(x, weight, got.shape[2:]) if made.kernel == 2 else convolved(x, weight, made.stride)
    assert np.array_equal(got, finished(whole, made, sums))
    exact = eager.compile(plan, torch.float64)(*(x.double() for x in inputs))
    assert error(torch.from_numpy(got), exact) < 0.02


@pytest.mark.parametrize("negative", [False, True])
def test_a_down_and_what_it_writes(negative):
    """Its first convolution is of whole numbers; its outputs are levels for the next one."""

    @sketched(8)
    def make(s, x):
        both = s.buffer(24, 2)
        s.down(x, View(both.buffer, 0, 12), View(both.buffer, 12, 12))
        part = both if negative else View(both.buffer, 12, 12)
        return s.conv(part, 10, 1)

    plan = make()
    inputs = noise(plan)
    whole = quantise(plan, ranges_of(plan, *inputs), candidates(plan))
    maps, (down,) = kept(whole, *inputs), [op for op in whole.ops if isinstance(op, Down)]
    both = down.output.buffer
    x = maps[down.input.buffer].numpy().astype(np.int64)
    middle = torch.from_numpy(
        finished(whole, down, convolved(x, whole_numbers(whole.weights[down.weight]), 1))
    )
    weights = [whole.weights[name].float() for name in (down.depthwise_weight, down.depthwise_bias)]
    output = torch.conv2d(middle, *weights, stride=2, padding=1, groups=12)
    pooled = torch.nn.functional.avg_pool2d(middle, 3, 2, 1)
    # The whole buffer is read of levels in one case. In the other, the strided part is read by nobody.
    assert whole.buffers[both].store == "s8"
    for view, values, levels in (
        (down.output, output, down.levels),
        (down.pooled, pooled, down.pooled_levels),
    ):
        found = maps[both][:, view.offset : view.offset + 12].numpy()
        # Depthwise sums are of floats, in some order: a level beside a tie may be the next one.
        difference = np.abs(found - levels_of(values, whole.weights[levels], "s8"))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_a_whole_network_is_near_the_one_of_floats():
    plan = small_network()
    frames = torch.randint(
        0, 256, (2, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    looks = Looks()
    reference = eager.compile(plan, FLOAT32, rounding=looks)(frames)
    ranges = {}
    for key, parts in looks.maps.items():
        x = torch.cat([parts[i] for i in sorted(parts)], 1)
        ranges[key] = Range(x.amin((0, 2, 3)), x.amax((0, 2, 3)), x.mean((0, 2, 3)))
    whole = quantise(plan, ranges, candidates(plan))
    assert {b.store for b in whole.buffers.values()} >= {"u8", "s8"}
    assert 1e-4 < error(eager.compile(whole, FLOAT32)(frames), reference) < 0.05


def test_what_is_beyond_a_range_is_clipped():
    plan = plain(8, 10, 1, 1)()
    (x,) = noise(plan)
    (key,) = wanted(plan, ["op 0"])
    reach = torch.full((8,), 0.5, dtype=torch.float64)
    whole = quantise(plan, {key: Range(-reach, reach, 0 * reach)}, ["op 0"])
    levels = kept(whole, x)[whole.ops[-1].inputs[0].buffer]
    assert levels.dtype == torch.int8 and (levels.amin(), levels.amax()) == (-127, 127)
    assert torch.equal(levels[x > 0.5], torch.full_like(levels[x > 0.5], 127))


def test_a_sketch_of_levels_is_checked():
    """A plan whose weights are no whole numbers, or whose steps are not positive, is none."""
    plan = plain(8, 10, 1, 1)()
    whole = quantise(plan, ranges_of(plan, *noise(plan)), ["op 0"])
    op = whole.ops[-1]
    with pytest.raises(ValueError, match="no whole numbers"):
        whole.replace(weights={op.weight: whole.weights[op.weight] + 0.5})
    steps = whole.ops[0].levels
    with pytest.raises(ValueError, match="positive"):
        whole.replace(weights={steps: 0 * whole.weights[steps]})
