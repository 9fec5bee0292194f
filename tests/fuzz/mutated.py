"""Thousands of mutated files, and what the library does with them.

    python -m tests.fuzz.mutated --count 10000 --out docs/results/mutated.jsonl

Another process takes the files one by one. A find is a file that gives anything but a result or a UserError,
takes longer than ``--seconds``, ends the process, leaves a file behind, or brings the process beyond
``--megabytes``. Finds are kept in ``--keep``. Exit code 1 if there are any. Each file follows from its kind
and number alone, so that one can be run again: ``--only image:17``.
"""

import argparse
import collections
import contextlib
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import traceback
import zlib
from pathlib import Path

import numpy as np
import tqdm

from stdc_fast.errors import UserError
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS

#: Of 100 files, how many are of each kind.
SHARES = {"image": 40, "label": 20, "description": 10, "video": 15, "checkpoint": 15}
MB = 1e6


def file_of(kind: str, number: int, sound: dict[str, bytes]) -> tuple[str, bytes]:
    """Name and content of one mutated file."""
    rng = np.random.default_rng([zlib.crc32(kind.encode()), number])
    names = sorted(sound)
    name = names[number % len(names)]
    return name, mutated(rng, sound[name], sound[names[int(rng.integers(len(names)))]])


def attempt(kind: str, name: str, content: bytes) -> str:
    """ "taken", "refused" or what went wrong, in a folder that is empty before."""
    _, target = TARGETS[kind]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path = Path(folder, "given", name)
        path.parent.mkdir()
        path.write_bytes(content)
        try:
            target(path)
            outcome = "taken"
        except UserError as error:
            outcome = "refused"
            if "\n" in str(error) or not str(error).strip():
                outcome = f"a message that is not one line: {error!r}"
        except Exception:
            outcome = traceback.format_exc()
        left = [entry.name for entry in Path(folder).iterdir() if entry.name != "given"]
        return f"left behind: {left}" if left and outcome in ("taken", "refused") else outcome


def _work(kind: str, pipe) -> None:
    """In another process: attempts until the pipe is closed; its peak memory follows each."""
    logging.getLogger("stdc_fast").setLevel(logging.ERROR)
    with open(os.devnull, "w") as nothing:  # what decoders in C write
        os.dup2(nothing.fileno(), 2)
    TARGETS[kind][0]()
    pipe.send(("ready", 0.0))
    with contextlib.suppress(EOFError):
        while True:
            outcome = attempt(kind, *pipe.recv())
            pipe.send((outcome, _peak()))


def _peak() -> float:
    """MB of memory at most so far. Not ru_maxrss, which begins with that of the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / MB


class Worker:
    """A process for one kind of files, a new one after it ended or hung."""

    def __init__(self, kind: str, seconds: float):
        self.kind, self.seconds, self.process = kind, seconds, None

    def run(self, name: str, content: bytes) -> tuple[str, float]:
        """What :func:`attempt` says, or how the process ended; peak memory in MB."""
        if self.process is None:
            self._start()
        try:
            self.pipe.send((name, content))
            if self.pipe.poll(self.seconds):
                return self.pipe.recv()
            outcome = f"no answer in {self.seconds:g} s"
        except (EOFError, OSError):
            self.process.join(5)
            outcome = f"the process ended with {self.process.exitcode}"
        self.close()
        return outcome, 0.0

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(self.kind, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def run(kind: str, numbers: range, seconds: float, megabytes: float, keep: Path | None) -> dict[str, object]:
    """A row of the table: counts, peak memory and finds of one kind of file."""
    sound, counts, finds, peak = TARGETS[kind][0](), collections.Counter(), [], 0.0
    if not sound:
        return {"kind": kind, "files": 0, "why": "no tool to write them"}
    worker = Worker(kind, seconds)
    try:
        # The first one packs the network.
        for name, content in sound.items():
            outcome, _ = worker.run(name, content)
            if outcome != "taken":
                raise SystemExit(f"{kind} {name} is sound, but: {outcome}")
        for number in tqdm.tqdm(numbers, kind, disable=None):
            name, content = file_of(kind, number, sound)
            outcome, memory = worker.run(name, content)
            grew = memory > megabytes > peak
            peak = max(peak, memory)
            counts[outcome if outcome in ("taken", "refused") else "find"] += 1
            if grew or outcome not in ("taken", "refused"):
                finds.append({"file": f"{kind}:{number}", "name": name, "outcome": outcome})
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{kind}-{number}-{name}").write_bytes(content)
    finally:
        worker.close()
    return {
        "kind": kind, "files": len(numbers), **counts, "peak_megabytes": round(peak),
        "seconds_limit": seconds, "finds": finds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file of each kind")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--megabytes", type=float, default=2000.0)
    parser.add_argument("--only", help="a kind, or one file of it, such as image:17")
    parser.add_argument("--keep", type=Path, help="folder for finds")
    parser.add_argument("--out", type=Path, help="JSON Lines, a row a kind")
    arguments = parser.parse_args()
    only, _, number = (arguments.only or "").partition(":")
    rows = []
    for kind, share in SHARES.items():
        if only in ("", kind):
            numbers = range(arguments.first, arguments.first + arguments.count * share // 100)
            numbers = range(int(number), int(number) + 1) if number else numbers
            rows.append(run(kind, numbers, arguments.seconds, arguments.megabytes, arguments.keep))
            print(json.dumps(rows[-1]), flush=True)
            if arguments.out:
                arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sys.exit(any(row.get("finds") for row in rows))


if __name__ == "__main__":
    main()
