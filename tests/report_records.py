"""Made-up benchmark records and predictions for the tests of the report."""

import datetime
import itertools

SCOPES = ("logits", "labels", "frame")
CPU = {
    "model": "AMD EPYC 9R14",
    "machine": "x86_64",
    "cores": 2,
    "threads": 2,
    "features": ["avx2", "avx512bf16"],
}
H100 = {
    "name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "memory_gib": 79.1, "driver": "570.1",
    "clock_mhz": 1980, "max_clock_mhz": 1980, "power_limit_w": 700,
}  # fmt: skip
START = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.timezone.utc)


def quantiles(middle, wide=0.05, n=15):
    return {"p20": middle * (1 - wide), "p50": middle, "p80": middle * (1 + wide), "n": n}


def row(runner="ours eager", time=0.05, **changes):
    found = {
        "model": "stdc1_camvid", "height": 512, "width": 1024, "batch": 1, "scope": "labels",
        "runner": runner, "ours": runner.startswith("ours"), "dtype": "bfloat16", "threads": 2,
        "status": "measured", "reason": None, "seconds": quantiles(time), "cold": quantiles(1.3 * time),
        "ratio": quantiles(time / 0.05, 0.02), "baseline": {"runner": "ours eager", "dtype": "bfloat16"},
        "ratio_same_dtype": quantiles(time / 0.05, 0.02), "parity": {"logits": 3e-3, "labels": 0.99996},
        "limit": {"seconds": 0.6 * time, "percent": 60.0, "by": "matrix"}, "flop": 3.2e10, "bytes": 1e7,
        "memory": {"host_peak": 9e8, "host_before": 7e8, "device_peak": None, "arena": 3e7, "weights": 1.7e7},
        "prepare_seconds": 3.2,
    }  # fmt: skip
    return found | changes


def without_speed(runner, status, reason, **changes):
    """As a record holds it; times of refused rows stay in it for whoever looks into the reason."""
    times = {} if status == "refused" else {"seconds": None, "cold": None}
    nothing = dict.fromkeys(("ratio", "baseline", "ratio_same_dtype", "limit", "memory", "prepare_seconds"))
    return row(runner, 0.00777, status=status, reason=reason, **{**nothing, **times, **changes})


def record(rows, hour=0, kind="latency", commit="abc123", fits=(), **header):
    cpu = header.get("device", "cpu") == "cpu"
    limits = [
        {"what": "matrix", "dtype": "float32", "threads": 2, "value": 1.7e11, "unit": "flop/s"},
        {"what": "matrix", "dtype": "bfloat16", "threads": 2, "value": 6.8e11, "unit": "flop/s"},
        {"what": "bandwidth", "dtype": None, "threads": 2, "value": 2e10 + 1e9 * hour, "unit": "byte/s"},
    ]
    if not cpu:
        limits = [
            {"what": "matrix", "dtype": "float16", "threads": None, "value": 8e14, "unit": "flop/s"},
            {"what": "bandwidth", "dtype": None, "threads": None, "value": 3e12, "unit": "byte/s"},
        ]
    return {
        "schema": 1, "id": f"run{hour}{'' if cpu else 'g'}", "kind": kind,
        "time": (START + datetime.timedelta(hours=hour)).isoformat(),
        "header": {
            "device": "cpu", "device_name": "AMD EPYC" if cpu else H100["name"], "cpu": CPU,
            "gpus": [] if cpu else [H100], "versions": {"torch": "2.9.0", "tensorrt": None}, "commit": commit,
            "threads": 2, "clock_mhz": [2595.1, 2600.0],
            "load": {"average": [0.1, 0.2, 0.3], "busy": 0.03, "steal": None},
        } | header,
        "limits": limits, "rows": rows, "fits": list(fits),
    }  # fmt: skip


def everything():
    """Two runs of latency on one CPU, one of scaling, one of a GPU."""
    slow = {
        "eager": 1.4,
        "channels_last": 1.2,
        "onnxruntime": 1.3,
        "openvino": 0.9,
        "ours eager": 1,
        "ours native": 0.6,
    }
    rows = []
    for (height, width), scope, (runner, factor), dtype in itertools.product(
        ((512, 1024), (720, 960)), SCOPES, slow.items(), ("float32", "bfloat16")
    ):
        time = 0.05 * factor * (2.1 if dtype == "float32" else 1) * height * width / 2**19
        time *= {"logits": 1, "labels": 1.1, "frame": 1.5}[scope]
        size = {"height": height, "width": width, "flop": 3.2e10 * height * width / 2**19}
        rows.append(row(runner, time, scope=scope, dtype=dtype, **size))
    rows.append(without_speed("tensorrt", "missing", "not installed"))
    rows.append(without_speed("openvino", "refused", "labels agree on 91 % | of pixels", dtype="int8"))
    again = [row("openvino", 0.07), row("ours eager", 0.0552, scope="labels")]
    grown = []
    for batch in (1, 4, 16):
        for runner, factor in slow.items():
            time = 0.05 * factor * batch**0.93
            grown.append(row(runner, time, axis="batch", value=batch, batch=batch, ratio=None, baseline=None))
    for height, width in ((256, 512), (512, 1024), (1024, 2048)):
        for runner in ("ours eager", "openvino"):
            time = (0.05 if runner == "ours eager" else 0.06) * (height * width / 2**19) ** 1.05
            size = {"height": height, "width": width, "axis": "pixels", "value": height * width}
            grown.append(row(runner, time, **size))
    for threads in (1, 2):
        grown.append(row(time=0.1 / threads, axis="threads", value=threads, threads=threads))
    fits = [
        {"axis": "pixels", "runner": runner, "dtype": "bfloat16", "exponent": 1.05, "r2": 0.9991}
        for runner in ("ours eager", "openvino")
    ]
    gpu = [
        row("ours triton", 0.00026, dtype="float16", flop=3.2e10, threads=None),
        row("torch.compile", 0.0004, dtype="float16", threads=None),
    ]
    return [
        record(rows), record(again, 1), record(grown, 2, "scaling", fits=fits),
        record(gpu, 3, device="cuda", device_name=H100["name"], clock_mhz=None),
    ]  # fmt: skip


PREDICTIONS = [
    {
        "device": "NVIDIA H100", "model": "stdc1", "height": 512, "width": 1024, "batch": 1,
        "dtype": "float16", "scope": "labels", "rung": rung, "backend": backend,
        "low_us": low, "high_us": high, "basis": "a | guess",
    }
    for rung, backend, low, high in (
        ("eager", "eager", 2000, 2600),
        ("Triton, one CUDA graph", "triton", 220, 270),
        ("CUDA", "cuda", 110, 150),
    )
]  # fmt: skip
