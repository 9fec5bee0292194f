"""STDC-Seg as data: :func:`build` a plan from a network, :func:`optimise` it, give it to a backend."""

from stdc_fast.plan.build import build
from stdc_fast.plan.plan import Plan
from stdc_fast.plan.rewrites import REWRITES, optimise

__all__ = ["REWRITES", "Plan", "build", "optimise"]
