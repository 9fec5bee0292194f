"""What one step of the CUDA kernels' main loops costs, read from their machine code.

    python -m bench.sass --out docs/results/cuda_sass.jsonl

Nothing runs and no GPU is needed. Each instruction of SASS carries its stall count and the scoreboards that
it sets and waits for. The sum of stalls over the usual path of a step is the least time of one warp. A
simulation of several warps on one scheduler, in order and with the latencies below, estimates the time that
they take together. Exit status 1: a step takes longer than its budget, or a kernel loads nothing before it
waits for the kernel before it, and a line says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import ptxas
from bench.words import table
from stdc_fast.backends.cuda.tiles import name
from stdc_fast.errors import UserError
from stdc_fast.files import write_atomic

TARGETS = ("sm_80", "sm_90a")
SHIPPED = ptxas.ROOT / "stdc_fast" / "tables" / "cuda_cycles.json"
#: Cycles from issue to result of what has no fixed latency, as published for Ampere and Hopper.
LATENCY = {
    "LDS": 33, "LDSM": 36, "LDC": 30, "LDCU": 30, "S2R": 28, "S2UR": 28, "MUFU": 24, "I2F": 24, "F2I": 24,
    "LDG": 300, "LDGSTS": 20, "R2UR": 14, "STS": 20, "HMMA": 33, "IMMA": 33, "SYNCS": 24,
}  # fmt: skip
FIXED, BARRIER, READ = 6, 24, 12  # cycles of all else, of a barrier's release, and until a source is read
PRODUCTS = ("HMMA", "IMMA", "HGMMA")  # IMMA: of 32 levels in the cycles of 16 numbers
#: Cycles in which a scheduler's unit takes no other instruction. An HGMMA of 64xNx16 takes N / 2 of the four
#: tensor cores of a processor, on each of which a warp of the group has its share.
BUSY = {"products": 6.45, "XU": 8, "ALU": 2, "IMAD": 2, "FMA": 1}
#: Cycles that shared memory is busy with 128 bytes a lane group, as one of four schedulers sees it.
SHARED = 4
_XU = ("MUFU", "I2F", "F2I")
_FMA = ("IMAD", "FFMA", "FMUL", "FADD")
_ALU = (
    "IADD3", "LOP3", "ISETP", "SEL", "SHF", "LEA", "VIADD", "VIMNMX", "IABS", "PLOP3", "PRMT", "FSETP",
    "FSEL", "HADD2", "IADD", "MOV", "CS2R",
)  # fmt: skip
#: Stall cycles that a step may take in any target: by kernel, pixels and channels of a block, and units.
BUDGETS = {
    ("conv", "128x128", "4"): 690, ("conv", "128x128", "9"): 1370, ("conv", "128x32", "4"): 415,
    ("conv", "128x32", "9"): 755, ("conv", "128x32/4", "8"): 435, ("conv", "128x32/4", "36"): 1390,
    ("conv", "128x64", "4"): 690, ("conv", "128x64", "9"): 1370, ("conv", "144x128", "4"): 550,
    ("conv", "144x128", "9"): 1070, ("conv", "144x32", "4"): 290, ("conv", "144x32", "9"): 440,
    ("conv", "144x64", "4"): 550, ("conv", "144x64", "9"): 1070, ("conv", "64x16", "4"): 255,
    ("conv", "64x16", "9"): 415, ("conv", "64x16/4", "8"): 300, ("conv", "64x16/4", "36"): 800,
    ("conv", "64x32/4", "8"): 435, ("conv", "64x32/4", "36"): 1410, ("conv", "64x64/4", "8"): 435,
    ("conv", "64x64/4", "36"): 1410, ("down", "160x128", "4"): 870, ("down", "160x64", "4"): 870,
    ("down", "96x32/2", "8"): 570, ("down", "96x64", "4"): 555,
    ("wgmma", "64x64", "4"): 270, ("wgmma", "64x64", "9"): 455, ("wgmma", "64x128", "4"): 270,
    ("wgmma", "64x128", "9"): 455,
    ("wgmma", "128x64", "4"): 270, ("wgmma", "128x64", "9"): 455, ("wgmma", "128x128", "4"): 270,
    ("wgmma", "128x128", "9"): 455, ("wgmma", "128x256", "4"): 275, ("wgmma", "128x256", "9"): 525,
    ("conv_levels", "128x128", "4"): 695, ("conv_levels", "128x128", "9"): 1385,
    ("conv_levels", "128x32", "4"): 425, ("conv_levels", "128x32", "9"): 775,
    ("conv_levels", "128x32/4", "36"): 1415, ("conv_levels", "128x32/4", "8"): 455,
    ("conv_levels", "128x64", "4"): 705, ("conv_levels", "128x64", "9"): 1385,
    ("conv_levels", "144x128", "4"): 565, ("conv_levels", "144x128", "9"): 1085,
    ("conv_levels", "144x32", "4"): 320, ("conv_levels", "144x32", "9"): 460,
    ("conv_levels", "144x64", "4"): 560, ("conv_levels", "144x64", "9"): 1085,
    ("conv_levels", "64x16", "4"): 295, ("conv_levels", "64x16", "9"): 425,
    ("conv_levels", "64x16/4", "36"): 830, ("conv_levels", "64x16/4", "8"): 335,
    ("conv_levels", "64x32/4", "36"): 1410, ("conv_levels", "64x32/4", "8"): 455,
    ("conv_levels", "64x64/4", "36"): 1410, ("conv_levels", "64x64/4", "8"): 455,
    ("down_levels", "160x128", "4"): 865, ("down_levels", "160x64", "4"): 865,
    ("down_levels", "96x32/2", "8"): 600, ("down_levels", "96x64", "4"): 580,
}  # fmt: skip
#: Loads that a kernel has in front of its wait for the kernel before it, at least: of weights and tables.
EARLY = {
    "conv": 9,
    "conv_levels": 9,
    "wgmma": 6,
    "down": 8,
    "down_levels": 8,
    "stem": 1,
    "stem_conv": 14,
    "gate": 4,
    "upsample": 20,
}

_FUNCTION = re.compile(r"^\s*Function : (\S+)$", re.M)
_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+([^;]*);\s*/\* 0x[0-9a-f]{16} \*/\s*\n\s*/\* 0x([0-9a-f]{16}) \*/", re.M
)
_TARGET = re.compile(r"0x([0-9a-f]+)")


# ---------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of SASS and the control bits that ptxas wrote for it.

    Attributes:
        at: its address in the function.
        text: as cuobjdump prints it, with its predicate.
        stall: cycles until the next instruction of the warp may issue.
        sets, frees: scoreboards of its result and of its sources, None for none.
        waits: scoreboards that must be clear before it issues.
    """

    at: int
    text: str
    stall: int
    sets: int | None
    frees: int | None
    waits: tuple[int, ...]

    @functools.cached_property
    def name(self) -> str:
        """With modifiers, without predicate: "LDGSTS.E.BYPASS.128.ZFILL"."""
        words = self.text.split()
        return words[1] if words[0].startswith("@") else words[0]

    @property
    def base(self) -> str:
        return self.name.split(".")[0]

    @functools.cached_property
    def jump(self) -> int | None:
        """Where a branch goes."""
        found = _TARGET.findall(self.text) if self.base == "BRA" else []
        return int(found[-1], 16) if found else None

    @property
    def conditional(self) -> bool:
        return self.text.startswith("@") or re.search(r"BRA\S* U?!?U?P\d", self.text) is not None


def parse(text: str) -> dict[str, list[Instruction]]:
    """Instructions of each function of ``cuobjdump -sass``. Bits as maxas and later work describe them."""
    _, *parts = _FUNCTION.split(text)
    found = {}
    for symbol, body in zip(parts[::2], parts[1::2], strict=True):
        found[symbol] = []
        for at, words, high in _INSTRUCTION.findall(body):
            bits = int(high, 16) >> 41
            sets, frees, waits = bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63
            found[symbol].append(
                Instruction(
                    int(at, 16), words.strip(), max(1, bits & 15), None if sets == 7 else sets,
                    None if frees == 7 else frees, tuple(b for b in range(6) if waits >> b & 1),
                )
            )  # fmt: skip
    return found


# ---------------------------------------------------------------- loops and paths


@dataclasses.dataclass(frozen=True)
class Loop:
    """Instructions from ``first`` to ``last``, a backward branch; indices into a function."""

    first: int
    last: int

    def holds(self, index: int) -> bool:
        return self.first <= index <= self.last


def loops(code: Sequence[Instruction]) -> list[Loop]:
    place = {one.at: i for i, one in enumerate(code)}
    ends = [i for i, one in enumerate(code) if one.base == "EXIT" and not one.conditional]
    found = [
        Loop(place[one.jump], i)
        for i, one in enumerate(code)
        if one.jump is not None and one.jump <= one.at and one.jump in place and one.jump != one.at
    ]
    # NOTE: waits for barriers lie after a function's end, and go back from there.
    return [p for p in found if not any(map(p.holds, ends))]


def count(code: Iterable[Instruction], *bases: str) -> int:
    return sum(one.base in bases for one in code)


def main_loops(code: Sequence[Instruction]) -> list[Loop]:
    """The outermost loops with products: one for each size of a convolution's kernel."""
    found = [p for p in loops(code) if count(code[p.first : p.last + 1], *PRODUCTS)]
    return [p for p in found if not any(q != p and q.holds(p.first) and q.holds(p.last) for q in found)]


def usual_path(code: Sequence[Instruction], loop: Loop) -> list[Instruction]:
    """One pass through a loop: all products and copies, no loops inside of it, and nothing else needless.

    Loops inside are those that copy a chunk's pixels or look for the next tap; most steps pass them by.
    """
    place = {one.at: i for i, one in enumerate(code)}
    inner = [p for p in loops(code) if loop.holds(p.first) and p.last < loop.last]
    # From the end: the best rest of the path from each instruction, and its value.
    best: dict[int, tuple[tuple[int, ...], int | None]] = {}
    for i in range(loop.last, loop.first - 1, -1):
        one = code[i]
        within = any(p.holds(i) for p in inner)
        worth = (one.base in PRODUCTS, -within, one.base == "LDGSTS" and not within, -1)
        if i == loop.last:
            best[i] = (worth, None)
            continue
        to = []
        if one.jump is None or one.conditional:
            to.append(i + 1)
        if one.jump is not None and one.jump > one.at and one.jump in place:
            to.append(place[one.jump])
        options = [(best[j][0], j) for j in to if j in best]
        if not options or one.base in ("EXIT", "RET"):
            continue
        value, j = max(options)
        best[i] = (tuple(a + b for a, b in zip(worth, value, strict=True)), j)
    if loop.first not in best:
        raise UserError(f"no way through the loop at {code[loop.first].at:#x}")
    path, i = [], loop.first
    while i is not None:
        path.append(code[i])
        i = best[i][1]
    return path


# ---------------------------------------------------------------- time


def simulate(path: Sequence[Instruction], blocks: int, warps: int, steps: int = 12) -> float:
    """Cycles a step on one scheduler with ``warps`` of each of ``blocks``, which share their barriers.

    In order, one instruction a cycle, the warp that can go first. What the first half of the steps takes does
    not count; a step of several blocks is one of each.
    """
    half = steps // 2
    return (_run(path, blocks, warps, steps) - _run(path, blocks, warps, half)) / (steps - half)


def _run(path: Sequence[Instruction], blocks: int, warps: int, steps: int) -> float:
    """Cycles of all steps."""
    count_, block = blocks * warps, [b for b in range(blocks) for _ in range(warps)]
    place, step, ready = [0] * count_, [0] * count_, [0.0] * count_
    board = [[0.0] * 6 for _ in range(count_)]
    sums: list[dict[str, float]] = [defaultdict(float) for _ in range(count_)]
    unit: dict[str, float] = defaultdict(float)
    waiting: list[float | None] = [None] * count_
    groups: list[list[float]] = [[] for _ in range(count_)]  # when each warp's HGMMAs are done
    clock, last = 0.0, -1
    while any(s < steps for s in step):
        ways = []
        for w in range(count_):
            if step[w] < steps and waiting[w] is None:
                one = path[place[w]]
                start = max([ready[w], unit[_unit(one)] - _slack(one), *(board[w][b] for b in one.waits)])
                if one.base in ("HMMA", "IMMA"):
                    start = max(start, sums[w][_operands(one)[-1]])
                if one.base == "WARPGROUP" and (left := _left(one)) is not None:
                    start = max([start, *groups[w][: len(groups[w]) - left]])
                ways.append((max(start, clock), w != last, w))
        if not ways:
            raise UserError("warps wait for each other: the path has a barrier that not all of them reach")
        time, _, w = min(ways)
        one, last, clock = path[place[w]], w, time + 1
        ready[w] = time + one.stall
        result = LATENCY.get(one.base, FIXED)
        if one.base in ("HMMA", "IMMA"):
            sums[w][_operands(one)[0]] = time + result
        kind = _unit(one)
        begin = max(unit[kind], time)
        if kind:
            unit[kind] = begin + _busy(one)
        if one.base == "HGMMA":
            groups[w] = [*groups[w][-8:], begin + _busy(one) + LATENCY["HMMA"]]
        if kind == "shared":
            result += begin - time
        if one.sets is not None:
            board[w][one.sets] = max(board[w][one.sets], time + result)
        if one.frees is not None:
            board[w][one.frees] = max(board[w][one.frees], time + READ)
        place[w] += 1
        if one.base == "BAR":
            waiting[w] = time
            others = [v for v in range(count_) if block[v] == block[w]]
            if all(waiting[v] is not None and step[v] == step[w] for v in others):
                release = max(waiting[v] for v in others) + BARRIER
                for v in others:
                    waiting[v], ready[v] = None, max(ready[v], release)
        if place[w] == len(path):
            place[w], step[w] = 0, step[w] + 1
    return clock


def _unit(one: Instruction) -> str:
    if one.base in ("LDS", "LDSM"):
        return "" if "RZ, [RZ]" in one.text else "shared"
    for kind, names in (("products", PRODUCTS), ("XU", _XU), ("FMA", _FMA), ("ALU", _ALU)):
        if one.base in names:
            return kind
    return ""


def _busy(one: Instruction) -> float:
    if _unit(one) == "shared":
        return SHARED * (4 if one.base == "LDSM" or ".128" in one.name else 1)
    if one.base == "HGMMA":
        return int(re.search(r"x(\d+)x", one.name)[1]) / 2
    return BUSY["IMAD"] if one.base == "IMAD" and "MOV" not in one.name else BUSY[_unit(one)]


def _left(one: Instruction) -> int | None:
    """How many groups of HGMMA a wait leaves under way. Each is one instruction or more; here it is one."""
    found = re.search(r"DEPBAR\.LE gsb0, (0x\w+)", one.text)
    return int(found[1], 16) if found else None


def _slack(one: Instruction) -> float:
    """Cycles by which an instruction may be early: some wait in the queue of their unit."""
    return 64 if _unit(one) == "shared" else 256 if one.base == "HGMMA" else 0


def _operands(one: Instruction) -> list[str]:
    return re.findall(r"\bR(?:\d+|Z)\b", one.text.split(one.name, 1)[1]) or [""]


# ---------------------------------------------------------------- rows


def describe(
    code: Sequence[Instruction], warps: int, unit: int = 1, slices: int = 1, blocks: Sequence[int] = (1, 2)
) -> dict[str, object]:
    """What a kernel's code says: a step of each main loop, its copies of pixels, loads around the wait.

    ``unit`` is the number of products, instructions of a warp, of 16 input channels of one tap. Steps are by
    their number of units: 4 of convolutions 1x1 and 2x2, of which the slower counts, and 9 of 3x3; twice as
    many, or four times, where ``slices`` of warps share them. "rest" is one unit of a last, shorter step, and
    "short" all else in such a step.
    """
    wait = next((i for i, one in enumerate(code) if one.base == "ACQBULK"), None)
    loads = [i for i, one in enumerate(code) if one.base in ("LDG", "LDGSTS", "UBLKCP")]
    row: dict[str, object] = {
        "instructions": len(code),
        "loads_before_wait": None if wait is None else sum(i < wait for i in loads),
        "loads_after_wait": None if wait is None else sum(i > wait for i in loads),
        "local": count(code, "LDL") + count(code, "STL"),
    }
    copies = [code[p.first : p.last + 1] for p in loops(code)]
    copies = [body for body in copies if count(body, "LDGSTS") and not count(body, *PRODUCTS)]
    if copies:
        each = lambda body: sum(one.stall for one in body) / count(body, "LDGSTS")  # noqa: E731
        # That of pixels alone is before and in each main loop, and others, as of gates, less often.
        # That of pixels with the map that is added to them has two copies.
        often = Counter(map(len, copies))
        body = min(copies, key=lambda body: (count(body, "LDGSTS"), -often[len(body)], each(body)))
        row["copy"] = {
            "instructions": round(len(body) / count(body, "LDGSTS"), 1),
            "stalls": round(each(body)),
        }
    steps: dict[str, dict] = {}
    for loop in main_loops(code):
        path = usual_path(code, loop)
        products = [one for one in path if one.base in PRODUCTS]
        first = path.index(products[0])
        own = -(-warps // 4)  # of the scheduler that has the most
        step = {
            "instructions": len(path),
            "hmma": len(products),
            "shared": count(path, "LDSM") + count(path, "LDS"),
            "copies": count(path, "LDGSTS"),
            "stalls": sum(one.stall for one in path),
            "stalls_before_products": sum(one.stall for one in path[:first]),
            "products": round(sum(map(_busy, products)) * own),
            "cycles": {str(count_): round(simulate(path, count_, own)) for count_ in blocks},
        }
        units = str(step["hmma"] // unit * slices)
        rest = [p for p in loops(code) if loop.holds(p.first) and p.last < loop.last]
        rest = [code[p.first : p.last + 1] for p in rest if count(code[p.first : p.last + 1], *PRODUCTS)]
        if rest:  # of one loop of several: besides units it takes what a whole step does besides products
            row["rest"] = max(row.get("rest", 0), round(simulate(rest[0], 1, own)))
            row["short"] = max(row.get("short", 0), step["cycles"]["1"] - step["products"])
        if units not in steps or step["cycles"]["1"] > steps[units]["cycles"]["1"]:
            steps[units] = step
    if steps:
        row["steps"] = steps
    return row


def form(kernel: str) -> tuple[int, int, int, int, int] | None:
    """Warps along pixels and channels, blocks of 16 pixels and 8 channels of each, and slices."""
    found = ptxas.FORM.search(kernel)
    return tuple(map(int, found.groups())) if found else None


def read(
    build: Path = ptxas.BUILD, targets: Sequence[str] = TARGETS, blocks: Sequence[int] = (1, 2)
) -> list[dict[str, object]]:
    """A row for each kernel and target of a build, with cycles of so many blocks at once; one at least."""
    tool = ptxas.find_cuobjdump()
    if tool is None:
        raise UserError("there is no cuobjdump; pip install triton, or install the CUDA toolkit")
    rows = []
    for file in ptxas.objects(build):
        own = ptxas.parse_ptxas(Path(f"{file}.ptxas").read_text())
        names = ptxas.demangle([row["symbol"] for row in own])
        for target in sorted({row["arch"] for row in own}.intersection(targets)):
            for symbol, code in parse(ptxas.disassemble(tool, file, target)).items():
                shape = form(names.get(symbol, ""))
                warps = shape[0] * shape[1] * shape[4] if shape else 4
                head = {"kernel": names.get(symbol, symbol), "base": ptxas.base(symbol), "object": file.stem,
                        "arch": target}  # fmt: skip
                if shape:
                    head |= {"block": name(ptxas.block(shape))}
                slices = shape[4] if shape else 1
                unit = shape[2] * (shape[3] if ptxas.base(symbol) != "wgmma" else 1) if shape else 1
                rows.append(head | {"warps": warps} | describe(code, warps, unit, slices, blocks))
    return sorted(rows, key=lambda row: (row["base"], row["object"], row["arch"], row["kernel"]))


def cycles(rows: Iterable[dict]) -> dict[str, object]:
    """What :mod:`stdc_fast.backends.cuda.tiles` reads: the most cycles of a block alone, of all targets."""
    kinds = ("conv", "conv_levels", "wgmma", "down", "down_levels", "stem")
    found: dict[str, dict] = {kind: {} for kind in kinds}
    copy = 0
    for row in rows:
        for units, step in row.get("steps", {}).items() if row["base"] in found else ():
            form_ = found[row["base"]].setdefault(row["block"], {})
            form_[units] = max(form_.get(units, 0), step["cycles"]["1"])
            form_ |= {key: max(form_.get(key, 0), row[key]) for key in ("rest", "short") if key in row}
        if row["base"] == "conv":
            copy = max(copy, row["copy"]["stalls"])
    return found | {"copy": copy}


def problems(rows: Iterable[dict]) -> list[str]:
    """Steps beyond their budgets, and kernels that load too little before they wait, a line each."""
    found = []
    for row in rows:
        early, least = row.get("loads_before_wait"), EARLY.get(row["base"], 0)
        if early is not None and early < least:
            found.append(
                f"{row['object']}: {row['kernel']} for {row['arch']}: {early} loads before the wait for the "
                f"kernel before it, {least} are expected"
            )
        for units, step in row.get("steps", {}).items():
            most = BUDGETS.get((row["base"], row.get("block"), units))
            if most is not None and step["stalls"] > most:
                found.append(
                    f"{row['object']}: {row['kernel']} for {row['arch']}: a step of {units} units stalls for "
                    f"{step['stalls']} cycles, the budget is {most}"
                )
    return found


def page(rows: Iterable[dict]) -> str:
    """A table of the main loops, as Markdown. HMMA stands for IMMA of levels, and for HGMMA of wgmma."""
    cells = []
    for row in rows:
        for units, step in row.get("steps", {}).items():
            copy = row.get("copy") or {}
            cells.append((
                "{} {}".format(row["base"], row.get("block", "")),
                row["object"].split("-")[-1], row["arch"], row["warps"], units, step["instructions"],
                step["hmma"], step["stalls"], step["stalls_before_products"], step["products"],
                step["cycles"]["1"], step["cycles"]["2"], copy.get("stalls", "-"),
            ))  # fmt: skip
    head = ("loop", "dtype", "target", "warps", "units", "instructions", "HMMA", "stalls", "before HMMA",
            "tensor cycles", "cycles, 1 block", "2 blocks", "copy")  # fmt: skip
    return table(head, cells, "...rrrrrrrrrr")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sass", description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ptxas.BUILD, help="the folder of build.ninja")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--ship", action="store_true", help="write what the tile model reads")
    parser.add_argument("--out", type=Path, help="write a line of JSON for each kernel and target")
    options = parser.parse_args(arguments)
    rows = read(options.build, options.targets.split(","))
    if options.out:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomic(options.out, lambda path: Path(path).write_text(text))
    if options.ship:
        text = json.dumps(cycles(rows), indent=1) + "\n"
        write_atomic(SHIPPED, lambda path: Path(path).write_text(text))
    print(page(rows))
    wrong = problems(rows)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"bench.sass: {error}")
