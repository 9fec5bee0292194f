"""Inference runtimes: ONNX Runtime, OpenVINO, TensorRT, with normalisation and argmax in their graphs.

Those that were made for phones are in :mod:`stdc_fast.benchmark.phone_peers`, other peers in 8 bits in
:mod:`stdc_fast.benchmark.int8_peers`.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stdc_fast.benchmark.runners import Missing, Runner
from stdc_fast.benchmark.torch_peers import Deployed
from stdc_fast.benchmark.workloads import FRAME, Workload
from stdc_fast.classes import ClassSet
from stdc_fast.exporters import Settings, writers
from stdc_fast.exporters.converters import quiet
from stdc_fast.exporters.source import Source


class Exported(Runner):
    """A runner whose graph is exported from the reference network, with fixed shapes, the fastest."""

    def settings(self, scope: str) -> Settings:
        """Of the graph of a scope, in float32."""
        raw = scope != "logits"
        return Settings(
            size=self.workload.size,
            batch=self.workload.batch,
            input="nhwc" if raw else "normalised",
            output="labels" if raw else "logits8",
            frame=FRAME if scope == "frame" else None,
        )

    @functools.cached_property
    def source(self) -> Source:
        network = self.workload.network()
        names = tuple(f"class {i}" for i in range(network.num_classes))
        return Source(self.workload.model, network, ClassSet.from_names(names))

    def example(self, scope: str, dtype: torch.dtype = torch.float32) -> Tensor:
        x = self.workload.input(scope)
        return x.to(dtype) if x.is_floating_point() else x

    def onnx(self, scope: str, path: Path, dtype: torch.dtype = torch.float32) -> Path:
        """In float32 as ``stdc-fast export`` writes it, else by torch's exporter, in ``dtype`` throughout."""
        settings = self.settings(scope)
        if dtype == torch.float32:
            writers.write_onnx(self.source, settings, path)
            return path
        deployed = Deployed(self.workload.network().to(dtype), self.workload, scope, dtype).eval()
        with quiet(), torch.no_grad():
            torch.onnx.export(
                deployed,
                (self.example(scope, dtype),),
                str(path),
                input_names=["image"],
                output_names=[settings.output_name],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        return path


class OnnxRuntime(Exported):
    """ONNX Runtime with all graph optimisations; on a GPU its CUDA provider, inputs bound on the device."""

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int):
        super().__init__(workload, dtype, device, threads)
        import onnxruntime

        if self.device.type == "cuda":
            onnxruntime.preload_dlls()
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise Missing("this onnxruntime has no CUDA provider; onnxruntime-gpu has")
        self.runtime = onnxruntime

    def session(self, scope: str):
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.graph_optimization_level = self.runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        providers: list = ["CPUExecutionProvider"]
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device).cuda_stream
            choices = {
                "device_id": self.device.index or 0,
                "user_compute_stream": str(stream),
                "cudnn_conv_algo_search": "EXHAUSTIVE",
                "prefer_nhwc": "1",
                "use_tf32": "0",
            }
            providers.insert(0, ("CUDAExecutionProvider", choices))
        with tempfile.TemporaryDirectory() as folder:
            path = self.onnx(scope, Path(folder) / "network.onnx", self.torch_dtype)
            return self.runtime.InferenceSession(str(path), options, providers=providers)

    def prepare(self, scope: str) -> Callable[[], object]:
        session = self.session(scope)
        if self.device.type == "cpu":
            feed = {"image": self.example(scope).numpy()}
            return lambda: session.run(None, feed)[0]
        if session.get_providers()[0] != "CUDAExecutionProvider":
            raise Missing("the CUDA provider of onnxruntime can not be loaded here")
        x = self.example(scope, self.torch_dtype).to(self.device).contiguous()
        output = _output(self.workload, scope, session.get_outputs()[0].shape, self.torch_dtype, self.device)
        binding = session.io_binding()
        for bind, name, tensor in (
            (binding.bind_input, "image", x),
            (binding.bind_output, self.settings(scope).output_name, output),
        ):
            kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
            bind(name, "cuda", self.device.index or 0, kind, tuple(tensor.shape), tensor.data_ptr())

        def run(frames: Tensor) -> Tensor:
            if frames is not x:
                x.copy_(frames)
            session.run_with_iobinding(binding)
            return output

        return self.staged(scope, run) if scope == "frame" else lambda: run(x)


def _output(
    workload: Workload, scope: str, shape: list[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Memory for what a scope ends with."""
    if scope == "logits":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    size = FRAME if scope == "frame" else workload.size
    return torch.empty((workload.batch, *size), dtype=torch.uint8, device=device)


class OpenVINO(Exported):
    """OpenVINO in latency mode, in float32, bfloat16, or quantised to 8 bits by NNCF."""

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int):
        super().__init__(workload, dtype, device, threads)
        import openvino

        self.core = openvino.Core()
        self.openvino = openvino

    def prepare(self, scope: str) -> Callable[[], object]:
        example = self.example(scope)
        model = writers.openvino_model(self.source, self.settings(scope))
        if self.dtype == "int8":
            with quiet():
                model = self._quantised(model, scope)
        # Outside of a quantised model's 8-bit parts bfloat16 is what it would choose itself, if it can.
        low = "BF16" in self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        hint = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16" if low else "f32"}[self.dtype]
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(self.threads),
            "INFERENCE_PRECISION_HINT": hint,
        }
        request = self.core.compile_model(model, "CPU", settings).create_infer_request()
        feed = [example.numpy()]
        return lambda: request.infer(feed, share_inputs=True, share_outputs=True)[0]

    def _quantised(self, model, scope: str):
        """Post-training quantisation, calibrated on parts of the photo at the input's own size."""
        samples = [sample.numpy() for sample in self.workload.samples(scope)]
        # NOTE: nncf.set_log_level would set the level of every handler on its logger, also of other people's.
        with quiet():
            import nncf

            return nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))


class TensorRT(Exported):
    """A TensorRT engine built from ONNX, in one CUDA graph."""

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int):
        super().__init__(workload, dtype, device, threads)
        import tensorrt

        self.trt = tensorrt

    def engine(self, scope: str):
        trt = self.trt
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        # Strongly typed: the dtypes are those of the graph, exported in the network's own dtype.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        definition = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(definition, logger)
        with tempfile.TemporaryDirectory() as folder:
            path = self.onnx(scope, Path(folder) / "network.onnx", self.torch_dtype)
            if not parser.parse(path.read_bytes()):
                raise RuntimeError(f"TensorRT can not parse the network: {parser.get_error(0)}")
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        plan = builder.build_serialized_network(definition, config)
        if plan is None:
            raise RuntimeError("TensorRT could not build an engine")
        self.runtime = trt.Runtime(logger)
        return self.runtime.deserialize_cuda_engine(plan)

    def prepare(self, scope: str) -> Callable[[], Tensor]:
        engine = self.engine(scope)
        context = engine.create_execution_context()
        x = self.example(scope, self.torch_dtype).to(self.device).contiguous()
        name = self.settings(scope).output_name
        shape = list(engine.get_tensor_shape(name))
        output = _output(self.workload, scope, shape, self.torch_dtype, self.device)
        context.set_tensor_address("image", x.data_ptr())
        context.set_tensor_address(name, output.data_ptr())
        self.arena = int(engine.device_memory_size_v2)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            context.execute_async_v3(torch.cuda.current_stream().cuda_stream)

        def run(frames: Tensor) -> Tensor:
            if frames is not x:
                x.copy_(frames)
            graph.replay()
            return output

        call = self.staged(scope, run) if scope == "frame" else (lambda: run(x))
        call.keeps = (engine, context, graph)  # the graph does not keep them alive
        return call
