"""What an engine tells the tests that all engines share."""

import functools

import torch
from oracle import FULL, answers, check


class Engine:
    """A backend on a device, whose executables start with memory of NaN."""

    #: In the ids of tests, and as users name it.
    name = backend = ""
    device = "cpu"
    #: What it computes in, and of that what takes odd numbers of channels.
    dtypes = odd = (FULL,)
    #: By default each case runs in one dtype, not in all.
    thrifty = True
    #: By default whole networks run at some sizes and dtypes, not at all: another engine of its kind does.
    second = False
    #: Shapes (batch, height, width) by default and widely.
    few = ((1, 1, 2), (3, 3, 5), (1, 8, 34))
    many = ((3, 1, 1), (1, 1, 2), (2, 2, 1), (3, 3, 5), (1, 8, 6), (3, 9, 34), (1, 17, 33))
    #: Sizes of the photo and shapes of random frames for whole networks; the first ones by default.
    photos = ((96, 128), (129, 159))
    frames = ((1, 64, 128), (2, 40, 35), (1, 33, 71))
    #: How often in a row a case runs on the same input.
    runs = 1
    #: Whether logits come as planes; maps are channels_last everywhere.
    planar = True
    marks = ()

    def __repr__(self):
        return self.name

    def why_not(self) -> str | None:
        """Why it can not run here."""
        raise NotImplementedError

    def compile(self, plan, dtype, **how):
        """The executable, with all memory NaN before each run; ``how`` is the backend's own."""
        raise NotImplementedError

    def force(self, monkeypatch) -> list:
        """Makes it the backend of modules, ops and models that name none.

        Returns the plans that it compiles, which are none yet.
        """
        raise NotImplementedError

    def transformed(self, executable) -> frozenset[str]:
        """Names of convolutions that are computed by Winograd's tiles, which round in other places."""
        return frozenset()

    def inspect(self, executable, inputs) -> None:
        """What else must be so after a run on ``inputs``."""

    def both(self, executable, image, **how):
        """Logits and labels on the CPU."""
        image, seen = self.put(image), how.get("seen")
        logits = executable(image) if seen is None else executable.logits(image, seen)
        return logits.cpu(), executable.labels(image, **how).cpu()

    def images(self, dtype) -> torch.dtype:
        """What normalised images of other dtypes are converted to."""
        return FULL

    def put(self, x):
        return x.to(self.device)

    def agrees(self, make, dtype, shapes, tiles=None):
        """The plan's results are those of the eager backend, rounding alike; inputs stay.

        ``make`` gives the plan, or is it. Returns the executable.
        """
        plan = planned(make)
        executable = self.compile(plan, dtype, **({} if tiles is None else {"tiles": tiles}))
        known = expected(make, dtype, tuple(shapes), self.transformed(executable))
        for inputs, exact in known:
            given = [self.put(x.clone()) for x in inputs]
            for _ in range(self.runs):
                got = executable(*given)
                assert got.device.type == self.device
                assert got.dtype == (FULL if executable._of_network else dtype)
                planes = executable._of_network and self.planar
                assert got.is_contiguous(
                    memory_format=torch.contiguous_format if planes else torch.channels_last
                )
                check(got.cpu(), exact, dtype, list(inputs[0].shape))
                self.inspect(executable, inputs)
            assert all(torch.equal(x.cpu(), before) for x, before in zip(given, inputs, strict=True))
        return executable


@functools.lru_cache(maxsize=64)
def planned(make):
    """A case's plan."""
    return make() if callable(make) else make


@functools.lru_cache(maxsize=64)
def expected(make, dtype, shapes, tiles):
    """A case's inputs and what must come out: the same for all engines that compute alike."""
    return answers(planned(make), dtype, shapes, tiles)
