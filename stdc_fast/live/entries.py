"""How a code base calls its network, and where fast logits enter: by duck typing, without imports."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from stdc_fast.freshness import Replacement
from stdc_fast.reference.networks import upsample


@dataclasses.dataclass(frozen=True)
class Shown:
    """How a model shows its logits.

    Attributes:
        full: whether at the image's size; else they are those at 1/8.
        align_corners: of that interpolation.
        others: number of outputs beside the main one, in a tuple or list; None for a bare tensor.
        sequence: type of that tuple or list.
        lone: whether there is one class, of which the plan has two.
    """

    full: bool = True
    align_corners: bool = True
    others: int | None = None
    sequence: type = tuple
    lone: bool = False


class InPlace(Replacement):
    """In the ``__dict__`` of a module in place of one of its methods, with that one's signature and code."""

    module: nn.Module
    name = "forward"

    # For torch.export, and whoever else looks at what he calls.
    __wrapped__ = property(lambda self: own(self.module, self.name))
    __code__ = property(lambda self: self.__wrapped__.__code__)


class Entry:
    """Of models whose ``forward`` maps an image to logits, or to a sequence that begins with them."""

    methods: tuple[str, ...] = ("forward",)

    def trials(self, model: nn.Module, image: Tensor) -> list[tuple[str, tuple]]:
        """Calls of its methods, with their arguments, on a probe."""
        return [("forward", (image,))]

    def run(self, model: nn.Module, image: Tensor) -> Any:
        """What the model itself makes of a probe, before anything that only a frame around it does."""
        return model(image)

    def image(self, args: tuple, kwargs: dict) -> Tensor | None:
        """The image in the arguments of a call; None for a call of another form."""
        if len(args) == 1 and not kwargs:
            return args[0]
        return next(iter(kwargs.values())) if not args and len(kwargs) == 1 else None

    def shows(self, output: Any) -> tuple[Tensor | None, Shown]:
        """The main output of :meth:`run`, and what is known of how it is shown."""
        if isinstance(output, Tensor):
            return output, Shown()
        if type(output) in (tuple, list) and output and isinstance(output[0], Tensor):
            return output[0], Shown(others=len(output) - 1, sequence=type(output))
        return None, Shown()

    def present(
        self, model: nn.Module, name: str, args: tuple, kwargs: dict, logits: Tensor, shown: Shown
    ) -> Any:
        """What the method ``name`` returns, made of logits at 1/8."""
        image = self.image(args, kwargs)
        y = main_output(logits, image, shown, layout_of(image, model))
        return y if shown.others is None else shown.sequence((y, *[None] * shown.others))


class EncodeDecode(Entry):
    """mmsegmentation's ``EncoderDecoder``, 0.x and 1.x: its own methods, on stand-ins that have the logits.

    So whole and sliding inference, metas, resizing and whatever a subclass does with logits stay its own.
    """

    methods = ("encode_decode", "_forward", "forward_dummy")

    def trials(self, model: nn.Module, image: Tensor) -> list[tuple[str, tuple]]:
        size = tuple(image.shape[2:])
        meta = {"ori_shape": size, "img_shape": size, "pad_shape": size, "padding_size": [0] * 4}
        metas = [meta for _ in image]
        arguments = {"encode_decode": (image, metas), "_forward": (image,), "forward_dummy": (image,)}
        return [(name, arguments[name]) for name in self.methods if hasattr(type(model), name)]

    def run(self, model: nn.Module, image: Tensor) -> Any:
        return model.decode_head.forward(model.extract_feat(image))

    def image(self, args: tuple, kwargs: dict) -> Tensor | None:
        return args[0] if args else kwargs.get("inputs", kwargs.get("img"))

    def shows(self, output: Any) -> tuple[Tensor | None, Shown]:
        return (output if isinstance(output, Tensor) else None), Shown(full=False)

    def present(
        self, model: nn.Module, name: str, args: tuple, kwargs: dict, logits: Tensor, shown: Shown
    ) -> Any:
        image = self.image(args, kwargs)
        y = main_output(logits, image, shown, layout_of(image, model))
        head = _StandIn(model.decode_head, forward=lambda *_, **__: y)
        whole = _StandIn(model, extract_feat=lambda *_, **__: None, decode_head=head)
        return getattr(type(model), name)(whole, *args, **kwargs)


class _StandIn:
    """A module but for some members; its own methods see the stand-in as ``self``."""

    def __init__(self, real: nn.Module, **given: Any):
        self.__dict__.update(given)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if getattr(value, "__self__", None) is self._real and isinstance(value, MethodType):
            return MethodType(value.__func__, self)
        function = getattr(type(self._real), name, None)
        # Where the method of the live model is replaced by ours, the class has its own.
        return MethodType(function, self) if name in vars(self._real) and callable(function) else value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


def entry_of(model: nn.Module) -> Entry:
    parts = ("encode_decode", "extract_feat", "decode_head")
    return EncodeDecode() if all(hasattr(model, part) for part in parts) else Entry()


def layout_of(image: Tensor, model: nn.Module) -> torch.memory_format:
    """The memory format of maps that torch's convolutions make of an image: channels_last if either is."""
    kernel = next((p for p in model.parameters() if p.ndim == 4), image)
    return torch.channels_last if any(map(_is_channels_last, (image, kernel))) else torch.contiguous_format


def _is_channels_last(x: Tensor) -> bool:
    """By its strides, as torch tells it."""
    least, strides = 0, x.stride()
    for dim in (1, 3, 2, 0):
        apart = strides[dim] >= least and strides[1] > 0 and not (dim == 0 and least == strides[1])
        if x.is_contiguous() or not apart:
            return False
        least = strides[dim] * x.shape[dim]
    return True


def main_output(
    logits: Tensor, image: Tensor, shown: Shown, layout: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Logits at 1/8 as the model shows them, in the dtype of its input."""
    logits = logits[:, 1:] if shown.lone else logits
    logits = logits.contiguous(memory_format=layout)
    y = upsample(logits, image.shape[2:], shown.align_corners) if shown.full else logits
    return y.to(image.dtype)


def own(model: nn.Module, name: str) -> Callable:
    """The method that the class has, whatever stands in its place on this model."""
    return getattr(type(model), name).__get__(model)
