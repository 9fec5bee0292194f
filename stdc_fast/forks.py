"""Children of ``fork``: torch's threads are not in them, and waiting for those would never end."""

from __future__ import annotations

import logging
import os

import torch

_log = logging.getLogger(__name__)

_guarded = False
_parents = 1  # threads that torch had in the parent; 1 in a process that is no such child
_engines = 0  # threads that the engine has in a child, once somebody asked for more than one
_said = False


def guard() -> None:
    """From now on children of this process leave torch one thread.

    Loading a model calls this. It may start threads of torch's, for which every larger operation of torch
    would wait in a child.
    """
    global _guarded
    if not _guarded and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_in_child)
        _guarded = True


def _in_child() -> None:
    global _parents, _said
    _parents, _said = max(_parents, threads()), False
    torch.set_num_threads(1)


def threads() -> int:
    """Number of threads of the CPU engine: torch's; in a child, where it has its own, what was asked for."""
    return max(_engines, torch.get_num_threads())


def settle() -> None:
    """Before anything is computed: in a child, give what ``torch.set_num_threads`` asks for to the engine."""
    global _engines, _said
    if _parents == 1:
        return
    asked = torch.get_num_threads()
    if asked > 1:
        _engines = asked
        torch.set_num_threads(1)
    if not _said:
        _said = True
        if _engines < 2:
            _log.warning(
                "this process was forked from one with %d threads and has 1; "
                "torch.set_num_threads(%d) gives the cpu backend more",
                *(_parents, _parents),
            )
