"""Learned optimizers, and their controls without anything learned."""

from scalegmn_opt.optim.controls import GaugeAdam, GaugeMuon
from scalegmn_opt.optim.guard import Health
from scalegmn_opt.optim.optimizer import LearnedOptimizer
from scalegmn_opt.optim.rule import UpdateRule

__all__ = ["GaugeAdam", "GaugeMuon", "Health", "LearnedOptimizer", "UpdateRule"]
