"""Runs an exported file in the runtime that it is for, in float32: what the parity check compares.

Each takes the file and the settings, and gives a function from the input as an array to the output.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from stdc_fast import checkpoints
from stdc_fast.exporters.converters import hushed, quiet
from stdc_fast.exporters.settings import Settings

Run = Callable[[np.ndarray], np.ndarray]


def run_onnx(path: Path, settings: Settings) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run([settings.output_name], {"image": image})[0]


def run_openvino(path: Path, settings: Settings) -> Run:
    import openvino

    core = openvino.Core()
    # Its own choice would be bfloat16 where the processor has it.
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    hints["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    compiled = core.compile_model(core.read_model(path), "CPU", hints)
    return lambda image: compiled({"image": image})[settings.output_name]


def run_torch(path: Path, settings: Settings) -> Run:
    with quiet():
        if settings.compiled:
            from torch._inductor import aoti_load_package

            module = aoti_load_package(str(path))
        else:
            module = torch.export.load(path).module()

    def run(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(image)).numpy()

    return run


def run_plan(path: Path, settings: Settings) -> Run:
    from stdc_fast import _native

    engine = _native.module().Engine(path.read_bytes(), _native.isa(), False)

    def run(frames: np.ndarray) -> np.ndarray:
        from stdc_fast.backends.cpu import _spec

        x = torch.from_numpy(frames)
        labels = torch.empty((*x.shape[:3], 1), dtype=torch.uint8)
        engine.run([_spec(x)], _spec(labels), *x.shape[1:3], torch.get_num_threads(), True)
        return labels[..., 0].numpy()

    return run


def run_safetensors(path: Path, settings: Settings) -> Run:
    network = checkpoints.read(path).network()

    def run(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(image)).numpy()

    return run


def run_ncnn(path: Path, settings: Settings) -> Run:
    import ncnn

    net = ncnn.Net()
    options = net.opt
    options.num_threads = torch.get_num_threads()
    # These are on unless they are put off: "float32" would be something else where they have kernels.
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.use_bf16_packed = options.use_bf16_storage = False
    with hushed():
        failed = net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin")))
    if failed:
        raise RuntimeError("ncnn can not load the converted network")

    def run(image: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image[0]).clone())  # in the layout that ncnn allocates
        failed, output = extractor.extract("out0")
        if failed:
            raise RuntimeError("ncnn can not run the converted network")
        return np.array(output)[None]

    run.keeps = net
    return run


def run_mnn(path: Path, settings: Settings) -> Run:
    with hushed():
        import MNN.expr as expr
        import MNN.nn as nn

        chosen = {"backend": "CPU", "numThread": torch.get_num_threads(), "precision": "high"}
        runtime = nn.create_runtime_manager((chosen,))
        module = nn.load_module_from_file(
            str(path), ["image"], [settings.output_name], runtime_manager=runtime, shape_mutable=False
        )

    def run(image: np.ndarray) -> np.ndarray:
        # NCHW means only that dimensions are as in ONNX, not in blocks of channels.
        kind = expr.uint8 if image.dtype == np.uint8 else expr.float
        output = module.forward([expr.const(image, list(image.shape), expr.NCHW, kind)])[0]
        return output.read().copy()  # it reads from the variable's memory, and does not keep that

    run.keeps = runtime
    return run


def run_litert(path: Path, settings: Settings) -> Run:
    with hushed():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path), num_threads=torch.get_num_threads())
        interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(taken["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(given["index"])

    return run


def run_executorch(path: Path, settings: Settings) -> Run:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")

    def run(image: np.ndarray) -> np.ndarray:
        return method.execute([torch.from_numpy(image)])[0].numpy().copy()

    run.keeps = program
    return run


RUNNERS: dict[str, Callable[[Path, Settings], Run]] = {
    "onnx": run_onnx,
    "openvino": run_openvino,
    "torch": run_torch,
    "plan": run_plan,
    "safetensors": run_safetensors,
    "ncnn": run_ncnn,
    "mnn": run_mnn,
    "litert": run_litert,
    "executorch": run_executorch,
}
