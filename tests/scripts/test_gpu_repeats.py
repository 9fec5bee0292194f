"""What compares replays in turns, with stand-ins on the CPU: a result that is late by one call is found."""

import torch

from bench.gpu_repeats import differing

TIMES = 6


class Right:
    """An executable whose results are the frames."""

    def __call__(self, frames):
        return frames.float()

    def labels(self, frames):
        return frames[..., 0]


class Late(Right):
    """One whose kernels read what the call before has left; the first call is right."""

    def __init__(self):
        self.left = None

    def __call__(self, frames):
        self.left, read = frames, frames if self.left is None else self.left
        return super().__call__(read)


def frames():
    return torch.randint(0, 256, (2, 1, 4, 6, 3), dtype=torch.uint8).unbind()


def test_what_is_right_differs_never():
    assert differing(Right(), Right(), frames(), TIMES) == 0


def test_a_result_that_is_late_by_one_call_is_found():
    assert differing(Late(), Right(), frames(), TIMES) == TIMES - 1


def test_one_frame_alone_would_hide_it():
    first, _ = frames()
    assert differing(Late(), Right(), (first, first), TIMES) == 0
