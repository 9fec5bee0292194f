"""The one exception for what a user can mend, and lines about what was taken for granted."""

import collections
import contextlib
import contextvars
import logging
import os
import threading
from collections.abc import Iterator

_log = logging.getLogger("stdc_fast")
_listener: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar(
    "stdc_fast_remarks", default=None
)
# The oldest are forgotten, so that a server's memory does not grow.
_said: collections.deque[tuple[str, str]] = collections.deque(maxlen=1024)
_saying = threading.Lock()


class UserError(ValueError):
    """A mistake in the input, said in one line with the values and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


def announce(name: str, message: str, *values: object) -> None:
    """Log ``name: message % values`` as a warning, a message once for all files of a folder."""
    kind = os.path.dirname(name), message
    if (heard := _listener.get()) is not None:
        heard.append(f"{name}: {message % values}")
    with _saying:
        new = kind not in _said
        if new:
            _said.append(kind)
    if new:
        _log.warning(f"%s: {message}", name, *values)


@contextlib.contextmanager
def remarks() -> Iterator[list[str]]:
    """All lines of :func:`announce` in this thread, also those that the log has had before, as a list."""
    heard: list[str] = []
    token = _listener.set(heard)
    try:
        yield heard
    finally:
        _listener.reset(token)


class BatchError(UserError):
    """Some images of a batch failed; the others were done.

    ``results`` has the finished :class:`Segmentation` objects in order (empty when streaming),
    ``failures`` the (name, message) pairs.
    """

    def __init__(self, results: list, failures: list[tuple[str, str]], total: int):
        lines = "; ".join(message for _, message in failures[:3])
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        super().__init__(f"{len(failures)} of {total} images failed: {lines}{more}")
        self.results = results
        self.failures = failures
        self.total = total

    def __reduce__(self):
        return type(self), (self.results, self.failures, self.total)
