"""Inference runtimes made for phones, whose Winograd convolutions are strong on a PC, too: ncnn and MNN.

Both print from C to the process's own output, so their set-up runs within :func:`hushed`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stdc_fast.benchmark.runtime_peers import Exported, quiet
from stdc_fast.benchmark.torch_peers import Deployed
from stdc_fast.benchmark.workloads import Workload
from stdc_fast.images import MEAN, STD, normalise


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Without what libraries print past Python, which would tear the table and spoil ``--json``."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        # Into a pipe C keeps its lines until later; they must go while they go nowhere.
        with contextlib.suppress(OSError, TypeError, AttributeError):
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _convert(name: str, command: list[str], file: Path) -> None:
    """Have a converter write ``file``, in its folder; RuntimeError with its last line if it does not."""
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
    if done.returncode or not file.exists():
        said = (done.stdout + done.stderr).strip().split("\n")
        raise RuntimeError(f"{name} can not convert the network: {said[-1]}")


class _Resized(Deployed):
    """The part of a scope that ncnn's graph can hold: from the normalised image to logits at its size."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.scope == "logits" else self.resized(x)


class Ncnn(Exported):
    """ncnn in float32, or with maps and weights stored in bfloat16; converted by pnnx from TorchScript.

    Resizing is in its graph. ncnn has no layer for raw frames nor for argmax over channels: its own
    ``from_pixels`` and ``substract_mean_normalize`` come before the graph, and torch's maximum after it. Its
    tensors have no batch, so the images of a batch run one by one.
    """

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int):
        super().__init__(workload, dtype, device, threads)
        import ncnn
        import pnnx

        self.ncnn, self.pnnx = ncnn, pnnx.EXEC_PATH
        self.mean, self.scale = [255 * m for m in MEAN], [1 / (255 * s) for s in STD]

    def net(self, scope: str):
        """The network as ncnn loads it, converted for the scope's size."""
        net = self.ncnn.Net()
        options = net.opt
        options.num_threads = self.threads
        options.lightmode = options.use_packing_layout = True
        options.use_sgemm_convolution = options.use_winograd_convolution = True
        # These are on unless they are put off: "float32" would be something else where they have kernels.
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_packed = options.use_bf16_storage = self.dtype == "bfloat16"
        image = normalise(self.workload.frames(scope)[:1]).contiguous()
        module = _Resized(self.workload.network(), self.workload, scope, torch.float32).eval()
        with tempfile.TemporaryDirectory() as folder:
            script, param, weights = (Path(folder) / f"network.{end}" for end in ("pt", "param", "bin"))
            with quiet(), torch.no_grad():
                torch.jit.trace(module, image).save(str(script))
            # Without fp16=0 pnnx would write the weights in 16 bits.
            options = [f"inputshape={list(image.shape)}f32".replace(" ", ""), "fp16=0"]
            options += [f"ncnnparam={param}", f"ncnnbin={weights}"]
            _convert("pnnx", [self.pnnx, script.name, *options], weights)
            with hushed():
                failed = net.load_param(str(param)) or net.load_model(str(weights))
        if failed:
            raise RuntimeError("ncnn can not load the converted network")
        return net

    def prepare(self, scope: str) -> Callable[[], Tensor]:
        net, ncnn = self.net(scope), self.ncnn
        # As in ncnn's own benchmark, else each frame's maps are new pages of the system. They are given to
        # each run and not to the net: its weights would then be in them when they go, which ends the process.
        maps, workspace = ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()

        def logits(image) -> Tensor:
            extractor = net.create_extractor()
            extractor.set_blob_allocator(maps)
            extractor.set_workspace_allocator(workspace)
            extractor.input("in0", image)
            failed, output = extractor.extract("out0")
            if failed:
                raise RuntimeError("ncnn can not run the converted network")
            return torch.from_numpy(np.asarray(output))

        def labels(frame: np.ndarray) -> Tensor:
            height, width, _ = frame.shape
            image = ncnn.Mat.from_pixels(frame, ncnn.Mat.PixelType.PIXEL_RGB, width, height)
            image.substract_mean_normalize(self.mean, self.scale)
            # torch's argmax over the first of three dimensions takes five times as long.
            return logits(image).max(0).indices.to(torch.uint8)

        batch = list(self.example(scope).numpy())
        if scope != "logits":
            return lambda: torch.stack([labels(frame) for frame in batch])
        images = [ncnn.Mat(image).clone() for image in batch]  # in the layout that ncnn allocates
        return lambda: torch.stack([logits(image) for image in images])


class MNN(Exported):
    """MNN in float32, all of it in its graph, converted from ONNX by the converter of its wheel.

    Its Winograd convolutions have the smallest tile, F(2x2, 3x3). By default they have tiles of up to 6x6,
    with which it is faster, but logits differ by 3.6e-5: the parity check allows float32 1e-5. Precision
    "high" does not change that.
    """

    #: Its hint WINOGRAD_MEMORY_LEVEL, which has no name in Python: 0 is no Winograd, 3 every tile.
    WINOGRAD, SMALLEST_TILE = 3, 2
    #: Not MNN.tools.mnnconvert: importing that has pip install a package into some Python, and calls home.
    CONVERTER = "import sys, _tools; _tools.mnnconvert(sys.argv)"

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int):
        super().__init__(workload, dtype, device, threads)
        with hushed():
            import MNN.expr
            import MNN.nn

        self.nn, self.expr = MNN.nn, MNN.expr

    def module(self, scope: str):
        """The network as MNN loads it, converted for the scope's size."""
        settings = {
            "backend": "CPU",
            "numThread": self.threads,
            "precision": "high",
            "memory": "normal",
            "power": "normal",
        }
        with tempfile.TemporaryDirectory() as folder:
            source = self.onnx(scope, Path(folder) / "network.onnx")
            file = source.with_suffix(".mnn")
            options = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(file), "--bizCode", "stdc"]
            _convert("MNN", [sys.executable, "-c", self.CONVERTER, *options], file)
            runtime = self.nn.create_runtime_manager((settings,))
            runtime.set_hint(self.WINOGRAD, self.SMALLEST_TILE)
            return self.nn.load_module_from_file(
                str(file), ["input"], ["output"], runtime_manager=runtime, shape_mutable=False
            )

    def prepare(self, scope: str) -> Callable[[], np.ndarray]:
        example = self.example(scope).numpy()
        kind = self.expr.float if example.dtype == np.float32 else self.expr.uint8
        # NCHW means only that dimensions are as in ONNX, not in blocks of channels.
        x = self.expr.const(example, list(example.shape), self.expr.NCHW, kind)
        with hushed():
            module = self.module(scope)

        def run() -> np.ndarray:
            output = module.forward([x])[0]
            return output.read().copy()  # it reads from the variable's memory, and does not keep that

        return run
