"""A made-up machine for bench/gpu.sh: a stub for the card, one for Python, and the tools that it may see."""

import json
import shutil
import subprocess
import sys

from paths import ROOT

BENCH = ROOT / "bench"
TOOLS = (
    "basename",
    "bash",
    "cat",
    "cp",
    "date",
    "dirname",
    "env",
    "mkdir",
    "mktemp",
    "rm",
    "sleep",
    "tail",
    "timeout",
)

NVIDIA_SMI = """
echo "$*" >>"$ROOT/smi"
case "$*" in
    -L) echo "GPU 0: a stub" ;;
    *query-gpu=driver_version*) echo 580.1 ;;
    *"query-gpu=name "*) echo a stub ;;
    *) printf 'name, driver_version, power.draw [W]\\na stub, 580.1, 70.5 W\\n' ;;
esac
"""
# Each case is one call of the script; what the steps do comes from the environment.
PYTHON = f"""
case "$*" in
    "-c import xdist") exit "$NO_XDIST" ;;
    "-c "*"import cuda"*) eval "$CUDA_RUNS" ;;
    "-c "*get_device_capability*) echo 90a ;;
    "-c "*"import nvcc"*) eval "$NVCC" ;;
    "-c "*"import _native"*) eval "$LOADS" ;;
    "-m bench.gpu_prebuilt --check --out "*) eval "$FITS" ;;
    "-c "*) ;;
    -) cat >/dev/null; echo torch 2.99 ;;
    "setup.py -q build_ext --inplace") eval "$BUILD" ;;
    "-m pytest"*" tests/backends/eager/test_eager_on_gpu.py") eval "$TESTS" ;;
    "-m pytest"*"/test_cuda_on_gpu.py $ENGINES $BOTH -m gpu and not wide -k not triton") eval "$CUDA" ;;
    "-m bench.gpu_sanitize "*check) TOOL=$3; eval "$SANITIZE" ;;
    "-m bench.gpu_repeats --times "*00) eval "$REPEATS" ;;
    "-m pytest"*" $BOTH -k not cuda") eval "$TRITON" ;;
    "-m pytest"*" tests/backends/triton/test_triton_tiles.py $ENGINES -k triton") eval "$KERNELS" ;;
    "-m stdc_fast tune --size 512x1024 --backend "*" --seconds "*) eval "$TILES" ;;
    "-m bench.gpu_kernels --out "*" --constants --seconds "*) FILE=$4; eval "$TIMES" ;;
    "-m bench.gpu_kernels --out "*" --backend cuda --whole --seconds "*) FILE=$4; eval "$TIMES" ;;
    "-m bench.suite --device cuda --seconds "*" --out "*) FILE="${{@: -1}}"; eval "$SUITE" ;;
    bench/gpu_summary.py*|bench/gpu_verdict.py*) exec {sys.executable} "$@" ;;
    *) echo "unexpected: $*"; exit 99 ;;
esac
"""
RECORDS = """for i in 1 2; do echo '{"kind": "latency", "i": '$i'}' >>"$FILE"; done"""


class Machine:
    """A copy of the script in a tree of its own, and the commands that it can see."""

    def __init__(self, folder):
        self.root, self.bin = folder / "tree", folder / "bin"
        (self.root / "bench").mkdir(parents=True)
        self.bin.mkdir()
        (folder / "temporary").mkdir()
        for name in ("gpu.sh", "gpu_summary.py", "gpu_verdict.py"):
            shutil.copy(BENCH / name, self.root / "bench")
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.environment = {
            "PATH": str(self.bin),
            "TMPDIR": str(folder / "temporary"),
            "ROOT": str(folder),
            "PYTHON": "stub-python",
            "NO_XDIST": "1",
            "NVCC": "exit 1",
            "BOTH": "tests/backends/gpu/test_on_gpu.py tests/backends/gpu/test_graphs.py",
            "ENGINES": " ".join(f"tests/backends/test_{name}.py" for name in ("ops", "network", "process")),
            "BUILD": 'echo "made for $STDC_FAST_CUDA_TARGETS"',
            "CUDA_RUNS": "exit 0",
            "LOADS": "exit 0",
            "FITS": "exit 0",
            "TESTS": "echo 3 passed",
            "CUDA": "echo 6 passed",
            "SANITIZE": 'echo "$TOOL found nothing"',
            "REPEATS": "echo 0 differ",
            "TRITON": "echo 4 passed",
            "KERNELS": "echo 5 passed",
            "TILES": 'T="$STDC_FAST_CACHE"; mkdir -p "$T"; echo "$7 ${@: -1}" >>"$T/tiles"',
            "TIMES": """echo '{"kind": "kernels"}' >>"$FILE"; echo 200 us""",
            "SUITE": RECORDS,
        }
        self.folder = folder

    def add(self, name, text):
        path = self.bin / name
        path.write_text(f"#!{self.bin}/bash\n{text}")
        path.chmod(0o755)

    def start(self, *call, **environment):
        return subprocess.Popen(
            [self.bin / "bash", self.root / "bench" / "gpu.sh", *call],
            env={**self.environment, **environment},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *call, **environment):
        with self.start(*call, **environment) as process:
            out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def tuned(self):
        """Backends, each with the seconds that it was told."""
        return self.root.joinpath("bench", "results", "tuned", "tiles").read_text().splitlines()

    def written(self):
        """Files that the script left, in the results and elsewhere, beside what stubs wrote."""
        known = ("gpu.sh", "gpu_summary.py", "gpu_verdict.py", "tiles")
        inside = [p for p in self.root.rglob("*") if p.name not in known]
        return [p for p in (*inside, *(self.folder / "temporary").iterdir()) if p.is_file()]

    def results(self):
        """The lines of the one file that it left."""
        (path,) = self.written()
        assert path.parent == self.root / "bench" / "results"
        assert path.name.startswith("gpu_2") and path.name.endswith("Z.jsonl")
        text = path.read_text()
        assert text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]


def statuses(summary):
    return {step["name"]: step["status"] for step in summary["steps"]}
