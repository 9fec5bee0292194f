"""The one exception for what a user can mend, and lines about what was taken for granted."""

import collections
import logging
import os

_log = logging.getLogger("stdc_fast")
# The oldest are forgotten, so that a server's memory does not grow.
_said: collections.deque[tuple[str, str]] = collections.deque(maxlen=1024)


class UserError(ValueError):
    """A mistake in the input, said in one line with the values and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


def announce(name: str, message: str, *values: object) -> None:
    """Log ``name: message % values`` as a warning, a message once for all files of a folder."""
    kind = os.path.dirname(name), message
    if kind not in _said:
        _said.append(kind)
        _log.warning(f"%s: {message}", name, *values)
