"""Blocks of a live model on packed plans, one by one, where the model as a whole has none."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stdc_fast import library
from stdc_fast.checkpoints.families.official import plain_norm
from stdc_fast.errors import UserError
from stdc_fast.freshness import Replacement, Watched
from stdc_fast.live import probe
from stdc_fast.live.entries import own
from stdc_fast.live.report import Part
from stdc_fast.numerics import tolerance

# Canonical names of blocks, the larger ones first, and the op that each may be.
_BLOCKS = (
    (re.compile(r"cp\.backbone\.features\.\d+(?=\.conv_list\.)"), "stdc_module"),
    (re.compile(r"cp\.backbone\.features\.\d+(?=\.(conv|bn)\.)"), "conv_bn_relu"),
    (re.compile(r"cp\.arm\d+"), "attention_refinement"),
    (re.compile(r"ffm"), "feature_fusion"),
    (re.compile(r"conv_out\w*"), "seg_head"),
    (re.compile(r"cp\.(conv_head\d+|backbone\.conv_last)"), "conv_bn_relu"),
    (re.compile(r".*(?=\.conv\.weight$)"), "conv_bn_relu"),
)
_COUNTER = ".num_batches_tracked"


class Block(Replacement):
    """In a block's ``__dict__`` in place of its ``forward``: its plan, or its own where that must run.

    Attributes:
        module: the block.
        op: of :data:`stdc_fast.library.SCHEMAS`.
        names: the tensors of the op's weights, by the names that the module has, in order.
        converts: whether its norms are in-place ones, which scale by |gamma| + 1e-5.
    """

    def __init__(self, module: nn.Module, op: str, names: dict[str, str], converts: bool):
        self.module, self.op, self.names, self.converts = module, op, names, converts
        self.watched = Watched(module, foreign=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self._inputs(args, kwargs)
        if all(type(x) is Tensor for x in inputs):
            y = library.run_watched(self.module, self.watched, inputs, self.compiled)
            if y is not None:
                return y
        return own(self.module, "forward")(*args, **kwargs)

    def _inputs(self, args: tuple, kwargs: dict) -> tuple:
        if not kwargs:
            return args
        try:
            bound = inspect.signature(own(self.module, "forward")).bind(*args, **kwargs)
        except TypeError:
            return (None,)
        return tuple(bound.arguments.values())

    def compiled(self, state: Any, dtype: torch.dtype, channels: tuple[int, ...]) -> Any:
        """As :func:`stdc_fast.library.run_watched` asks; None where there is no such plan."""
        try:
            device = next(self.module.parameters()).device
            return self._compile(dtype, device, channels)
        except UserError:
            raise  # of the backend that was asked for
        except (ValueError, IndexError):
            return None

    def _compile(self, dtype: torch.dtype, device: torch.device, channels: tuple[int, ...]) -> Any:
        tensors = self.module.state_dict()
        weights = {f"block.{ours}": tensors[theirs] for ours, theirs in self.names.items()}
        if self.converts:
            weights, _ = plain_norm(weights, {"batch_norm": "in-place"})
        eps = {m.eps for m in self.module.modules() if isinstance(getattr(m, "eps", None), float)}
        if len(eps) > 1:
            raise ValueError("norms of different eps")
        return library.compiled(
            self.op, list(weights.values()), self._settings(), *eps or (1e-5,), dtype, device, channels=channels
        )

    def _settings(self) -> tuple:
        convs = [m for m in self.module.modules() if isinstance(m, nn.Conv2d)]
        if self.op == "conv_bn_relu":
            return (convs[0].stride[0],)
        if self.op == "stdc_module":
            pools = [m.count_include_pad for m in self.module.modules() if isinstance(m, nn.AvgPool2d)]
            return (max(c.stride[0] for c in convs), all(pools))
        return ()


def _order(op: str, names: dict[str, str]) -> dict[str, str] | None:
    """``names`` in the order of the op's weights; None if they are not its names."""
    kept = {ours: theirs for ours, theirs in names.items() if not ours.endswith(_COUNTER[1:])}
    blocks = 1 + max((int(n.split(".")[1]) for n in kept if n.startswith("conv_list.")), default=-1)
    if op == "conv_bn_relu":
        order = _NORMED("", "conv", "bn")
    elif op == "stdc_module":
        order = [n for i in range(blocks) for n in _NORMED(f"conv_list.{i}.", "conv", "bn")]
        order += _NORMED("avd_layer.", "0", "1") if "avd_layer.0.weight" in kept else []
    elif op == "attention_refinement":
        order = [*_NORMED("conv.", "conv", "bn"), *_NORMED("", "conv_atten", "bn_atten")]
    elif op == "feature_fusion":
        order = [*_NORMED("convblk.", "conv", "bn"), "conv1.weight", "conv2.weight"]
    else:
        order = [*_NORMED("conv.", "conv", "bn"), "conv_out.weight"]
        order += ["conv_out.bias"] if "conv_out.bias" in kept else []
    return {n: kept[n] for n in order} if sorted(order) == sorted(kept) else None


def _NORMED(prefix: str, conv: str, norm: str) -> list[str]:
    tensors = ("weight", "bias", "running_mean", "running_var")
    return [f"{prefix}{conv}.weight", *(f"{prefix}{norm}.{t}" for t in tensors)]


def candidates(model: nn.Module, names: dict[str, str]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(name of a submodule, op, its names by those of the op's weights), the larger ones first.

    ``names`` are the model's by the canonical ones. Modules of a class that was met once are candidates, too,
    where their tensors have the same names.
    """
    modules = dict(model.named_modules())
    met: dict[type, tuple[str, dict[str, str]]] = {}
    given: set[str] = set()
    for pattern, op in _BLOCKS:
        groups: dict[str, dict[str, str]] = {}
        for ours, theirs in names.items():
            if found := pattern.match(ours):
                groups.setdefault(found[0], {})
        for prefix in groups:
            tensors = {k[len(prefix) + 1 :]: v for k, v in names.items() if k.startswith(f"{prefix}.")}
            owner = _owner(list(tensors.values()))
            ordered = _order(op, {k: v[len(owner) + 1 :] for k, v in tensors.items()})
            if owner not in modules or ordered is None or (owner, op) in given:
                continue
            if len(modules[owner].state_dict()) != len(tensors):
                continue
            given.add((owner, op))
            met.setdefault(type(modules[owner]), (op, ordered))
            yield owner, op, ordered
    for name, module in modules.items():
        op, ordered = met.get(type(module), ("", {}))
        if op and (name, op) not in given and type(module) is not nn.Sequential:
            tensors = [n for n in module.state_dict() if not n.endswith(_COUNTER[1:])]
            if sorted(tensors) == sorted(ordered.values()):
                yield name, op, ordered


def _owner(tensors: list[str]) -> str:
    """The innermost module that has all of them."""
    split = [t.split(".")[:-1] for t in tensors]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def find(
    model: nn.Module, twin: nn.Module, names: dict[str, str], run: Any, images: list[Tensor]
) -> tuple[dict[str, Block], list[Part]]:
    """Blocks by the name of their module, and what is to be said of each candidate.

    Each is compared, in float64, with what its module does in ``twin`` while ``run(twin, image)`` runs.
    """
    tried = list(candidates(twin, names))
    with probe.recorded(twin, [name for name, _, _ in tried]) as calls, torch.no_grad():
        for image in images:
            try:
                run(twin, image)
            except Exception:  # of the model's own code, at a size that it does not take
                continue
    blocks: dict[str, Block] = {}
    parts: dict[str, Part] = {}
    for name, op, ordered in tried:
        if any(name.startswith(f"{outer}.") for outer in blocks) or name in blocks:
            continue
        error, why, converts = _compare(twin.get_submodule(name), op, ordered, calls[name])
        module = model.get_submodule(name)
        hooked = [n for n, m in module.named_modules() if n and (m._forward_hooks or m._forward_pre_hooks)]
        if not why and hooked:
            why = f"a forward hook on {name}.{hooked[0]} would not be called"
        if not why and "forward" in vars(module) and not isinstance(vars(module)["forward"], Replacement):
            why = "its forward was replaced"
        parts[name] = Part(name, op, not why, why or "as its own module", error)
        if not why:
            blocks[name] = Block(module, op, ordered, converts)
    # What lies in a block that is fast needs no line.
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    said = [p for p in parts.values() if not any(p.name.startswith(f"{outer}.") for outer in blocks)]
    return blocks, sorted(said, key=lambda part: order[part.name])


def _compare(
    module: nn.Module, op: str, ordered: dict[str, str], calls: list[tuple[tuple, dict, object]]
) -> tuple[float | None, str, bool]:
    """(error, "" or why it is not that op, whether its norms are in-place)."""
    maps = 2 if op == "feature_fusion" else 1
    if not calls:
        return None, "is not called as a module", False
    problem, error = "", None
    for converts in (False, True):
        block, worst, problem_now = Block(module, op, ordered, converts), 0.0, ""
        for args, kwargs, output in calls:
            inputs = block._inputs(args, kwargs)
            if len(inputs) != maps or not all(isinstance(x, Tensor) for x in inputs):
                return None, "takes other arguments than the op", False
            if not isinstance(output, Tensor) or output.ndim != 4:
                return None, f"returns a {type(output).__name__}, not a map", False
            channels = tuple(x.shape[1] for x in inputs)
            with torch.no_grad():
                compiled = block.compiled(None, torch.float64, channels)
                if compiled is None:
                    return None, f"there is no plan for it as {op}", False
                got = library.run_block(compiled, inputs)
            found, problem_now = probe.difference("its output", got, output, tolerance("float64").logits)
            worst = max(worst, found)
            if problem_now:
                break
        if not problem_now:
            return worst, "", converts
        problem, error = problem or problem_now, worst if error is None else error
    return error, f"computes something else: {problem}", False
