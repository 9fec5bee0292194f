"""What the service costs beside the engine alone: pictures a second, and how long clients wait.

    python -m bench.serve_load --out docs/results/serve.json
    python -m bench.serve_load --photos FOLDER --out docs/results/serve.json --document docs/serving.md

The engine has a process of its own, which reads a file's bytes and labels it, one after the other. So has the
service, twice: "open" takes all clients at once, "bounded" takes two pictures at a time. Each has a turn a
round, in alternating order, and ratios are of one round. Clients post the same files on connections that stay
open, each as soon as it has its answer. One that is refused (429) posts again after 0.1 s, so that the load
stays; its wait counts from when it was accepted.

Clients and service share the machine. So "cpu_seconds" tells more than "rate" where something else runs: what
a picture takes of all processors, in the service's process and in the engine's.
 Seconds of clients include the whole request. "single" is the median of
the one client of that round, "engine" the engine's frame of that round, decoding included.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np

from bench.turns import Tree
from bench.words import between, table
from stdc_fast import info
from stdc_fast.benchmark.run import quantiles
from stdc_fast.files import write_atomic
from stdc_fast.hardware import cpu

ROOT = Path(__file__).resolve().parent.parent
#: (name, service, clients, output).
SCOPES = (
    ("1 client", "open", 1, "labels"),
    ("16 clients", "open", 16, "labels"),
    ("16 clients, JSON", "open", 16, "json"),
    ("16 clients, 2 accepted", "bounded", 16, "labels"),
)
SERVICES = {"open": ("--queue", "64"), "bounded": ("--queue", "2")}
REFUSED_PAUSE = 0.1
BEGIN, END = "<!-- written by bench.serve_load -->", "<!-- end of what it wrote -->"

# The engine's process: seconds of a turn and files in a line; back pictures a second, with decoding and
# without, and seconds of processors a picture with it.
_ENGINE = """
import json, sys, time
import stdc_fast
from stdc_fast import images
print(stdc_fast.__file__, flush=True)
model = stdc_fast.load("stdc1_camvid", device="cpu")
for line in sys.stdin:
    seconds, files = json.loads(line)
    contents = [open(file, "rb").read() for file in files]
    model.predict(contents[0])
    found = {}
    for name in ("file", "frame"):
        frames = contents if name == "file" else [images.read_image(content) for content in contents]
        count, start, cpu = 0, time.perf_counter(), time.process_time()
        while count < len(files) or time.perf_counter() - start < seconds:
            model.predict(frames[count % len(frames)])
            count += 1
        found[name] = count / (time.perf_counter() - start)
        found.setdefault("cpu_seconds", (time.process_time() - cpu) / count)
    print(json.dumps(found), flush=True)
"""


@contextlib.contextmanager
def service(*arguments: str):
    """(host, port) of ``stdc-fast serve``, ready."""
    command = [sys.executable, "-m", "stdc_fast", "serve", "--device", "cpu", "--port", "0", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            host, port = re.match(r"http://(\S+):(\d+)/", process.stdout.readline()).groups()
            for _ in range(600):
                connection = http.client.HTTPConnection(host, int(port), timeout=60)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    break
                time.sleep(0.1)
            yield host, int(port)
        finally:
            process.terminate()


def load(place: tuple[str, int], clients: int, output: str, contents: list[bytes], seconds: float) -> dict:
    """One turn: answers a second, seconds of each, and how many were refused."""
    taken: list[float] = []
    refused, lock, stop = itertools.count(), threading.Lock(), threading.Event()
    path, headers = f"/predict?output={output}", {"Content-Type": "image/jpeg"}

    def client(i: int) -> None:
        connection = http.client.HTTPConnection(*place, timeout=120)
        while not stop.is_set():
            i += 1
            begun = time.perf_counter()
            connection.request("POST", path, contents[i % len(contents)], headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status == 429:
                next(refused)
                stop.wait(REFUSED_PAUSE)
                continue
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}")
            if not stop.is_set():
                with lock:
                    taken.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    before, start = spent(place), time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    count, seconds = len(taken), time.perf_counter() - start
    for thread in threads:
        thread.join()
    took, pictures = (after - then for after, then in zip(spent(place), before, strict=True))
    return {
        "rate": count / seconds,
        "seconds": taken[:count],
        "refused": next(refused),
        "cpu_seconds": took / pictures,
    }


def spent(place: tuple[str, int]) -> tuple[float, float]:
    """Processor seconds of the service until now, and pictures that it answered."""
    connection = http.client.HTTPConnection(*place, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    names = ("process_cpu_seconds_total", re.escape('stdc_fast_stage_seconds_count{stage="write"}'))
    return tuple(float(re.search(rf"^{name} (\S+)", text, re.M)[1]) for name in names)


def summary(values: list[float], digits: int = 4) -> dict[str, float]:
    return {key: value if key == "n" else round(value, digits) for key, value in quantiles(values).items()}


def row(name: str, turns: list[dict], singles: list[float], engines: list[dict]) -> dict[str, object]:
    every = [second for turn in turns for second in turn["seconds"]]
    p50, p99 = np.percentile(every, [50, 99]).tolist()
    return {
        "scope": name,
        "rate": summary([turn["rate"] for turn in turns], 3),
        "over_engine": summary([t["rate"] / e["file"] for t, e in zip(turns, engines, strict=True)], 3),
        "cpu_seconds": summary([turn["cpu_seconds"] for turn in turns]),
        "cpu_over_engine": summary(
            [t["cpu_seconds"] / e["cpu_seconds"] for t, e in zip(turns, engines, strict=True)], 3
        ),
        "p50_seconds": round(p50, 4),
        "p99_seconds": round(p99, 4),
        "p99_over_single": summary(
            [np.percentile(t["seconds"], 99) / s for t, s in zip(turns, singles, strict=True)], 2
        ),
        "p99_over_engine": summary(
            [np.percentile(t["seconds"], 99) * e["file"] for t, e in zip(turns, engines, strict=True)], 2
        ),
        "answers": len(every),
        "refused": sum(turn["refused"] for turn in turns),
    }


def document(about: dict) -> str:
    """The table of docs/serving.md."""

    def spread(one: dict, digits: int) -> str:
        return f"{one['p50']:.{digits}f} ({one['p20']:.{digits}f} to {one['p80']:.{digits}f})"

    head = [
        "clients", "pictures a second", "over the engine", "processor time over the engine", "p50, ms",
        "p99, ms", "p99 over one client's p50", "refused",
    ]  # fmt: skip
    rows = [
        [
            one["scope"], spread(one["rate"], 2), spread(one["over_engine"], 2),
            spread(one["cpu_over_engine"], 2), f"{1e3 * one['p50_seconds']:.0f}",
            f"{1e3 * one['p99_seconds']:.0f}", spread(one["p99_over_single"], 1), one["refused"],
        ]
        for one in about["rows"]
    ]  # fmt: skip
    engine = about["engine"]
    lines = (
        f"The engine alone: {spread(engine['file'], 2)} pictures a second from files, "
        f"{spread(engine['frame'], 2)} from decoded frames, on {about['cpu']['model']}, "
        f"{about['cpu']['cores']} cores. Brackets hold p20 to p80 of {about['rounds']} rounds. "
        f"The load average was {about['load_average']}."
    )
    return f"\n{table(head, rows, '.rrrrrrr')}\n\n{textwrap.fill(lines, 120)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serve_load", description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder of JPEG files; default: the installed photo")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a turn")
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--document", type=Path, help="document to write the table to")
    options = parser.parse_args()
    installed = ROOT / "stdc_fast" / "assets" / "street.jpg"
    files = sorted(options.photos.glob("*.jpg")) if options.photos else [installed]
    contents = [file.read_bytes() for file in files]
    engine = Tree(ROOT, _ENGINE)
    turns: dict[str, list] = {name: [] for name in ("engine", *(scope[0] for scope in SCOPES))}
    with contextlib.ExitStack() as stack:
        places = {name: stack.enter_context(service(*how)) for name, how in SERVICES.items()}
        jobs = {
            "engine": lambda: engine.ask([options.seconds / 2, [str(file) for file in files]]),
            **{
                name: lambda of=of, clients=clients, output=output: load(
                    places[of], clients, output, contents, options.seconds
                )
                for name, of, clients, output in SCOPES
            },
        }
        for i in range(options.rounds):
            for name in list(jobs)[:: -1 if i % 2 else 1]:
                turns[name].append(jobs[name]())
    engines = turns.pop("engine")
    singles = [statistics.median(turn["seconds"]) for turn in turns[SCOPES[0][0]]]
    about = {
        "cpu": cpu(),
        "commit": info.commit(),
        "files": [file.name for file in files],
        "rounds": options.rounds,
        "load_average": round(os.getloadavg()[0], 1),
        "engine": {key: summary([turn[key] for turn in engines], 3) for key in engines[0]},
        "rows": [row(name, found, singles, engines) for name, found in turns.items()],
    }
    print(json.dumps(about, indent=1))
    if options.out:
        write_atomic(options.out, lambda path: path.write_text(json.dumps(about, indent=1) + "\n"))
    if options.document:
        page = between(options.document.read_text(), BEGIN, END, document(about))
        write_atomic(options.document, lambda path: path.write_text(page))


if __name__ == "__main__":
    main()
