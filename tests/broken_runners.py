"""Runners with faults, for the benchmark's tests; workers import them by name."""

import os
import signal

import torch

from stdc_fast.benchmark.runners import Missing, Ours, Runner


class WrongWeights(Ours):
    """A backend that packed one bias wrongly."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        with torch.no_grad():
            self.model.network.cp.conv_head16.bn.bias.add_(0.5)


class Shifted(Ours):
    """A backend whose labels come out one row too low; its logits are right."""

    def prepare(self, scope):
        call = super().prepare(scope)
        return call if scope == "logits" else lambda: call().roll(1, dims=1)


class Crashing(Ours):
    """Dies in its second turn."""

    calls = 0

    def prepare(self, scope):
        call = super().prepare(scope)

        def run():
            self.calls += 1
            if self.calls > 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return call()

        return run


class Absent(Runner):
    """Finds only when it is loaded that it can not run here."""

    def __init__(self, *arguments):
        raise Missing("its driver is too old")


class Raising(Ours):
    """Can not be prepared."""

    def prepare(self, scope):
        raise ValueError("no kernel for 64x128\nand a second line")
