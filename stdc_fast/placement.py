"""Keeps tensors where the library makes them, whatever ``torch.set_default_device`` says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P, R = ParamSpec("P"), TypeVar("R")


def on_cpu(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, within which tensors without a device of their own are made on the CPU."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # A compiler looks into the function; and a mode of torch's costs time in every call within.
        if torch.compiler.is_compiling() or torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return run
