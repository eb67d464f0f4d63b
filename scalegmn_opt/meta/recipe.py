"""Recipes of meta-training runs."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from scalegmn_opt.meta.estimators import Batches, RuleObjective, Shared, TruncatedBackprop
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
    interpolation: float = Field(default=1.0, gt=0, le=1)
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
    """Meta-train an update rule on a suite of tasks, see :mod:`scalegmn_opt.meta.estimators`.

    ``start`` names weights to begin from, packaged ones or a file: of the same size, or without
    networks, which then begin at zero. ``trained: networks`` leaves all other numbers as they are.
    """

    kind: Literal["rule"]
    name: str
    description: str = ""
    suite: str
    rule: RuleSize = RuleSize()
    start: str | None = None
    trained: Literal["all", "networks"] = "all"
    estimator: Literal["truncated-backprop", "es", "pes"] = "truncated-backprop"
    objective: Aim = "log"
    batches: Batches = "training"
    graph: bool = True
    sigma: float = Field(default=0.01, gt=0)
    pairs: int = Field(default=1, ge=1)
    networks: int = Field(default=8, ge=1)
    truncation: int = Field(default=20, ge=1)
    horizon: tuple[int, int] = (50, 500)
    trainer: TrainerOptions
    validation: ValidationOptions | None = None
    seed: int = 0

    def build(self, suite: TaskSuite) -> RuleObjective:
        """The objective to train; the rule's initial weights depend on ``seed`` and ``start``."""
        rule = self._rule()
        shared: Shared = {
            "networks": self.networks,
            "horizon": self.horizon,
            "objective": self.objective,
            "batches": self.batches,
            "graph": self.graph,
        }
        evolution = {"sigma": self.sigma, "pairs": self.pairs}
        match self.estimator:
            case "es":
                return EvolutionStrategies(rule, suite, **evolution, **shared)
            case "pes":
                return PersistentES(rule, suite, truncation=self.truncation, **evolution, **shared)
        return TruncatedBackprop(rule, suite, truncation=self.truncation, **shared)

    def _rule(self) -> UpdateRule:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            rule = UpdateRule(**self.rule.model_dump())
        if self.start is not None:
            known = UpdateRule.from_pretrained(self.start)
            expected = rule.config if known.terms else {**known.config, "symmetry": rule.symmetry}
            if known.config != expected:
                raise ValueError(f"start: expected weights of {expected}, got {known.config}")
            rule.load_state_dict(known.state_dict(), strict=False)
        if self.trained == "networks":
            if rule.terms is None:
                raise ValueError('trained: expected "all" for a rule of channels 0, got "networks"')
            rule.requires_grad_(False).terms.requires_grad_(True)
        return rule
