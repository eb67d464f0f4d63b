"""Learned optimizers, and their controls without anything learned."""

from scalegmn_opt.optim.controls import GaugeAdam, GaugeMuon, PathSGD
from scalegmn_opt.optim.explain import Explanation, ParameterStep, draw_steps
from scalegmn_opt.optim.guard import Health
from scalegmn_opt.optim.optimizer import LearnedOptimizer
from scalegmn_opt.optim.rule import UpdateRule

__all__ = [
    "Explanation",
    "GaugeAdam",
    "GaugeMuon",
    "Health",
    "LearnedOptimizer",
    "ParameterStep",
    "PathSGD",
    "UpdateRule",
    "draw_steps",
]
