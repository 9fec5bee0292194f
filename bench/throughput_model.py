"""Images a second of streams of uint8 frames on an H100, modelled: the network beside the copies around it.

    python -m bench.throughput_model --out docs/results/throughput_model.json

Nothing here is measured. The network's time is by the model of tiles. Copies take their bytes by the
bandwidths that are stated for the card: 63 GB/s each way of PCIe 5.0 x16, and 3.35 TB/s of its memory, of
which a copy within it reads and writes. EFFICIENCY of either is a guess. Copies there and back run beside the
network.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.cuda_report import lowered
from stdc_fast.backends.gpu.model import DEVICES
from stdc_fast.files import write_atomic

PCIE, MEMORY, EFFICIENCY = 63e9, 3.35e12, 0.8
TARGET, AIM = 9000, 12000  # images a second
SIZE, BATCHES = (512, 1024), (1, 4, 16)


def row(batch: int) -> dict[str, object]:
    """Of batches of one size: microseconds of each part, and images a second with and without overlap."""
    pixels = batch * SIZE[0] * SIZE[1]
    parts = {
        "host to device": 3 * pixels / (PCIE * EFFICIENCY),
        "frames into the graph's memory": 2 * 3 * pixels / (MEMORY * EFFICIENCY),
        "network": lowered("sm_90", "stdc1", SIZE, batch).predicted(DEVICES["sm_90"]),
        "labels out of the graph's memory": 2 * pixels / (MEMORY * EFFICIENCY),
        "device to host": pixels / (PCIE * EFFICIENCY),
    }
    on_device = sum(seconds for name, seconds in parts.items() if "host" not in name)
    rates = {
        "network": parts["network"],
        "frames on the device": on_device,
        "stream, overlapped": max(on_device, parts["host to device"], parts["device to host"]),
        "stream, one after the other": sum(parts.values()),
    }
    return {
        "batch": batch,
        "microseconds": {name: round(1e6 * seconds, 1) for name, seconds in parts.items()},
        "images_per_second": {name: round(batch / seconds) for name, seconds in rates.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.throughput_model", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {
        "modelled": "stdc1 512x1024, float16, sm_90 (H100)",
        "pcie_bytes_per_second": PCIE,
        "memory_bytes_per_second": MEMORY,
        "efficiency": EFFICIENCY,
        "target": TARGET,
        "aim": AIM,
        "rows": [row(batch) for batch in BATCHES],
    }
    text = json.dumps(found, indent=1) + "\n"
    if options.out:
        write_atomic(options.out, lambda path: Path(path).write_text(text))
    print(text, end="")


if __name__ == "__main__":
    main()
