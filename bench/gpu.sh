#!/usr/bin/env bash
# Tests, checks and times the library on a machine with an NVIDIA GPU, in at most ten minutes:
#
#     bench/gpu.sh
#
# Runs from the source tree, installs nothing, needs no network and leaves the card's settings alone. A step
# that fails does not stop the next; all of them end up in one file, gpu_<UTC time>.jsonl: a summary, then the
# records of bench.suite. Exit code 0 if every step passed or was skipped, 1 if not, 3 if there is no GPU here.
#
# From the environment (paths are relative to the repository):
#     PYTHON          has torch and what the library needs (python3)
#     OUT             folder of the results (bench/results)
#     SECONDS_TOTAL   limit of everything (570); each step gets what is left, at most
#     SECONDS_BUILD, SECONDS_TESTS, SECONDS_SANITIZER   (60, 180, 60)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

SECONDS=0 # bash counts on from here
: "${SECONDS_TOTAL:=570}" "${SECONDS_BUILD:=60}" "${SECONDS_TESTS:=180}" "${SECONDS_SANITIZER:=60}"
: "${OUT:=bench/results}"
export PYTHON="${PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export CUDA_DEVICE_ORDER=PCI_BUS_ID # as nvidia-smi counts

no_gpu() {
    echo "gpu.sh: no GPU to use: $1" >&2
    exit 3
}

# Fails, with the reason, unless torch sees a GPU.
torch_sees_gpu() {
    "$PYTHON" -c '
import os, sys
try:
    import torch
except ImportError as error:
    sys.exit("%s can not import torch (%s); set PYTHON" % (os.environ["PYTHON"], error))
if not torch.cuda.is_available():
    built = torch.version.cuda
    why = "sees no GPU; is the driver too old for CUDA %s?" % built if built else "was built without CUDA"
    sys.exit("torch %s %s" % (torch.__version__, why))
' 2>&1
}

# Everything is Python so far: there is nothing to compile, only to look at.
build() {
    "$PYTHON" - <<'PY'
import importlib, os, platform, sys
print("python", platform.python_version(), sys.executable)
for name in ("stdc_fast", "stdc_fast.cli", "pytest"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        sys.exit("%s has no module %r, which %s needs" % (os.environ["PYTHON"], error.name, name))
import torch
properties = torch.cuda.get_device_properties(0)
print("torch", torch.__version__, "with CUDA", torch.version.cuda, "and cuDNN", torch.backends.cudnn.version())
print("GPU", properties.name, "of compute capability %d.%d" % (properties.major, properties.minor))
try:
    import triton
    print("triton", triton.__version__)
except ImportError:
    print("triton is absent")
PY
    local result=$?
    echo "driver $(nvidia-smi -i "$GPU" --query-gpu=driver_version --format=csv,noheader)"
    if command -v nvcc >/dev/null; then nvcc --version | tail -n 2; else echo "nvcc is absent"; fi
    return "$result"
}

command -v nvidia-smi >/dev/null || no_gpu "nvidia-smi was not found; install NVIDIA's driver"
seen=$(timeout 30 nvidia-smi -L 2>&1) || no_gpu "nvidia-smi fails: ${seen:-it does not answer}"
command -v "$PYTHON" >/dev/null || no_gpu "$PYTHON was not found; set PYTHON"
export -f torch_sees_gpu build
why=$(timeout 60 bash -c torch_sees_gpu) || no_gpu "${why:-torch does not answer}"
GPU=${CUDA_VISIBLE_DEVICES:-0}
export GPU="${GPU%%,*}"

if ! mkdir -p "$OUT" || [ ! -w "$OUT" ]; then
    echo "gpu.sh: can not write to $OUT; set OUT" >&2
    exit 1
fi
work=$(mktemp -d) || exit 1
child=
trap 'rm -rf "$work"' EXIT
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; exit 130' INT TERM

# note NAME STATUS SECONDS: one line for the summary; $work/NAME.log is what the step printed.
note() {
    printf '%s\t%s\t%s\n' "$@" >>"$work/steps"
    echo "gpu.sh: $1: $2"
}

skip() {
    echo "$2" >"$work/$1.log"
    cat "$work/$1.log"
    note "$1" skipped 0
}

left() { echo $((SECONDS_TOTAL - SECONDS)); }

# step NAME LIMIT COMMAND...: run it for at most LIMIT seconds, or what is left.
step() {
    local name=$1 limit=$2 start=$SECONDS code status
    shift 2
    if [ "$limit" -gt "$(left)" ]; then limit=$(left); fi
    if [ "$limit" -le 0 ]; then
        echo "not started: nothing is left of $SECONDS_TOTAL s" >"$work/$name.log"
        note "$name" "timed out" 0
        return
    fi
    echo "gpu.sh: $name, at most $limit s: $*"
    # In the background, so that Ctrl-C is heard at once.
    timeout --kill-after=5 "$limit" "$@" >"$work/$name.log" 2>&1 </dev/null &
    child=$!
    wait "$child"
    code=$?
    child=
    case $code in
        0) status=passed ;;
        124 | 137) status="timed out" ;;
        *) status=failed ;;
    esac
    if [ "$code" = 137 ] && [ $((SECONDS - start)) -lt "$limit" ]; then status=failed; fi # killed for memory
    cat "$work/$name.log"
    note "$name" "$status" $((SECONDS - start))
}

step build "$SECONDS_BUILD" bash -c build
step tests "$SECONDS_TESTS" "$PYTHON" -m pytest tests/test_gpu.py
for tool in memcheck racecheck synccheck; do
    if ! command -v compute-sanitizer >/dev/null; then
        skip "$tool" "compute-sanitizer was not found"
    elif [ ! -d csrc/cuda ]; then
        skip "$tool" "the library has no CUDA kernels of its own (csrc/cuda is absent)"
    else
        step "$tool" "$SECONDS_SANITIZER" compute-sanitizer --tool "$tool" --target-processes all \
            --error-exitcode 9 "$PYTHON" -m pytest tests/test_gpu.py
    fi
done
# The suite is told to be done before its limit, so that it ends by itself.
seconds=$(($(left) - 15))
if [ "$seconds" -lt 1 ]; then seconds=1; fi
step benchmarks "$(left)" "$PYTHON" -m bench.suite --device cuda --seconds "$seconds" --out "$work/records"

fields=name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit
timeout 10 nvidia-smi -i "$GPU" --query-gpu="$fields" --format=csv >"$work/nvidia_smi" 2>&1
"$PYTHON" bench/gpu_summary.py "$work" "$OUT/gpu_$(date -u +%Y%m%dT%H%M%SZ).jsonl"
