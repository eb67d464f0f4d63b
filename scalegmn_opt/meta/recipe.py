"""Recipes of meta-training runs."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from scalegmn_opt.meta.estimators import Batches, RuleObjective, TruncatedBackprop
from scalegmn_opt.meta.evolution import EvolutionStrategies, PersistentES
from scalegmn_opt.meta.objectives import Aim
from scalegmn_opt.meta.task import TaskSuite
from scalegmn_opt.optim.rule import SymmetryName, UpdateRule


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RuleSize(_Strict):
    """Size of a rule's networks, see :class:`UpdateRule`."""

    channels: int = Field(default=16, ge=0)
    message_channels: int = Field(default=8, ge=1)
    hidden_channels: int = Field(default=32, ge=1)
    weight_channels: int = Field(default=8, ge=1)
    symmetry: SymmetryName = "scale"


class TrainerOptions(_Strict):
    """How long and how fast, see :class:`MetaTrainer`."""

    steps: int = Field(ge=1)
    workers: int = Field(default=2, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    clip: float = Field(default=1.0, gt=0)
    clip_quantile: float | None = Field(default=None, gt=0, le=1)
    average: float = Field(default=0.0, ge=0, lt=1)
    checkpoint_every: int = Field(default=50, ge=1)
    seconds: float | None = Field(default=None, gt=0)


class ValidationOptions(_Strict):
    """Tasks to tell the best weights by, see :class:`RuleValidation`."""

    suite: str
    every: int = Field(default=50, ge=1)
    runs: int = Field(default=8, ge=1)
    networks: int = Field(default=2, ge=1)
    steps: int = Field(default=200, ge=1)


class RuleRecipe(_Strict):
    """Meta-train an update rule on a suite of tasks, see :mod:`scalegmn_opt.meta.estimators`."""

    kind: Literal["rule"]
    name: str
    description: str = ""
    suite: str
    rule: RuleSize = RuleSize()
    estimator: Literal["truncated-backprop", "es", "pes"] = "truncated-backprop"
    objective: Aim = "log"
    batches: Batches = "training"
    sigma: float = Field(default=0.01, gt=0)
    pairs: int = Field(default=1, ge=1)
    networks: int = Field(default=8, ge=1)
    truncation: int = Field(default=20, ge=1)
    horizon: tuple[int, int] = (50, 500)
    trainer: TrainerOptions
    validation: ValidationOptions | None = None
    seed: int = 0

    def build(self, suite: TaskSuite) -> RuleObjective:
        """The objective to train; the rule's initial weights depend on ``seed`` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            rule = UpdateRule(**self.rule.model_dump())
        common: dict[str, Any] = {
            "networks": self.networks,
            "horizon": self.horizon,
            "objective": self.objective,
            "batches": self.batches,
        }
        match self.estimator:
            case "es":
                return EvolutionStrategies(
                    rule, suite, sigma=self.sigma, pairs=self.pairs, **common
                )
            case "pes":
                return PersistentES(
                    rule,
                    suite,
                    truncation=self.truncation,
                    sigma=self.sigma,
                    pairs=self.pairs,
                    **common,
                )
        return TruncatedBackprop(rule, suite, truncation=self.truncation, **common)
