"""Bugs planted into the CUDA kernels, each of which has to be found, and by what.

``python tests/cuda_bugs.py [--out FILE]`` prints a table, and writes it as JSON lines. Each bug is one
change of the text of a source: a copy of that is compiled and linked with the other objects of the emulator's
module, and runs in its own process. All are forked from one that has imported torch, which takes longer than
most of what runs.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # as conftest.py has it

import torch
from cuda_bug_cases import WRONG, outcomes
from hosted import READY, ROOT, SCHEDULES, build

from stdc_fast.files import write_atomic

PRODUCT, PIXELS, PLACE = "tile_product.cuh", "tile_pixels.cuh", "conv_tile.cuh"
EPILOGUE = "epilogue.cuh"


# The bugs.


@dataclasses.dataclass(frozen=True)
class Bug:
    """In a file of csrc/cuda ``old``, which is there once, becomes ``new``; to be seen in a case.

    Attributes:
        found: what is found, a pattern, under every schedule with races watched for.
        source: which source is compiled, if not the file.
        unwatched: schedules that find something without that, at least.
    """

    file: str
    old: str
    new: str
    case: str
    found: str
    source: str = ""
    unwatched: int = 0


SYNC = "    block_sync();  // all see what the others fetched; nobody reads the stage before any more\n"
CHANGE = "        change_pixels<T, F>(s, w, now, change);\n"
ELSE = "      } else {\n        cp_async_wait<L::kStages - 2>();\n      }\n"
OF_LEVELS = "    } else {\n      cp_async_wait<L::kStages - 2>();\n    }\n"
BARRIER = "        block_sync();\n"
FENCE = (
    "  block_sync();\n  if (thread_id() == 0) {\n"
    "    fence();  // for the whole block, whose writes came before the barrier\n"
)
GATE = (
    "  cp_async_wait<0>();  // before the barriers of add_rows\n  add_rows<kThreads, kAnyGate>(p.g, image);\n"
)
GATHERED = "exists ? load(add + c) : 0.f);\n  }\n"
BETWEEN = "  cp_async_wait<0>();\n  block_sync();\n\n"
OUTSIDE = "outside of all tensors"
RACE, EARLY = "race in shared memory", "in flight|race in shared memory"
#: A stage that another block still reads, or to which the filler's own last copy is still on its way.
REFILLED = r"may still read by wgmma|bulk_copy of byte \d+ .* while a bulk_copy by .* is in flight"
conv = functools.partial(Bug, source="conv.cu")
levels = functools.partial(Bug, source="conv_levels.cu")
wgmma = functools.partial(Bug, "wgmma_product.cuh", source="conv_wgmma.cu")
BUGS = {
    "the barrier of a step is missing": conv(PRODUCT, SYNC, "", "3x3", EARLY, unwatched=1),
    "the barrier after the products is missing": conv(
        PRODUCT, "block_sync();  // shared memory may be", "// shared memory may be", "1x1", RACE,
        unwatched=1,
    ),
    "a wait that leaves one group more on its way": conv(
        PRODUCT, ELSE, ELSE.replace("- 2", "- 1"), "3x3", "in flight",
        unwatched=6,
    ),
    "the halo is one pixel too narrow": conv(
        PRODUCT, "(t.width - 1) * stride + s.kernel", "(t.width - 1) * stride + s.kernel - 1", "3x3",
        f"{WRONG}|{EARLY}", unwatched=6,
    ),
    "the halo starts one row too low": conv(
        PLACE, "row * a.stride - a.kernel / 2", "row * a.stride - a.kernel / 2 + 1", "3x3", WRONG,
        unwatched=6,
    ),
    "half a warp at ldmatrix": conv(
        PRODUCT, "++i) ldmatrix_x4(", "++i) if (lane_id() < 16) ldmatrix_x4(", "3x3", "divergent",
        unwatched=6,
    ),
    "half a warp at a shuffle": conv(
        EPILOGUE, "mask *= 2) total[k] +=", "mask *= 2) if (lane_id() < 16) total[k] +=", "average",
        "divergent", unwatched=6,
    ),
    "pixels one too far": conv(
        EPILOGUE, "(y + pixel * pitch + channel", "(y + (pixel + 1) * pitch + channel", "3x3",
        f"{OUTSIDE}|race between blocks", unwatched=6,
    ),
    "one row too many": conv(
        PLACE, "if (rows - row < place.rows) place.rows = rows - row;",
        "if (rows - row + 1 < place.rows) place.rows = rows - row + 1;", "3x3",
        f"{OUTSIDE}|race between blocks", unwatched=6,
    ),
    "a channel beyond the view": conv(
        PIXELS, "if (i < count) store(", "if (i < count + 1) store(", "views", WRONG, unwatched=6
    ),
    "more channels read than there are": conv(
        PIXELS, "base + offset, 2 * count);", "base + offset, 16);",
        "unwritten", WRONG, unwatched=6,
    ),
    "no wait for other kernels before pixels": conv(
        PRODUCT, "  Share<F> share(s, w, ahead);\n  grid_wait();", "  Share<F> share(s, w, ahead);", "3x3",
        "before grid_wait",
        unwatched=6,
    ),
    "one buffer of pixels too few": conv(
        PRODUCT, "  return most;\n", "  return most > 1 ? most - 1 : 1;\n", "1x1", EARLY, unwatched=1
    ),
    "pixels are changed after the barrier": conv(
        PRODUCT, CHANGE + ELSE + OF_LEVELS + SYNC,
        BARRIER + CHANGE + ELSE.replace("      }\n", BARRIER + "      }\n") + OF_LEVELS,
        "prologue", EARLY, unwatched=1
    ),
    "weights of a step that begin where the next one's do": conv(
        PRODUCT, "left < L::kDepth ? left * L::kTaps", "false ? left * L::kTaps", "short",
        f"{WRONG}|{OUTSIDE}", unwatched=6,
    ),
    "slices that read sums before they are there": conv(
        PRODUCT, "  block_sync();\n  if (leads<F>())\n", "  if (leads<F>())\n", "3x3", RACE, unwatched=1
    ),
    "the first slice's weights for all": conv(
        PRODUCT, "lane_weights<F>() + slice * F::kChannels * 32", "lane_weights<F>()", "3x3", WRONG,
        unwatched=6,
    ),
    "a step without its last units": conv(
        PRODUCT, "unit < now.left * L::kTaps; unit", "unit < now.left * L::kTaps - 1; unit", "short", WRONG,
        unwatched=6,
    ),
    "weights that go where they are still read": conv(
        PRODUCT, "free = (L::kStages - 1) * L::kStageBytes", "free = 0", "3x3", f"{WRONG}|{EARLY}",
        unwatched=1
    ),
    "a scale read as if it were a weight": conv(
        PIXELS, "? load(scale + c)", "? load_weight(scale + c)", "prologue", "load_weight of data",
        unwatched=6,
    ),
    "a barrier of the average is missing": conv(
        EPILOGUE, "  block_sync();\n  for (int n = thread_id(); n < F::kChannels",
        "  for (int n = thread_id(); n < F::kChannels", "average", RACE, unwatched=1,
    ),
    "sums of other blocks without a fence": conv(
        EPILOGUE, FENCE, "  block_sync();\n  if (thread_id() == 0) {\n", "shared", "race between blocks"
    ),
    "a fence of one thread before the others have written": conv(
        EPILOGUE, FENCE,
        "  if (thread_id() == 0) fence();\n  block_sync();\n  if (thread_id() == 0) {\n",
        "shared", "race between blocks",
    ),
    "counters are not set back": conv(
        EPILOGUE, "store(arrivals + shared, 0);", "", "shared", WRONG, unwatched=6
    ),
    "wgmma, a stage filled again without a wait": wgmma(
        "          mbarrier_wait(empty + 8 * old, stage < 2 ? phase ^ 1 : phase);\n", "", "wgmma 3x3",
        "may still read|in flight|no thread can go on|none can go on",
    ),
    "wgmma, a stage that is said to be read too early": wgmma(
        "if (u == L::kUnits - 1 && begun > 1", "if (u == 0 && begun > 1", "wgmma 3x3", "may still read",
    ),
    "wgmma, a wait for the other phase": wgmma(
        "mbarrier_wait(full + 8 * stage, phase);", "mbarrier_wait(full + 8 * stage, phase ^ 1);", "wgmma 3x3",
        "in flight",
    ),
    "wgmma, one thread waits for a stage for all": wgmma(
        "        mbarrier_wait(full + 8 * stage, phase);",
        "        if (lane_id() == 0) mbarrier_wait(full + 8 * stage, phase);", "wgmma 3x3", "did not wait",
    ),
    "wgmma, the offsets of a descriptor exchanged": wgmma(
        "kStageBytes, 128, 256)", "kStageBytes, 256, 128)", "wgmma 3x3", WRONG, unwatched=6,
    ),
    "wgmma, a unit's weights one core matrix too far": wgmma(
        "(u * L::kUnitBytes >> 4)", "((u * L::kUnitBytes + 128) >> 4)", "wgmma 3x3", f"{WRONG}|in flight",
        unwatched=6,
    ),
    "wgmma, registers that no fence is for": wgmma(
        "          wgmma_fence();\n", "", "wgmma 3x3", "without a wgmma_fence", unwatched=6,
    ),
    "wgmma, registers that are written too early": wgmma(
        "wgmma_wait<L::kAhead - 1>();", "wgmma_wait<L::kAhead>();", "wgmma 3x3",
        "registers of wgmma were written", unwatched=6,
    ),
    "wgmma, sums read before they are there": wgmma(
        "    wgmma_wait<0>();\n", "", "wgmma 3x3", f"{WRONG}|under way", unwatched=6,
    ),
    "wgmma, fewer bytes expected than come": wgmma(
        "mbarrier_expect(barrier, L::kUnits * bytes)", "mbarrier_expect(barrier, bytes)", "wgmma 3x3",
        "no thread can go on|none can go on", unwatched=6,
    ),
    "wgmma, barriers that copies may not see yet": wgmma(
        "      async_fence();\n", "", "wgmma 3x3", "without async_fence", unwatched=6,
    ),
    "wgmma, the barrier of a chunk is missing": wgmma(
        "        block_sync();  // all see", "        // all see", "wgmma chunks", f"{EARLY}|no mbarrier",
    ),
    "wgmma, the barrier after the products is missing": wgmma(
        "    block_sync();  // shared memory may", "    // shared memory may", "wgmma 3x3", RACE,
    ),
    "wgmma, what is beyond a chunk is not zero": wgmma(
        "              if (!within) a[u][i][k] = 0;\n", "              ;\n", "wgmma 1x1", WRONG, unwatched=6,
    ),
    "wgmma, a descriptor that says that there is a swizzle": wgmma(
        "const uint64_t weights = matrix_descriptor(",
        "const uint64_t weights = 1ull << 62 | matrix_descriptor(", "wgmma 3x3", "no swizzles", unwatched=6,
    ),
    "cluster, only the own warps are counted": wgmma(
        "mbarrier_init(empty + 8 * i, F::kWarps * s.cluster);", "mbarrier_init(empty + 8 * i, F::kWarps);",
        "cluster", "more arrivals|may still read|in flight|can go on",
    ),
    "cluster, no barrier at the start": wgmma(
        "    if (s.cluster > 1) {\n      cluster_arrive();\n      cluster_wait();\n    }\n", "", "cluster",
        "may not have begun it|no mbarrier", unwatched=6,
    ),
    "cluster, barriers that others may not see yet": wgmma(
        "      cluster_fence();\n", "", "cluster", "may not have begun it", unwatched=6,
    ),
    "cluster, no barrier at the end": Bug(
        "conv_wgmma.cu", "if (p.s.cluster > 1 && block_id().x >= p.gate_columns) cluster_wait();", "",
        "cluster", "may have ended|has ended", unwatched=6,
    ),
    "cluster, weights for the first block alone": wgmma(
        "barrier, (1u << s.cluster) - 1);", "barrier, 1);", "cluster", "can go on|in flight|may still read",
        unwatched=6,
    ),
    "cluster, weights for more blocks than there are": wgmma(
        "barrier, (1u << s.cluster) - 1);", "barrier, 15);", "cluster", "of a cluster of", unwatched=6,
    ),
    "cluster, only the own share is expected": wgmma(
        "mbarrier_expect(barrier, L::kUnits * bytes)", "mbarrier_expect(barrier, L::kUnits * share(s))",
        "cluster", "in flight|can go on|may still read",
    ),
    "cluster, all blocks bring the first share": wgmma(
        "cluster_rank() * share(s) : 0", "0 * cluster_rank() : 0", "cluster",
        f"{WRONG}|in flight", unwatched=6,
    ),
    "cluster, a wait for the other phase": wgmma(
        "mbarrier_wait(empty + 8 * old, stage < 2 ? phase ^ 1 : phase);",
        "mbarrier_wait(empty + 8 * old, stage < 2 ? phase : phase ^ 1);", "cluster",
        "may still read|in flight|can go on",
    ),
    "cluster, stages released at the own block's barrier alone": wgmma(
        "cluster_address(empty, lane_id() < s.cluster ? lane_id() : 0)",
        "cluster_address(empty, cluster_rank())", "cluster", REFILLED,
    ),
    "cluster, stages released at the first block's barrier alone": wgmma(
        "cluster_address(empty, lane_id() < s.cluster ? lane_id() : 0)", "cluster_address(empty, 0)",
        "cluster", "may still read|more arrivals|can go on",
    ),
    "no wait for the weights of the stem": Bug(
        "stem.cu", "  cp_async_wait<0>();\n", "", "stem", "in flight", unwatched=6
    ),
    "the halo of the map between is one row short": Bug(
        "stem_conv.cu", "(2 * p.a.tiling.height + 1) * p.between.by;",
        "2 * p.a.tiling.height * p.between.by;", "opening", WRONG, unwatched=6,
    ),
    "the border of the map between is not zero": Bug(
        "stem_conv.cu", "inside ? pack", "true || inside ? pack", "opening", WRONG, unwatched=6
    ),
    "the barrier after the map between is missing": Bug(
        "stem_conv.cu", BETWEEN, BETWEEN.replace("  block_sync();\n", ""), "opening", EARLY, unwatched=1
    ),
    "no wait for the weights of the second convolution": Bug(
        "stem_conv.cu", BETWEEN, "  block_sync();\n\n", "opening", "in flight", unwatched=6
    ),
    "the barrier between a gate and the products is missing": conv(
        PIXELS, GATHERED + "  block_sync();", GATHERED, "gated", RACE, unwatched=1,
    ),
    "weights of a fused gate waited for too late": conv(
        PIXELS, "    cp_async_wait<pending>();", "", "gated", "in flight", unwatched=6,
    ),
    "averages before other kernels are waited for": conv(
        PLACE, "  grid_wait();\n  if (!exists) return;\n", "  if (!exists) return;\n", "gated",
        "before grid_wait", unwatched=6,
    ),
    "the last block of a gate beside is missing": conv(
        PLACE, "a.beside.images * rounded_up(a.beside.outputs, kGateOutputs);",
        "a.beside.images * (a.beside.outputs / kGateOutputs);", "gated", WRONG, unwatched=6,
    ),
    "partial logits of all blocks in one place": Bug(
        "classifier.cuh", "parts, block_id().y)", "parts, 0)", "head", "race between blocks", "conv_wgmma.cu",
        unwatched=1,
    ),
    "weights of the first channels for all blocks": Bug(
        "classifier.cuh", "first / 16 * blocks", "0 * first / 16 * blocks", "head", WRONG, "conv_wgmma.cu",
        unwatched=6,
    ),
    "the border of down is not zero": Bug(
        "down.cu", "if (!inside) ", "if (false && !inside) ", "down", WRONG, unwatched=6
    ),
    "a barrier of the gate is missing": Bug(
        "gate.cuh", "i * 16, all);\n  }\n  block_sync();", "i * 16, all);\n  }\n", "gate", RACE,
        unwatched=1, source="gate.cu",
    ),
    "no wait for the weights of the gate": Bug(
        "gate.cu", "  cp_async_wait<0>();", "", "gate", "in flight", unwatched=6
    ),
    "weights of the gate waited for after the barriers": Bug(
        "gate.cu", GATE, "".join(reversed(GATE.splitlines(keepends=True))), "gate", EARLY, unwatched=1,
    ),
    "only the first rows of averages": Bug(
        "gate.cuh", "if (row >= g.rows) continue;", "if (row >= g.groups) continue;", "wide gate", WRONG,
        unwatched=6, source="gate.cu",
    ),
    "only the first outputs of a hidden layer": Bug(
        "gate.cuh", "/ kLanes < end; n += kThreads /", "/ kLanes < kThreads / kLanes; n += kThreads /",
        "wide gate", WRONG, unwatched=6, source="gate.cu",
    ),
    "levels that may be negative are taken for others": levels(
        PRODUCT, "s.first.negative : s.second.negative", "s.first.negative : s.first.negative",
        "levels of both signs", WRONG, unwatched=6,
    ),
    "sums of levels that are multiplied by their neighbours' multipliers": levels(
        EPILOGUE, "m[k] = channel < outputs ? load_weight(multipliers + channel)",
        "m[k] = channel < outputs ? load_weight(multipliers + (channel ^ 1))", "levels", WRONG, unwatched=6,
    ),
    "sums of levels that are added up as numbers": levels(
        EPILOGUE, "+= from_bits<V>(v.word[k])", "+= as_float(v.word[k])", "shared levels", WRONG, unwatched=6,
    ),
    "levels that are no pairs": levels(
        PIXELS, "column = in.pitch * 2", "column = in.pitch * 1", "levels", f"{WRONG}|{OUTSIDE}", unwatched=6,
    ),
    "pixels from one row above": levels(
        PIXELS, "(share.y + 1u) * row", "share.y * row", "levels", f"{WRONG}|{OUTSIDE}", unwatched=6,
    ),
    "levels that are cut off": conv(
        EPILOGUE, "as_bits(x + 12582912.f)", "as_bits(x - 0.5f + 12582912.f)", "levels of a part", WRONG,
        unwatched=6,
    ),
    "a level beyond the view": conv(
        EPILOGUE, "for (int i = 0; i < 16; ++i)\n      if (i < count) store(to + i",
        "for (int i = 0; i < 16; ++i)\n      if (i < count + 1) store(to + i", "levels of a part", "changed",
        unwatched=6,
    ),
    "vectors of levels where there are none": conv(
        EPILOGUE, "inverse == nullptr || pitch % 16 == 0", "inverse == nullptr || pitch % 8 == 0",
        "levels of a part", "aligned", unwatched=6,
    ),
    "the last of equal classes": Bug("upsample.cu", "value > best[c]", "value >= best[c]", "labels", WRONG),
}  # fmt: skip
BUGS = {"none": conv(PLACE, "Products.", "Products.", "3x3", "^$"), **BUGS}


def plant(bug, folder):
    """The module with the bug; its sources lie beside it."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    sources = folder / "csrc/cuda"
    text = (sources / bug.file).read_text()
    assert text.count(bug.old) == 1, f"{bug.file} has {text.count(bug.old)} times {bug.old!r}"
    (sources / bug.file).write_text(text.replace(bug.old, bug.new))
    # One core is enough, and one type.
    forms = (sources / "forms.h").read_text()
    one = re.compile(
        r"(#define STDC_CONV_FORMS\(X\)) \\\n(?:.*\n)*?(  X\(.*/\* 64 x 64, 4 slices \*/) \\\n(?:  X.*\n)*"
    )
    assert one.search(forms)
    forms = one.sub(r"\1 \\\n\2\n", forms)
    first = re.compile(r"(#define STDC_WGMMA_FORMS\(X\) \\\n  X.*/\* 64 x 64 \*/) \\\n(?:  X.*\n)*")
    assert first.search(forms)
    (sources / "forms.h").write_text(first.sub(r"\1\n", forms))
    objects = ROOT / "build/emulator"
    rules = (objects / "build.ninja").read_text()
    compile_, link = (
        shlex.split(re.search(rf"rule {name}\n  command = (.*) \$", rules)[1].partition(" $")[0])
        for name in ("cuda", "link")
    )
    source = bug.source or bug.file
    made = f"{Path(source).stem}{'-f16' if 'STDC_TYPE' in (sources / source).read_text() else ''}.o"
    define = ["-DSTDC_TYPE=half_t"]
    new, module = folder / made, folder / "stdc_fast_emulator.so"
    call([*compile_, *define, "-O1", "-x", "c++", "-c", str(sources / source), "-o", str(new)], objects)
    # NOTE: the new object goes first: of inline functions that several have, the linker takes the first.
    others = [str(o) for o in sorted(objects.glob("*/*.o")) if o != objects / "cuda" / made]
    assert (objects / "cuda" / made).is_file() and len(others) > 10
    call([*link[: link.index("-shared") + 1], str(new), *others, "-o", str(module)], objects)
    return module


def call(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


def hunt(name):
    """What each schedule finds, or why that is not known."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            return apart(BUGS[name].case, plant(BUGS[name], Path(temporary)))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            return str(error)


def apart(case, module, seconds=300):
    """``outcomes`` of a case in a process with that module, or why there are none."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["stdc_fast.zoo", "stdc_fast.backends.cuda", "triton", "pytest"])
    receiver, sender = forks.Pipe(duplex=False)
    process = forks.Process(target=answer, args=(sender, case, str(module)))
    process.start()
    sender.close()  # so that the pipe ends with the process
    try:
        return receiver.recv() if receiver.poll(seconds) else f"no answer after {seconds} s"
    except EOFError:
        return "the process ended without an answer"
    finally:
        process.kill()
        process.join()


def answer(sender, case, module):
    os.environ[READY] = module
    torch.set_num_threads(1)
    try:
        sender.send(outcomes(case))
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")


@functools.cache
def hunted(names=tuple(BUGS)):
    """What came of each, several at a time."""
    build()
    with ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2))) as pool:
        return dict(zip(names, pool.map(hunt, names), strict=True))


def usual():
    """One of each kind that is found and one of each source, and none: enough to see that finding works."""
    kinds, sources = {}, {}
    for name, bug in BUGS.items():
        kinds.setdefault(bug.found.partition("|")[0], name)
        sources.setdefault(bug.source or bug.file, name)
    return {*kinds.values(), *sources.values()}


def summary(found):
    """How many schedules found a bug with races watched for and without, and what."""
    counts = {how: sum(map(bool, found[how].values())) for how in ("watched", "unwatched")}
    texts = {re.sub(r"^kernel \w+, block [\dx]+: (thread .*? at )?|\d+\.\d+e-\d+", "", t)
             for t in found["watched"].values() if t}  # fmt: skip
    what = min(texts, key=lambda text: (len(text), text)) if texts else "nothing"
    return {**counts, "of": len(SCHEDULES), "found": what.replace(": : ", ": ").strip(" :")}


def row(name, found):
    """Of the table that is printed."""
    if isinstance(found, str):
        return f"{name:45} could not be planted: {found.splitlines()[0]}"
    one = summary(found)
    return f"{name:45} {one['watched']} and {one['unwatched']} of {one['of']}: {one['found'][:110]}"


def main():
    rows = []
    for name, found in hunted().items():
        print(row(name, found))
        if name != "none" and not isinstance(found, str):
            rows.append({"bug": name, "file": BUGS[name].file, **summary(found)})
    if sys.argv[1:2] == ["--out"]:
        text = "".join(json.dumps(one) + "\n" for one in rows)
        write_atomic(Path(sys.argv[2]), lambda path: Path(path).write_text(text))


if __name__ == "__main__":
    main()
