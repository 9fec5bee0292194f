"""What ptxas made of the CUDA kernels of the last build: registers, spills, stack, and instructions.

    python -m bench.ptxas --out docs/results/ptxas.jsonl

Nothing runs and no GPU is needed: the build keeps ptxas' report beside each object of build/native/cuda, and
cuobjdump shows the instructions. Exit status 1: something of it is a problem, and is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from stdc_fast import _native
from stdc_fast.backends.cuda.tiles import THREAD, block_of
from stdc_fast.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "native"
SASS = ("sm_80", "sm_90a")  # targets of which SASS is read by default; the others get the same instructions
COUNTED = ("HMMA", "IMMA", "HGMMA", "LDGSTS", "LDSM", "LDL", "STL", "BAR", "ACQBULK", "PREEXIT")
DEPENDENT = 90  # from sm_90 on kernels wait for those before them (ACQBULK) and let the next start (PREEXIT)
REGISTERS = {"gate": 80, "prologue": 40, "upsample": 120}  # budgets of kernels by name without _kernel
MOST_REGISTERS = 256  # of what is not known: more than there are
FORM = re.compile(r"(?:Compiled|WarpGroup)Form" + r"\D+(\d+)" * 5)  # mangled or not
COLUMNS = ("arch", "registers", "spill_stores", "spill_loads", "stack", "shared", "constant", *COUNTED)

# NOTE: nvcc runs ptxas for several targets at once, but passes on what each has written as a whole.
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
# Of wgmma: products one by one, or waits that the source lacks.
SERIAL = re.compile(r"(?:mma_async instructions are serialized|warpgroup\.\w+ is injected).*function '(\w+)'")
USED = re.compile(r"Used (\d+) registers")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)", re.M)


# ---------------------------------------------------------------- parsing


def parse_ptxas(text: str) -> list[dict]:
    """A row for each kernel and target of a report by ``ptxas -v``."""
    rows = []
    for line in text.splitlines():
        if match := ENTRY.search(line):
            rows.append({"symbol": match[1], "arch": match[2], "registers": None, "stack": 0})
            rows[-1] |= {"spill_stores": 0, "spill_loads": 0, "shared": 0, "constant": 0}
        elif (match := STACK.search(line)) and rows:  # of the kernel, or of a function that it calls
            for name, value in zip(("stack", "spill_stores", "spill_loads"), match.groups(), strict=True):
                rows[-1][name] += int(value)
        elif (match := USED.search(line)) and rows:
            rows[-1]["registers"] = int(match[1])
            rows[-1]["shared"] = sum(map(int, re.findall(r"(\d+) bytes smem", line)))
            rows[-1]["constant"] = sum(map(int, re.findall(r"(\d+) bytes cmem", line)))
    serial = SERIAL.findall(text)
    for row in rows:
        if row["symbol"] in serial:
            row["serialized"] = True
    if unknown := [row["symbol"] for row in rows if row["registers"] is None]:
        raise UserError(f"ptxas' report does not say the registers of {unknown[0]}; build it again")
    return rows


def parse_sass(text: str) -> dict[str, Counter]:
    """Instructions of each function, without modifiers: symbol -> {"HMMA": 64, ...}."""
    _, *parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.M)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {symbol: Counter(INSTRUCTION.findall(body)) for symbol, body in pairs}


def base(symbol: str) -> str:
    """The name of a kernel without namespaces, template arguments and _kernel."""
    rest, name = re.sub(r"^_ZN?", "", symbol), ""
    while match := re.match(r"\d+", rest):
        end = match.end() + int(match[0])
        name, rest = rest[match.end() : end], rest[end:]
    return (name or symbol).removesuffix("_kernel")


def short(demangled: str) -> str:
    """``void a::(anonymous namespace)::k<a::T, (a::Kind)1>(a::Args)`` -> ``k<T, (Kind)1>``."""
    name = demangled.replace("(anonymous namespace)::", "").removeprefix("void ")
    depth = 0
    for at in range(len(name) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(name[at], 0)
        if not depth:
            name = name[:at] if name.endswith(")") else name
            break
    return re.sub(r"\b(?:\w+::)+", "", name).replace("> >", ">>")


def demangle(symbols: list[str]) -> dict[str, str]:
    """Short names by c++filt; without it, names with what is mangled of the template arguments."""
    for tool in filter(shutil.which, ("c++filt", "cu++filt")):
        done = subprocess.run([tool], input="\n".join(symbols), capture_output=True, text=True, check=False)
        names = done.stdout.splitlines()
        if done.returncode == 0 and len(names) == len(symbols):
            return {symbol: short(name) for symbol, name in zip(symbols, names, strict=True)}
    # Whose anonymous namespace it is has a number that changes with each compilation.
    return {symbol: f"{base(symbol)} {re.sub('^.*_kernel', '', symbol)}" for symbol in symbols}


# ---------------------------------------------------------------- a build


def objects(build: Path) -> list[Path]:
    """The objects of CUDA sources that the last build was to make."""
    try:
        listed = re.findall(r"^build (cuda/\S+\.o)\b", (build / "build.ninja").read_text(), re.M)
    except OSError:
        listed = []
    if not listed:
        reason = _native.cuda_info().get("reason") or "the module was built elsewhere"
        raise UserError(f"{build} has no CUDA objects: {reason}; then pip install -e {ROOT}")
    for name in listed:
        if not (build / name).is_file() or not (build / f"{name}.ptxas").is_file():
            raise UserError(f"{build / name} is missing; pip install -e {ROOT} says why it does not compile")
    return [build / name for name in listed]


def find_cuobjdump() -> str | None:
    if there := shutil.which("cuobjdump"):
        return there
    spec = importlib.util.find_spec("triton")  # its wheel has cuobjdump, and nvdisasm, which that calls
    if spec is None or spec.origin is None:
        return None
    return shutil.which(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def images(cuobjdump: str, file: Path) -> Counter[str]:
    """How often a file has code for each target, by the targets' names: "86", "90a", "90+PTX"."""
    command = [cuobjdump, "--list-elf", "--list-ptx", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{cuobjdump} does not read {file}: {(done.stderr or done.stdout).strip()}")
    found = re.findall(r"\.sm_(\d+a?)\.(cubin|ptx)$", done.stdout, re.M)
    return Counter(f"{number}{'+PTX' if kind == 'ptx' else ''}" for number, kind in found)


def disassemble(cuobjdump: str, file: Path, target: str) -> str:
    """What cuobjdump prints of an object's code for a target."""
    command = [cuobjdump, "-sass", "-arch", target, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{cuobjdump} does not read {file}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def read(build: Path = BUILD, targets: tuple[str, ...] = SASS) -> list[dict]:
    """A row for each kernel and target of a build, with instructions for those of ``targets``."""
    cuobjdump, rows = find_cuobjdump(), []
    for file in objects(build):
        own = parse_ptxas(Path(f"{file}.ptxas").read_text())
        for target in sorted({row["arch"] for row in own}.intersection(targets) if cuobjdump else ()):
            functions = parse_sass(disassemble(cuobjdump, file, target))
            for row in own:
                if row["arch"] == target:
                    row |= {name: functions[row["symbol"]][name] for name in COUNTED}
        names = demangle([row["symbol"] for row in own])
        for row in own:
            symbol = row.pop("symbol")
            rows.append({"kernel": names[symbol], "base": base(symbol), "object": file.stem, **row})
    return sorted(rows, key=lambda row: (row["base"], row["object"], row["arch"], row["kernel"]))


def block(form: Iterable[int]) -> tuple[int, ...]:
    """A form's name in tables: warps along pixels and channels, blocks of each, slices."""
    warps_m, warps_n, m, n, slices = form
    return block_of(warps_m * m * 16, warps_n * n * 8, slices)


def budget(row: dict) -> int:
    """How many registers a kernel may have: with more, fewer blocks would share a processor."""
    if form := FORM.search(row["kernel"]):
        of_kind = THREAD.get(row["base"].removesuffix("_levels"), {})
        return of_kind.get(block(map(int, form.groups())), MOST_REGISTERS)
    return REGISTERS.get(row["base"], MOST_REGISTERS)


def problems(rows: list[dict]) -> list[str]:
    """What is wrong, a line each. Rows without instructions are judged by ptxas' report only."""
    found = []
    for row in rows:
        wrong, most = [], budget(row)
        if row["spill_stores"] or row["spill_loads"]:
            wrong.append(f"{row['spill_stores']} bytes of spill stores, {row['spill_loads']} of spill loads")
        if row["stack"]:
            wrong.append(f"a stack frame of {row['stack']} bytes")
        if row["registers"] > most:
            wrong.append(f"{row['registers']} registers, the budget is {most}")
        if row.get("serialized"):
            wrong.append("ptxas serialised wgmma, or put waits among them")
        if row["shared"]:
            wrong.append(f"{row['shared']} bytes of static shared memory, which launches do not reckon with")
        if "HMMA" in row:
            if int(re.sub(r"\D", "", row["arch"])) >= DEPENDENT and not (row["ACQBULK"] and row["PREEXIT"]):
                wrong.append("no ACQBULK or no PREEXIT: it does not wait for the kernel before it")
            if row["LDL"] or row["STL"]:
                wrong.append(f"local memory: {row['LDL']} LDL, {row['STL']} STL")
            products = "IMMA" if row["base"].endswith("_levels") else "HMMA"
            if re.search("conv|stem|down", row["base"]) and not row[products]:
                wrong.append(f"no {products}: the tensor cores are not used")
            if row["base"] == "wgmma" and not row["HGMMA"]:
                wrong.append("no HGMMA: the tensor cores are not used as warp groups do")
            if re.search("conv|down|wgmma", row["base"]) and not row["LDGSTS"]:
                wrong.append("no LDGSTS: copies to shared memory are not asynchronous")
        found += [f"{row['object']}: {row['kernel']} for {row['arch']}: {line}" for line in wrong]
    return found


def table(rows: list[dict]) -> list[str]:
    header = ["kernel", *(column.replace("_", " ") for column in COLUMNS)]
    cells = [header, *([row["kernel"], *(str(row.get(c, "-")) for c in COLUMNS)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ([c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)] for line in cells)
    names = (line[0].ljust(widths[0]) for line in cells)
    return ["  ".join([name, *line]) for name, line in zip(names, lines, strict=True)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ptxas", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write a line of JSON for each kernel and target")
    parser.add_argument("--build", type=Path, default=BUILD, help="the folder of build.ninja")
    parser.add_argument("--sass", default=",".join(SASS), help="targets of which instructions are counted")
    options = parser.parse_args(arguments)
    rows = read(options.build, tuple(options.sass.split(",")))
    print("\n".join(table(rows)))
    if find_cuobjdump() is None:
        print("bench.ptxas: instructions were not counted: no cuobjdump; pip install triton", file=sys.stderr)
    if options.out:
        options.out.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = problems(rows)
    print("\n".join(["", *found, f"{len(rows)} kernels and targets, {len(found)} problems"]))
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"bench.ptxas: {error}", file=sys.stderr)
        sys.exit(2)
