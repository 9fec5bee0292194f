"""Tensors and arrays of pickles: what their rebuilding functions would make, as descriptions until wanted.

A training checkpoint holds several times its weights, so that only what is asked for is read from the file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stdc_fast.checkpoints.pickles import Buildable, Global, Maker, Opaque

_DTYPES = {f"torch.{k}": v for k, v in vars(torch).items() if isinstance(v, torch.dtype)}
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
    "Untyped": torch.uint8,
}  # fmt: skip


#: Elements of the largest tensor that is read. One of these networks has 2.4 million at most.
MOST = 1 << 26


class Storage:
    """Bytes of tensors; ``read`` gets them, once. ``dtype`` and ``count`` are the file's for its elements."""

    def __init__(self, dtype: torch.dtype, count: int, read: Callable[[], Tensor]):
        self.dtype, self.count, self._read = dtype, count, read
        self._bytes: Tensor | None = None

    def bytes(self) -> Tensor:
        """uint8, one dimension."""
        if self._bytes is None:
            self._bytes = self._read()
        return self._bytes


def storage_dtype(kind: object) -> torch.dtype | None:
    """Of the elements of a storage class of torch's, such as ``torch.FloatStorage``; None if it is none."""
    name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
    return _STORAGES.get(name.removesuffix("Storage")) if name.endswith("Storage") else None


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor that lies in a storage: first element, sizes and strides, in elements of ``dtype``."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    negated: bool = False

    def tensor(self) -> Tensor:
        """The tensor. It shares memory with others of its storage. ValueError if it does not lie in it."""
        if math.prod(self.size) > MOST:
            raise ValueError(
                f"has the shape {list(self.size)}, larger than any of the networks that are read"
            )
        data = self.storage.bytes()
        whole = data[: len(data) // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        try:
            made = whole.as_strided(self.size, self.stride, self.offset)
        except (RuntimeError, TypeError) as error:
            raise ValueError(str(error).partition("\n")[0]) from None
        if self.negated:
            made = -made
        # torch converts tensors of 8 bits only where they are contiguous.
        return made if made.itemsize > 1 or made.is_contiguous() else made.contiguous()


class Array(Buildable):
    """A NumPy array."""

    def __init__(self, data: object = None, dtype: object = None, shape: object = (), order: object = "C"):
        self.data, self.dtype, self.shape, self.order = data, dtype, shape, order

    def build(self, state: object) -> None:
        _, self.shape, self.dtype, fortran, self.data = state
        self.order = "F" if fortran else "C"

    def array(self) -> np.ndarray | None:
        """None for one of Python objects, or whose data is not what it says."""
        dtype = self.dtype.dtype() if isinstance(self.dtype, Dtype) else None
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        if dtype is None or not isinstance(data, (bytes, memoryview)):
            return None
        try:
            return np.frombuffer(data, dtype).reshape(self.shape, order=self.order)
        except (TypeError, ValueError):
            return None

    def tensor(self) -> Tensor:
        """The tensor; ValueError where it can not be one."""
        array = self.array()
        if array is None or array.dtype.kind not in "fiub":
            raise ValueError("is an array that is not of numbers")
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.require(native, requirements=["W", "A"]))


class Dtype(Buildable):
    """A NumPy dtype."""

    def __init__(self, name: object = "", *_: object):
        self.name, self.order = name, "="

    def build(self, state: object) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype | None:
        """None for others than numbers."""
        if (
            not isinstance(self.name, str)
            or self.name[:1] not in tuple("fiubc")
            or not self.name[1:].isdigit()
        ):
            return None
        try:
            return np.dtype(self.name).newbyteorder(self.order if self.order in ("<", ">") else "=")
        except TypeError:
            return None


def value_of(item: object) -> object:
    """A plain value for an array or a NumPy scalar; anything else as it is."""
    if isinstance(item, Array):
        array = item.array()
        return Opaque("numpy.ndarray") if array is None else array.tolist()
    return item


def _stored(storage, offset, size, stride, grad=False, hooks=None, metadata=None) -> Stored | Opaque:
    return _described(storage, None, offset, size, stride, metadata)


def _described(storage, dtype, offset, size, stride, metadata) -> Stored | Opaque:
    if isinstance(storage, Opaque):
        return storage
    if not isinstance(storage, Storage) or len(size) != len(stride):
        raise ValueError("no tensor")
    dtype = storage.dtype if dtype is None else dtype
    metadata = metadata or {}
    if set(metadata) - {"neg"} or (metadata and not dtype.is_floating_point):
        return Opaque("a conjugated tensor")
    numbers = (offset, *size, *stride)
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in numbers):
        raise ValueError("no sizes")
    return Stored(storage, dtype, offset, tuple(size), tuple(stride), bool(metadata.get("neg")))


def _stored_v3(storage, offset, size, stride, grad, hooks, dtype, metadata=None) -> Stored | Opaque:
    known = _DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
    if known is None:
        return Opaque("a tensor of an unknown dtype")
    return _described(storage, known, offset, size, stride, metadata)


def _typed(make: object, kind: object, arguments: object, state: object = None) -> object:
    """A subclass of Tensor. Only torch's own that add nothing to the values are known."""
    plain = (
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        "torch.Tensor",
        "torch._tensor.Tensor",
    )
    maker = MAKERS.get(make.name) if isinstance(make, Global) else None
    if maker is None or not (isinstance(kind, Global) and kind.name in plain):
        return Opaque(kind.name if isinstance(kind, Global) else "a tensor subclass")
    return maker(*arguments)


def _scalar(dtype: object, data: object = b"") -> object:
    array = Array(data, dtype, (1,)).array()
    return Opaque("numpy.scalar") if array is None else array[0].item()


def _pair(items: object = ()) -> object:
    """PaddlePaddle writes tensors inside of other containers as pairs of a name and an array."""
    items = tuple(items)
    named = len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], Array)
    return items[1] if named else items


#: What stands in for the functions that rebuild tensors, arrays and scalars.
MAKERS: dict[str, Maker] = {
    "torch._utils._rebuild_tensor": _stored,
    "torch._utils._rebuild_tensor_v2": _stored,
    "torch._utils._rebuild_tensor_v3": _stored_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_device_tensor_from_numpy": lambda data, *_: data,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.nn.parameter.Parameter": lambda data=None, *_: data,
    "numpy.dtype": Dtype,
    "builtins.tuple": _pair,
    "__builtin__.tuple": _pair,
    **{
        f"numpy.{core}.{name}": maker
        for core in ("core", "_core")
        for name, maker in (
            ("multiarray._reconstruct", lambda *_: Array()),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", Array),
        )
    },
}
