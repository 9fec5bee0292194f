"""Writes a network in each format, unchecked. Modules of a format are imported where they are needed."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stdc_fast import checkpoints
from stdc_fast.checkpoints.options import differing, of_network
from stdc_fast.errors import UserError
from stdc_fast.exporters import graph
from stdc_fast.exporters.converters import convert, hushed, quiet
from stdc_fast.exporters.formats import FORMATS
from stdc_fast.exporters.settings import Settings
from stdc_fast.exporters.source import Source
from stdc_fast.exporters.torch_graph import GraphModule
from stdc_fast.images import MAX_SIDE

if TYPE_CHECKING:
    import onnx

#: The converter of MNN's wheel. Not MNN.tools.mnnconvert: importing that has pip install a package into some
#: Python, and calls home.
_MNN_CONVERTER = "import sys, _tools; _tools.mnnconvert(sys.argv)"


def onnx_model(source: Source, settings: Settings) -> onnx.ModelProto:
    """The network in ONNX, which several other formats start from."""
    from stdc_fast.exporters import onnx_graph

    return onnx_graph.model_of(graph.plan_of(source.network, settings), settings, source.metadata(settings))


def write_onnx(source: Source, settings: Settings, path: Path) -> None:
    if settings.dtype != "int8":
        path.write_bytes(onnx_model(source, settings).SerializeToString())
        return
    from stdc_fast.exporters import parity, qdq

    plain = path.with_name("plain.onnx")
    write_onnx(source, _in_float32(settings), plain)
    shown = (frame.expand(settings.batch, -1, -1, -1) for frame in qdq.shown(source.frames, settings.image))
    samples = (parity.image_of(source, FORMATS["onnx"], settings, frame) for frame in shown)
    qdq.quantise(plain, path, samples)
    plain.unlink()


def _in_float32(settings: Settings) -> Settings:
    """For converters that store weights in float16 themselves."""
    return dataclasses.replace(settings, dtype="float32")


def openvino_model(source: Source, settings: Settings):
    """The network as OpenVINO holds it in memory."""
    import openvino

    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "network.onnx"
        write_onnx(source, _in_float32(settings), path)
        return openvino.convert_model(path)


def write_openvino(source: Source, settings: Settings, path: Path) -> None:
    """Weights in float16 are decompressed where they are read; maps are in what a device is asked for."""
    import openvino

    model = openvino_model(source, settings)
    for key, value in source.metadata(settings).items():
        model.set_rt_info(value if isinstance(value, str) else json.dumps(value), ["stdc_fast", key])
    openvino.save_model(model, path, compress_to_fp16=settings.dtype == "float16")


def _module(source: Source, settings: Settings) -> tuple[GraphModule, Tensor]:
    """The graph as a module, and an input."""
    module = GraphModule(graph.plan_of(source.network, settings), settings).eval()
    height, width = settings.image or (96, 160)
    # Two of a dimension that is to be any: one would be taken for a constant.
    batch = settings.batch or 2
    shape = (batch, height, width, 3) if settings.input == "nhwc" else (batch, 3, height, width)
    return module, torch.zeros(shape, dtype=torch.uint8 if settings.raw else torch.float32)


def _program(source: Source, settings: Settings) -> torch.export.ExportedProgram:
    module, image = _module(source, settings)
    free: dict[int, torch.export.Dim] = {}
    if settings.batch is None:
        free[0] = torch.export.Dim("batch", min=1, max=1024)
    if settings.size is None:
        first = 1 if settings.input == "nhwc" else 2
        # From 33 pixels on: with 32 the map at 1/32 has one pixel, which torch.export takes for a constant.
        free[first] = torch.export.Dim("height", min=FORMATS["torch"].least, max=MAX_SIDE)
        free[first + 1] = torch.export.Dim("width", min=FORMATS["torch"].least, max=MAX_SIDE)
    with quiet(), torch.no_grad():
        return torch.export.export(module, (image,), dynamic_shapes={"image": free} if free else None)


def write_torch(source: Source, settings: Settings, path: Path) -> None:
    said = json.dumps(source.metadata(settings))
    if settings.compiled:
        # Importing torch alone does not import it.
        from torch._inductor import aoti_compile_and_package

        program, options = _program(source, settings), {"aot_inductor.metadata": {"metadata.json": said}}
        with quiet(), hushed():
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
        return
    extra = {"metadata.json": said}
    with quiet():
        torch.export.save(_program(source, settings), path, extra_files=extra)


def write_plan(source: Source, settings: Settings, path: Path) -> None:
    from stdc_fast.backends import cpu
    from stdc_fast.backends.cpu import program
    from stdc_fast.levels import ops_in_levels, say_if_none
    from stdc_fast.plan import build, optimise
    from stdc_fast.plan.quantise import quantise
    from stdc_fast.precision import choose

    plan, (precision, _) = optimise(build(source.network)), choose(settings.dtype, "cpu")
    if precision.levels:
        # For the instruction set that is the best one here; every other runs the plan as well.
        chosen = cpu.levels(plan, precision, source.small)
        names = ops_in_levels(source.name, source.network, plan, source.calibration, chosen)
        say_if_none(source.name, precision, names)
        plan = quantise(plan, source.calibration.ranges, names)
    if (reason := program.why_not(plan, precision)) is not None:
        raise UserError(f"{source.name}: the native engine can not run it: {reason}")
    cpu.save(plan, precision, path)


def write_safetensors(source: Source, settings: Settings, path: Path) -> None:
    metadata = {
        "variant": source.network.variant,
        "classes": list(source.classes.names),
        "palette": [list(colour) for colour in source.classes.palette],
        **differing(of_network(source.network)),
        **source.said,
    }
    state = checkpoints.inference_state(source.network)
    checkpoints.save(state, path, metadata, settings.dtype == "float16", source.calibration)


def write_ncnn(source: Source, settings: Settings, path: Path) -> None:
    """By pnnx from ONNX. Its tensors are ``in0`` and ``out0``."""
    import pnnx

    with tempfile.TemporaryDirectory() as folder:
        graph_file = Path(folder) / "network.onnx"
        write_onnx(source, _in_float32(settings), graph_file)
        weights = graph_file.with_suffix(".bin")
        height, width = settings.image
        # Without fp16=0 pnnx would write the weights in 16 bits.
        options = [f"inputshape=[1,3,{height},{width}]f32", f"fp16={int(settings.dtype == 'float16')}"]
        options += [f"ncnnparam={weights.with_suffix('.param')}", f"ncnnbin={weights}"]
        convert("pnnx", [pnnx.EXEC_PATH, graph_file.name, *options], weights)
        path.write_bytes(weights.with_suffix(".param").read_bytes())
        path.with_suffix(".bin").write_bytes(weights.read_bytes())


def write_mnn(source: Source, settings: Settings, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        graph_file = Path(folder) / "network.onnx"
        write_onnx(source, _in_float32(settings), graph_file)
        made = graph_file.with_suffix(".mnn")
        options = ["-f", "ONNX", "--modelFile", str(graph_file), "--MNNModel", str(made), "--bizCode", "stdc"]
        options += ["--fp16"] * (settings.dtype == "float16")
        convert("MNN", [sys.executable, "-c", _MNN_CONVERTER, *options], made)
        path.write_bytes(made.read_bytes())


def write_litert(source: Source, settings: Settings, path: Path) -> None:
    import litert_torch

    module, image = _module(source, settings)
    with quiet(), hushed(), torch.no_grad():
        litert_torch.convert(module, (image,)).export(str(path))


def write_executorch(source: Source, settings: Settings, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with quiet(), hushed():
        program = _program(source, settings)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


WRITERS: dict[str, Callable[[Source, Settings, Path], None]] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "torch": write_torch,
    "plan": write_plan,
    "safetensors": write_safetensors,
    "ncnn": write_ncnn,
    "mnn": write_mnn,
    "litert": write_litert,
    "executorch": write_executorch,
}
