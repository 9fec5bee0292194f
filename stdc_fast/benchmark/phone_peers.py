"""Inference runtimes made for phones, whose Winograd convolutions are strong on a PC, too: ncnn and MNN.

Both print from C to the process's own output, so their set-up runs within :func:`hushed`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stdc_fast.benchmark.runtime_peers import Exported
from stdc_fast.benchmark.workloads import Workload
from stdc_fast.exporters import Settings, writers
from stdc_fast.exporters.converters import hushed


class Ncnn(Exported):
    """ncnn in float32, or with maps and weights stored in bfloat16; converted by pnnx from ONNX.

    Resizing is in its graph. ncnn has no layer for raw frames nor for argmax over channels: its own
    ``from_pixels`` and ``substract_mean_normalize`` come before the graph, and torch's maximum after it. Its
    tensors have no batch, so the images of a batch run one by one.
    """

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int):
        super().__init__(workload, dtype, device, threads)
        import ncnn

        self.ncnn = ncnn
        self.mean, self.scale = [255 * m for m in workload.mean], [1 / (255 * s) for s in workload.std]

    def settings(self, scope: str) -> Settings:
        output = "logits8" if scope == "logits" else "logits"
        return dataclasses.replace(super().settings(scope), batch=1, input="normalised", output=output)

    def write(self, scope: str, param: Path) -> None:
        """The network as ncnn's two files, converted for the scope's size."""
        writers.write_ncnn(self.source, self.settings(scope), param)

    def loaded(self, param: Path):
        """A network from its two files."""
        net = self.ncnn.Net()
        options = net.opt
        options.num_threads = self.threads
        options.lightmode = options.use_packing_layout = True
        options.use_sgemm_convolution = options.use_winograd_convolution = True
        # These are on unless they are put off: "float32" would be something else where they have kernels.
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_packed = options.use_bf16_storage = self.dtype == "bfloat16"
        with hushed():
            failed = net.load_param(str(param)) or net.load_model(str(param.with_suffix(".bin")))
        if failed:
            raise RuntimeError("ncnn can not load the converted network")
        return net

    def prepare(self, scope: str) -> Callable[[], Tensor]:
        ncnn = self.ncnn
        with tempfile.TemporaryDirectory() as folder:
            param = Path(folder) / "network.param"
            self.write(scope, param)
            net = self.loaded(param)
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

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int):
        super().__init__(workload, dtype, device, threads)
        with hushed():
            import MNN.expr
            import MNN.nn

        self.nn, self.expr = MNN.nn, MNN.expr

    def write(self, scope: str, file: Path) -> None:
        """The network as MNN's file, converted for the scope's size."""
        writers.write_mnn(self.source, self.settings(scope), file)

    def module(self, scope: str):
        """The network as MNN loads it."""
        settings = {
            "backend": "CPU",
            "numThread": self.threads,
            "precision": "high",
            "memory": "normal",
            "power": "normal",
        }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.mnn"
            self.write(scope, file)
            runtime = self.nn.create_runtime_manager((settings,))
            runtime.set_hint(self.WINOGRAD, self.SMALLEST_TILE)
            return self.nn.load_module_from_file(
                str(file),
                ["image"],
                [self.settings(scope).output_name],
                runtime_manager=runtime,
                shape_mutable=False,
            )

    def variable(self, image: np.ndarray):
        kind = self.expr.float if image.dtype == np.float32 else self.expr.uint8
        # NCHW means only that dimensions are as in ONNX, not in blocks of channels.
        return self.expr.const(image, list(image.shape), self.expr.NCHW, kind)

    def prepare(self, scope: str) -> Callable[[], np.ndarray]:
        x = self.variable(self.example(scope).numpy())
        with hushed():
            module = self.module(scope)
        return lambda: self.forward(module, x)

    def forward(self, module, x) -> np.ndarray:
        output = module.forward([x])[0]
        return output.read().copy()  # it reads from the variable's memory, and does not keep that
