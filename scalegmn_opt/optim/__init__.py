"""Learned optimizers."""

from scalegmn_opt.optim.optimizer import LearnedOptimizer
from scalegmn_opt.optim.rule import UpdateRule

__all__ = ["LearnedOptimizer", "UpdateRule"]
