"""Estimators of the meta-gradient: modules whose loss is differentiable in the meta-parameters."""

import os
from typing import Any, Protocol, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn

from scalegmn_opt.meta.objectives import AIMS, REFERENCED, Aim, log_loss
from scalegmn_opt.meta.task import TaskSuite
from scalegmn_opt.meta.unroll import Batches, InnerRun, RunOptions, unroll
from scalegmn_opt.optim.state import Rule, State

EXPLODED = 1.0  # rise of log(loss + floor) since a run's start after which it is given up


class Worker(Protocol):
    """The state of one virtual worker, advanced by the objective."""

    def state_dict(self) -> dict[str, Any]:
        """Everything a copy needs to go on exactly."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""


class Objective(Protocol):
    """What a ``MetaTrainer`` minimizes; an ``nn.Module`` that holds the trained parameters."""

    def new_worker(self, seed: int) -> Worker:
        """A virtual worker whose randomness depends on ``seed`` alone."""

    def __call__(self, worker: Worker) -> tuple[Tensor, dict[str, float]]:
        """A scalar loss, and numbers for the log; advances ``worker``."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trained weights."""


class Shared(TypedDict, total=False):
    """Options of all estimators, see :class:`RuleObjective`."""

    networks: int
    horizon: tuple[int, int]
    objective: Aim
    batches: Batches
    graph: bool


class RuleObjective(nn.Module):
    """What the estimators share: the inner runs of a rule on a suite, and what they are judged by.

    A window of a run is judged by the mean over its steps and networks of ``log(loss + 0.02)``,
    of the loss, of the log's difference to Adam's curve, or of whether it is above Adam's final
    level (``objective``), after each step, on training or validation batches, or both in turns. A
    window with a number that is not finite counts zero and is logged as skipped. After it, and when
    a loss is e times what it was at first, which is logged as the share of networks that diverged,
    the run begins anew.

    Args:
        rule: the rule to train.
        suite: where tasks come from.
        networks: how many tasks of one architecture are stacked in a worker.
        horizon: shortest and longest length of an inner run in steps.
        objective: ``log``, ``mean``, ``log-ratio`` or ``time-to-target``.
        batches: ``training``, ``validation``, or ``both`` in turns.
        graph: False for a rule that is to be used without a model: it sees no graph.

    Raises:
        ValueError: for another ``objective`` or other ``batches``.
    """

    def __init__(
        self,
        rule: Rule,
        suite: TaskSuite,
        *,
        networks: int = 8,
        horizon: tuple[int, int] = (50, 500),
        objective: Aim = "log",
        batches: Batches = "training",
        graph: bool = True,
    ) -> None:
        super().__init__()
        for name, got, choices in (
            ("objective", objective, get_args(Aim)),
            ("batches", batches, get_args(Batches)),
        ):
            if got not in choices:
                raise ValueError(f"{name}: choose from {list(choices)}, got {got!r}")
        self.rule, self.suite, self.aim = rule, suite, objective
        self.options = RunOptions(
            networks,
            horizon,
            batches=batches,
            referenced=objective in REFERENCED,
            graph=graph,
        )

    def new_worker(self, seed: int) -> InnerRun:
        """A run whose randomness depends on ``seed`` alone."""
        return InnerRun(self.rule, self.suite, options=self.options, seed=seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the rule's weights."""
        self.rule.save_pretrained(path)

    def judge(self, worker: InnerRun, losses: Tensor) -> Tensor:
        """The objective () of ``losses`` (steps, networks) of the worker's next window."""
        return AIMS[self.aim](losses, worker.reference_of(len(losses)))

    def anchored(self, loss: Tensor) -> Tensor:
        """``loss``; distributed training expects each parameter in it, whatever graph was drawn."""
        return loss + sum(0.0 * p.sum() for p in self.parameters())


class TruncatedBackprop(RuleObjective):
    """Backpropagation through windows of ``truncation`` steps: low variance, but biased.

    What a step does to the losses of later windows is not seen. Gradients, parameters and momenta
    that the rule reads are constants (first order); the parameters that the loss reads are not.
    Arguments as of :class:`RuleObjective`, and:

    Args:
        truncation: steps between two meta-gradients.
    """

    def __init__(
        self,
        rule: Rule,
        suite: TaskSuite,
        *,
        truncation: int = 20,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(rule, suite, **shared)
        self.truncation = checked_truncation(truncation)

    def forward(self, worker: InnerRun) -> tuple[Tensor, dict[str, float]]:
        steps = worker.window(self.truncation)
        params, state, losses = unroll(
            self.rule, worker, worker.params, worker.state, steps=steps, differentiable=True
        )
        loss = self.judge(worker, losses)
        log = health(worker, losses)
        worker.remaining -= steps
        if worker.remaining > 0 and not log["diverged"]:
            worker.params = {name: p.detach() for name, p in params.items()}
            worker.state = detached(state)
        else:
            worker.reset()
        # Backpropagation of a number that is not finite would spread it.
        return self.anchored(torch.zeros_like(loss) if log["skipped"] else loss), log


def health(worker: InnerRun, losses: Tensor) -> dict[str, float]:
    """Numbers for the log on a window's ``losses`` (steps, networks)."""
    last, skipped = losses[-1].detach(), not bool(losses.isfinite().all())
    rise = log_loss(last) - log_loss(worker.first_losses)
    diverged = 1.0 if skipped else float((rise > EXPLODED).float().mean())
    inner = 0.0 if skipped else float(last.mean())
    return {"inner_loss": inner, "diverged": diverged, "skipped": float(skipped)}


def detached(state: State) -> State:
    """The same numbers without their history."""
    return {n: {key: x.detach() for key, x in entry.items()} for n, entry in state.items()}


def checked_truncation(truncation: int) -> int:
    """``truncation``, if it is a number of steps."""
    if truncation < 1:
        raise ValueError(f"truncation: expected at least 1, got {truncation}")
    return truncation
