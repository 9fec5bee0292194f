"""A job in a process that can be killed: forked, so that it begins at once, and heard of through a pipe."""

import os
import signal
import time

from stdc_fast import bulk


def killed(model, sources, out, frames, delay, **options):
    """Label in a process of its own, which SIGKILL ends ``delay`` seconds after so many frames.

    Whether it was killed; False where it was done before.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(read)
            bulk.label(model, sources, out, on_frame=lambda: os.write(write, b"."), **options)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb", buffering=0) as pipe:
        for _ in range(frames):
            if not pipe.read(1):  # it is at its end
                break
        time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
