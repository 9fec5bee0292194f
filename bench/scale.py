"""How long, and how many machine hours, 10^6 and 10^9 frames take: measured stages, and a simulated cluster.

    python -m bench.scale stages PICTURES --out docs/results/bulk_stages.json
    python -m bench.scale plan --stages docs/results/bulk_stages.json --out docs/results/scale.json \\
        --plot docs/images/scale.svg

"stages" measures one frame of 2048x1024 on this machine: reading the file, decoding, labelling, encoding,
writing. "plan" gives shards to machines one by one, as Ray does. Machines differ in speed, some are lost, and
all share an object store with limits. What is not measured is an argument, and is written down with the
results. A price is one too.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import stdc_fast
from bench.bulk_speed import INPUT, SIZE, make
from stdc_fast import encode, images, info
from stdc_fast.benchmark.run import quantiles
from stdc_fast.files import write_atomic
from stdc_fast.hardware import cpu
from stdc_fast.viewer.save import save_figure

STAGES = ("read", "decode", "label", "encode", "write")
JOBS = (10**6, 10**9)


def measure(pictures: Path, rounds: int) -> dict[str, object]:
    """Seconds of each stage of a frame, by the clock and of all cores; bytes read and written."""
    model = stdc_fast.load(device="auto")
    found: dict[str, list[float]] = {stage: [] for stage in STAGES}
    busy: dict[str, list[float]] = {stage: [] for stage in STAGES}
    sizes: dict[str, list[int]] = {"in": [], "out": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make(pictures, folder, 4)

        def timed(stage: str, work: Callable[[], object]) -> object:
            start, cores = time.perf_counter(), time.process_time()
            result = work()
            found[stage].append(time.perf_counter() - start)
            busy[stage].append(time.process_time() - cores)
            return result

        model.predict(paths[0], size=INPUT)
        for i in range(rounds):
            content = timed("read", paths[i % len(paths)].read_bytes)
            image = timed("decode", lambda content=content: images.read_image(content))
            result = timed("label", lambda image=image: model.predict(image, size=INPUT))
            png = timed("encode", lambda result=result: encode.labels(result))
            timed("write", lambda png=png: (folder / "out.png").write_bytes(png))
            sizes["in"].append(len(content))
            sizes["out"].append(len(png))
    return {
        "cpu": cpu(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "reason": model.reason,
        "frame": [SIZE[1], SIZE[0]], "input": list(INPUT), "rounds": rounds, "commit": info.commit(),
        "load_average": round(os.getloadavg()[0], 1),
        "seconds": {stage: quantiles(values) for stage, values in found.items()},
        "core_seconds": {stage: quantiles(values) for stage, values in busy.items()},
        "bytes": {name: int(np.mean(values)) for name, values in sizes.items()},
    }  # fmt: skip


def seconds_a_frame(stages: dict) -> float:
    """Of a machine whose cores are all busy: what all cores together spend on a frame, over their number.

    That is less than a clock shows where others use the cores as well, and so counts where it was measured.
    """
    return sum(stages["core_seconds"][stage]["p50"] for stage in STAGES) / stages["cpus"]


def simulate(
    shards: int, machines: int, shard_seconds: float, options: argparse.Namespace, seed: int = 0
) -> float:
    """Seconds until the last of the shards is done."""
    chance = np.random.default_rng(seed)
    speeds = chance.lognormal(0, options.spread, machines)
    speeds *= (1 / speeds).mean()  # together they do as much as if they were equal
    free = [(options.start, i) for i in range(machines)]
    heapq.heapify(free)
    end = 0.0
    noise = chance.lognormal(0, options.spread / 2, shards) if shards < 10**7 else np.ones(shards)
    lost = chance.random(shards) < options.loss * shard_seconds / 3600
    for i in range(shards):
        begin, machine = heapq.heappop(free)
        spent = shard_seconds * speeds[machine] * noise[i]
        if lost[i]:  # half done on average, and another machine takes its place
            spent = 1.5 * spent + options.start
        end = max(end, begin + spent)
        heapq.heappush(free, (begin + spent, machine))
    return end


def plan(stages: dict, options: argparse.Namespace) -> dict[str, object]:
    one = 1 / options.frames_per_second if options.frames_per_second else seconds_a_frame(stages)
    rows = []
    for frames, together in itertools.product(JOBS, options.frames_per_request):
        shards = -(-frames // options.shard)
        store = {
            "the store's bytes": frames * sum(stages["bytes"].values()) / (options.store_gb * 1e9),
            "the store's requests": frames / together / options.store_requests,
        }
        slowest = max(store, key=store.__getitem__)
        for machines in (n for n in options.machines if n <= shards):
            computing = simulate(shards, machines, options.shard * one, options)
            seconds = max(computing, options.start + store[slowest])
            share = frames * one / machines / seconds
            bound = "labelling" if share > 0.8 else "starts and stragglers"
            row = {
                "frames": frames, "frames_per_request": together, "machines": machines,
                "hours": seconds / 3600, "frames_per_second": frames / seconds, "share_of_ideal": share,
                "machine_hours": machines * seconds / 3600,
                "bound": slowest if seconds > computing else bound,
            }  # fmt: skip
            if options.price is not None:
                row["cost"] = row["machine_hours"] * options.price
            rows.append(row)
    names = ("shard", "spread", "loss", "start", "store_gb", "store_requests", "frames_per_second", "price")
    return {
        "stages": str(options.stages), "seconds_a_frame": one, "frames_per_second_of_a_machine": 1 / one,
        "assumed": {name: getattr(options, name) for name in names}, "commit": info.commit(), "rows": rows,
    }  # fmt: skip


def draw(found: dict):
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    page = Figure(figsize=(7, 3.4), layout="constrained")
    axes = page.add_subplot()
    kinds = sorted({row["frames_per_request"] for row in found["rows"]})
    for frames, colour in zip(JOBS, ("#0072b2", "#c8452b"), strict=True):
        for together in kinds:
            rows = [r for r in found["rows"] if (r["frames"], r["frames_per_request"]) == (frames, together)]
            x = [row["machines"] for row in rows]
            label = f"{frames:,} frames, {together:g} a request"
            style = "o-" if together == kinds[0] else "s--"
            axes.plot(x, [row["hours"] for row in rows], style, color=colour, ms=3.5, lw=1.2, label=label)
        ideal = [frames * found["seconds_a_frame"] / n / 3600 for n in x]
        axes.plot(x, ideal, ":", color=colour, lw=1)
    axes.set(xscale="log", yscale="log", xlabel="machines of two cores", ylabel="hours")
    for axis in (axes.xaxis, axes.yaxis):  # the usual labels of powers would be mathematics, which is off
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(color="#e4e4e4", lw=0.7)
    axes.legend(fontsize=7)
    axes.set_title("Simulated, from stages measured on one machine", fontsize=9, loc="left")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("stages")
    one.add_argument("pictures", type=Path, help="folder of photos")
    one.add_argument("--rounds", type=int, default=60)
    one.add_argument("--out", type=Path, required=True)
    many = commands.add_parser("plan")
    many.add_argument("--stages", type=Path, required=True)
    many.add_argument("--out", type=Path, required=True)
    many.add_argument("--plot", type=Path)
    many.add_argument("--machines", type=int, nargs="+", default=[1, 3, 10, 30, 100, 300, 1000, 3000])
    many.add_argument("--shard", type=int, default=1000, help="frames")
    many.add_argument("--frames-per-second", type=float, help="of a machine; default: what the stages allow")
    many.add_argument("--spread", type=float, default=0.15, help="of machines' speeds, sigma of a lognormal")
    many.add_argument("--loss", type=float, default=0.01, help="losses of a machine in an hour")
    many.add_argument("--start", type=float, default=60, help="seconds until a machine works")
    many.add_argument("--store-gb", type=float, default=10, help="GB a second of the object store")
    many.add_argument(
        "--store-requests", type=float, default=5000, help="requests a second of the object store"
    )
    many.add_argument("--frames-per-request", type=float, nargs="+", default=[1, 100], help="more in tars")
    many.add_argument("--price", type=float, help="of an hour of a machine; without it no costs are given")
    options = parser.parse_args()
    if options.command == "stages":
        found = measure(options.pictures, options.rounds)
    else:
        found = plan(json.loads(options.stages.read_text()), options)
        if options.plot:
            save_figure(options.plot, lambda: draw(found))
        for row in found["rows"]:
            print(json.dumps(row))
    write_atomic(options.out, lambda path: path.write_text(json.dumps(found, indent=1) + "\n"))


if __name__ == "__main__":
    main()
