"""Peers that compute in 8 bits, each quantised after training by its own tools, all on the same samples.

OpenVINO's are in :mod:`stdc_fast.benchmark.runtime_peers`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stdc_fast.benchmark import ncnn_int8
from stdc_fast.benchmark.phone_peers import MNN, Ncnn
from stdc_fast.benchmark.runtime_peers import OnnxRuntime
from stdc_fast.benchmark.torch_peers import Deployed, Folded
from stdc_fast.exporters import Settings, qdq
from stdc_fast.exporters.converters import convert, hushed, quiet

#: The quantiser of MNN's wheel. Its command passes it other arguments than it takes, and ends.
_MNN_QUANTISER = "import sys, _tools; _tools.mnnquant(sys.argv)"


class OnnxRuntimeInt8(OnnxRuntime):
    """ONNX Runtime with a graph in QDQ form by its static quantisation, as its documents advise for a CPU."""

    def onnx(self, scope: str, path: Path, dtype: torch.dtype = torch.float32) -> Path:
        plain = path.with_name("plain.onnx")
        super().onnx(scope, plain)
        qdq.quantise(plain, path, (sample.numpy() for sample in self.workload.samples(scope)))
        return path


class NcnnInt8(Ncnn):
    """ncnn, with scales that :mod:`stdc_fast.benchmark.ncnn_int8` adds to the files of its float32 form."""

    def write(self, scope: str, param: Path) -> None:
        super().write(scope, param)
        ncnn_int8.quantise(param, lambda names: self._ranges(scope, param, names))

    def _ranges(self, scope: str, param: Path, names: list[str]) -> dict[str, float]:
        """Greatest absolute values of maps in float32."""
        net, found = self.loaded(param), dict.fromkeys(names, 0.0)
        for sample in self.workload.samples(scope):
            for image in sample if scope == "logits" else self.workload.normalised(sample):
                array = image.contiguous().numpy()
                matrix = self.ncnn.Mat(array).clone()  # it does not keep the array
                extractor = net.create_extractor()
                extractor.set_light_mode(False)  # keeps maps that were read
                extractor.input("in0", matrix)
                for name in names:
                    failed, blob = extractor.extract(name)
                    if failed:
                        raise RuntimeError(f"ncnn can not compute {name} of the converted network")
                    found[name] = max(found[name], float(np.abs(np.asarray(blob)).max()))
        return found


class MnnInt8(MNN):
    """MNN quantised by its offline tool, maps by moving averages, the closest of its methods here.

    The tool reads pictures, so normalisation comes before its graph.
    """

    def settings(self, scope: str) -> Settings:
        # Its graph is for any batch in fact; one for several images ends the tool.
        return dataclasses.replace(super().settings(scope), input="normalised", batch=1)

    def write(self, scope: str, file: Path) -> None:
        folder = file.with_name("samples")
        folder.mkdir()
        samples = self.workload.samples(_raw(scope))
        frames = [sample[i % len(sample)].numpy() for i, sample in enumerate(samples)]
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{i:03}.png")
        height, width = frames[0].shape[:2]
        plain, options = file.with_name("plain.mnn"), file.with_name("options.json")
        super().write(scope, plain)
        chosen = {
            "format": "RGB",
            "mean": [255 * m for m in self.workload.mean],
            "normal": [1 / (255 * s) for s in self.workload.std],
            "width": width,
            "height": height,
            "path": f"{folder}/",
            "used_image_num": len(frames),
            # In several batches it finds other ranges each time, some of them nonsense.
            "batch_size": len(frames),
            "feature_quantize_method": "EMA",
            "weight_quantize_method": "MAX_ABS",
            # Left out, it chooses tiles for this network that the runtime refuses.
            "winogradOpt": False,
        }
        options.write_text(json.dumps(chosen))
        convert("MNN", [sys.executable, "-c", _MNN_QUANTISER, str(plain), str(file), str(options)], file)

    def prepare(self, scope: str) -> Callable[[], np.ndarray]:
        if scope == "logits":
            return super().prepare(scope)
        frames, normalised = self.workload.input(scope), self.workload.normalised
        with hushed():
            module = self.module(scope)
        return lambda: self.forward(module, self.variable(normalised(frames).contiguous().numpy()))


def _raw(scope: str) -> str:
    """The scope whose input are the raw frames of another's."""
    return "labels" if scope == "logits" else scope


class Torchao(Folded):
    """torchao's quantisation of exported programs, by its quantiser for x86, lowered by ``torch.compile``."""

    def compiled(self, module: Deployed, example: Tensor) -> Callable[[Tensor], Tensor]:
        import torch._inductor.config

        with quiet():  # it warns of what it can not load for GPUs
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        torch._inductor.config.freezing = True
        with quiet(), torch.no_grad():
            quantiser = x86.X86InductorQuantizer()
            quantiser.set_global(
                x86.get_default_x86_inductor_quantization_config(reduce_range=qdq.sums_overflow())
            )
            observed = prepare_pt2e(torch.export.export(module, (example,)).module(), quantiser)
            for sample in self.workload.samples(module.scope):
                observed(sample)
            return torch.compile(convert_pt2e(observed), dynamic=False)
