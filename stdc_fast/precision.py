"""What a network computes in: the record that goes from ``load`` to the backends, and its default."""

from __future__ import annotations

import dataclasses
import os
from typing import TypeAlias

import torch

from stdc_fast.errors import UserError
from stdc_fast.hardware import cpu


@dataclasses.dataclass(frozen=True)
class Precision:
    """The dtypes of a network's numbers.

    Attributes:
        name: as in ``load(dtype=...)`` and in saved plans, for example "bfloat16".
        maps: dtype of what is stored between ops.
        weights: dtype of the weights of convolutions as packed.
        sums: dtype in which products are added up; of biases, vectors and logits too.
        levels: whether some ops multiply levels of 8 bits, see :mod:`stdc_fast.plan.quantise`. Everything
            else is in the dtypes above.
    """

    name: str
    maps: torch.dtype
    weights: torch.dtype
    sums: torch.dtype
    levels: bool = False

    def __str__(self) -> str:
        return self.name


def _float(dtype: torch.dtype) -> Precision:
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    return Precision(str(dtype).removeprefix("torch."), dtype, dtype, sums)


FLOAT32, FLOAT64 = _float(torch.float32), _float(torch.float64)
FLOAT16, BFLOAT16 = _float(torch.float16), _float(torch.bfloat16)
#: 8 bits where they are faster, the rest in bfloat16; or in float32, for CPUs without bfloat16 instructions.
INT8 = dataclasses.replace(BFLOAT16, name="int8", levels=True)
INT8_FLOAT32 = dataclasses.replace(FLOAT32, name="int8+float32", levels=True)
#: All that ``load(dtype=...)`` knows, by name.
PRECISIONS = {p.name: p for p in (FLOAT32, FLOAT64, FLOAT16, BFLOAT16, INT8, INT8_FLOAT32)}

#: What stands for a precision: itself, its name, or the torch dtype of its maps.
Like: TypeAlias = "Precision | str | torch.dtype"


def precision_of(request: Like) -> Precision:
    """The precision that a name or a dtype stands for. UserError if there is none."""
    if isinstance(request, Precision):
        return request
    name = str(request).removeprefix("torch.") if isinstance(request, torch.dtype) else request
    if isinstance(name, str) and name in PRECISIONS and request is not torch.int8:  # which no map is in
        return PRECISIONS[name]
    raise UserError(f"unknown dtype {request!r}; use auto, {', '.join(PRECISIONS)}")


def choose(request: Like = "auto", device: torch.device | str = "cpu") -> tuple[Precision, str]:
    """The precision of a request, and why.

    "auto" is what the device multiplies fastest with labels as good: float16 on a GPU with tensor cores,
    bfloat16 on a CPU with AMX-BF16 or AVX512-BF16, else float32. It never is "int8", whose maps are in
    float32 on a CPU where "auto" is float32. UserError for an unknown request.
    """
    if isinstance(request, str) and request == "auto":
        return _fastest(torch.device(device))
    if isinstance(request, str) and request == INT8.name and torch.device(device).type == "cpu":
        floats, why = _fastest(torch.device(device))
        return INT8 if floats == BFLOAT16 else INT8_FLOAT32, f"asked for, with {floats} maps: {why}"
    return precision_of(request), "asked for"


def _fastest(device: torch.device) -> tuple[Precision, str]:
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (7, 0):
            return FLOAT16, "GPU with tensor cores"
        return FLOAT32, f"GPU without tensor cores (compute {capability[0]}.{capability[1]})"
    features = cpu()["features"]
    forced = os.environ.get("STDC_FAST_CPU_ISA")
    if forced and not forced.lower().endswith("_bf16"):
        return FLOAT32, f"STDC_FAST_CPU_ISA={forced} has no bfloat16 instructions"
    for feature, name in (("amx_bf16", "AMX-BF16"), ("avx512_bf16", "AVX512-BF16")):
        if feature in features and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return BFLOAT16, f"CPU with {name}"
    return FLOAT32, "CPU without bfloat16 instructions"
