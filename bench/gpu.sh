#!/usr/bin/env bash
# Tests, checks and times the library on a machine with an NVIDIA GPU, in calls of at most ten minutes:
#
#     bench/gpu.sh [correctness | sanitizers | times | tune | variants | peers | summary]
#
# A call runs the steps of one kind, in at most eight minutes: give them in this order, each in a call of its own.
# Without one, STEPS says what runs. A step that passed before, by the files OUT/gpu_*.jsonl and BEFORE, of these
# sources on this GPU, is not repeated unless AGAIN=1. summary runs nothing and says in ten lines what held.
# Where there is no nvcc, carry modules that were built elsewhere, `python -m bench.gpu_prebuilt --help`: what is in
# PREBUILT/default is copied into the tree first, and the step variants tries all others in turn. If it is of other
# sources, or does not load, it is left aside, and the module is built where there is nvcc.
#
# Runs from the source tree, needs no network and leaves the card's settings alone. The step build compiles the
# native module in the tree, for this GPU alone, and nothing is installed. A step that fails does not stop the
# next; all of them end up in one file, gpu_<UTC time>.jsonl: a summary, then the records of bench.suite and of
# bench.gpu_kernels. It is written after each step, so who stops a call loses that step alone. The last line is the
# verdict on the call. The step tune leaves its tables of tiles and all times in OUT/tuned; no other step uses them
# (STDC_FAST_CACHE=OUT/tuned makes them). Where time ran out it is "unfinished", and the next call goes on from those
# times, or from those in TUNED. Exit code 0 if no step failed or timed out, 1 if one did, 2 for an unknown step, 3
# if there is no GPU here.
#
# All steps together take longer than ten minutes: give each call some of them, after build, which is quick
# where nothing changed. What is not measured for want of time is by a call with BEFORE.
#
# From the environment (paths are relative to the repository):
#     STEPS           those to run, in the script's order (all): build tests cuda memcheck racecheck synccheck
#                     repeats triton kernels tune per_kernel variants benchmarks
#     PREBUILT        folder of modules that were built elsewhere (bench/prebuilt)
#     AGAIN           1 repeats what passed before
#     STDC_FAST_CUDA_TARGETS   for the build, as of setup.py (this GPU)
#     TUNE            backends whose tiles are tuned, in this order, with the same time for each (cuda triton)
#     TUNED           folder of tables and times of an earlier call of tune, which are copied to OUT/tuned first
#     BEFORE          files of earlier calls: the benchmarks that these have, of this commit, are left out
#     PYTHON          has torch and what the library needs (python3)
#     OUT             folder of the results (bench/results)
#     WORKERS         processes of a step of tests, where pytest-xdist is installed (8): compiling takes longest
#     SECONDS_TOTAL   limit of everything (570); each step gets what is left, at most
#     SECONDS_BENCHMARKS   of these the other steps leave to the benchmarks (150, at most a third of the total)
#     SECONDS_BUILD, SECONDS_TESTS, SECONDS_CUDA, SECONDS_SANITIZER   limits (240, 180, 180, 150)
#     SECONDS_REPEATS, SECONDS_TRITON, SECONDS_KERNELS                (60, 150, 180)
#     SECONDS_TUNE, SECONDS_PER_KERNEL, SECONDS_VARIANTS              (90, 60, 60)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

SECONDS=0 # bash counts on from here
: "${OUT:=bench/results}" "${WORKERS:=8}" "${TUNE:=cuda triton}" "${TUNED:=}" "${BEFORE:=}"
: "${PREBUILT:=bench/prebuilt}" "${AGAIN:=}"
files=()
for file in "$OUT"/gpu_*.jsonl; do [ ! -f "$file" ] || files+=("$file"); done
for file in $BEFORE; do files+=("$file"); done
call=${1:-}
case $call in
    "") ;;
    correctness) STEPS="build tests cuda repeats triton kernels" ;;
    sanitizers) STEPS="build memcheck racecheck synccheck" ;;
    times) STEPS="build per_kernel" ;;
    tune) STEPS="build tune" ;;
    variants) STEPS="build variants" ;;
    peers) STEPS="build benchmarks" ;;
    summary) exec "${PYTHON:-python3}" bench/gpu_verdict.py ${files[@]+"${files[@]}"} ;;
    *)
        echo "gpu.sh: unknown call $call; there are correctness sanitizers times tune variants peers summary" >&2
        exit 2
        ;;
esac
if [ -n "$call" ]; then # each of its steps may take what the call has
    : "${SECONDS_TOTAL:=480}" "${SECONDS_BENCHMARKS:=480}" "${SECONDS_TUNE:=420}" "${SECONDS_PER_KERNEL:=420}"
    : "${SECONDS_VARIANTS:=420}"
fi
: "${SECONDS_TOTAL:=570}" "${SECONDS_BENCHMARKS:=150}"
: "${SECONDS_BUILD:=240}" "${SECONDS_TESTS:=180}" "${SECONDS_CUDA:=180}" "${SECONDS_SANITIZER:=150}"
: "${SECONDS_REPEATS:=60}" "${SECONDS_TRITON:=150}" "${SECONDS_KERNELS:=180}"
: "${SECONDS_TUNE:=90}" "${SECONDS_PER_KERNEL:=60}"
: "${SECONDS_VARIANTS:=60}"
ALL="build tests cuda memcheck racecheck synccheck repeats triton kernels tune per_kernel variants benchmarks"
: "${STEPS:=$ALL}"
export PYTHON="${PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export CUDA_DEVICE_ORDER=PCI_BUS_ID # as nvidia-smi counts

for name in $STEPS; do
    case " $ALL " in
        *" $name "*) ;;
        *)
            echo "gpu.sh: unknown step $name in STEPS; there are $ALL" >&2
            exit 2
            ;;
    esac
done

wanted() { case " $STEPS " in *" $1 "*) return 0 ;; *) return 1 ;; esac }

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

# The target of setup.py for this GPU.
target() {
    "$PYTHON" -c '
import torch
major, minor = torch.cuda.get_device_capability(0)
print("%d%d%s" % (major, minor, "a" if major >= 9 else ""))
'
}

# Fails, with the reason, unless the CUDA backend runs here.
cuda_runs() {
    "$PYTHON" -c '
import sys
from stdc_fast.backends import cuda
reason = cuda.BACKEND.why_not_here()
sys.exit(reason and "the CUDA backend does not run: %s" % reason)
' 2>&1
}

# Fails, with the reason, unless the module in the tree loads.
loads() {
    "$PYTHON" -c '
import sys
from stdc_fast import _native
sys.exit(_native.why_not())
' 2>&1
}

# The native module, and what there is. (Triton compiles at first use, for which it needs a C compiler.)
build() {
    local result=0 nvcc
    nvcc=$("$PYTHON" -c 'from bench.gpu_constants import nvcc; print(*nvcc())' 2>/dev/null)
    if [ -n "$nvcc" ]; then $nvcc --version | tail -n 2; else echo "nvcc is absent"; fi
    echo "driver $(nvidia-smi -i "$GPU" --query-gpu=driver_version --format=csv,noheader)"
    export STDC_FAST_CUDA_TARGETS="${STDC_FAST_CUDA_TARGETS:-$(target)}"
    local why=none
    if [ -d "$PREBUILT/default" ]; then
        why=$("$PYTHON" -m bench.gpu_prebuilt --check --out "$PREBUILT" 2>&1) && why=
        if [ -z "$why" ]; then
            cp "$PREBUILT"/default/* stdc_fast/ && why=$(loads) && why=
        fi
        if [ -z "$why" ]; then
            echo "the module of $PREBUILT/default"
        else
            echo "$PREBUILT/default is left aside: $why"
            [ -n "$nvcc" ] || result=1
        fi
    fi
    if [ -n "$why" ] && { [ "$why" = none ] || [ -n "$nvcc" ]; }; then
        echo "building for $STDC_FAST_CUDA_TARGETS"
        "$PYTHON" setup.py -q build_ext --inplace || result=1
    fi
    "$PYTHON" - <<'PY' || result=1
import importlib, os, platform, shutil, sys
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
print("C compiler for Triton:", os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
from stdc_fast import backends
for backend in backends.BACKENDS:
    why_not = backend.why_not_here()
    print("backend", backend.name, "does not run: " + why_not if why_not else "runs: " + backend.about())
PY
    # There is what it takes.
    if { [ -n "$nvcc" ] || [ -d "$PREBUILT/default" ]; } && ! cuda_runs; then result=1; fi
    return "$result"
}

# Tiles of each backend, in the same part of what is left: one that is done early leaves more to the next. Exit code 4
# if there was not the time for all.
tune() {
    local result=0 code unfinished= name left=$# end=$((SECONDS + limit))
    if [ -n "$TUNED" ] && [ "$TUNED" != "$OUT/tuned" ]; then
        mkdir -p "$OUT/tuned" && cp "$TUNED"/* "$OUT/tuned"/ || return 1
    fi
    for name in "$@"; do
        local each=$(((end - SECONDS) / left - 25)) # to compile the first choice, and for the last measurement
        left=$((left - 1))
        if [ "$each" -lt 1 ]; then each=1; fi
        echo "tuning $name, $each s"
        timeout --kill-after=5 $((each + 60)) env STDC_FAST_CACHE="$OUT/tuned" "$PYTHON" -m stdc_fast tune \
            --size 512x1024 --backend "$name" --seconds "$each" >"$work/tune_$name" 2>&1
        code=$?
        cat "$work/tune_$name"
        if [ "$code" = 124 ] || [ "$code" = 137 ] || [[ $(<"$work/tune_$name") == *"(stopped at the limit"* ]]; then
            unfinished="$unfinished $name"
        elif [ "$code" != 0 ]; then
            echo "$name was not tuned"
            result=1
        fi
    done
    if [ "$result" = 0 ] && [ -n "$unfinished" ]; then
        echo "not tuned to the end:$unfinished; the same call again goes on"
        return 4
    fi
    return "$result"
}

# Repeats and whole networks with each module that was built in another way; the default one is put back.
variants() {
    local result=0 folder name limit=$1
    trap 'cp "$PREBUILT"/default/* stdc_fast/' EXIT
    set -- "$PREBUILT"/*/
    for folder in "$@"; do
        name=$(basename "$folder")
        echo "variant $name"
        cp "$folder"/* stdc_fast/ || return 1
        "$PYTHON" -m bench.gpu_repeats --times 200 || result=1
        "$PYTHON" -m bench.gpu_kernels --out "$work/kernels" --backend cuda --whole --seconds $((limit / $#)) || result=1
    done
    return "$result"
}

command -v nvidia-smi >/dev/null || no_gpu "nvidia-smi was not found; install NVIDIA's driver"
seen=$(timeout 30 nvidia-smi -L 2>&1) || no_gpu "nvidia-smi fails: ${seen:-it does not answer}"
command -v "$PYTHON" >/dev/null || no_gpu "$PYTHON was not found; set PYTHON"
export PREBUILT TUNED OUT
export -f torch_sees_gpu target cuda_runs loads build tune variants
why=$(timeout 60 bash -c torch_sees_gpu) || no_gpu "${why:-torch does not answer}"
GPU=${CUDA_VISIBLE_DEVICES:-0}
export GPU="${GPU%%,*}"

if ! mkdir -p "$OUT" || [ ! -w "$OUT" ]; then
    echo "gpu.sh: can not write to $OUT; set OUT" >&2
    exit 1
fi
work=$(mktemp -d) || exit 1
export work
timeout 10 nvidia-smi -i "$GPU" --query-gpu=name --format=csv,noheader >"$work/name" 2>/dev/null
results=$OUT/gpu_$(date -u +%Y%m%dT%H%M%SZ).jsonl
fields=name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit
smi() { timeout 10 nvidia-smi -i "$GPU" --query-gpu="$fields" --format=csv >"$work/nvidia_smi" 2>&1; }
smi
passed=
if [ -z "$AGAIN" ] && [ ${#files[@]} -gt 0 ]; then
    passed=$("$PYTHON" bench/gpu_summary.py --passed "$(cat "$work/name")" "${files[@]}")
fi
child=
trap 'rm -rf "$work"' EXIT
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; exit 130' INT TERM

# note NAME STATUS SECONDS: one line for the summary; $work/NAME.log is what the step printed. The file of results
# is written anew: whoever stops the call keeps what was done.
note() {
    printf '%s\t%s\t%s\n' "$@" >>"$work/steps"
    "$PYTHON" bench/gpu_summary.py "$work" "$results" >/dev/null
    echo "gpu.sh: $1: $2"
}

skip() {
    echo "$2" >"$work/$1.log"
    cat "$work/$1.log"
    note "$1" skipped 0
}

left() { echo $((SECONDS_TOTAL - SECONDS)); }

# What is not for any other step than the benchmarks.
reserve=$((SECONDS_TOTAL / 3))
if [ "$reserve" -gt "$SECONDS_BENCHMARKS" ]; then reserve=$SECONDS_BENCHMARKS; fi
wanted benchmarks || reserve=0

# room NAME LIMIT: seconds that a step may take now.
room() {
    local free
    free=$(left)
    if [ "$1" != benchmarks ]; then free=$((free - reserve)); fi
    if [ "$2" -lt "$free" ]; then echo "$2"; else echo "$free"; fi
}

# step NAME LIMIT COMMAND...: run it, if it is wanted, for at most LIMIT seconds, or what is left.
step() {
    local name=$1 limit start=$SECONDS code status
    wanted "$name" || return 0
    case " $passed " in
        *" $name "*)
            skip "$name" "passed before"
            return
            ;;
    esac
    limit=$(room "$name" "$2")
    shift 2
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
        4) status=unfinished ;;
        124 | 137) status="timed out" ;;
        *) status=failed ;;
    esac
    if [ "$code" = 137 ] && [ $((SECONDS - start)) -lt "$limit" ]; then status=failed; fi # killed for memory
    cat "$work/$name.log"
    note "$name" "$status" $((SECONDS - start))
}

# Several processes, each with few threads, where pytest can.
pytest=("$PYTHON" -m pytest)
if "$PYTHON" -c "import xdist" 2>/dev/null; then
    pytest=(env OMP_NUM_THREADS=2 "${pytest[@]}" -n "$WORKERS")
fi

backends=tests/backends
engines=($backends/test_ops.py $backends/test_network.py $backends/test_process.py) # of every engine
both=($backends/gpu/test_on_gpu.py $backends/gpu/test_graphs.py)                    # of CUDA and of Triton
step build "$SECONDS_BUILD" bash -c build
step tests "$SECONDS_TESTS" "${pytest[@]}" $backends/eager/test_eager_on_gpu.py
without_cuda=
for name in cuda memcheck racecheck synccheck repeats; do
    wanted "$name" || continue
    why=$(timeout 60 bash -c cuda_runs) || without_cuda=${why:-the CUDA backend does not answer}
    break
done
for name in cuda memcheck racecheck synccheck repeats; do
    wanted "$name" || continue
    if [ -n "$without_cuda" ]; then
        skip "$name" "$without_cuda"
        continue
    fi
    case $name in
        cuda)
            step cuda "$SECONDS_CUDA" "${pytest[@]}" $backends/cuda/test_cuda_on_gpu.py "${engines[@]}" "${both[@]}" \
                -m "gpu and not wide" -k "not triton"
            ;;
        repeats) step repeats "$SECONDS_REPEATS" "$PYTHON" -m bench.gpu_repeats --times 1000 ;;
        *)
            if command -v compute-sanitizer >/dev/null; then
                step "$name" "$SECONDS_SANITIZER" "$PYTHON" -m bench.gpu_sanitize "$name"
            else
                skip "$name" "compute-sanitizer was not found"
            fi
            ;;
    esac
done
step triton "$SECONDS_TRITON" "${pytest[@]}" "${both[@]}" -k "not cuda"
step kernels "$SECONDS_KERNELS" "${pytest[@]}" $backends/triton/test_triton_tiles.py "${engines[@]}" -k triton
# What follows is told to be done before its limit, so that it ends by itself and keeps what it found.
before() { if [ "$1" -gt "$2" ]; then echo $(($1 - $2)); else echo 1; fi; }
# shellcheck disable=SC2016,SC2086 # the inner shell expands; TUNE is a list
step tune "$SECONDS_TUNE" bash -c 'limit=$1; shift; tune "$@"' tune "$(room tune "$SECONDS_TUNE")" $TUNE
step per_kernel "$SECONDS_PER_KERNEL" "$PYTHON" -m bench.gpu_kernels --out "$work/kernels" \
    --constants --seconds "$(before "$(room per_kernel "$SECONDS_PER_KERNEL")" 10)"
if [ -d "$PREBUILT/default" ]; then
    step variants "$SECONDS_VARIANTS" bash -c 'variants "$1"' variants "$(before "$(room variants "$SECONDS_VARIANTS")" 60)"
elif wanted variants; then
    skip variants "there is no $PREBUILT/default"
fi
have=()
for file in ${files[@]+"${files[@]}"}; do have+=(--have "$file"); done
step benchmarks "$(left)" "$PYTHON" -m bench.suite --device cuda --seconds "$(before "$(left)" 15)" \
    ${have[@]+"${have[@]}"} --out "$work/records"

smi # the clocks, after the work
"$PYTHON" bench/gpu_summary.py "$work" "$results" "${call:-steps}"
