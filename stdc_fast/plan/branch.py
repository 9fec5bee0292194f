"""Ops that can run beside others: a branch of the network that a plan's order puts behind the other one."""

from __future__ import annotations

import dataclasses

from stdc_fast.plan.arena import lifetimes
from stdc_fast.plan.ops import Op
from stdc_fast.plan.plan import Plan


@dataclasses.dataclass(frozen=True)
class Branch:
    """Ops ``first`` to ``last``, indices into the plan's, need nothing of ops ``fork`` to ``first - 1``.

    So they may run beside these, and what follows waits for both.
    """

    fork: int
    first: int
    last: int


def find(plan: Plan) -> Branch | None:
    """The branch that takes most ops off the way from input to output, or None.

    In STDC-Seg that is the attention at 1/16, beside the stage at 1/32.
    """
    best, most = None, 0
    for first in range(1, len(plan.ops)):
        fork = 0
        for last in range(first, len(plan.ops)):
            fork = max(fork, _after(plan, plan.ops[last], first))
            if fork == first:
                break
            saved = min(first - fork, last + 1 - first)
            if saved > most:
                best, most = Branch(fork, first, last), saved
    return best


def _after(plan: Plan, op: Op, end: int) -> int:
    """The first index, of those up to ``end``, from which on an op finds what it reads."""
    for i in reversed(range(end)):
        for written in plan.ops[i].writes:
            if any(read.buffer == written.buffer and read.mask & written.mask for read in op.reads):
                return i + 1
    return 0


def beside(plan: Plan, branch: Branch) -> dict[str, tuple[int, int]]:
    """The lifetimes of :func:`stdc_fast.plan.arena.lifetimes`, where the branch runs beside the others.

    What it uses is alive all the time that the others run.
    """
    lives = lifetimes(plan)
    for op in plan.ops[branch.first : branch.last + 1]:
        for view in [*op.reads, *op.writes]:
            if view.buffer in lives:
                start, stop = lives[view.buffer]
                lives[view.buffer] = min(start, branch.fork), max(stop, branch.last)
    return lives
