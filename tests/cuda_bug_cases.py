"""What runs on CUDA kernels with planted bugs: plans in which these matter, and what is wrong with them."""

import functools

from cases import GATES, OFFSET, STEMS, down, labelled, prologue
from hosted import SCHEDULES, Hosted, forced, scheduled, spared
from levelled import both_signs
from levelled import case as levelled
from oracle import HALF, answers, check, wrong_labels
from plans import random_frames
from sketch import between, plain, sketched

from stdc_fast.backends.cuda.fusion import possible
from stdc_fast.plan.ops import View

WRONG = "wrong numbers"


# In tiles of 32 pixels and chunks of 16 channels.


@sketched(48)
def average(s, x):
    y, mean = s.buffer(36, 1), s.vector(36)
    s.conv(x, y, 3, mean=mean)
    return s.scale(y, s.gate(mean, (36,), ("sigmoid+1",)))


@sketched(6)
def unwritten(s, x):
    """20 of 40 channels, aligned to vectors of 8; the others are NaN."""
    y = View(s.buffer(40, 1).buffer, 8, 20)
    s.conv(x, y, 1)
    return s.conv(y, 40, 3)


@sketched(3, store="uint8")
def opening(s, x):
    return s.conv(s.stem(x, 20, OFFSET), 40, 3, 2)


@sketched(6)
def gated(s, x):
    """A convolution that computes the gate that is its scale, and has another beside it."""
    mean, other = s.vector(36), s.vector(20)
    x = s.conv(s.conv(x, 36, 1, mean=mean), 20, 1, 2, mean=other)
    scale, later = s.gate(other, (20,), ("sigmoid",)), s.gate(mean, (36,), ("none",))
    return s.scale(s.conv(x, 36, 2, scale=scale), later)


@sketched(6)
def head(s, x):
    return s.conv(s.conv(x, 128, 3), 19, 1, act="none", bias=False, store="float32")


def on_levels(make, *names):
    """The plan with these ops on levels, by default all that can be."""
    return lambda: levelled(make, names or None)[0]


@sketched(24)
def levels_of_a_part(s, x):
    """Twenty channels of levels in a buffer of 40, of which every second pixel is aligned to vectors."""
    y = View(s.buffer(40, 1).buffer, 16, 20)
    s.conv(x, y, 1)
    return s.conv(y, 40, 3)


CASES = {
    "3x3": (plain(160, 40, 3, 1), {"chunk": 64}),  # steps of 64 channels, and one of less
    "1x1": (plain(400, 40, 1, 1), {"chunk": 128}),
    "short": (plain(160, 40, 1, 1), {}),  # no step is full
    "views": (between(10, 19, 3, 1), {}),
    "unwritten": (unwritten, {}),
    "prologue": (prologue(32, 3, scale=True, add="vector"), {}),
    "average": (average, {}),
    "shared": (plain(64, 40, 3, 1), {"split": 4}),
    "levels": (on_levels(plain(160, 40, 3, 1)), {"chunk": 64}),
    "levels of both signs": (on_levels(both_signs), {}),
    "levels of a part": (on_levels(levels_of_a_part, "op 1"), {}),
    "shared levels": (on_levels(plain(128, 40, 3, 1)), {"split": 4}),
    "wgmma 3x3": (plain(64, 40, 3, 1), {"chunk": 64, "wgmma": 1}),
    "wgmma chunks": (plain(64, 40, 3, 1), {"wgmma": 1}),
    "wgmma 1x1": (plain(160, 40, 1, 1), {"wgmma": 1}),
    "cluster": (plain(160, 40, 3, 1), {"chunk": 64, "wgmma": 1, "cluster": 2}),
    "stem": (STEMS["32 of frames"], None),
    "opening": (opening, None),
    "gated": (gated, {}),
    "head": (head, {"wgmma": 1}),
    "down": (down(34, 40, True), None),
    "gate": (GATES["two layers, relu and sigmoid"], None),
    "wide gate": (GATES["700 channels"], {}),
    "labels": (functools.partial(labelled, 11), None),
}
#: Cases in which ops have no kernels of their own where there is one for several.
FUSED = {"opening", "gated", "head"}
SHAPES = [(2, 6, 19), (1, 3, 5)]


def outcomes(case):
    """What each schedule finds in a case, with races watched for and without: a message, or nothing."""
    make, tiles = CASES[case]
    plan = make()
    choose = None if tiles is None else forced(None if "wgmma" in tiles else (64, 64, 4), **tiles)
    fused = possible if case in FUSED else False
    known = answers(plan, HALF, SHAPES)
    found = {"watched": {}, "unwatched": {}}
    for schedule in SCHEDULES:
        for how, options in (("watched", {"block_races": True}), ("unwatched", {"races": False})):
            with scheduled(schedule, **options):
                found[how][schedule] = outcome(
                    Hosted(plan, HALF, choose, fused=fused), known, case == "labels"
                )
    return found


def outcome(executable, known, labels):
    try:
        for inputs, expected in [*known, known[0]]:
            check(executable(*inputs), expected, HALF)
            spared(executable)
        if labels:
            frames = random_frames(1, 24, 80)
            assert wrong_labels(executable.labels(frames), executable(frames)) == 0
            # All logits the same: the first class.
            even = executable.plan.ops[-2].name
            executable._packed[even].weight.zero_()
            executable._instances.clear()
            assert not executable.labels(frames).any()
    except AssertionError as error:
        return f"{WRONG}: {error}".splitlines()[0]
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None
