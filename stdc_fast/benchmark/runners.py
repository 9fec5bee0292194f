"""Who runs the workloads: ours and the peers. What each needs is here; peers live in files of their own."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import shutil
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stdc_fast import backends
from stdc_fast.benchmark.workloads import FRAME, Workload, weight_bytes
from stdc_fast.errors import UserError
from stdc_fast.hardware import cpu
from stdc_fast.precision import precision_of


class Missing(Exception):
    """This runner can not run here, and why: nobody's mistake, and no failure."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """A runner in one dtype, before it is loaded.

    Attributes:
        name: in the tables.
        dtype: what its network computes in: "float32", "bfloat16", "float16", "int8", or "int8+float32" for
            ours on processors without bfloat16.
        factory: "module:class" of its :class:`Runner`.
        options: keyword arguments of the class.
        ours: whether it is this library.
        needs: modules that must be there.
        compiles: whether it takes long to be prepared.
        compiler: whether it needs a C++ compiler.
    """

    name: str
    dtype: str
    factory: str
    options: tuple[tuple[str, object], ...] = ()
    ours: bool = False
    needs: tuple[str, ...] = ()
    compiles: bool = False
    compiler: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.dtype

    def missing(self, device: str) -> str | None:
        """Why it can not be run on this machine, as far as can be told without loading it."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if absent:
            return f"{', '.join(absent)} not installed"
        if self.compiler and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            return "no C++ compiler was found"
        if device == "cpu" and not self.ours and self.dtype in ("bfloat16", "float16"):
            feature = {"bfloat16": ("avx512_bf16", "amx_bf16"), "float16": ("avx512_fp16",)}[self.dtype]
            if not set(feature) & set(cpu()["features"]):
                return f"this processor has no {self.dtype} instructions"
        return None

    def make(self, workload: Workload, device: str, threads: int) -> Runner:
        """Load it; raises :class:`Missing` if it turns out that it can not run here."""
        module, name = self.factory.split(":")
        runner = getattr(importlib.import_module(module), name)
        return runner(workload, self.dtype, device, threads, **dict(self.options))


class Runner:
    """One way to run the network, loaded. Subclasses implement :meth:`prepare`.

    Attributes:
        weights: bytes of the weights as packed, None where the runner does not tell.
        arena: bytes of its workspace for one call, likewise.
    """

    weights: int | None = None
    arena: int | None = None

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int):
        self.workload, self.dtype, self.threads = workload, dtype, threads
        self.device = torch.device(device)
        self.torch_dtype = getattr(torch, dtype if not dtype.startswith("int8") else "float32")

    def prepare(self, scope: str) -> Callable[[], object]:
        """Compile, pack and warm up for a scope; the function runs it once and returns logits or labels.

        On a GPU it only enqueues, on torch's current stream, except in scope "frame", which ends with the
        labels in the host's memory.
        """
        raise NotImplementedError

    def host(self, output: object) -> Tensor:
        """What :meth:`prepare`'s function returned, as a tensor on the CPU: logits in float32."""
        x = output if isinstance(output, Tensor) else torch.from_numpy(np.asarray(output))
        x = x.detach().cpu()
        return x.float() if x.is_floating_point() else x.to(torch.uint8)

    def placed(self, scope: str) -> Tensor:
        """The scope's input where it starts: on the device, or for "frame" in (pinned) host memory."""
        x = self.workload.input(scope)
        if self.device.type == "cpu":
            return x
        return x.pin_memory() if scope == "frame" else x.to(self.device)

    def staged(self, scope: str, run: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        """``run`` on the scope's input, with the copies to the device and back where they belong to it."""
        x = self.placed(scope)
        if self.device.type == "cpu" or scope != "frame":
            return lambda: run(x)
        return lambda: run(x.to(self.device, non_blocking=True)).cpu()


class Ours(Runner):
    """This library, as users call it, on one backend."""

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int, backend: str):
        super().__init__(workload, dtype, device, threads)
        import stdc_fast

        try:
            self.model = stdc_fast.load(workload.weights, device=device, dtype=dtype, backend=backend)
            self.decision = self.model.decision
        except UserError as error:  # of this network: what is known without it was asked before
            raise Missing(str(error)) from None
        self._scopes: list[str] = []
        self._logits = None

    def prepare(self, scope: str) -> Callable[[], Tensor]:
        if scope not in self._scopes:
            self._scopes.append(scope)
        if scope == "frame" and any(2 * a < b for a, b in zip(self.workload.size, FRAME, strict=True)):
            # label() averages such frames first, as no peer does.
            return self.staged(scope, self._interpolated)
        if scope != "logits":
            return self.staged(scope, functools.partial(self.model.label, size=self.workload.size))
        self._logits = self.decision.backend.compile(
            self.model.compiled_plan(False), self.model.precision, self.device
        )
        x = self.placed(scope).to(self.model.dtype).contiguous(memory_format=torch.channels_last)
        return functools.partial(self._logits, x)

    @torch.inference_mode()
    def _interpolated(self, frames: Tensor) -> Tensor:
        frames = frames.to(self.device)
        return self.model._runs(frames).labels(frames, FRAME, seen=self.workload.size)

    def executable(self, scope: str):
        """What the backend made of the plan, for a scope that is prepared: for labels the model's own."""
        if scope == "logits":
            return self._logits
        with torch.inference_mode():
            return self.model._runs(self.workload.frames(scope).to(self.device))

    def _sizes(self) -> list[tuple[int, int]]:
        """(bytes of packed weights, of the arena) of what a native backend runs, by scope."""
        sizes = [self.executable(scope).memory for scope in self._scopes]
        return [size for size in sizes if size is not None]

    @property
    def weights(self) -> int:
        """As the native engine packed them, else those of the plan."""
        sizes = [weights for weights, _ in self._sizes()]
        if sizes:
            return max(sizes)
        return weight_bytes(self.model.compiled_plan(), self.model.precision.weights.itemsize)

    @property
    def arena(self) -> int | None:
        """Of the native engine; torch allocates map by map."""
        return max((arena for _, arena in self._sizes()), default=None)


def ours(device: str, dtypes: list[str], names: list[str] | None = None) -> list[Spec]:
    """Each available backend, or those of ``names``, in each dtype that it runs on this device.

    UserError for what is not available, and where nothing is left, with the reason.
    """
    if names is None:
        usable = [b for b in backends.BACKENDS if not (b.why_not_here() or b.why_not_by_default())]
    else:
        usable = [backends.named(name) for name in names]
    factory = "stdc_fast.benchmark.runners:Ours"
    found, refused = [], []
    for dtype in dtypes:
        for backend in usable:
            name = backend.name
            reason = backend.why_not(None, precision_of(dtype), torch.device(device))
            if reason is None:
                found.append(Spec(f"ours {name}", dtype, factory, (("backend", name),), ours=True))
            else:
                refused.append(f"backend {name} can not run {dtype} here: {reason}")
    if not found and refused:
        raise UserError(f"{refused[0]}; use another backend or dtype, or all")
    return found


_TORCH = "stdc_fast.benchmark.torch_peers"
_OTHER = "stdc_fast.benchmark.runtime_peers"
_PHONE = "stdc_fast.benchmark.phone_peers"
_INT8 = "stdc_fast.benchmark.int8_peers"
_ONNX = ("onnx", "onnxscript")


def peers(device: str, dtypes: list[str], int8: bool = False) -> list[Spec]:
    """All peers for a device in those of ``dtypes`` that they know, and in int8 if asked."""
    low = [dtype for dtype in dtypes if dtype in ("bfloat16", "float16")]
    full = [dtype for dtype in dtypes if dtype == "float32"]
    both = full + low
    gpu = device != "cpu"
    found = [Spec("eager as published", dtype, f"{_TORCH}:Published") for dtype in full]
    found += [Spec("eager", dtype, f"{_TORCH}:Eager") for dtype in full]
    found += [Spec("eager channels_last", dtype, f"{_TORCH}:ChannelsLast") for dtype in both]
    found += [Spec("eager folded", dtype, f"{_TORCH}:Folded") for dtype in both]
    if gpu:
        found += [Spec("cuDNN graph", dtype, f"{_TORCH}:CudnnGraph") for dtype in both]
    else:
        found += [Spec("TorchScript", dtype, f"{_TORCH}:TorchScript") for dtype in both]
    compiled = Spec("torch.compile", "", f"{_TORCH}:Compiled", compiles=True, compiler=not gpu)
    found += [dataclasses.replace(compiled, dtype=dtype) for dtype in both]
    needs = (*(_ONNX if gpu else ("onnx",)), "onnxruntime")
    onnx = Spec("ONNX Runtime", "", f"{_OTHER}:OnnxRuntime", needs=needs, compiles=True)
    # On a CPU it computes in float32 only.
    found += [dataclasses.replace(onnx, dtype=d) for d in both if d == "float32" or (gpu and d == "float16")]
    if gpu:
        trt = Spec("TensorRT", "", f"{_OTHER}:TensorRT", needs=(*_ONNX, "tensorrt"), compiles=True)
        return found + [dataclasses.replace(trt, dtype=dtype) for dtype in both]
    vino = Spec("OpenVINO", "", f"{_OTHER}:OpenVINO", needs=("onnx", "openvino"), compiles=True)
    found += [dataclasses.replace(vino, dtype=dtype) for dtype in both]
    ncnn = Spec("ncnn", "", f"{_PHONE}:Ncnn", needs=("onnx", "ncnn", "pnnx"), compiles=True)
    found += [dataclasses.replace(ncnn, dtype=d) for d in both if d != "float16"]
    # Asked for bfloat16 on x86, it says that it uses it, and gives the bits of float32.
    mnn = Spec("MNN", "", f"{_PHONE}:MNN", needs=("onnx", "MNN"), compiles=True)
    found += [dataclasses.replace(mnn, dtype=dtype) for dtype in full]
    return found + _quantised(onnx, vino, ncnn, mnn) if int8 else found


def _quantised(onnx: Spec, vino: Spec, ncnn: Spec, mnn: Spec) -> list[Spec]:
    """The peers that compute in 8 bits, of those that do so in 32, and torchao."""
    found = [
        dataclasses.replace(onnx, factory=f"{_INT8}:OnnxRuntimeInt8"),
        dataclasses.replace(vino, needs=(*vino.needs, "nncf")),
        dataclasses.replace(ncnn, factory=f"{_INT8}:NcnnInt8"),
        dataclasses.replace(mnn, factory=f"{_INT8}:MnnInt8"),
        Spec("torchao", "", f"{_INT8}:Torchao", needs=("torchao",), compiles=True, compiler=True),
    ]
    return [dataclasses.replace(spec, dtype="int8") for spec in found]
