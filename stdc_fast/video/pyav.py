"""PyAV, which reads and writes videos and may be missing."""

from __future__ import annotations

import functools

from stdc_fast.errors import UserError


@functools.cache
def av():
    """The package ``av``; UserError, with the remedy, without it."""
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"videos need PyAV, which can not be imported ({error}); run pip install av"
        ) from None
    return av


def reason(error: Exception) -> str:
    """What FFmpeg or the system says of a failure."""
    if isinstance(error, av().error.ExitError):  # of our own time-out
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error).strip().split("\n")[0] or type(error).__name__
