"""Executables and the weights that they were packed from: packed once, never stale."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as torch_module

# What a module's own attributes say of what it computes.
_SETTINGS = (
    "training", "forward", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "eps",
    "affine", "ceil_mode", "count_include_pad", "divisor_override",
)  # fmt: skip


def weights_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers in the order of the state dict, without ``num_batches_tracked``."""
    for m in module.modules():
        for name, tensor in (*m._parameters.items(), *m._buffers.items()):
            if tensor is not None and name != "num_batches_tracked":
                yield tensor


def _structure(module: nn.Module) -> list[tuple]:
    """What of a module and its children decides what they compute in eval mode, besides weights and eps."""
    found = []
    for name, m in module.named_modules():
        # In eval mode both are the same; DDP users convert one to the other.
        kind = nn.BatchNorm2d if type(m) is nn.SyncBatchNorm else type(m)
        settings = [m.__dict__.get(key) for key in _SETTINGS if key not in ("training", "eps", "forward")]
        tensors = [k for d in (m._parameters, m._buffers) for k, v in d.items() if v is not None]
        found.append((name, kind, settings, tensors))
    return found


class _Snapshot:
    """A module as it was packed. Made to be compared in some tens of microseconds for a whole network."""

    def __init__(self, module: nn.Module):
        modules = list(module.modules())
        self.same = []
        self.hooks = [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
        for i, m in enumerate(modules):
            self.same += [
                (m.__dict__, key, m.__dict__.get(key)) for key in _SETTINGS if i or key != "forward"
            ]
            for members in (m._modules, m._parameters, m._buffers):
                self.same += [(members, k, v) for k, v in members.items() if k != "num_batches_tracked"]
            if i:  # its own hooks see what it takes and gives, however that is computed
                self.hooks += [m._forward_hooks, m._forward_pre_hooks]
        self.same = [(d, k, v) for d, k, v in self.same if k in d or k == "forward"]
        self.weights = [(w, w._version, w.data_ptr()) for w in weights_of(module)]
        # Held, so that no other storage can have its address.
        self.storages = [w.untyped_storage() for w, _, _ in self.weights]
        self.parameters = list(module.parameters())
        kernels = {w.dtype for w, _, _ in self.weights if w.ndim == 4}
        devices = {w.device for w, _, _ in self.weights}
        #: dtype of the convolutions and device of all weights; None where there are several.
        self.dtype = kernels.pop() if len(kernels) == 1 else None
        self.device = devices.pop() if len(devices) == 1 else None
        self.executables: dict[Hashable, Any] = {}

    def holds(self) -> bool:
        return (
            all(d.get(k) is v for d, k, v in self.same)
            and not any(self.hooks)
            and all(w._version == version and w.data_ptr() == place for w, version, place in self.weights)
        )


class Packed:
    """The executables of one module, packed again when it changes.

    Weights changed in place, by an optimiser, by ``load_state_dict`` or ``to`` are noticed, as are exchanged
    submodules, hooks on them, and changed settings. Only writing to ``tensor.data`` escapes torch's version
    counter: call :meth:`clear` after it. Copies and pickles have nothing packed.
    """

    def __init__(self, module: nn.Module):
        self._built = _structure(module)
        self._now: _Snapshot | None = None

    def snapshot(self, module: nn.Module) -> _Snapshot | None:
        """The module's state, with its executables; None where its own ``forward`` must do the work.

        That is in training, or when it is not any more what its constructor made, or somebody has
        hooks on its submodules.
        """
        now = self._now
        if now is not None and now.holds():
            return now
        self._now = None
        modules = list(module.modules())
        plain = (
            not any(m.training for m in modules)
            and _structure(module) == self._built
            and len({m.eps for m in modules if hasattr(m, "eps")}) <= 1
            # Tensors made under inference_mode do not count their changes.
            and not any(w.is_inference() for w in weights_of(module))
        )
        if plain and (now := _Snapshot(module)).holds():
            self._now = now
            return now
        return None

    def clear(self) -> None:
        """Forget everything; what is needed is packed again."""
        self._now = None

    def __deepcopy__(self, memo: dict) -> Packed:
        return self._copy(self._built)

    def __reduce__(self):
        return Packed._copy, (self._built,)

    @staticmethod
    def _copy(built: list[tuple]) -> Packed:
        new = Packed.__new__(Packed)
        new._built, new._now = built, None
        return new


def asks_for_grad(inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> bool:
    """Whether autograd would record something."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *parameters))


class Cache:
    """Executables by loose weights, as ops get them; each is kept as long as its weights are.

    Staleness is noticed as by :class:`Packed`.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[list[int], list[StorageWeakRef], Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, weights: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """``make()`` for these weights, or what it returned before for the same key and unchanged weights."""
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
