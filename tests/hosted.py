"""The CUDA kernels on the CPU: their own sources in csrc/emulator, as a backend that tests can run.

Also where there is a GPU. Every buffer has an allocation of its own, all memory is NaN before each run, all
kernels are dependent launches, and the emulator knows which memory they may use.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT

from stdc_fast.backends import cuda
from stdc_fast.backends.cuda.launches import CudaLowered
from stdc_fast.backends.cuda.tiles import CudaModel, block_of, whole_clusters
from stdc_fast.backends.cuda.tiles import CudaTiles as Tiles
from stdc_fast.backends.gpu.chooser import Chooser
from stdc_fast.backends.gpu.placed import weights
from stdc_fast.precision import precision_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
#: A module that was built already, as tests/cuda_sanitize.py and tests/cuda_bugs.py have one.
READY = "STDC_FAST_HOSTED"
#: Who runs next, and the seed of what is random.
SCHEDULES = {
    "round robin": ("round_robin", 1),
    "forward": ("forward", 1),
    "backward": ("backward", 1),
    **{f"random {seed}": ("random", seed) for seed in (1, 2, 3)},
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


class NotBuilt(Exception):
    """Why there is no module, in one line."""


@contextlib.contextmanager
def _alone(path):
    """One process at a time, where the system has locks."""
    with open(path, "w") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build() -> Path:
    """Makes the module in build/hosted of the source tree; objects stay in build/emulator."""
    if not (ROOT / "setup.py").is_file() or not (ROOT / "csrc/emulator").is_dir():
        raise NotBuilt("no source tree: csrc/emulator is missing")
    for name in ("pybind11", "setuptools"):
        if importlib.util.find_spec(name) is None:
            raise NotBuilt(f"{name} is not installed; pip install {name}")
    kind = os.environ.get("STDC_FAST_SANITIZE", "").split(",")
    folder = ROOT / "build" / "-".join(["hosted", *filter(None, kind)])
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "lock"):
        command = [sys.executable, "setup.py", "-q", "emulator", "--out", str(folder / "new")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            first = next((line for line in lines if "error" in line), "setup.py emulator failed")
            if "does not run" in first or "not found" in first:  # no compiler, no ninja
                raise NotBuilt(first)
            raise AssertionError("\n".join(lines[-40:]))
        (file,) = (folder / "new").iterdir()
        return file.replace(folder / file.name)  # another process may have the earlier one


@functools.cache
def _load():
    try:
        path = os.environ.get(READY) or build()
    except NotBuilt as error:
        return str(error)
    spec = importlib.util.spec_from_file_location("stdc_fast_emulator", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    found.set_options()
    return found


def module():
    """The emulator's module, built at the first call; skips the test where it can not be."""
    found = _load()
    if isinstance(found, str):
        pytest.skip(f"the CUDA sources do not compile for the CPU here: {found}", allow_module_level=True)
    return found


@contextlib.contextmanager
def scheduled(schedule="forward", **options):
    """One of SCHEDULES, and races, poison and block_races as of the module's set_options."""
    kind, seed = SCHEDULES[schedule]
    module().set_options(kind, seed, **options)
    try:
        yield
    finally:
        module().set_options()


def chooser(tables=None, **of_model):
    """What picks tiles from tables, else by the model of ``CudaModel(native, **of_model)``."""
    return Chooser(CudaModel(module(), **of_model), tables)


class Watched(CudaLowered):
    """Tells the emulator what kernels may read and write; ``runs`` of them were."""

    runs = 0

    def launch(self, first=False, side=None):
        self.tell()
        super().launch(first, side)
        self.runs += 1

    def _run(self, steps):
        self.native.run(steps, 0, self.dependent, -1)  # the first, too, so that it is seen to wait

    def tell(self):
        fixed = {x.data_ptr() for x in (*weights(self.packed), *self.pinned())}
        ranges = {}
        for x in self.tensors():
            if not x.numel():
                continue
            place, size = x.data_ptr(), x.numel() * x.itemsize
            if not x.is_contiguous():
                place, size = x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()
            ranges[place] = max(size, ranges.get(place, 0))
        self.native.set_memory([(place, size, place in fixed) for place, size in ranges.items()])


class Hosted(cuda.CudaExecutable):
    """The backend on the emulator."""

    lowered = Watched

    def __init__(self, plan, dtype, tiles=None, apart=True, fused=True):
        native = module()
        precision = precision_of(dtype)
        tiles = tiles or chooser()
        super().__init__(plan, precision, CPU, native, tiles, poisoned=True, graphs=False, fused=fused)
        self._dependent = True
        self.apart = apart

    def lower(self, request, variant=None, tiles=None, apart=None):
        return super().lower(request, variant, tiles, self.apart if apart is None else apart)

    @property
    def last(self) -> Watched:
        """What ran last."""
        return max(self._instances.values(), key=lambda one: one.used).lowered


def beside(executable):
    """(name, ``[..., C]``, channels) of each buffer in which there are channels that no op writes.

    Where buffers are apart, and the last run was not for labels.
    """
    lowered, covered = executable.last, {}
    for op in lowered.plan.ops:
        for view in op.writes:
            covered[view.buffer] = covered.get(view.buffer, 0) | view.mask
    for name, x in {**lowered.buffers, **lowered._averages}.items():
        rest = [c for c in range(x.shape[-1]) if not covered.get(name, 0) >> c & 1]
        if rest and name not in lowered.inputs:
            yield name, x, rest


def spared(executable) -> int:
    """Checks that what no op writes is as it was: NaN, or zero in averages. Returns how many numbers."""
    assert executable.apart
    count = 0
    for name, x, rest in beside(executable):
        found = x[..., rest].contiguous()
        fill = 0 if name in executable.last._averages else 0xFF
        assert (found.view(torch.uint8) == fill).all(), f"{name}: channels that no op writes changed"
        count += found.numel()
    return count


def counters(executable):
    """The counters of blocks that share a tile, of what ran last."""
    return [x for x in executable.last._beside if x.dtype == torch.int32]


def written_cores():
    """As csrc/cuda/forms.h has them: tests are listed without the module."""
    found = {"conv": [], "wgmma": [], "stem": [], "stem_conv": [], "down": []}
    path = ROOT / "csrc/cuda/forms.h"
    kind = ""
    for line in path.read_text().splitlines() if path.is_file() else ():
        if match := re.match(r"#define STDC_(\w+)_FORMS", line):
            kind = match[1].lower()
        elif match := re.match(r"  X\(\d+, (\d+), (\d+), (\d+), (\d+), (\d+)\)", line):
            found[kind].append(_core(*map(int, match.groups())))
    return found


def _core(wm, wn, m, n, slices):
    return block_of(wm * m * 16, wn * n * 8, slices)


#: The compiled cores, (pixels, channels) or with slices; a test compares.
CORES = written_cores()


def cores(kind):
    """The blocks of the compiled forms of an op: (pixels, channels), and slices where there are several."""
    return [_core(*form) for form in module().forms()[kind]]


def forced(core=None, height=4, width=8, chunk=16, split=1, kind="conv", usual=None, wgmma=0, cluster=1):
    """The same tiles for every op of a kind that can have them; other kinds have theirs from ``usual``, by
    default the model. Clusters are as large as the number of tiles allows.
    """
    usual = usual or chooser()

    def choose(work):
        if work.kind != kind:
            return usual(work)
        parts = min(split, sum(-(-c // chunk) for c in work.words))
        core_ = core or ((64, 64) if wgmma else (64, 16))
        found = (Tiles(core_, height, width, chunk, parts, wgmma, n) for n in (cluster, cluster // 2 or 1, 1))
        return next(t for t in found if whole_clusters(work, t))

    return choose


def warp_groups():
    """Forms of wgmma for every convolution, each for some, in clusters as large as tiles allow; other kinds
    have theirs from the model.
    """
    usual = chooser()

    def choose(work):
        if work.kind != "conv":
            return usual(work)
        if work.dtype == "int8":
            return usual(work)
        channels = next(n for n in (64, 128, 256) if work.outputs <= n or n == 256)
        pixels = 64 if channels < 256 and (work.stride == 2 or work.kernel == 2) else 128
        t = Tiles((pixels, channels), 8, pixels // 8, 16 if work.prologue else 64, 1, 1)
        clusters = (dataclasses.replace(t, cluster=n) for n in (4, 2, 1))
        return next(t for t in clusters if whole_clusters(work, t))

    return choose


def argument(kind, **fields):
    """Arguments of a kind for a small map, without memory."""
    native = module()
    made = getattr(native, kind)()
    sizes = {"images": 1, "height": 8, "width": 8, "out_height": 8, "out_width": 8, "channels": 16,
             "pitch": 16, "outputs": 16, "out_pitch": 16, "kernel": 1, "stride": 1}  # fmt: skip
    for name, value in {**sizes, **fields}.items():
        if hasattr(made, name):
            setattr(made, name, value)
    return made
