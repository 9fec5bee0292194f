"""What GPU backends share before any kernel: memory for a request, and the walk over the plan's ops."""

import functools
import math
import weakref

import pytest
import torch
from engines import TRITON, on
from sketch import Sketch, small_network

from stdc_fast.backends.gpu.graphs import GraphExecutable
from stdc_fast.backends.gpu.model import Work
from stdc_fast.backends.gpu.placed import Lowered, Request, weights
from stdc_fast.backends.gpu.weights import pack
from stdc_fast.backends.triton.tiles import TritonTiles
from stdc_fast.precision import FLOAT16, FLOAT32

CPU = torch.device("cpu")
FRAMES, SEEN, LABELS = (80, 112), (71, 103), (90, 50)


def tiles_of(work: Work) -> TritonTiles:
    return TritonTiles(4, 8, 16, 16)


class Listed(Lowered):
    """Prepares nothing, and keeps what it was called for."""

    def __init__(self, plan, request, precision=FLOAT16, **options):
        super().__init__(plan, pack(plan, precision, CPU), request, precision, CPU, tiles_of, **options)
        self.called = []
        for kind in ("stem", "conv", "down", "gate", "map", "upsample"):
            setattr(self, f"_{kind}", functools.partial(self._call, kind))
        self._lower()

    def _call(self, kind, *arguments):
        self.called.append((kind, *arguments))


def network(labels=LABELS, **options):
    return Listed(small_network(), Request(2, FRAMES, SEEN, labels), **options)


def place(x):
    storage = x.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def test_buffers_apart_have_memory_of_their_own():
    """And are the same otherwise."""
    shared, apart = network(), network(apart=True)
    assert apart.arena.numel() == 0 < shared.arena.numel()
    assert list(apart.buffers) == list(shared.buffers)
    arena = place(shared.arena)[0]
    assert sum(place(x)[0] == arena for x in shared.buffers.values()) > 5
    for name, x in apart.buffers.items():
        other = shared.buffers[name]
        assert (x.shape, x.dtype, x.stride()) == (other.shape, other.dtype, other.stride())
        assert place(x)[1] == x.numel() * x.itemsize  # not a byte more
    places = [place(x)[0] for x in (*apart.buffers.values(), apart.result)]
    assert len(set(places)) == len(places) and 0 not in places


@pytest.mark.parametrize("apart", [False, True], ids=["arena", "apart"])
def test_poison_spares_only_the_inputs(apart):
    placed = network(apart=apart)
    for x in placed.inputs.values():
        x.fill_(7)
    placed.poison()
    for name, x in placed.buffers.items():
        assert (x == 7).all() if name in placed.inputs else x.isnan().all()
    assert (placed.result == 255).all()


def test_ops_are_called_in_order_and_labels_only_where_asked_for():
    plan = small_network()
    called = network().called
    assert [(kind, op) for kind, op, *_ in called] == [(op.kind, op) for op in plan.ops]
    assert [op for _, op in network(None).called] == list(plan.ops[:-1])


def test_scale_and_add_are_maps():
    s = Sketch(6, 6)
    first = s.conv(s.inputs[0], 6, 1)
    mean = s.vector(6)
    s.conv(first, 6, 1, mean=mean)
    gate = s.gate(mean, (6,), ("sigmoid",))
    plan = s.plan(s.add(s.scale(first, gate), s.inputs[1]))
    placed = Listed(plan, Request(1, (5, 7), (5, 7)))
    (scaled, added) = [rest for kind, *rest in placed.called if kind == "map"]
    assert scaled == [plan.ops[-2], gate, None] and added == [plan.ops[-1], None, s.inputs[1]]


def test_results_are_labels_logits_or_a_map():
    placed = network()
    *_, given = placed.called[-1]
    assert placed.result is given.labels and placed.result.dtype == torch.uint8
    assert placed.result.shape == (2, *LABELS)
    assert given.logits.shape == (2, 11, 9, 13) and given.logits.dtype == torch.float32
    assert given.logits.is_contiguous() and given.taps == 3
    assert place(given.logits) == place(network_output(placed))
    assert given.tables["row_base"].shape == (LABELS[0],)
    starts = given.tables["column_start"]
    assert given.widest == (starts[1:] - starts[:-1]).max()
    assert placed.pinned() == list(given.tables.values())
    direct = Listed(small_network(), Request(2, FRAMES, SEEN, LABELS, exact=False))
    assert direct.called[-1][-1].taps == 2
    logits = network(None)
    assert logits.result.shape == given.logits.shape and logits.pinned() == []
    s = Sketch(6)
    both = s.buffer(24, 1)
    plan = s.plan(s.conv(s.inputs[0], type(both)(both.buffer, 8, 16), 1))
    block = Listed(plan, Request(3, (5, 7), (5, 7)), FLOAT32)
    assert block.result.shape == (3, 5, 7, 16) and block.result.stride()[2] == 24


def network_output(placed):
    return placed.buffers[placed.plan.ops[-1].input.buffer]


def test_averages_have_a_row_for_each_tile():
    """As many as the op with the most of them writes; the others' rows stay zero."""
    s = Sketch(6)
    mean = s.vector(40)
    x = s.conv(s.inputs[0], 24, 3, 2, mean=type(mean)(mean.buffer, 0, 24))
    y = s.conv(x, 16, 2, mean=type(mean)(mean.buffer, 24, 16))
    s.conv(y, 8, 1)
    plan = s.plan(s.gate(mean, (10,), ("relu",)))
    placed = Listed(plan, Request(2, (13, 21), (13, 21)))
    of_first = math.ceil(7 / 4) * math.ceil(11 / 8)
    of_second = 9 * of_first  # sets of the sub-pixel form of an odd size, each of the small map's tiles
    sums, rows, pitch = placed._sums(plan.ops[1].mean)
    assert (rows, pitch) == (of_second, 40) and sums.shape == (2, rows, 16)
    assert sums.data_ptr() == placed._sums(mean)[0].data_ptr() + 24 * 4
    assert not placed._sums(mean)[0].any() and placed._sums(mean)[0].dtype == torch.float32
    assert placed._sums(None) == (placed._none, 0, 0)
    assert placed._vector(mean)[1:] == (of_second, 40)
    output = plan.outputs[0]
    assert placed._vector(output)[1:] == (1, 10)
    averages = placed._averages[mean.buffer]
    averages.fill_(3)
    placed.poison()  # it would stay where no op writes
    assert (averages == 3).all()


def test_too_large_images_are_said():
    s = Sketch(512)
    plan = s.plan(s.conv(s.inputs[0], 16, 1))
    with torch.device("meta"), pytest.raises(ValueError, match=r"too large .*\[1, 2048, 2048, 512\]"):
        Lowered(plan, {}, Request(1, (2048, 2048), (2048, 2048)), FLOAT16, torch.device("meta"), tiles_of)


@pytest.mark.parametrize("labels", [None, LABELS], ids=["logits", "labels"])
@on([TRITON])
def test_all_memory_of_tritons_launches_is_known(engine, labels):
    """Streams are told of what is in tensors(): of all that any launch is given, workspaces too."""
    from stdc_fast.backends.triton import launches as lowering

    def split(work):
        shared = work.kind == "conv" and len(work.inputs) == 1 and work.kernel != 2
        return TritonTiles(8, 8, 16, 16, split=2 if shared else 1)

    plan, device = small_network(), torch.device(engine.device)
    packed = pack(plan, FLOAT16, device)
    lowered = lowering.TritonLowered(plan, packed, Request(1, FRAMES, SEEN, labels), FLOAT16, device, split)
    known = {place(x) for x in lowered.tensors()}
    assert {place(w) for w in weights(packed)} <= known
    assert {place(x) for x in (lowered.result, *lowered.inputs.values())} <= known
    arguments = [launch.arguments for launch in lowered.launches]
    used = [x for given in arguments for x in given.values() if isinstance(x, torch.Tensor)]
    assert {place(x) for x in used if x.numel()} <= known
    assert sum(given["workspace"].numel() > 0 for given in arguments if "workspace" in given) > 1


def test_without_memory_for_a_size_the_other_sizes_are_given_up():
    """And only if there are none is it an error."""

    class Sized(GraphExecutable):
        def lower(self, request, variant=None):
            assert not half_made or half_made[-1]() is None  # nothing holds the memory of a failure
            if full():
                memory = torch.empty(1)
                half_made.append(weakref.ref(memory))
                raise torch.OutOfMemoryError("full")
            return network(None)

    def full():
        return len(executable._instances) >= most

    executable, most, half_made = Sized(small_network(), FLOAT16, CPU, {}), 2, []
    keys = [(Request(1, (n, n), (n, n)), None) for n in (32, 40, 48)]
    kept = [executable._instance(key) for key in keys[:2]]
    assert list(executable._instances) == keys[:2]
    assert executable._instance(keys[2]) not in kept
    assert list(executable._instances) == keys[2:] and len(half_made) == 1
    most, half_made[:] = 0, []
    with pytest.raises(torch.OutOfMemoryError):
        executable._instance(keys[0])
