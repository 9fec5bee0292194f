"""Plain batch norm as the official decoder's in-place one, which scales by ``|gamma| + 1e-5``."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from stdc_fast.checkpoints.families import State
from stdc_fast.errors import UserError

_EPS = 1e-5
# A scale at least so large leaves ``|gamma|`` as many digits as it needs.
_LEAST = 2 * _EPS


def in_place(state: State) -> tuple[State, str]:
    """A canonical state dict whose decoder's norms give the same with in-place batch norm; and a note, or "".

    Reading the result gives each norm weight back, bit by bit in its own dtype, but for the channels that
    the note counts. In-place norm cannot scale by a number below 1e-5. It normalises with fixed statistics
    though, so that a channel of the convolution before and its mean may be multiplied by any number if the
    weight is divided by it. This is exact for -1 and for powers of two.

    Raises UserError, with the values, where such a multiple is no number of the convolution's dtype.
    """
    state, negated, scaled = dict(state), 0, 0
    for norm, conv in _pairs(state):
        gamma = state[f"{norm}.weight"]
        factor = _factors(gamma.double())
        weight = torch.where(factor == 0, factor, gamma.double() / factor)
        if changed := int((factor != 1).sum()):
            for key in (f"{conv}.weight", f"{norm}.running_mean"):
                state[key] = _times(state[key], factor, key, gamma)
            negated += int((factor == -1).sum())
            scaled += changed - int((factor == -1).sum())
        state[f"{norm}.weight"] = _stored(weight)
    notes = [
        f"{count} channels of the decoder have {what}"
        for count, what in (
            (negated, "a negative norm weight, so their convolution is stored negated"),
            (scaled, "a norm weight below 1e-5, so their convolution is stored scaled"),
        )
        if count
    ]
    return state, "; ".join(notes)


def _pairs(state: State) -> Iterator[tuple[str, str]]:
    """(norm, the convolution before it) of the decoder, without their tensors' last names."""
    for key in state:
        norm = key.removesuffix(".running_var")
        if norm != key and not key.startswith("cp.backbone."):
            yield norm, re.sub(r"\.bn(?=$|_atten$)", ".conv", norm)


def _factors(gamma: Tensor) -> Tensor:
    """By channel what its convolution is multiplied by: 1, -1, a power of two, or 0 for a weight of 0."""
    _, exponent = torch.frexp(gamma.abs())
    least = torch.frexp(torch.tensor(_LEAST, dtype=torch.float64))[1]
    shift = (least + 1 - exponent).clamp_(min=0)
    shift = torch.where(gamma.abs() >= _LEAST, 0, shift)
    return torch.ldexp(gamma.sign(), -shift.double())


def _times(tensor: Tensor, factor: Tensor, key: str, gamma: Tensor) -> Tensor:
    """``tensor`` with each channel multiplied by its factor. UserError unless that is exact."""
    shape = (-1, *[1] * (tensor.ndim - 1))
    result = (tensor.double() * factor.view(shape)).to(tensor.dtype)
    back = torch.where(factor == 0, factor, 1 / factor).view(shape)
    wanted = torch.where(factor.view(shape) == 0, 0, tensor.double())
    if lost := (result.double() * back != wanted).flatten(1 if tensor.ndim > 1 else 0).nonzero().tolist():
        channel = lost[0][0]
        raise UserError(
            f"{key}: channel {channel} has the norm weight {gamma[channel].item():.3g}, for which in-place "
            f"batch norm needs values below the range of {tensor.dtype}; use --to official-plain"
        )
    return result


def _stored(weight: Tensor) -> Tensor:
    """The tensor g whose ``|g| + 1e-5`` is the weight: float32 where that is exact, else float64."""
    # A weight of 0 belongs to a channel whose convolution and mean are 0: any g will do.
    weight = torch.where(weight == 0, _EPS, weight)
    first = weight - _EPS
    g = first.float().double()
    for candidate in (first, torch.nextafter(first, first + 1), torch.nextafter(first, first - 1)):
        if torch.equal(g + _EPS, weight):
            break
        g = torch.where(g + _EPS == weight, g, candidate)
    return g.float() if torch.equal(g.float().double(), g) else g
