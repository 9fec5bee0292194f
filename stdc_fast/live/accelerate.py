"""``stdc_fast.accelerate``: a live model of another code base computes on packed plans, in place."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stdc_fast import backends, forks
from stdc_fast.errors import UserError
from stdc_fast.freshness import Watched, modeless, replaced_methods, structure, trains
from stdc_fast.live import blocks, match
from stdc_fast.live import probe as probes
from stdc_fast.live.entries import Entry, InPlace, entry_of, layout_of, own
from stdc_fast.live.report import AccelerateReport, Part
from stdc_fast.placement import on_cpu
from stdc_fast.precision import Like, Precision, precision_of
from stdc_fast.reference.networks import MIN_SIZE
from stdc_fast.segmenter import Segmenter

_log = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)


@on_cpu
def accelerate(
    model: M,
    *,
    dtype: Like | None = None,
    backend: str = "auto",
    probe: Tensor | None = None,
    outputs: str = "all",
    partly: bool = True,
) -> M:
    """Make a live model fast in place: official STDC-Seg, mmsegmentation or super-gradients.

        model = stdc_fast.accelerate(model)
        print(stdc_fast.acceleration(model))  # what is fast, what is not, and why
        stdc_fast.restore(model)

    The same object comes back. Its class, names of tensors, hooks on it, arguments and outputs stay; only the
    methods that compute are replaced, on this object alone. In training, where a gradient is asked for, with
    hooks inside of it and wherever else a plan would not be what the model does, its own methods run. Changed
    weights and settings are noticed, but for values written through ``tensor.data``, tensors that are no
    buffers, and methods replaced on a class: call ``accelerate`` again after those.

    Args:
        model: in eval or in training mode, on a CPU or an NVIDIA GPU. DistributedDataParallel, and
            DataParallel on one device, are looked into.
        dtype: what it computes in, as for :func:`stdc_fast.load`; by default the dtype of its weights.
            Outputs have the dtype of the input in any case.
        backend: as for :func:`stdc_fast.load`.
        probe: normalised ``[N, 3, H, W]`` on which the model and the plan are compared; noise by default.
        outputs: "all", or "main" for a model that returns a tuple: its first output, and None for the
            others. So the official network computes no auxiliary heads.
        partly: whether blocks of a model that has no plan as a whole are made fast, one by one.

    Raises UserError, in one line, where nothing of the model is known or computes what its plan does. The
    model is then as it was.
    """
    inner = _unwrapped(model)
    if outputs not in ("all", "main"):
        raise UserError(f'outputs must be "all" or "main", not {outputs!r}')
    wanted = None if dtype is None else precision_of(dtype)
    if wanted is not None and wanted.levels:
        raise UserError(
            "accelerate() has no ranges, which int8 needs; convert the weights, and give them to "
            "load(dtype='int8', calibrate=FOLDER)"
        )
    if backend != "auto":
        backends.named(backend)
    _check(inner)
    live = Live(inner, wanted, backend, outputs == "main")
    with torch.inference_mode(False), probes.one_thread():
        found = live.find(probe, partly)
    restore(inner)
    for name, block in found.items():
        inner.get_submodule(name).__dict__["forward"] = block
    for name in live.methods:
        inner.__dict__[name] = Method(live, name)
    forks.guard()
    _log.info("%s", live.report)
    return model


def restore(model: M) -> M:
    """Undo :func:`accelerate`: all methods of the model and its submodules are their classes' again."""
    for module in _unwrapped(model, strict=False).modules():
        probes.unpatch(module)
    return model


@contextlib.contextmanager
def accelerated(model: M, **options: Any) -> Iterator[M]:
    """:func:`accelerate` for the duration of a ``with``, then :func:`restore`."""
    accelerate(model, **options)
    try:
        yield model
    finally:
        restore(model)


def acceleration(model: nn.Module) -> AccelerateReport:
    """What :func:`accelerate` did with this model. UserError if it is not accelerated."""
    for value in vars(_unwrapped(model, strict=False)).values():
        if isinstance(value, Method):
            return value.live.report
    raise UserError(f"{type(model).__name__} is not accelerated; call stdc_fast.accelerate(model)")


class Method(InPlace):
    """Of a model that has one plan."""

    def __init__(self, live: Live, name: str):
        self.live, self.name = live, name

    @property
    def module(self) -> nn.Module:
        return self.live.model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.live.call(self.name, args, kwargs)


class Live:
    """What runs an accelerated model. It is copied and pickled with the model, without what is packed."""

    def __init__(self, model: nn.Module, precision: Precision | None, backend: str, main_only: bool):
        self.model, self.precision, self.asked, self.main_only = model, precision, backend, main_only
        self.methods = tuple(n for n in self.entry.methods if hasattr(type(model), n))
        self.match: match.Match | None = None
        self.report: AccelerateReport | None = None
        self.watched = Watched(model, foreign=True)
        self._rejected: list[tuple] | None = None
        self._said = False
        self._shown: dict[tuple, torch.dtype] = {}

    @property
    def entry(self) -> Entry:
        return entry_of(self.model)

    # What can be fast.

    def find(self, given: Tensor | None, partly: bool) -> dict[str, blocks.Block]:
        """Sets :attr:`match` or gives the blocks, and writes the report. UserError where there is neither."""
        model, name = self.model, type(self.model).__name__
        device = next(model.parameters()).device
        images = probes.images(given, device)
        twin = probes.copy_of(model)
        try:
            self._adopt(twin, images)
        except UserError as error:
            why = str(error).removeprefix("state dict: ")
        else:
            return {}
        try:
            names = match.canonical(twin.state_dict()) if partly else {}
            found, parts = blocks.find(model, twin, names, self.entry.run, images)
        except UserError:
            found, parts = {}, []
        if not found:
            raise UserError(f"{name}: {why}")
        dtype = next(model.parameters()).dtype
        error, plain = self._check_blocks(twin, found, images)
        row = Part("", "network", False, why)
        ran = backends.select(None, dtype, device, self.asked).name
        family = match.recognise(twin.state_dict()).name
        text = str(precision_of(dtype))
        self.report = AccelerateReport(name, family, "blocks", ran, text, error, plain, (row, *parts))
        _log.warning("%s: %d blocks are fast, the whole is not: %s", name, len(found), why)
        return found

    def _adopt(self, twin: nn.Module, images: list[Tensor], fixed_sizes: bool = False) -> None:
        """Match the model as a whole; UserError where it has no plan, with the reason."""
        model = self.model
        for name, module in model.named_modules():
            if name and (module._forward_hooks or module._forward_pre_hooks):
                raise UserError(f"has a forward hook on {name}, which one plan would not call")
        if mine := [m for m in self.methods if m in replaced_methods(model)]:
            raise UserError(f"has a {mine[0]} of its own, which was put in the place of its class's")
        found = match.match(model, twin, images, self.main_only, fixed_sizes)
        dtype = next(model.parameters()).dtype
        precision, device = self.precision or precision_of(dtype), images[0].device
        plan = found.plan(twin.state_dict())
        decision = backends.select(plan, precision, device, self.asked)
        executable = decision.backend.compile(plan, precision, device)
        error, plain = match.check_precision(model, twin, found, images, executable, precision, dtype)
        self.match, self.watched = found, Watched(model, foreign=True)
        sizes = "" if found.multiple == 1 else f", height and width multiples of {found.multiple}"
        sizes = f", {found.sizes} only" if found.sizes else sizes
        row = Part("", "network", True, f"one plan{sizes}", found.error)
        names = type(model).__name__, found.family, "whole", decision.name, str(precision)
        self.report = AccelerateReport(*names, error, plain, (row,))

    def _check_blocks(
        self, twin: nn.Module, found: dict[str, blocks.Block], images: list[Tensor]
    ) -> tuple[float, float]:
        """Errors of the main output with all blocks, in float64; each block was compared before."""
        worst, entry = 0.0, self.entry
        with torch.no_grad():
            for x in images:
                try:
                    expected, _ = entry.shows(entry.run(twin, x))
                except Exception:  # of the model's own code, at a size that it does not take
                    continue
                for name, b in found.items():
                    module = twin.get_submodule(name)
                    module.__dict__["forward"] = blocks.Block(module, b.op, b.names, b.converts)
                got, _ = entry.shows(entry.run(twin, x))
                for name in found:
                    probes.unpatch(twin.get_submodule(name))
                if expected is None:
                    continue
                error, problem = probes.difference("output 0", got, expected, 1e-9)
                if problem:
                    raise UserError(f"{type(self.model).__name__}: with fast blocks its {problem}")
                worst = max(worst, error)
        return worst, 0.0

    # Calls.

    def call(self, name: str, args: tuple, kwargs: dict) -> Any:
        """What the model's method returns."""
        method = own(self.model, name)
        if torch.compiler.is_compiling():
            return method(*args, **kwargs)
        image = self.entry.image(args, kwargs)
        state = self._state(image)
        if state is None:
            if self._changed(image):
                return self._renewed(image, name, args, kwargs)
            output = method(*args, **kwargs)
            return _formatted(output, image, self.model) if self.match is None else output
        forks.settle()
        precision, kind = self.precision or precision_of(image.dtype), image.device.type
        if torch.is_autocast_enabled(kind):
            precision = self.precision or precision_of(torch.get_autocast_dtype(kind))
            key = name, kind, torch.get_autocast_dtype(kind)
            if key not in self._shown:  # the dtype that it shows its logits in is torch's affair
                output = method(*args, **kwargs)
                main, _ = self.entry.shows(output)
                if main is not None:
                    self._shown[key] = main.dtype
                return output
            dtype = self._shown[key]
        else:
            dtype = None
        if precision not in state.made:
            state.made[precision] = self._packed(precision)
        logits = state.made[precision].logits(image.detach())
        output = self.entry.present(self.model, name, args, kwargs, logits, self.match.shown)
        if dtype is None or dtype == image.dtype:
            return output
        return (
            output.to(dtype)
            if isinstance(output, Tensor)
            else type(output)((output[0].to(dtype), *output[1:]))
        )

    def _state(self, image: Tensor | None) -> Any:
        """The weights' state, with what is packed; None where the model's own method must run."""
        found = self.match
        if found is None or type(image) is not Tensor or not image.is_floating_point() or image.ndim != 4:
            return None
        n, channels, *size = image.shape
        if not n or channels != 3 or min(size) < MIN_SIZE or any(s % found.multiple for s in size):
            return None
        if found.sizes is not None and tuple(size) not in found.sizes:
            return None
        state = self.watched.state(self.model, (image,))
        if state is None:
            self._say_gradients()
            return None
        return state if image.dtype == state.dtype else None

    def _say_gradients(self) -> None:
        model = self.model
        if self._said or model.training or not torch.is_grad_enabled():
            return
        if any(p.requires_grad for p in model.parameters()):
            self._said = True
            _log.warning(
                "%s: its own forward runs, as gradients are recorded; call it under torch.no_grad() or "
                "torch.inference_mode(), or freeze it: model.requires_grad_(False)", type(model).__name__
            )  # fmt: skip

    def _packed(self, precision: Precision) -> backends.Executable:
        with torch.inference_mode(False), torch.no_grad():
            plan = self.match.plan(self.model.state_dict())
            device = next(self.model.parameters()).device
            return backends.select(plan, precision, device, self.asked).backend.compile(
                plan, precision, device
            )

    def _changed(self, image: Tensor | None) -> bool:
        """Whether the model has become another one, for which there may be a plan."""
        model = self.model
        if type(image) is not Tensor or model.training or image.dim() != 4:
            return False
        if torch.is_grad_enabled() and (
            image.requires_grad or any(p.requires_grad for p in model.parameters())
        ):
            return False
        if not image.is_floating_point() or not self.watched.changed(model):
            return False
        return structure(model, True) != self._rejected

    def _renewed(self, image: Tensor, name: str, args: tuple, kwargs: dict) -> Any:
        """The model's own output; and a new match, compared on this very image, for the next calls."""
        output = own(self.model, name)(*args, **kwargs)
        try:
            with torch.inference_mode(False), torch.no_grad(), probes.one_thread():
                _check(self.model)
                self._adopt(probes.copy_of(self.model), [image.detach().clone().double()], fixed_sizes=True)
            _log.info("%s", self.report)
        except UserError as error:
            self._rejected = structure(self.model, True)
            self.match, self.watched = None, Watched(self.model, foreign=True)
            name = type(self.model).__name__
            _log.warning("%s has changed, and runs as it is: %s", name, str(error).removeprefix(f"{name}: "))
        return output


def _formatted(output: Any, image: Any, model: nn.Module) -> Any:
    """Outputs of a model with fast blocks, whose maps are channels_last, in the memory format of its own."""
    if type(output) in (tuple, list):
        return type(output)(_formatted(one, image, model) for one in output)
    known = isinstance(image, Tensor) and image.ndim == 4 and isinstance(output, Tensor) and output.ndim == 4
    if not known or output.requires_grad:
        return output
    return output.contiguous(memory_format=layout_of(image, model))


# What is refused before anything is compared.


def _unwrapped(model: nn.Module, strict: bool = True) -> nn.Module:
    """The model in torch's wrappers. UserError for what is no module, and for wrappers that would undo it."""
    if not isinstance(model, nn.Module):
        raise UserError(f"expected an nn.Module, not {type(model).__name__}; files go to stdc_fast.load()")
    kinds = {f"{k.__module__.partition('.')[0]}.{k.__name__}" for k in type(model).__mro__}
    if "torch.OptimizedModule" in kinds:
        if strict:
            raise UserError(
                "the model is compiled by torch.compile, whose program would not use the plan; "
                "accelerate model._orig_mod and call that"
            )
        return _unwrapped(model._orig_mod, strict)
    if "torch.DataParallel" in kinds and strict and len(model.device_ids or ()) > 1:
        raise UserError(
            f"DataParallel copies the model to {len(model.device_ids)} devices at each call; "
            "accelerate model.module on one device"
        )
    if kinds & {"torch.DistributedDataParallel", "torch.DataParallel", "torch.AveragedModel"}:
        return _unwrapped(model.module, strict)
    if strict and kinds & {"torch.FullyShardedDataParallel", "torch.ScriptModule", "torch.GraphModule"}:
        raise UserError(f"a {type(model).__name__} has no methods to replace; accelerate the plain model")
    return model


def _check(model: nn.Module) -> None:
    """UserError for weights and modes with which no comparison means anything."""
    name = type(model).__name__
    if isinstance(model, Segmenter):
        raise UserError("a Segmenter is fast already; call its label(), its predict() or itself")
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    if not any(True for _ in model.parameters()):
        raise UserError(f"{name} has no parameters; give an STDC-Seg network")
    if meta := next((k for k, v in tensors.items() if v.is_meta), None):
        raise UserError(f"{name}: {meta} is on the meta device, without values; load its weights first")
    devices = {v.device: k for k, v in tensors.items()}
    if len(devices) > 1:
        text = " and ".join(f"{k} is on {d}" for d, k in list(devices.items())[:2])
        raise UserError(f"{name}: {text}; move it to one device: model.to(device)")
    if (device := next(iter(devices))).type not in ("cpu", "cuda"):
        raise UserError(f"{name} is on {device}; move it to cpu or cuda")
    dtypes = {p.dtype: k for k, p in model.named_parameters() if p.ndim == 4}
    if len(dtypes) > 1:
        text = " and ".join(f"{k} is {d}" for d, k in list(dtypes.items())[:2])
        raise UserError(f"{name}: {text}; cast it to one dtype: model.float()")
    if inference := next((k for k, v in tensors.items() if v.is_inference()), None):
        raise UserError(
            f"{name}: {inference} was made under inference_mode, so that its changes are not counted; "
            "load the weights outside of it"
        )
    bad = next(
        (k for k, v in tensors.items() if v.is_floating_point() and not bool(v.isfinite().all())), None
    )
    if bad:
        raise UserError(f"{name}: {bad} holds NaN or infinite values; load weights that are whole")
    odd = next((k for k, m in model.named_modules() if trains(m) != model.training and not modeless(m)), None)
    if odd is not None:
        modes = [("in training mode" if t else "in eval mode") for t in (not model.training, model.training)]
        raise UserError(
            f"{name}: {odd} is {modes[0]}, the model {modes[1]}; call model.eval(), or model.train(), first"
        )
