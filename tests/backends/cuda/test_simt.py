"""csrc/emulator, which runs the CUDA kernels on the CPU: primitives against tables of their own, and bugs
planted into kernels, each of which has to be found."""

import ctypes
import itertools
import os
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
import torch
from paths import ROOT

SOURCES = [ROOT / "tests/native/simt_kernels.cu", *sorted((ROOT / "csrc/emulator").glob("*.cpp"))]
COMPILER = os.environ.get("CXX") or "g++"

ROUND_ROBIN, FORWARD, BACKWARD, RANDOM = range(4)
SCHEDULES = [(ROUND_ROBIN, 1), (FORWARD, 1), (BACKWARD, 1), (RANDOM, 1), (RANDOM, 2), (RANDOM, 3)]
# What can be planted, in the order of its numbers.
BUGS = re.findall(r"k(\w+)", re.search(r"enum Bug \{(.*?)\}", SOURCES[0].read_text(), re.DOTALL)[1])
SIZE = 64


class Settings(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int)
            for name in ("schedule", "races", "poison", "block_races", "dependent", "bug")
        ),
        ("seed", ctypes.c_uint64),
        ("in_bytes", ctypes.c_size_t),
        ("out_bytes", ctypes.c_size_t),
        ("in_is_data", ctypes.c_int),
    ]


class Failure(Exception):
    pass


def aligned(array):
    """A copy of the array whose address is a multiple of 64, as the device's allocations are."""
    array = np.ascontiguousarray(array)
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Emulator:
    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))

    def run(self, name, x, out, schedule=(FORWARD, 1), bug="None", watch=True, **settings):
        """Runs a case on x and returns `out`, whose contents do not matter."""
        x, out = aligned(x), aligned(out)
        out.view(np.uint8)[...] = 0
        s = Settings(schedule=schedule[0], seed=schedule[1], bug=BUGS.index(bug), races=1, poison=1)
        if watch:
            s.in_bytes, s.out_bytes = x.nbytes, out.nbytes
        for key, value in settings.items():
            setattr(s, key, value)
        message = ctypes.create_string_buffer(4096)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, out)]
        if self.library.simt_case(name.encode(), *pointers, ctypes.byref(s), message, ctypes.c_size_t(4096)):
            raise Failure(message.value.decode())
        return out

    def statistics(self):
        """What was done since the last call."""
        values = (ctypes.c_int64 * 7)()
        self.library.simt_statistics(values)
        names = ("launches", "blocks", "mma", "ldmatrix", "barriers", "switches", "copied_bytes")
        return dict(zip(names, values, strict=True))

    def call(self, name, *arguments):
        """Calls a function with arrays and numbers."""
        self.library[name](
            *(
                ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_size_t(a)
                for a in arguments
            )
        )


def build(target, *flags):
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler ({COMPILER})")
    command = [
        COMPILER,
        "-std=c++17",
        *flags,
        f"-I{ROOT / 'csrc/include'}",
        "-x",
        "c++",
        *SOURCES,
        "-o",
        target,
    ]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    if done.returncode:
        probe = subprocess.run(
            [COMPILER, "-std=c++17", *flags, "-x", "c++", "-", "-o", f"{target}.probe"],
            input="#include <optional>\nint main() { return std::optional<int>(0).value(); }",
            capture_output=True,
            text=True,
            timeout=60,
        )
        if probe.returncode:
            pytest.skip(f"{COMPILER} does not compile C++17 with {' '.join(flags)}")
        raise AssertionError(done.stderr)
    return target


def library(tmp_path_factory, name, *flags):
    return Emulator(build(tmp_path_factory.mktemp(name) / "simt.so", "-O2", "-fPIC", "-shared", *flags))


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    return library(tmp_path_factory, "plain")


@pytest.fixture(scope="session", params=["plain", "ucontext", pytest.param("native", marks=pytest.mark.wide)])
def each(request, tmp_path_factory, emulator):
    """The emulator, also with the CPU's own conversions, and with the portable switch."""
    if request.param == "plain":
        return emulator
    flag = {"native": "-march=native", "ucontext": "-DSTDC_UCONTEXT"}[request.param]
    return library(tmp_path_factory, request.param, flag)


def bits(x, dtype):
    """float32 numbers rounded to 16 bits, as uint16."""
    return torch.from_numpy(np.ascontiguousarray(x)).to(dtype).view(torch.int16).numpy().view(np.uint16)


# Fragments, as the PTX manual draws them: lane -> for each of its elements the row and column.


def table_a16():
    places = []
    for lane, i in itertools.product(range(32), range(8)):
        group, thread = lane >> 2, lane % 4
        row = group if i < 2 or 4 <= i < 6 else group + 8
        places.append((row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)))
    return np.array(places).reshape(32, 8, 2)


def table_b16():
    places = []
    for lane, i in itertools.product(range(32), range(4)):
        group, thread = lane >> 2, lane % 4
        places.append((thread * 2 + (i & 1) + (8 if i >= 2 else 0), group))
    return np.array(places).reshape(32, 4, 2)


def table_c():
    places = []
    for lane, i in itertools.product(range(32), range(4)):
        group, thread = lane >> 2, lane % 4
        places.append((group if i < 2 else group + 8, thread * 2 + (i & 1)))
    return np.array(places).reshape(32, 4, 2)


def table_a8():
    places = []
    for lane, i in itertools.product(range(32), range(16)):
        group, thread = lane >> 2, lane % 4
        row = group if i < 4 or 8 <= i < 12 else group + 8
        places.append((row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)))
    return np.array(places).reshape(32, 16, 2)


def table_b8():
    places = []
    for lane, i in itertools.product(range(32), range(8)):
        group, thread = lane >> 2, lane % 4
        places.append((thread * 4 + (i & 3) + (16 if i >= 4 else 0), group))
    return np.array(places).reshape(32, 8, 2)


def gather(matrix, table):
    return np.ascontiguousarray(matrix[table[..., 0], table[..., 1]])


def scatter(fragments, table, shape):
    matrix = np.zeros(shape, fragments.dtype)
    matrix[table[..., 0], table[..., 1]] = fragments
    return matrix


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mma_multiplies_the_fragments_of_the_manual(each, dtype):
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(shape).astype(np.float32) for shape in [(16, 16), (16, 8), (16, 8)])
    a, b = (torch.from_numpy(m).to(dtype) for m in (a, b))
    words = [
        gather(m.view(torch.int16).numpy(), t()).view(np.uint32) for m, t in [(a, table_a16), (b, table_b16)]
    ]
    x = np.concatenate([*words, gather(c, table_c()).view(np.uint32)], axis=1)
    assert x.shape == (32, 10)
    out = each.run("mma_half" if dtype == torch.float16 else "mma_bf16", x, np.empty((32, 4), np.float32))
    np.testing.assert_allclose(
        scatter(out, table_c(), (16, 8)), a.double().numpy() @ b.double().numpy() + c, rtol=0, atol=4e-6
    )


@pytest.mark.parametrize("kind, dtype", [("mma_s8", np.int8), ("mma_u8", np.uint8)])
def test_mma_of_levels_multiplies_the_fragments_of_the_manual(each, kind, dtype):
    rng = np.random.default_rng(0)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    a, b = rng.integers(least, most + 1, (16, 32)).astype(dtype), rng.integers(-128, 128, (32, 8))
    b = b.astype(np.int8)
    a[0], a[1], b[:, 0] = least, most, -128
    c = rng.integers(-1000, 1000, (16, 8)).astype(np.int32)
    words = [gather(m, t()).view(np.uint32) for m, t in [(a, table_a8), (b, table_b8)]]
    x = np.concatenate([*words, gather(c, table_c()).view(np.uint32)], axis=1)
    out = each.run(kind, x, np.empty((32, 4), np.int32))
    np.testing.assert_array_equal(
        scatter(out, table_c(), (16, 8)), a.astype(np.int32) @ b.astype(np.int32) + c
    )


def test_ldmatrix_gives_lanes_two_neighbours_of_a_row(each):
    rng = np.random.default_rng(0)
    memory = rng.integers(0, 65536, (32, 8)).astype(np.uint16)  # 32 rows of 16 bytes
    rows = rng.permutation(32).astype(np.uint32)
    x = np.concatenate([memory.view(np.uint32).ravel(), rows])
    out = each.run("ldmatrix", x, np.empty((32, 4), np.uint32)).view(np.uint16).reshape(32, 4, 2)
    for lane, matrix, i in itertools.product(range(32), range(4), range(2)):
        assert out[lane, matrix, i] == memory[rows[matrix * 8 + lane // 4], lane % 4 * 2 + i]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_shuffles_exchange_within_warps(each, schedule):
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    out = each.run("shuffles", x, np.empty((5, 64), np.float32), schedule)
    for i in range(5):
        np.testing.assert_array_equal(out[i], x[np.arange(64) ^ (1 << i)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_threads_know_where_they_are(each, schedule):
    out = each.run("places", np.zeros(4, np.int32), np.empty((2, 2, 3, 64, 6), np.int32), schedule)
    z, y, x, thread = np.meshgrid(*(range(n) for n in out.shape[:-1]), indexing="ij")
    high = (0x89ABCDEF * 0xFEDCBA98 >> 32) & 0x7FFFFFFF
    expected = np.stack([thread % 32, thread // 32, x, y, z, np.full_like(x, high)], axis=-1)
    np.testing.assert_array_equal(out, expected)


def test_copies_are_seen_when_their_group_was_waited_for(each):
    x = np.arange(1, 129, dtype=np.float32)
    out = each.run("copies", x, np.empty((32, 6), np.float32), races=0)
    x = x.reshape(32, 4)
    assert np.isnan(out[:, 0]).all() and np.isnan(out[:, 1]).all()  # not what was there before
    np.testing.assert_array_equal(out[:, 2], x[:, 1])
    assert np.isnan(out[:, 3]).all()
    np.testing.assert_array_equal(out[:, 4], np.where(np.arange(32) == 3, 0, x[:, 0]))
    np.testing.assert_array_equal(out[:, 5], 0)  # from `bytes` on
    assert each.statistics()["copied_bytes"] == 32 * 16 + 31 * 4
    with pytest.raises(
        Failure, match=r"shared_load of byte 0 of .* while a cp_async by thread 0 .* is in flight"
    ):
        each.run("copies", x, np.empty((32, 6), np.float32))


def numbers():
    """float32: random, near what 16 bits can hold, and special."""
    rng = np.random.default_rng(0)
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    ties = (halves[:, None] + np.float32(2.0**-25) * np.array([-1, 1], np.float32)).ravel()
    grid = np.sort(halves)
    middles = (grid[1:] + grid[:-1]) / 2
    return np.concatenate(
        [
            rng.integers(0, 2**32, 1_000_000, dtype=np.uint64).astype(np.uint32).view(np.float32),
            rng.standard_normal(100_000).astype(np.float32),
            halves,
            ties,
            middles,
            np.nextafter(middles, np.float32(np.inf)),
            np.nextafter(middles, np.float32(-np.inf)),
            np.array(
                [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.996, 65520, 1e30, 2**-24, 2**-25],
                np.float32,
            ),
        ]
    ).astype(np.float32)


@pytest.mark.parametrize("half", [True, False])
def test_conversions_round_to_nearest_even(each, half):
    dtype = torch.float16 if half else torch.bfloat16
    words = np.arange(65536, dtype=np.uint16)
    y = np.empty(65536, np.float32)
    each.call("simt_to_float", words, y, words.size, half)
    expected = torch.from_numpy(words.view(np.int16)).view(dtype).float().numpy()
    nan = np.isnan(expected)
    assert (np.isnan(y) == nan).all()
    np.testing.assert_array_equal(y[~nan].view(np.uint32), expected[~nan].view(np.uint32))

    x = numbers()
    rounded = np.empty(x.size, np.uint16)
    each.call("simt_round", x, rounded, x.size, half)
    expected = bits(x, dtype)
    nan = np.isnan(x)
    np.testing.assert_array_equal(rounded[~nan], expected[~nan])
    assert torch.from_numpy(rounded[nan].view(np.int16)).view(dtype).isnan().all()


def test_conversions_without_the_cpus_are_the_same(each):
    words, x = np.arange(65536, dtype=np.uint16), numbers()
    y, rounded = np.empty(65536, np.float32), np.empty(x.size, np.uint16)
    each.call("simt_plain", words, y, x, rounded, words.size, x.size)
    expected = words.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(np.nan_to_num(y, nan=7e7), np.nan_to_num(expected, nan=7e7))
    nan = np.isnan(x)
    np.testing.assert_array_equal(rounded[~nan], bits(x, torch.float16)[~nan])
    assert np.isnan(rounded[nan].view(np.float16)).all()


# A matrix product with two stages of copies, and what is found in it.


def operands():
    return np.random.default_rng(0).standard_normal((2, SIZE, SIZE)).astype(np.float16)


def product(emulator, schedule=(FORWARD, 1), **kw):
    kw = {"dependent": 1, "in_is_data": 1, **kw}
    return emulator.run("product", operands(), np.empty((SIZE, SIZE), np.float32), schedule, **kw)


def is_right(out):
    a, b = operands().astype(np.float64)
    return np.allclose(out, a @ b.T, rtol=0, atol=1e-4)


def test_a_correct_product_is_the_same_under_all_schedules(each):
    each.statistics()
    results = [product(each, schedule, block_races=1) for schedule in SCHEDULES]
    assert is_right(results[0])
    for out in results[1:]:
        np.testing.assert_array_equal(out, results[0])
    done = each.statistics()
    assert done["launches"] == len(SCHEDULES) and done["blocks"] == 4 * len(SCHEDULES)
    assert done["mma"] == done["ldmatrix"] == done["blocks"] * 4 * 4 * 2
    assert done["barriers"] == done["blocks"] * 4 * 2
    assert done["copied_bytes"] == done["blocks"] * 4 * 128 * 16


def test_a_missing_barrier_passes_in_turns_and_fails_greedily(emulator):
    assert is_right(product(emulator, (ROUND_ROBIN, 1), bug="NoBarrier", races=0))
    for schedule in SCHEDULES[1:]:
        assert not is_right(product(emulator, schedule, bug="NoBarrier", races=0)), schedule


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_missing_barrier_is_a_race_under_each_schedule(emulator, schedule):
    with pytest.raises(Failure, match=r"product, block \dx\dx0: .* byte \d+.*warp \d") as e:
        product(emulator, schedule, bug="NoBarrier")
    assert "cp_async" in str(e.value) and "ldmatrix" in str(e.value)
    assert "no barrier between" in str(e.value) or "in flight" in str(e.value)


# Bug -> what is said of it.
FOUND = {
    "NoWait": r"ldmatrix of byte \d+ of shared memory by .*_kernels.cu:\d+ while a cp_async by thread \d+",
    "Global": r"cp_async of 16 bytes outside of all tensors: it ends 16 bytes after the end of range 0",
    "Shared": r"cp_async of 16 bytes at byte \d+ out of bounds: the launch has 6112 bytes",
    "EarlyStore": r"thread \d+ \(warp \d, lane \d+\) at simt_kernels.cu:\d+: store before grid_wait",
    "EarlyLoad": r"load of data before grid_wait",
    "NoGridWait": r"cp_async of data before grid_wait",
    "InFlight": r"copies in flight at the end: 1 that no cp_async_wait waited for",
    "Misaligned": r"lane 9\) at simt_kernels.cu:\d+: ldmatrix at byte \d+ of shared memory is misaligned",
    "CopySource": r"cp_async of a misaligned address: not a multiple of 16",
    "SameOutput": r"race between blocks: store at byte \d+ of range 1 that block \d of this launch wrote",
    "TwiceInFlight": r"cp_async of byte \d+ of shared memory by .* while a cp_async by",
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("bug", FOUND)
def test_bugs_in_the_product_are_found(emulator, bug, schedule):
    with pytest.raises(Failure, match=FOUND[bug]):
        product(emulator, schedule, bug=bug, block_races=1)
    assert is_right(product(emulator, schedule))  # nothing is left of the launch that failed


def test_a_missing_wait_is_found_also_where_nobody_watches_for_races(emulator):
    with pytest.raises(Failure, match="copies in flight at the end"):
        product(emulator, bug="NoWait", races=0)


def test_weights_may_be_copied_before_grid_wait_but_not_written(emulator):
    assert is_right(product(emulator, in_is_data=0))
    with pytest.raises(Failure, match="a thread ended without grid_wait"):
        emulator.run("branches", np.zeros(4, np.float32), np.empty(4, np.float32), dependent=1)
    with pytest.raises(Failure, match="store into weights"):
        product(emulator, in_is_data=0, bug="WeightStore", dependent=0)


# Bug -> what is said of it.
STUCK = {
    "Branch": r"divergent: .*\n  warps 0-3: 0000ffff block_sync \(simt_kernels.cu:\d+\), ffff0000 warp_sync",
    "Diverge": r"divergent: .*different collectives: 7fffffff warp_sync .*80000000 shuffle_xor",
    "EarlyExit": r"deadlock: .*\n  warps 0-2: ffffffff block_sync .*\n  warp 3: ffffffff finished",
    "MixedBarriers": r"divergent: .*different barriers: 0000ffff block_sync .*, ffff0000 block_sync",
    "Throw": "exception: thrown inside",
    "Masks": "masks of shuffles must be the same",
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("bug", STUCK)
def test_threads_that_do_not_meet_are_named(emulator, bug, schedule):
    name = "shuffles" if bug == "Masks" else "branches"
    x, out = np.zeros(64, np.float32), np.empty((5, 64), np.float32)
    with pytest.raises(Failure, match=STUCK[bug]):
        emulator.run(name, x, out, schedule, bug=bug)
    emulator.run(name, x, out, schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lanes_exchange_through_shared_memory_only_with_warp_sync(emulator, schedule):
    x = np.arange(32, dtype=np.float32)
    out = emulator.run("exchange", x, np.empty(32, np.float32), schedule)
    np.testing.assert_array_equal(out, x[np.arange(32) ^ 1])
    with pytest.raises(Failure, match=r"shared_(store|load) by thread \d+ .* with no barrier between"):
        emulator.run("exchange", x, np.empty(32, np.float32), schedule, bug="NoBarrier")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_blocks_may_share_through_atomics_and_fences_only(emulator, schedule):
    x = np.arange(160, dtype=np.float32)
    kw = {"schedule": schedule, "block_races": 1}
    out = emulator.run("sum_of_blocks", x, np.empty(162, np.float32), **kw)
    assert out[0] == x.sum()
    for bug in ("NoFence", "FenceOfOne"):
        with pytest.raises(Failure, match="had not fenced before its atomic_add"):
            emulator.run("sum_of_blocks", x, np.empty(162, np.float32), bug=bug, **kw)
    with pytest.raises(Failure, match=r"race between blocks: .* without atomic_add and fence before"):
        emulator.run("sum_of_blocks", x, np.empty(162, np.float32), bug="NoAtomic", **kw)


def test_it_is_fast_enough_for_networks(emulator):
    """A bound far above what it takes, for machines that do much else."""
    emulator.statistics()
    start = time.perf_counter()
    for _ in range(20):
        product(emulator)
    seconds = time.perf_counter() - start
    done = emulator.statistics()
    print(f"{seconds / done['mma'] * 1e6:.2f} us an mma, {seconds / done['switches'] * 1e9:.0f} ns a switch")
    assert seconds / done["mma"] < 200e-6


@pytest.mark.wide  # make test-sanitize has the same of all kernels
def test_sanitizers_find_nothing_in_it_and_what_kernels_read_outside(tmp_path):
    program = build(
        tmp_path / "simt", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"
    )
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    kw = {"capture_output": True, "text": True, "timeout": 300, "env": environment}
    done = subprocess.run([program], **kw)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "caught" in done.stdout and not done.stderr
    done = subprocess.run([program, "overrun"], **kw)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
