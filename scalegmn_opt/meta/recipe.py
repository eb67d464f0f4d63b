"""Recipes of meta-training runs."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from scalegmn_opt.meta.estimators import TruncatedBackprop
from scalegmn_opt.meta.task import TaskSuite
from scalegmn_opt.optim.rule import UpdateRule


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RuleSize(_Strict):
    """Size of a rule's backbone, see :class:`UpdateRule`."""

    node_channels: int = Field(default=16, ge=1)
    edge_channels: int = Field(default=8, ge=1)
    hidden_channels: int = Field(default=32, ge=1)
    num_layers: int = Field(default=1, ge=1)


class TrainerOptions(_Strict):
    """How long and how fast, see :class:`MetaTrainer`."""

    steps: int = Field(ge=1)
    workers: int = Field(default=2, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    clip: float = Field(default=1.0, gt=0)
    checkpoint_every: int = Field(default=50, ge=1)
    seconds: float | None = Field(default=None, gt=0)


class RuleRecipe(_Strict):
    """Meta-train an update rule on a suite of tasks by truncated backpropagation."""

    kind: Literal["rule"]
    name: str
    description: str = ""
    suite: str
    rule: RuleSize = RuleSize()
    networks: int = Field(default=8, ge=1)
    truncation: int = Field(default=20, ge=1)
    horizon: tuple[int, int] = (50, 500)
    trainer: TrainerOptions
    seed: int = 0

    def objective(self, suite: TaskSuite) -> TruncatedBackprop:
        """The objective to train; the rule's initial weights depend on ``seed`` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            rule = UpdateRule(**self.rule.model_dump())
        return TruncatedBackprop(
            rule,
            suite,
            networks=self.networks,
            truncation=self.truncation,
            horizon=self.horizon,
        )
