"""The build of the C++ sources by ninja, for setup.py: the module, libstdc_fast.a, the tests' emulator.

A file for ninja, in a folder of build/, is written anew each time: objects are made again if sources, flags
or targets changed. CUDA is an addition to the module that may be missing, never an error.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools.errors import BaseError

ROOT = Path(__file__).resolve().parent.parent
SANITIZE = [kind for kind in os.environ.get("STDC_FAST_SANITIZE", "").split(",") if kind]
MODULE = "_C" + sysconfig.get_config_var("EXT_SUFFIX")
EMULATOR_MODULE = "stdc_fast_emulator" + sysconfig.get_config_var("EXT_SUFFIX")
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math "
FLAGS += "-Wall -Wextra -pthread -I../../csrc/include"
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512"
SETS = {  # flags, the files of csrc/cpu, an instruction that the assembler must know
    "portable": ("", "*.cpp", ""),
    "amx_emulated": ("-DSTDC_AMX_EMULATED", "conv.cpp", ""),
    "avx2": ("-mavx2 -mfma", "*.cpp", "vfmadd231ps %ymm0, %ymm0, %ymm0"),
    "avx2_vnni": ("-mavx2 -mfma -mavxvnni", "conv.cpp", "{vex} vpdpbusd %ymm0, %ymm0, %ymm0"),
    "avx512": (AVX512, "*.cpp", "vpaddw %zmm0, %zmm0, %zmm0"),
    "avx512_vnni": (f"{AVX512} -mavx512vnni", "conv.cpp", "vpdpbusd %zmm0, %zmm0, %zmm0"),
    "avx512_bf16": (f"{AVX512} -mavx512vnni -mavx512bf16", "*.cpp", "vdpbf16ps %zmm0, %zmm0, %zmm0"),
    "amx_bf16": (
        f"{AVX512} -mavx512vnni -mavx512bf16 -mamx-tile -mamx-bf16 -mamx-int8",
        "conv.cpp",
        "tdpbusd %tmm0, %tmm1, %tmm2",
    ),
}
CUDA_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden --cudart static --threads 4 -Xptxas -v "
CUDA_FLAGS += "-I../../csrc/include"
# NOTE: no 89. ptxas writes the same instructions for it as for 86, whose code GPUs of 89 run.
CUDA_TARGETS = "80;86;87;90a;90+PTX"
#: Of STDC_FAST_CUDA_OPTIONS: what only a GPU can decide between, and the macros of csrc/cuda.
CUDA_OPTIONS = {
    "load_cg": "-DSTDC_LOAD_CG=1",
    "dependents_late": "-DSTDC_DEPENDENTS=2",
    "dependents_never": "-DSTDC_DEPENDENTS=0",
    "carveout": "-DSTDC_CARVEOUT=100",
}
WGMMA = "90a"  # the only target of *_wgmma.cu
TYPES = {"f16": "half_t", "bf16": "bf16_t"}  # sources with STDC_TYPE in them are compiled once for each
DEPENDENCIES = "\n  depfile = $out.d\n  deps = gcc"
# What nvcc and ptxas write goes to a file for bench/ptxas.py; all but the report on registers is shown too.
NVCC_REST = (
    "$codes $define -MD -MF $out.d -c $in -o $out 2> $out.ptxas; code=$$?; "
    r"grep -Ev '^ptxas info |^ +[0-9]+ bytes stack frame|^$$' $out.ptxas; exit $$code" + DEPENDENCIES
)


class Missing(BaseError):
    """Why something was not built, in one line; more lines are the end of what a tool wrote."""


def output(command: list[str], remedy: str = "install g++ or clang, or set CXX", show: bool = False) -> str:
    lines, pipe = [], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        with subprocess.Popen(command, text=True, errors="replace", **pipe) as process:
            for line in process.stdout:
                lines.append(line)
                print(line if show else "", end="", file=sys.stderr, flush=True)
    except OSError as error:
        raise Missing(f"{command[0]} does not run: {error.strerror}; {remedy}") from None
    if process.returncode:
        # As compilers, linkers, ptxas and ninja say it.
        error = re.compile(r"(rror|fatal) *: |multiple definition of|undefined reference to")
        first = next((line.strip() for line in lines if error.search(line)), f"{shlex.join(command)} failed")
        raise Missing(f"{first}\n{''.join(lines[-40:])}")
    return "".join(lines)


class Ninja:
    """A folder in build/, what a file for ninja in it is to say, and the C++ compiler."""

    def __init__(self, name: str, file: str = "build.ninja") -> None:
        self.folder = ROOT / "build" / "-".join([name, *SANITIZE])
        self.file = self.folder / file
        self.lines: list[str] = []
        usual = next(filter(shutil.which, ["g++", "c++", "clang++"]), "g++")
        self.cxx = shlex.split(os.environ.get("CXX") or usual)
        self.version = output([*self.cxx, "--version"]).splitlines()[0]
        sanitize = f"-fsanitize={','.join(SANITIZE)} -O1 -g1 -fno-omit-frame-pointer" if SANITIZE else ""
        own = shlex.split(os.environ.get("CXXFLAGS", ""))
        self.flags = [*self.cxx, *FLAGS.split(), *own, *sanitize.split()]
        self.folder.mkdir(parents=True, exist_ok=True)

    def probe(self, flags: str, instruction: str = "") -> None:
        """Missing if the compiler does not know the flags, or its assembler the instruction."""
        source = self.folder / "probe.cpp"
        source.write_text(f'void probe() {{ asm volatile("{instruction}"); }}\n')
        output([*self.cxx, *flags.split(), "-c", str(source), "-o", str(source.with_suffix(".o"))])

    def rule(self, name: str, command: list[str], rest: str) -> None:
        text = shlex.join(command).replace("$", "$$")
        self.lines.append(f"rule {name}\n  command = {text} {rest}\n  description = $out\n")

    def edge(self, target: str, rule: str, inputs: str, more: str = "") -> str:
        self.lines.append(f"build {target}: {rule} {inputs}\n{more}")
        return target.split()[0]

    def compile(self, name: str, more: list[str], *patterns: str) -> list[str]:
        """Objects of the files in csrc that match."""
        self.rule(name, self.flags + more, "-MMD -MF $out.d -c $in -o $out" + DEPENDENCIES)
        return [self.edge(f"{name}/{p.stem}.o", name, relative(p)) for p in sources("C++", *patterns)]

    def compile_cuda(self, rule: str, files: list[Path], beside: str = "", codes: str = "") -> list[str]:
        """Objects of .cu files, each of a type if the source is for one, by a rule that reads $define.

        What else the rule writes is the name of the object and beside. ``codes`` says for what to compile,
        which the rule reads as $codes; *_wgmma.cu is for sm_90a alone.
        """
        objects = []
        for source in files:
            types = TYPES if "STDC_TYPE" in source.read_text() else {"": ""}
            for short, name in types.items():
                target = f"{rule}/{'-'.join(filter(None, [source.stem, short]))}.o"
                more = f"  define = -DSTDC_TYPE={name}\n" if short else ""
                if codes:
                    alone = gencode(WGMMA, [f"sm_{WGMMA[:2]}"], specific=True)[1]
                    own = shlex.join(alone) if source.stem.endswith("_wgmma") else codes
                    more += f"  codes = {own}\n"
                target += f" | {target}{beside}" if beside else ""
                objects.append(self.edge(target, rule, relative(source), more))
        return objects

    def link(self, module: str, objects: list[str], more: str = "") -> None:
        self.rule("link", [*self.flags, "-shared"], f"$in -o $out {more} {os.environ.get('LDFLAGS', '')}")
        self.edge(module, "link", " ".join(objects))

    def run(self, target: str) -> None:
        self.file.write_text("".join(self.lines))
        ninja = [sys.executable, "-m", "ninja"] if importlib.util.find_spec("ninja") else ["ninja"]
        output([*ninja, "-C", str(self.folder), "-f", self.file.name, target], "pip install ninja", show=True)


def relative(source: Path) -> str:
    """A source as seen from a folder in build/."""
    return f"../../{source.relative_to(ROOT).as_posix()}"


def sources(kind: str, *patterns: str) -> list[Path]:
    found = []
    for pattern in patterns:
        if not (files := sorted(ROOT.joinpath("csrc").glob(pattern))):
            raise Missing(f"no {kind} sources: {ROOT / 'csrc' / pattern} is missing")
        found += files
    return found


def python_include() -> list[str]:
    try:
        import pybind11
    except ImportError:
        raise Missing("pybind11 is not installed; pip install pybind11 ninja") from None

    folder = sysconfig.get_path("include")
    if not Path(folder, "Python.h").is_file():
        raise Missing(f"{folder} has no Python.h; install Python's headers (apt install python3-dev)")
    return ["-isystem", folder, "-isystem", pybind11.get_include()]


# ---------------------------------------------------------------- CUDA


class Cuda:
    """nvcc, its flags and what to link, or Missing with the reason why there are to be no CUDA kernels."""

    def __init__(self, cxx: list[str]) -> None:
        if os.environ.get("STDC_FAST_CUDA") == "0":
            raise Missing("STDC_FAST_CUDA=0 was set; unset it")
        if SANITIZE:
            raise Missing("STDC_FAST_SANITIZE was set, which the driver does not work with; unset it")
        self.sources = sources("CUDA", "cuda/*.cu")
        sources("CUDA", "bindings_gpu.cpp")
        nvcc, remedy = find_nvcc(), "install a later CUDA toolkit, or set CUDACXX"
        version = re.search(r"release ((\d+)\.\d+)", output([*nvcc, "--version"], remedy))
        if not version or int(version[2]) < 12:
            found = version[1] if version else "something else"
            raise Missing(f"{shlex.join(nvcc)} is {found}, not nvcc 12.0 or later; {remedy}")
        self.version = f"nvcc {version[1]}"
        known = output([*nvcc, "--list-gpu-code"], remedy).split()
        self.targets, codes = gencode(os.environ.get("STDC_FAST_CUDA_TARGETS") or CUDA_TARGETS, known)
        # NOTE: nvcc refuses a g++ that is newer than itself; NVCC_CCBIN names another, as for nvcc alone.
        host = os.environ.get("NVCC_CCBIN") or (cxx[0] if len(cxx) == 1 else "")
        self.options, macros = cuda_options()
        wgmma = WGMMA in self.targets
        if not wgmma:
            self.sources = [source for source in self.sources if not source.stem.endswith("_wgmma")]
        self.command = [*nvcc, *CUDA_FLAGS.split(), *macros, f"-DSTDC_HAVE_WGMMA={wgmma:d}"]
        self.command += ["-ccbin", host] if host else []
        self.codes = shlex.join(codes)
        # NOTE: exclude-libs: another library of the process may have another version of the same runtime.
        folder = shlex.quote(
            str(runtime_folder([*self.command, *codes, "--dryrun", "-x", "cu", "-c", os.devnull]))
        )
        self.link = f"-L{folder} -Wl,--exclude-libs,ALL -lcudart_static -ldl -lrt -lpthread"


def find_nvcc() -> list[str]:
    if command := os.environ.get("CUDACXX"):
        return shlex.split(command)
    home = os.environ.get("CUDA_HOME")
    places = [home and Path(home, "bin", "nvcc"), shutil.which("nvcc"), Path("/usr/local/cuda/bin/nvcc")]
    for place in filter(None, places):
        if os.access(place, os.X_OK):
            return [str(place)]
    raise Missing("nvcc was not found; install the CUDA toolkit 12.0 or later, or set CUDACXX")


def cuda_options() -> tuple[list[str], list[str]]:
    """(Options, macros) of STDC_FAST_CUDA_OPTIONS; sorted, as their order means nothing."""
    options = sorted(set(re.findall(r"[^;,\s]+", os.environ.get("STDC_FAST_CUDA_OPTIONS", ""))))
    for option in options:
        if option not in CUDA_OPTIONS:
            there = ", ".join(CUDA_OPTIONS)
            raise Missing(f"STDC_FAST_CUDA_OPTIONS has {option!r}; there are {there}")
    if {"dependents_late", "dependents_never"} <= {*options}:
        raise Missing("STDC_FAST_CUDA_OPTIONS has dependents_late and dependents_never; choose one")
    return options, [CUDA_OPTIONS[option] for option in options]


def gencode(wanted: str, known: list[str], specific: bool = False) -> tuple[list[str], list[str]]:
    """(Targets, flags) of what STDC_FAST_CUDA_TARGETS wants: code for 86 or 90a, or PTX for 90 and all later.

    The compiler proper runs once for each virtual architecture and takes much of the time: one serves all
    targets of a major version, as compute_80 does for 80, 86 and 87, and compute_90 for 90a and 90+PTX. With
    ``specific`` 90a is of compute_90a, which has instructions that no other architecture has.
    """
    targets = list(dict.fromkeys(re.split(r"[;,\s]+", wanted.strip("; ,\t\n"))))
    numbers = {}
    for target in targets:
        if not (match := re.fullmatch(r"(\d{2,3})(?:a|\+PTX)?", target)):
            raise Missing(f"STDC_FAST_CUDA_TARGETS has {target!r}; targets are like 86, 90a or 90+PTX")
        numbers[target] = int(match[1])
        if numbers[target] < 80:
            raise Missing(f"STDC_FAST_CUDA_TARGETS has {target!r}; the kernels need 80 or later")
        if f"sm_{match[1]}" not in known:
            there = ", ".join(code.removeprefix("sm_") for code in known if code.startswith("sm_"))
            raise Missing(f"STDC_FAST_CUDA_TARGETS has {target!r}; this nvcc knows {there}")
    groups: dict[str, list[str]] = {}
    for target, number in numbers.items():
        virtual = target if specific else str(number)
        if target == str(number):  # neither a nor PTX
            virtual = str(min(n for t, n in numbers.items() if t == str(n) and n // 10 == number // 10))
        code = f"{'compute' if target.endswith('PTX') else 'sm'}_{target.removesuffix('+PTX')}"
        groups.setdefault(virtual, []).append(code)
    flags = []
    for virtual, codes in groups.items():
        flags += ["-gencode", f"arch=compute_{virtual},code=[{','.join(codes)}]"]
    return targets, flags


def runtime_folder(dry_run: list[str]) -> Path:
    """Where libcudart_static.a is, by nvcc's own word: nvcc may be a script or a link that is far from it."""
    folders = [Path(folder) for folder in re.findall(r'"-L([^"]+)"', output(dry_run))]
    for folder in folders:
        if (folder / "libcudart_static.a").is_file():
            return folder.resolve()
    searched = ", ".join(map(str, folders)) or "no folder that nvcc would name"
    raise Missing(f"libcudart_static.a is not in {searched}; install the CUDA runtime's development files")


# ---------------------------------------------------------------- what can be built


def build(module: bool) -> tuple[Path, dict[str, object]]:
    """Makes the module, with CUDA if possible, or libstdc_fast.a: (the file, what it was made with)."""
    if not module:
        # NOTE: in a file of its own, as the module's tells which CUDA objects it has.
        return _build(Ninja("native", "library.ninja"), module)
    ninja = Ninja("native")
    try:
        cuda = Cuda(ninja.cxx)
        file, info = _build(ninja, module, cuda)
        made = {"built": True, "compiler": cuda.version, "targets": cuda.targets, "options": cuda.options}
        return file, info | {"cuda": made}
    except Missing as error:
        reason, _, log = str(error).partition("\n")
    print(f"stdc_fast: building without CUDA kernels: {reason}", file=sys.stderr, flush=True)
    file, info = _build(Ninja("native"), module)  # fails if it was not for CUDA
    print(f"stdc_fast: CUDA kernels not built: {reason}", file=sys.stderr, flush=True)
    return file, info | {"cuda": {"built": False, "reason": reason, "log": log}}


def _build(ninja: Ninja, module: bool, cuda: Cuda | None = None) -> tuple[Path, dict[str, object]]:
    objects, have, skipped = [], {}, {}
    if cuda:  # ninja starts with what comes first: here what takes longest
        ninja.rule("cuda", cuda.command, NVCC_REST)
        objects += ninja.compile_cuda("cuda", cuda.sources, ".ptxas", cuda.codes)
    wanted = chosen_sets()
    for name, (own, pattern, instruction) in SETS.items():
        try:
            if name not in wanted:
                raise Missing("STDC_FAST_SETS was set without it")
            ninja.probe(own, instruction)
        except Missing as error:
            skipped[name] = str(error).partition("\n")[0]
        else:
            have[name] = f"-DSTDC_HAVE_{name}=1"
            objects += ninja.compile(name, [*own.split(), f"-DSTDC_ISA={name}"], f"cpu/{pattern}")
    objects += ninja.compile("core", list(have.values()), "core/**/*.cpp")
    target = MODULE if module else "libstdc_fast.a"
    if module:
        flags, files = [*have.values(), *python_include()], ["bindings.cpp", "bindings_watch.cpp"]
        if cuda:
            flags, files = [*flags, "-DSTDC_HAVE_CUDA=1"], [*files, "bindings_gpu.cpp"]
        objects += ninja.compile("bindings", flags, *files)
        ninja.link(target, objects, cuda.link if cuda else "")
    else:
        ninja.rule("archive", ["rm", "-f"], "$out && ar crs $out $in")
        ninja.edge(target, "archive", " ".join(objects))
    ninja.run(target)
    info = {"built": True, "compiler": ninja.version, "sets": list(have), "skipped": skipped}
    return ninja.folder / target, info


def chosen_sets() -> set[str]:
    """The instruction sets of STDC_FAST_SETS, and the one that others are built upon; by default all."""
    wanted = set(re.findall(r"[^;,\s]+", os.environ.get("STDC_FAST_SETS", ""))) or set(SETS)
    if unknown := wanted - set(SETS):
        raise Missing(f"STDC_FAST_SETS has {min(unknown)!r}; there are {', '.join(SETS)}")
    bases = {"amx_bf16": "avx512_bf16", "avx512_vnni": "avx512", "avx2_vnni": "avx2"}
    return wanted | {"portable"} | {base for name, base in bases.items() if name in wanted}


def build_emulator() -> Path:
    """Makes the tests' module, in which the CUDA sources run on the CPU."""
    ninja, flags = Ninja("emulator"), []
    try:
        ninja.probe("-march=native")
        flags.append("-march=native")
    except Missing:  # as some compilers for other processors; it only takes longer
        pass
    flags.append("-DSTDC_HAVE_WGMMA=1")
    # NOTE: -O2, and -O1 with sanitizers, take longer to compile, and the tests run no sooner.
    flags_cuda = [*ninja.flags, *flags, "-Og" if SANITIZE else "-O1", *cuda_options()[1]]
    ninja.rule("cuda", flags_cuda, "$define -MMD -MF $out.d -x c++ -c $in -o $out" + DEPENDENCIES)
    objects = ninja.compile_cuda("cuda", sources("CUDA", "cuda/*.cu"))
    objects += ninja.compile("emulator", [*flags, *([] if SANITIZE else ["-O2"])], "emulator/*.cpp")
    quick = [*flags, "-O1", "-DSTDC_EMULATOR=1"]
    objects += ninja.compile("bindings", [*quick, *python_include()], "bindings_gpu.cpp")
    ninja.link(EMULATOR_MODULE, objects)
    ninja.run(EMULATOR_MODULE)
    return ninja.folder / EMULATOR_MODULE
