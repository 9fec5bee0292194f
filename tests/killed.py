"""A job in a process that can be killed: forked, so that it begins at once, and heard of through a pipe."""

import os
import signal
import time

from stdc_fast import bulk


def killed(model, sources, out, frames, delay, **options):
    """Label in a process of its own, which SIGKILL ends ``delay`` seconds after so many frames.

    Whether it was killed; False where it was done before. It labels three frames more at most, however late
    this process comes to kill it.
    """
    read, write = os.pipe()
    allowed, allow = os.pipe()
    os.write(allow, bytes(frames + 3))
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(read)

            def on_frame():
                os.write(write, b".")
                os.read(allowed, 1)

            bulk.label(model, sources, out, on_frame=on_frame, **options)
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
    os.close(allowed)
    os.close(allow)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
