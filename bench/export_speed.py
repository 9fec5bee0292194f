"""Our ONNX file against torch's own export of the reference network, in ONNX Runtime, in turns.

    python -m bench.export_speed --out docs/results/export_speed.json

Both are float32 with fixed shapes, and a third is ours for every size. In each round each runs once, in an
order that changes; a ratio is of two times of one round. ``--document FILE`` writes the table there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch

from bench.words import between, table
from stdc_fast import files, info
from stdc_fast.exporters import Settings, parity, writers
from stdc_fast.exporters.converters import quiet
from stdc_fast.exporters.source import Source
from stdc_fast.hardware import cpu
from stdc_fast.images import normalise

TORCH = "torch.onnx.export"
BEGIN, END = "<!-- written by bench.export_speed -->", "<!-- end of its times -->"


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def sessions(source: Source, image: torch.Tensor, threads: int) -> dict[str, onnxruntime.InferenceSession]:
    size = tuple(image.shape[2:])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        with quiet(), torch.no_grad():
            torch.onnx.export(
                source.network, (image,), str(path), dynamo=True, external_data=False, verbose=False,
                input_names=["image"], output_names=["logits"],
            )  # fmt: skip
        found = {TORCH: session(path, threads)}
        for name, settings in (("ours", Settings(size=size)), ("ours, every size", Settings())):
            writers.write_onnx(source, settings, path)
            found[name] = session(path, threads)
    return found


def measure(model: str, size: tuple[int, int], rounds: int, threads: int) -> dict:
    source = Source.of(model)
    image = normalise(parity.probe(1, *size)).contiguous()
    running = sessions(source, image, threads)
    feed, times = {"image": image.numpy()}, {name: [] for name in running}
    for turn in range(rounds + 2):
        names = list(running)
        for name in names[turn % 3 :] + names[: turn % 3]:
            start = time.perf_counter()
            running[name].run(None, feed)
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    rows = {}
    for name, seconds in times.items():
        ratios = sorted(a / b for a, b in zip(seconds, times[TORCH], strict=True))
        rows[name] = {
            "ms_p50": round(1e3 * statistics.median(seconds), 3),
            "ratio_p50": round(statistics.median(ratios), 4),
            "ratio_p20": round(ratios[len(ratios) // 5], 4),
            "ratio_p80": round(ratios[len(ratios) * 4 // 5], 4),
        }
    return {"model": model, "size": f"{size[0]}x{size[1]}", "rounds": rounds, "rows": rows}


def summary(result: dict) -> str:
    """The table of the document: a row for each size."""
    rows = []
    for one in result["measurements"]:
        cells = [f"{one['rows'][TORCH]['ms_p50']:.1f} ms"]
        for name in ("ours", "ours, every size"):
            times = one["rows"][name]
            cells.append(f"{times['ratio_p50']:.3f} ({times['ratio_p20']:.3f} to {times['ratio_p80']:.3f})")
        rows.append([one["model"], one["size"], *cells])
    head = ["model", "size", TORCH, "ours over that", "ours for every size over that"]
    return table(head, rows, "..rrr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--document", type=Path)
    arguments = parser.parse_args()
    result = {
        "what": f"one image to logits at its size; ratios are to {TORCH} in the same round",
        "cpu": cpu()["model"],
        "threads": arguments.threads,
        "commit": info.commit(),
        "versions": {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
        "measurements": [
            measure(model, size, arguments.rounds, arguments.threads)
            for model in ("stdc1_camvid",)
            for size in ((256, 512), (97, 131), (360, 480))
        ],
    }
    print(json.dumps(result, indent=1))
    files.write_atomic(arguments.out, lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))
    if arguments.document:
        page = between(arguments.document.read_text(), BEGIN, END, "\n" + summary(result) + "\n")
        files.write_atomic(arguments.document, lambda p: p.write_text(page))


if __name__ == "__main__":
    main()
