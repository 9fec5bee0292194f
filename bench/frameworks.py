"""Times live models of other frameworks before and after ``stdc_fast.accelerate``, beside ``load``, in turns.

    make test-frameworks   # makes the environments
    python -m bench.frameworks --out docs/results/frameworks.jsonl

Each environment has a process of its own, with one package installed. A round gives every way of running a
model a turn, in alternating order. A ratio is that of the two turns of one round; the median counts. Ways:

- "own": the framework's own forward, from a normalised image to full-size logits;
- "whole": the same call after ``accelerate``; "blocks": with each block on its own plan;
- "load": ``stdc_fast.load`` of the same weights, whose module maps the same image to the same logits.

"official" is a network of this repository's tests, written from the facts of the paper's code: that is no
package, and needs a GPU for its norms. It also returns its auxiliary logits, as the paper's code does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

_WORKER = """
import json, sys, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import torch
kind, variant, (height, width, threads) = sys.argv[1], sys.argv[2], map(int, sys.argv[3:])
torch.set_num_threads(threads or torch.get_num_threads())
clock = time.process_time if threads == 1 else time.perf_counter
out, sys.stdout = sys.stdout, sys.stderr
import copy
import stdc_fast
from stdc_fast import checkpoints
from stdc_fast.numerics import relative_error
image = torch.randn((1, 3, height, width), generator=torch.Generator().manual_seed(0))
if kind == "official":
    sys.path.insert(0, "tests")
    import families
    from families.official import Evaluated
    package, model = "stand-in for STDC-Seg", families.build("official", variant)
    model.__class__ = Evaluated
    call = lambda m: m(image)[0]
else:
    from bench import framework_models
    package, model = framework_models.installed(), framework_models.model(variant)
    if hasattr(model, "use_aux_heads"):
        model.use_aux_heads = False  # as its predict() does
    meta = [{"img_shape": (height, width)}]
    plain = not hasattr(model, "encode_decode")
    call = lambda m: m(image) if plain else m.encode_decode(image, meta)
model.requires_grad_(False)
ways = {"own": copy.deepcopy(model)}
start = clock()
whole = stdc_fast.accelerate(copy.deepcopy(model), outputs="main")
took = clock() - start
assert stdc_fast.acceleration(whole).how == "whole"
ways["whole"] = whole
cut = copy.deepcopy(model)
hook = cut.register_forward_hook(lambda *a: None)
from stdc_fast.live import blocks, match, probe
from stdc_fast.live.entries import entry_of
twin = probe.copy_of(cut)
names = match.canonical(twin.state_dict())
with probe.one_thread():
    found, _ = blocks.find(cut, twin, names, entry_of(cut).run, probe.images(None, torch.device("cpu")))
for name, block in found.items():
    cut.get_submodule(name).__dict__["forward"] = block
ways["blocks"] = cut
with tempfile.TemporaryDirectory() as folder:
    options = {"batch_norm": "in-place"} if kind == "official" else {}
    checkpoint = checkpoints.from_state(model.state_dict(), **options)
    file = Path(folder) / "model.safetensors"
    state = dict(checkpoint.state)
    checkpoints.save(state, file, {**checkpoint.metadata, "variant": variant})
    ways["load"] = stdc_fast.load(file, device="cpu", dtype="float32")
calls = {name: (lambda m=m: call(m)) for name, m in ways.items()}
calls["load"] = lambda: ways["load"](image)
with torch.inference_mode():
    results = {name: run() for name, run in calls.items()}
errors = {name: relative_error(y, results["own"]) for name, y in results.items() if name != "own"}
about = {"package": package, "torch": torch.__version__, "threads": torch.get_num_threads(),
         "clock": clock.__name__, "errors": errors,
         "blocks": len(found), "accelerate_seconds": took, "backend": ways["load"].backend,
         "largest_difference": (results["whole"] - results["own"]).abs().max().item(),
         "largest_logit": results["own"].abs().max().item()}
print(json.dumps(about), file=out, flush=True)
for line in sys.stdin:
    times = {}
    with torch.inference_mode():
        for name in json.loads(line):
            best = []
            for _ in range(2):
                start = clock()
                calls[name]()
                best.append(clock() - start)
            times[name] = min(best)
    print(json.dumps(times), file=out, flush=True)
"""


def measure(
    python: str, kind: str, variant: str, size: tuple[int, int], rounds: int, threads: int
) -> dict[str, Any]:
    """A row: medians in milliseconds, and median ratios to "own" and to "load"."""
    process = subprocess.Popen(
        [python, "-c", _WORKER, kind, variant, *map(str, (*size, threads))], cwd=ROOT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    about = json.loads(process.stdout.readline() or "{}")
    if not about:
        raise SystemExit(f"{kind} in {python} could not be run")
    ways, turns = ["own", "whole", "blocks", "load"], []
    for i in range(rounds):
        process.stdin.write(json.dumps(ways if i % 2 else ways[::-1]) + "\n")
        process.stdin.flush()
        turns.append(json.loads(process.stdout.readline()))
    process.stdin.close()
    process.wait()
    ratio = {
        f"{a}/{b}": round(statistics.median(t[a] / t[b] for t in turns), 3)
        for a, b in (("own", "whole"), ("own", "blocks"), ("whole", "load"), ("blocks", "whole"))
    }
    took = {way: round(1e3 * statistics.median(t[way] for t in turns), 1) for way in ways}
    return {"kind": kind, "network": variant, "size": list(size), **about, "ms": took, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.frameworks", description=__doc__.splitlines()[0])
    parser.add_argument("--venvs", type=Path, default=ROOT / ".frameworks")
    parser.add_argument("--networks", nargs="+", default=["stdc1"], choices=("stdc1", "stdc2"))
    parser.add_argument("--size", default="512x1024", help="HEIGHTxWIDTH")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--threads", type=int, default=0, help="1 counts the time of the processor, for busy machines"
    )
    parser.add_argument("--kinds", nargs="+", help="official, and names of environments; default: all")
    parser.add_argument("--out", type=Path, help="file to write, JSON Lines")
    options = parser.parse_args()
    from stdc_fast import info
    from stdc_fast.files import write_atomic
    from stdc_fast.hardware import cpu

    size = tuple(map(int, options.size.split("x")))
    pythons = {"official": sys.executable}
    pythons |= {
        f.name: str(f / "bin/python") for f in sorted(options.venvs.glob("*")) if (f / "bin/python").exists()
    }
    pythons = {k: v for k, v in pythons.items() if not options.kinds or k in options.kinds}
    rows = []
    for kind, python in pythons.items():
        for variant in options.networks:
            row = measure(python, kind, variant, size, options.rounds, options.threads)
            row |= {"cpu": cpu(), "rounds": options.rounds, "commit": info.commit()}
            row |= {"load_average": round(os.getloadavg()[0], 1)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.out:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomic(options.out, lambda path: path.write_text(text))


if __name__ == "__main__":
    main()
