"""How good a rule is on tasks that it is not trained on: a few fixed runs."""

from dataclasses import dataclass

import torch

from scalegmn_opt.meta.estimators import RuleObjective
from scalegmn_opt.meta.objectives import log_loss
from scalegmn_opt.meta.task import TaskSuite
from scalegmn_opt.meta.unroll import InnerRun, RunOptions, unroll

_WORST = 10.0  # log loss of a run with a number that is not finite


@dataclass(frozen=True)
class RuleValidation:
    """Mean of ``log(loss + 0.02)`` on validation batches, over the steps of fixed inner runs.

    A step counts at most 10, which is also what a number that is not finite counts.

    Args:
        suite: where tasks come from; run ``i`` always has the same.
        every: meta-steps between two validations; the last meta-step has one, too.
        runs: how many runs, each of an architecture of its own.
        networks: how many tasks of one architecture are stacked in a run.
        steps: of a run.

    Raises:
        ValueError: if a number is below 1.
    """

    suite: TaskSuite
    every: int = 50
    runs: int = 8
    networks: int = 2
    steps: int = 200

    def __post_init__(self) -> None:
        for name in ("every", "runs", "networks", "steps"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name}: expected at least 1, got {vars(self)[name]}")

    def loss(self, objective: RuleObjective, number: int) -> float:
        """The loss of run ``number`` with the rule of ``objective``."""
        length, graph = (self.steps, self.steps), objective.options.graph
        options = RunOptions(self.networks, length, batches="validation", graph=graph)
        run = InnerRun(objective.rule, self.suite, options=options, seed=number)
        _, _, losses = unroll(
            objective.rule, run, run.params, run.state, steps=self.steps, differentiable=False
        )
        logs = log_loss(losses).nan_to_num(nan=_WORST).clamp(max=_WORST)
        return float(torch.mean(logs))
