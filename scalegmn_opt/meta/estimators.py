"""Estimators of the meta-gradient: modules whose loss is differentiable in the meta-parameters."""

import os
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scalegmn_opt.meta.task import TaskSuite
from scalegmn_opt.meta.unroll import InnerRun
from scalegmn_opt.optim.rule import UpdateRule
from scalegmn_opt.optim.state import State

LOSS_FLOOR = 0.02  # log(loss + floor): a loss near zero is as good as zero
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


class TruncatedBackprop(nn.Module):
    """Backpropagation through windows of ``truncation`` steps of inner training.

    The loss is the mean over the window's steps and networks of ``log(loss + 0.02)`` after each
    step. Gradients, parameters and momenta that the rule reads are constants (first order); the
    parameters that the loss reads are not. A window with a number that is not finite counts zero;
    after it, and when a loss is e times what it was at first, the run begins anew.

    Args:
        rule: the rule to train.
        suite: where tasks come from.
        networks: how many tasks of one architecture are stacked in a worker.
        truncation: steps between two meta-gradients.
        horizon: shortest and longest length of an inner run in steps.
    """

    def __init__(
        self,
        rule: UpdateRule,
        suite: TaskSuite,
        *,
        networks: int = 8,
        truncation: int = 20,
        horizon: tuple[int, int] = (50, 500),
    ) -> None:
        super().__init__()
        if truncation < 1:
            raise ValueError(f"truncation: expected at least 1, got {truncation}")
        self.rule, self.suite = rule, suite
        self.networks, self.truncation, self.horizon = networks, truncation, horizon

    def new_worker(self, seed: int) -> InnerRun:
        return InnerRun(self.suite, networks=self.networks, horizon=self.horizon, seed=seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        self.rule.save_pretrained(path)

    def forward(self, worker: InnerRun) -> tuple[Tensor, dict[str, float]]:
        params, state, losses = self._unroll(worker)
        loss = torch.log(losses[1:] + LOSS_FLOOR).mean()
        healthy = bool(torch.isfinite(loss))
        rise = torch.log((losses[-1].detach() + LOSS_FLOOR) / (worker.first_losses + LOSS_FLOOR))
        exploded = not healthy or bool((rise > EXPLODED).any())
        log = {"inner_loss": float(losses[-1].detach().mean()), "diverged": float(exploded)}
        worker.remaining -= self.truncation
        if worker.remaining > 0 and not exploded:
            worker.params = {name: p.detach() for name, p in params.items()}
            worker.state = state
        else:
            worker.reset()
        if not healthy:
            loss, log["inner_loss"] = torch.zeros(()), 0.0
        # Distributed training expects each parameter in each loss, whatever graph was drawn.
        return loss + sum(0.0 * p.sum() for p in self.parameters()), log

    def _unroll(self, worker: InnerRun) -> tuple[dict[str, Tensor], State, Tensor]:
        graph = worker.tasks[0].graph
        params = {name: p.detach().requires_grad_() for name, p in worker.params.items()}
        state, losses = worker.state, []
        for _ in range(self.truncation):
            losses.append(worker.losses(params))
            grads = _gradients(losses[-1], params)
            read = {name: p.detach() for name, p in params.items()}
            updates, state = self.rule(graph, read, grads, state)
            params = {name: p + updates[name] for name, p in params.items()}
        losses.append(worker.losses(params))
        return params, state, torch.stack(losses)


def _gradients(losses: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of each network's own loss; zero for a parameter its loss does not read."""
    found = torch.autograd.grad(
        losses.sum(), list(params.values()), retain_graph=True, allow_unused=True
    )
    return {
        name: torch.zeros_like(p) if grad is None else grad.detach()
        for (name, p), grad in zip(params.items(), found, strict=True)
    }
