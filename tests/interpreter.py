"""Triton's interpreter, in half the time."""

import dataclasses
import importlib.util
import os


def quicken(overflow: bool) -> None:
    """Leaves out what changes no result, where Triton is interpreted and has it.

    Each call of a function within a kernel looks through all of Triton's language for what to replace; here
    only the first of a module does. ``overflow`` says whether each sum, difference and product of integers is
    checked for overflow, as it is otherwise: no index of a small map comes near that.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    kind, replaced = interpreter.InterpretedFunction, set()
    first = kind.__call__

    def call(self, *args, **kwargs):
        if self.fn.__module__ in replaced:
            return self.rewrite()(*args, **kwargs)
        result = first(self, *args, **kwargs)
        replaced.add(self.fn.__module__)
        return result

    if hasattr(kind, "rewrite"):
        kind.__call__ = call
    builder = interpreter.interpreter_builder
    if hasattr(builder.options, "sanitize_overflow"):
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=overflow)
