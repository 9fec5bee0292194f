"""Operators that call a living module, for ``torch.compile``: what a compiler need not look into.

A compiled program calls the module with the packed weights that it has anyway, so that all that holds
without a compiler holds there too: changed weights, hooks and exchanged submodules are noticed. The ops have
no gradient. They mean a module of this process, so exported programs have those of
:mod:`stdc_fast.library` instead.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stdc_fast import library
from stdc_fast.errors import UserError
from stdc_fast.freshness import weights_of

P, R = ParamSpec("P"), TypeVar("R")

_MODULES: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
_numbers = itertools.count()

SCHEMAS = {
    "live_block": "(Tensor[] maps, Tensor[] weights, int module) -> Tensor",
    "live_logits": "(Tensor image, Tensor[] weights, int module) -> Tensor",
    "live_labels": (
        "(Tensor frames, Tensor[] weights, int module, float? scale, SymInt[]? size, bool native) -> Tensor"
    ),
}


class Live(nn.Module):
    """A module that has a number in this process, by which the ops find it. A copy has its own.

    Its ``_watched`` is a :class:`stdc_fast.freshness.Watched`.
    """

    watched_part = ""  #: name of the submodule that it watches

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._enter()

    def _enter(self) -> None:
        self._number = next(_numbers)
        _MODULES[self._number] = self

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._enter()

    def __prepare_scriptable__(self):
        raise UserError(
            f"torch.jit.script can not read {type(self).__name__}; use torch.compile here, or elsewhere what "
            "stdc_fast.export or torch.export write; torch.jit.trace gives torch's own operations"
        )


def constant(function: Callable[[Live], R]) -> Callable[[Live], R]:
    """``function`` of a module, which compilers call when they compile, rather than look into it.

    What ``torch.compiler.assume_constant_result`` does, without importing the compiler, which takes as long
    as torch.
    """

    def of_number(number: int) -> R:
        return function(_MODULES[number])

    of_number._dynamo_marked_constant = True
    return lambda module: of_number(module._number)


@constant
def _as_made(module: Live) -> bool:
    """Whether a module is what its constructor made; its op notices later changes itself."""
    return not module._watched.changed(module.get_submodule(module.watched_part))


def opaque(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which compilers leave as it is: ``torch.compiler.disable``, imported when needed."""
    kept = []

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if not kept:
            kept.append(torch.compiler.disable(function))
        return kept[0](*args, **kwargs)

    return run


def takes_part(module: Live, inputs: Sequence[Tensor]) -> bool:
    """Whether a compiler that is at work may have a module's op, rather than the module's own operations.

    Not where a gradient or an autocast concerns it, nor for ONNX. All that is asked becomes a guard of the
    program.
    """
    if module.training or not _as_made(module) or torch.onnx.is_in_onnx_export():
        return False
    if any(torch.is_autocast_enabled(x.device.type) for x in inputs):
        return False
    if not torch.is_grad_enabled():
        return True
    return not any(t.requires_grad for t in (*inputs, *module.parameters()))


def _call(method: str, number: int, weights: Sequence[Tensor], *arguments):
    """A method of a module, with these tensors as its weights."""
    module = _MODULES.get(number)
    if module is None:
        raise RuntimeError("a compiled program calls a module of stdc_fast that is gone; compile it again")
    library.no_forward_mode()
    call = _Call(module, method)
    with torch.no_grad():
        own = weights_of(module)
        if all(itertools.starmap(_is_same, itertools.zip_longest(own, weights))):
            return call(*arguments)
        # Somebody called it with other weights, as torch.func.functional_call does.
        names = (f"module.{name}" for name in library.weight_names(module))
        return functional_call(call, dict(zip(names, weights, strict=True)), arguments)


def _is_same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return False
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


class _Call(nn.Module):
    """A method of a module as a module, so that other weights may stand in for its own."""

    def __init__(self, module: nn.Module, method: str):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *arguments):
        return getattr(self.module, self.method)(*arguments)


def _one_by_one(op):
    """The batching rule for ``torch.vmap``: a call for each of the batch."""

    def pick(value, dim, i):
        if isinstance(value, (list, tuple)) and isinstance(dim, (list, tuple)):
            return [pick(v, d, i) for v, d in zip(value, dim, strict=True)]
        return value if dim is None else value.select(dim, i)

    def batched(info, in_dims, *arguments):
        results = [op(*pick(arguments, in_dims, i)) for i in range(info.batch_size)]
        return torch.stack(results), 0

    return batched


def _register() -> None:
    """Define every op, once. What each does, and what it would give, are methods of its module."""
    for name, schema in SCHEMAS.items():
        qualified = f"stdc_fast::{name}"
        # NOTE: on a GPU the first call packs weights and later ones replay graphs: no part of another graph.
        torch.library.define(
            qualified, schema, tags=(torch.Tag.cudagraph_unsafe, torch.Tag.needs_exact_strides)
        )

        def real(x, weights, number, *arguments, name=name):
            return _call(name, number, weights, x, *arguments)

        def fake(x, weights, number, *arguments, name=name):
            return getattr(_MODULES[number], f"fake_{name}")(x, *arguments)

        torch.library.impl(qualified, ("CPU", "CUDA"), real)
        torch.library.register_fake(qualified, fake)
        torch.library.register_autograd(qualified, library.refuse)
        torch.library.register_vmap(qualified, _one_by_one(getattr(torch.ops.stdc_fast, name)))


_register()
