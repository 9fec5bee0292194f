"""Notices changed weights, so that what was made of them is never stale."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
import threading
import types
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as torch_module
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from stdc_fast import _native

# What a module's own attributes say of what it computes: those that a plan is built with, and those that make
# it another network than its constructor's.
_PLANNED = ("eps", "align_corners", "mean", "std", "uses_conv_last")
_SETTINGS = (
    "training", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "affine",
    "ceil_mode", "count_include_pad", "divisor_override", *_PLANNED,
)  # fmt: skip

#: Attributes of these types, and collections of them, may decide what a module of another code base computes.
_PLAIN = (bool, int, float, str, type(None), types.FunctionType, types.BuiltinFunctionType)
# What every module has for torch's own use.
_COMMON = frozenset(vars(nn.Module()))
# Modules that do the same in training; code bases make some of them after they called eval().
_MODELESS = (nn.Upsample, nn.Identity, nn.ReLU, nn.Sigmoid, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


class Replacement:
    """What stands in for a method of a module, and leaves what the module computes as it is."""


def weights_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers in the order of the state dict, without ``num_batches_tracked``."""
    for m in module.modules():
        for name, tensor in (*m._parameters.items(), *m._buffers.items()):
            if tensor is not None and name != "num_batches_tracked":
                yield tensor


def trains(module: nn.Module) -> bool:
    """Whether a module, but not its children, is in a training mode that may change what it computes."""
    return module.training and not modeless(module)


def modeless(module: nn.Module) -> bool:
    """Whether it does the same in training and in eval mode, whatever its children do."""
    return type(module) in _MODELESS


def _plain(value: object) -> bool:
    """Whether an attribute may decide what a foreign module computes, and can be compared."""
    if type(value) is dict:
        return all(_plain(k) and _plain(v) for k, v in value.items())
    if isinstance(value, functools.partial):
        return all(map(_plain, (value.func, value.args, value.keywords)))
    if type(value) in (tuple, list, set, frozenset):
        return all(map(_plain, value))
    return isinstance(value, (*_PLAIN, types.MethodType))


def _kept(value: object) -> object:
    """What stays of a plain value when it is written to, and is equal to that of its copies."""
    kind = type(value)
    if kind is dict:
        return kind, tuple((k, _kept(v)) for k, v in value.items())
    if isinstance(value, functools.partial):
        return kind, *map(_kept, (value.func, value.args, value.keywords))
    if kind in (tuple, list):
        return kind, *map(_kept, value)
    if kind in (set, frozenset):
        return kind, frozenset(map(_kept, value))
    return value.__func__ if kind is types.MethodType else value


def _mutable(value: object) -> bool:
    """Whether a plain value may become another one while it stays the same object."""
    if isinstance(value, functools.partial):
        return any(map(_mutable, (*value.args, *value.keywords.values())))
    return type(value) in (list, dict, set) or (type(value) is tuple and any(map(_mutable, value)))


def _settings_of(module: nn.Module, foreign: bool) -> list[str]:
    """Names of its attributes that say what it computes."""
    if not foreign:
        return [k for k in _SETTINGS if k in module.__dict__]
    return [k for k, v in module.__dict__.items() if k == "training" or (k not in _COMMON and _plain(v))]


def structure(module: nn.Module, foreign: bool = False) -> list[tuple]:
    """What of a module and its children decides what they compute in eval mode, besides what plans follow.

    Of a ``foreign`` module that is every plain attribute, eps too: nobody here knows which of them matter.
    """
    found = []
    for name, m in module.named_modules():
        # In eval mode both are the same; DDP users convert one to the other.
        kind = nn.BatchNorm2d if type(m) is nn.SyncBatchNorm else type(m)
        if foreign:
            settings = [(k, _kept(m.__dict__[k])) for k in _settings_of(m, True) if k != "training"]
        else:
            settings = [m.__dict__.get(key) for key in _SETTINGS if key not in ("training", *_PLANNED)]
        tensors = [k for d in (m._parameters, m._buffers) for k, v in d.items() if v is not None]
        found.append((name, kind, settings, tensors))
    return found


class _Snapshot:
    """A module as it was packed. Made to be compared in some tens of microseconds for a whole network.

    The native module compares all of it in one call, where it is there and torch gives what it needs.
    """

    def __init__(self, module: nn.Module, foreign: bool = False):
        _watch_fused()
        modules = list(module.modules())
        self.module = weakref.ref(module)
        self.children, self.kinds = modules[1:], [type(m) for m in modules[1:]]
        self.hooks = [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
        for m in modules[1:]:  # its own hooks see what it takes and gives, however that is computed
            self.hooks += [m._forward_hooks, m._forward_pre_hooks]
        dicts = [m.__dict__ for m in modules]
        members = [d for m in modules for d in (m._modules, m._parameters, m._buffers)]
        same = [(m.__dict__, k, m.__dict__[k]) for m in modules for k in _settings_of(m, foreign)]
        boxes = [v for _, _, v in same if foreign and _mutable(v)]
        #: Lists and the like, whose contents may change while they stay the same objects.
        self.boxes, self.copies, self.contents = boxes, copy.deepcopy(boxes), None
        if self.copies != boxes:  # partial functions, which are equal to nothing else
            self.contents = list(map(_kept, boxes))
        same += [(d, k, v) for d in members for k, v in d.items()]
        self.places, self.keys, self.values = map(list, zip(*same, strict=True))
        # A new attribute of a foreign module may hide one of its class.
        self.dicts = [*dicts[0 if foreign else 1 :], *members]
        self.sizes = list(map(len, self.dicts))
        watched = [b for d in members for b in d.values() if isinstance(b, Tensor)]
        # num_batches_tracked too: batch norm does not count what it does to its statistics.
        self.watched, self.numbers = watched, _numbers(watched)
        self.weights = list(weights_of(module))
        self.storages = [w.untyped_storage() for w in watched]  # held, so that no other has their address
        self.parameters = list(module.parameters())
        kernels = {w.dtype for w in self.weights if w.ndim == 4}
        devices = {w.device for w in self.weights}
        #: dtype of the convolutions and device of all weights; None where there are several.
        self.dtype = kernels.pop() if len(kernels) == 1 else None
        self.device = devices.pop() if len(devices) == 1 else None
        #: Executables, and what else was made of these weights, by whatever tells them apart.
        self.made: dict[Hashable, Any] = {}
        self._watch = self._native()

    def _native(self) -> Any:
        """What compares all that is here without a loop in Python; None where there is no such thing."""
        exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)  # of torch from 2.10 on
        if exchange is None or any(self.hooks) or _native.why_not() is not None:
            return None
        versions = inspect.getattr_static(Tensor, "_version")
        try:
            return _native.module().Watch(
                self.places, self.keys, self.values, [*self.dicts, *self.hooks], self.children, self.watched,
                versions, exchange,
            )  # fmt: skip
        except ValueError:  # tensors that have no plain memory
            return None

    def holds(self, module: nn.Module) -> bool:
        # At every call, on the way to a GPU that may need 200 us: so no loops in Python.
        if self.contents is None:
            if self.boxes != self.copies:
                return False
        elif list(map(_kept, self.boxes)) != self.contents:
            return False
        if self._watch is not None:
            return self.module() is module and self._watch.holds()
        return (
            self.module() is module
            and all(map(operator.is_, map(dict.get, self.places, self.keys), self.values))
            and list(map(len, self.dicts)) == self.sizes
            and all(map(operator.is_, map(type, self.children), self.kinds))
            and not any(self.hooks)
            and _numbers(self.watched) == self.numbers
        )


def _numbers(tensors: list[Tensor]) -> tuple[list, ...]:
    """What shows that tensors were written to or put elsewhere."""
    versions = map(operator.attrgetter("_version"), tensors)
    places = (list(map(ask, tensors)) for ask in (Tensor.data_ptr, Tensor.stride, Tensor.size))
    return list(versions), *places


_hook: RemovableHandle | None = None
_hook_lock = threading.Lock()


def _watch_fused() -> None:
    """See to it that steps of fused optimisers are counted, before versions are first read.

    Not at import: the hook concerns every optimiser of the process.
    """
    global _hook
    if _hook is None:
        with _hook_lock:
            if _hook is None:
                _hook = register_optimizer_step_post_hook(_count_fused)


def _count_fused(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Fused optimisers do not raise the versions of what they change, as all others do."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            for parameter in group["params"]:
                torch.autograd.graph.increment_version(parameter)


class Watched:
    """The executables of one module, packed again when it changes.

    Weights changed in place, by an optimiser, by ``load_state_dict`` or ``to`` are noticed, as are exchanged
    submodules, hooks on them, and changed settings. Only writing to ``tensor.data``, or to the same memory
    through NumPy or another process, escapes torch's version counter: call :meth:`clear` after it.
    Copies and pickles have nothing packed.

    A ``foreign`` module is one of another code base: every plain attribute of it counts, also functions and
    what is in lists and dicts, and its norms may differ in eps.
    """

    def __init__(self, module: nn.Module, foreign: bool = False):
        self._foreign = foreign
        self._built = structure(module, foreign)
        self._now: _Snapshot | None = None

    @property
    def current(self) -> _Snapshot | None:
        """What :meth:`state` gave last, as far as is known; whether it holds is another question."""
        return self._now

    def holds(self, state: _Snapshot, module: nn.Module) -> bool:
        """Whether a state is what the module is in now."""
        return state is self._now and state.holds(module)

    def state(self, module: nn.Module, inputs: Sequence[Tensor]) -> _Snapshot | None:
        """The module's state, with its executables; None where its own ``forward`` must do the work.

        That is in training; where a gradient is asked for; when it is not any more what its constructor made,
        or somebody has hooks on its submodules; and for whoever traces, transforms or watches torch's ops.
        """
        if any(type(x) is not Tensor for x in inputs) or traced():
            return None
        recording, now = torch.is_grad_enabled(), self._now
        parameters = module.parameters() if now is None else now.parameters
        if module.training or (recording and any(p.requires_grad for p in parameters)):
            self._now = None  # it is about to change
            return None
        if recording and any(x.requires_grad for x in inputs):
            return None
        now = self.snapshot(module)
        if now is None or now.device is None or now.device.type not in ("cpu", "cuda"):
            return None
        if any(x.device != now.device for x in inputs):
            return None
        # NaN must come out as NaN, which oneDNN's fused ReLU does not do.
        return now if all(_finite(x) for x in inputs) else None

    def snapshot(self, module: nn.Module) -> _Snapshot | None:
        """The module's state in eval mode; None where it is not what its constructor made, or is trained."""
        now = self._now
        if now is not None and now.holds(module):
            return now
        self._now = None
        modules = list(module.modules())
        plain = (
            not any(map(trains, modules))
            and structure(module, self._foreign) == self._built
            and (self._foreign or len({m.eps for m in modules if hasattr(m, "eps")}) <= 1)
            and not any(replaced_methods(m) for m in modules[1:])
            # Tensors made under inference_mode do not count their changes.
            and not any(w.is_inference() or w.is_meta for w in weights_of(module))
            and all(w.isfinite().all() for w in weights_of(module))
        )
        if plain and (now := _Snapshot(module, self._foreign)).holds(module):
            self._now = now
            return now
        return None

    def changed(self, module: nn.Module) -> bool:
        """Whether the module is not any more what it was when this was made, weights and modes aside."""
        return structure(module, self._foreign) != self._built

    def clear(self) -> None:
        """Forget everything; what is needed is packed again."""
        self._now = None

    def __deepcopy__(self, memo: dict) -> Watched:
        return self._copy(self._built, self._foreign)

    def __reduce__(self):
        return Watched._copy, (self._built, self._foreign)

    @staticmethod
    def _copy(built: list[tuple], foreign: bool = False) -> Watched:
        new = Watched.__new__(Watched)
        new._built, new._foreign, new._now = built, foreign, None
        return new


def replaced_methods(module: nn.Module) -> list[str]:
    """Methods in whose place somebody put one of his own, on this module alone."""
    return [
        k
        for k, v in vars(module).items()
        if callable(v) and hasattr(type(module), k) and not isinstance(v, Replacement)
    ]


def _finite(x: Tensor) -> bool:
    """Whether a map on the CPU holds neither NaN nor infinities; elsewhere nobody waits for an answer."""
    if not x.is_cpu or not x.is_floating_point():
        return True
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32  # sums of float16 overflow
    return bool(x.sum(dtype=wide).isfinite())


def traced() -> bool:
    """Whether ops are traced, transformed or looked at, so that they must be torch's own."""
    return (
        torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or transformed()
        or torch.autograd.forward_ad._current_level >= 0
    )


def transformed() -> bool:
    """Whether a transform of torch.func is at work, such as vmap."""
    return torch._C._functorch.peek_interpreter_stack() is not None


class Cache:
    """Executables by loose weights, as ops get them; each is kept as long as its weights are.

    A change is noticed by torch's version counter or by another storage. What torch does not count is not
    noticed: writing to ``tensor.data``, and batch norm's update of its statistics.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[list[int], list[StorageWeakRef], Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, weights: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """``make()`` for these weights, or what it returned before for the same key and unchanged weights."""
        _watch_fused()
        storages = [w.untyped_storage() for w in weights]
        # While a weak reference to it is held, the address of a storage is given to no other.
        places = tuple(
            (s._cdata, w.storage_offset(), w.shape, w.stride(), w.dtype)
            for s, w in zip(storages, weights, strict=True)
        )
        try:
            versions = [w._version for w in weights]
        except RuntimeError:  # tensors made under inference_mode do not count their changes
            return make()
        found = self._entries.get((key, places))
        if found is not None and found[0] == versions:
            return found[2]
        made = make()
        with self._lock:
            self._entries = {k: e for k, e in self._entries.items() if not any(r.expired() for r in e[1])}
            self._entries[key, places] = (versions, [StorageWeakRef(s) for s in storages], made)
        return made

    def clear(self) -> None:
        """Forget everything; what is needed is packed again."""
        with self._lock:
            self._entries = {}

    def __len__(self) -> int:
        return len(self._entries)
