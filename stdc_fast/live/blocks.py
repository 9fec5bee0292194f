"""Blocks of a live model on packed plans, one by one, where the model as a whole has none."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stdc_fast import library
from stdc_fast.checkpoints.families.official import plain_norm
from stdc_fast.errors import UserError
from stdc_fast.freshness import Watched, replaced_methods
from stdc_fast.live import probe
from stdc_fast.live.entries import InPlace, own
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
_COUNTER = "num_batches_tracked"


class Block(InPlace):
    """In place of a block's ``forward``: its plan, or its own where that must run.

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
            y = library.run_watched(self.module, self.watched, inputs, self.compiled, torch.channels_last)
            if y is not None:
                # As the engine has it: between two fast blocks nothing is copied.
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
            self.op,
            list(weights.values()),
            self._settings(),
            *eps or (1e-5,),
            dtype,
            device,
            channels=channels,
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
    kept = {ours: theirs for ours, theirs in names.items() if not ours.endswith(_COUNTER)}
    blocks = 1 + max((int(n.split(".")[1]) for n in kept if n.startswith("conv_list.")), default=-1)
    if op == "conv_bn_relu":
        order = _normed("", "conv", "bn")
    elif op == "stdc_module":
        order = [n for i in range(blocks) for n in _normed(f"conv_list.{i}.", "conv", "bn")]
        order += _normed("avd_layer.", "0", "1") if "avd_layer.0.weight" in kept else []
    elif op == "attention_refinement":
        order = [*_normed("conv.", "conv", "bn"), *_normed("", "conv_atten", "bn_atten")]
    elif op == "feature_fusion":
        order = [*_normed("convblk.", "conv", "bn"), "conv1.weight", "conv2.weight"]
    else:
        order = [*_normed("conv.", "conv", "bn"), "conv_out.weight"]
        order += ["conv_out.bias"] if "conv_out.bias" in kept else []
    return {n: kept[n] for n in order} if sorted(order) == sorted(kept) else None


def _normed(prefix: str, conv: str, norm: str) -> list[str]:
    tensors = ("weight", "bias", "running_mean", "running_var")
    return [f"{prefix}{conv}.weight", *(f"{prefix}{norm}.{t}" for t in tensors)]


def candidates(
    model: nn.Module, names: dict[str, str]
) -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """(op, the submodules that may be such a block), the larger blocks first.

    A submodule comes as its name, and its tensors' names by those of the op's weights. Where several hold the
    same tensors, the outermost comes first. ``names`` are the model's by the canonical ones. Modules of a
    class that was met once are candidates, too, where their tensors have the same names.
    """
    modules = dict(model.named_modules())
    met: dict[type, tuple[str, dict[str, str]]] = {}
    given: set[str] = set()
    for pattern, op in _BLOCKS:
        prefixes = dict.fromkeys(found[0] for ours in names if (found := pattern.match(ours)))
        for prefix in prefixes:
            tensors = {k[len(prefix) + 1 :]: v for k, v in names.items() if k.startswith(f"{prefix}.")}
            ordered = _order(op, tensors)
            if ordered is None:
                continue
            owners = []
            for owner in _owners(list(tensors.values())):
                if owner in modules and len(modules[owner].state_dict()) == len(tensors):
                    inner = {k: v[len(owner) + 1 :] for k, v in ordered.items()}
                    owners.append((owner, inner))
                    if type(modules[owner]) not in (nn.Sequential, nn.ModuleList):
                        met.setdefault(type(modules[owner]), (op, inner))
            given.update(owner for owner, _ in owners)
            if owners:
                yield op, owners
    for name, module in modules.items():
        op, ordered = met.get(type(module), ("", {}))
        if op and name not in given:
            tensors = [n for n in module.state_dict() if not n.endswith(_COUNTER)]
            if sorted(tensors) == sorted(ordered.values()):
                yield op, [(name, ordered)]


def _owners(tensors: list[str]) -> list[str]:
    """Modules that have all of them, the outermost first."""
    split = [t.split(".")[:-1] for t in tensors]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return [".".join(common[: i + 1]) for i in range(len(common))]


def find(
    model: nn.Module,
    twin: nn.Module,
    names: dict[str, str],
    run: Callable[[nn.Module, Tensor], Any],
    images: list[Tensor],
) -> tuple[dict[str, Block], list[Part]]:
    """Blocks by the name of their module, and what is to be said of each candidate.

    Each is compared, in float64, with what its module does in ``twin`` while ``run(twin, image)`` runs.
    """
    tried = sorted(candidates(twin, names), key=lambda one: -len(one[1][0][1]))
    watched = [name for _, owners in tried for name, _ in owners]
    with probe.recorded(twin, watched) as calls, torch.no_grad():
        for image in images:
            # Its own code fails at sizes that it does not take.
            with contextlib.suppress(Exception):
                run(twin, image)
    blocks: dict[str, Block] = {}
    parts: dict[str, Part] = {}
    for op, owners in tried:
        if any(f"{owners[-1][0]}.".startswith(f"{outer}.") for outer in blocks):
            continue
        part = None
        for name, ordered in owners:
            error, why, converts = _compare(twin.get_submodule(name), op, ordered, calls[name])
            module = model.get_submodule(name)
            why = why or _kept(module, name)
            if not why:
                blocks[name] = Block(module, op, ordered, converts)
                part = Part(name, op, True, "computes the same", error)
                break
            if part is None or calls[name]:
                part = Part(name, op, False, why, error)
        parts[part.name] = part
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return blocks, sorted(parts.values(), key=lambda part: order[part.name])


def _kept(module: nn.Module, name: str) -> str:
    """Why a module keeps its own forward although there is a plan, or ""."""
    for inner, m in module.named_modules():
        if inner and (m._forward_hooks or m._forward_pre_hooks):
            return f"has a forward hook on {name}.{inner}, which a plan would not call"
        if replaced_methods(m):
            return f"has a {replaced_methods(m)[0]} of its own in the place of its class's"
    return ""


def _compare(
    module: nn.Module, op: str, ordered: dict[str, str], calls: list[tuple[tuple, dict, object]]
) -> tuple[float | None, str, bool]:
    """(error, "" or why it is not that op, whether its norms are in-place)."""
    maps = 2 if op == "feature_fusion" else 1
    if not calls:
        return None, "is not called on the probe", False
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
