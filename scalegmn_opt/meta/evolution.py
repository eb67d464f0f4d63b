"""Meta-gradients from losses alone: antithetic evolution strategies over whole runs, and PES."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.meta.estimators import (
    Batches,
    RuleObjective,
    checked_truncation,
    health,
)
from scalegmn_opt.meta.objectives import Aim
from scalegmn_opt.meta.task import TaskSuite
from scalegmn_opt.meta.unroll import InnerRun, Params, Step, unroll
from scalegmn_opt.optim.state import Rule, State


class PairedRun(InnerRun):
    """An inner run whose second copy is trained by the opposite perturbation.

    ``twin`` is the second copy's parameters and state, ``drift`` the sum of the first copy's
    perturbations by name since the run began.
    """

    twin: tuple[Params, State]
    drift: Params

    def reset(self) -> None:
        """Begin a new run with both copies at one point."""
        super().reset()
        self.twin, self.drift = (self.params, self.state), {}

    def state_dict(self) -> dict[str, Any]:
        """Everything a copy needs to go on exactly."""
        return {**super().state_dict(), "twin": self.twin, "drift": self.drift}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        super().load_state_dict(state)
        self.twin, self.drift = state["twin"], state["drift"]


class EvolutionStrategies(RuleObjective):
    """Antithetic differences of whole runs: the gradient of a smoothed objective, without bias.

    ``g = (L(θ + ε) - L(θ - ε)) / (2 σ²) · ε`` with ``ε ~ N(0, σ²)``, one pair of runs from equal
    starts on equal batches each time. Memory does not grow with the length of a run. Arguments as
    of :class:`RuleObjective`, and:

    Args:
        sigma: deviation of the perturbation of each meta-parameter.

    References:
        Salimans et al., arXiv 1703.03864; Metz et al., arXiv 1810.10180.
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
        sigma: float = 0.01,
    ) -> None:
        super().__init__(
            rule, suite, networks=networks, horizon=horizon, objective=objective, batches=batches
        )
        self.sigma = _checked_sigma(sigma)

    def new_worker(self, seed: int) -> PairedRun:
        return PairedRun(self.rule, self.suite, options=self.options, seed=seed)

    def forward(self, worker: PairedRun) -> tuple[Tensor, dict[str, float]]:
        return self.estimate(worker, steps=worker.remaining)

    def estimate(self, worker: PairedRun, *, steps: int) -> tuple[Tensor, dict[str, float]]:
        """A loss whose gradient is the estimate for the next ``steps`` steps; advances both."""
        noise = {
            name: self.sigma
            * torch.randn(p.shape, generator=worker.generator, dtype=p.dtype).to(p.device)
            for name, p in self.rule.named_parameters()
        }
        drift = {name: worker.drift.get(name, 0.0) + e for name, e in noise.items()}
        start, begun = worker.generator.get_state(), (worker.params, worker.state)
        plus = unroll(self._moved(noise, 1), worker, *begun, steps=steps, differentiable=False)
        worker.generator.set_state(start)  # the same batches
        minus = unroll(
            self._moved(noise, -1), worker, *worker.twin, steps=steps, differentiable=False
        )
        high, low = (self.judge(worker, losses) for losses in (plus[2], minus[2]))
        log = health(worker, torch.maximum(plus[2], minus[2]))
        worker.remaining -= steps
        if worker.remaining > 0 and not log["diverged"]:
            (worker.params, worker.state), worker.twin = _kept(plus), _kept(minus)
            worker.drift = drift
        else:
            worker.reset()
        if log["skipped"]:
            return self.anchored(torch.zeros(())), log
        slope = (high - low) / (2 * self.sigma**2)
        # Has the mean of both as its value, and the estimate as its gradient.
        pull = sum(
            (slope * drift[name] * (p - p.detach())).sum()
            for name, p in self.rule.named_parameters()
        )
        return self.anchored((high + low) / 2 + pull), log

    def _moved(self, noise: Params, sign: int) -> Step:
        """The rule with its weights moved by ``sign`` times ``noise``."""
        weights = {
            name: p.detach() + sign * noise[name] for name, p in self.rule.named_parameters()
        }

        def step(
            graph: WeightGraph, params: Params, grads: Params, state: State
        ) -> tuple[Params, State]:
            return functional_call(self.rule, weights, (graph, params, grads, state))

        return step


class PersistentES(EvolutionStrategies):
    """PES: antithetic differences of windows, times the sum of all perturbations of the run.

    ``g = (L_w(+) - L_w(-)) / (2 σ²) · Σ_{v ≤ w} ε_v``, a new ``ε`` in each window ``w``: unbiased,
    as over whole runs, with a meta-gradient every ``truncation`` steps. Runs that are given up
    because they diverge are an exception. Arguments as of :class:`EvolutionStrategies`, and:

    Args:
        truncation: steps between two meta-gradients.

    References:
        Vicol, Metz and Sohl-Dickstein, "Unbiased gradient estimation in unrolled computation
        graphs with persistent evolution strategies", arXiv 2112.13835.
    """

    def __init__(
        self,
        rule: Rule,
        suite: TaskSuite,
        *,
        networks: int = 8,
        truncation: int = 20,
        horizon: tuple[int, int] = (50, 500),
        objective: Aim = "log",
        batches: Batches = "training",
        sigma: float = 0.01,
    ) -> None:
        super().__init__(
            rule,
            suite,
            networks=networks,
            horizon=horizon,
            objective=objective,
            batches=batches,
            sigma=sigma,
        )
        self.truncation = checked_truncation(truncation)

    def forward(self, worker: PairedRun) -> tuple[Tensor, dict[str, float]]:
        return self.estimate(worker, steps=worker.window(self.truncation))


def _kept(unrolled: tuple[Params, State, Tensor]) -> tuple[Params, State]:
    params, state, _ = unrolled
    return {name: p.detach() for name, p in params.items()}, state


def _checked_sigma(sigma: float) -> float:
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma: expected a finite number > 0, got {sigma}")
    return sigma
