"""Meta-gradients from losses alone: antithetic evolution strategies over whole runs, and PES."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.meta.estimators import RuleObjective, Shared, checked_truncation, health
from scalegmn_opt.meta.task import TaskSuite, moved, stacked_losses
from scalegmn_opt.meta.unroll import InnerRun, Params, RunOptions, Step, unroll
from scalegmn_opt.optim.state import Rule, State


class PopulationRun(InnerRun):
    """An inner run in many copies: the same networks and batches, each copy with its own rule.

    ``params`` and ``state`` have a leading axis of ``2 · pairs · networks``, copies first, the
    second half of them perturbed opposite to the first; ``drift`` (pairs, *shape) by name is the
    sum of the first half's perturbations since the run began.
    """

    drift: Params

    def __init__(
        self, rule: Rule, suite: TaskSuite, *, pairs: int, options: RunOptions, seed: int
    ) -> None:
        self.copies = 2 * pairs
        super().__init__(rule, suite, options=options, seed=seed)

    def reset(self) -> None:
        """Begin a new run with all copies at one point."""
        super().reset()
        self.params = {name: self._copied(p) for name, p in self.params.items()}
        self.state = {
            name: {key: self._copied(x) for key, x in values.items()}
            for name, values in self.state.items()
        }
        self.first_losses = self._copied(self.first_losses)
        self.drift = {}

    def _copied(self, x: Tensor) -> Tensor:
        return x.repeat(self.copies, *[1] * (x.ndim - 1))

    def losses_on(self, params: Mapping[str, Tensor], batches: list[Any]) -> Tensor:
        """Losses (copies · networks,) of all copies on the same ``batches``."""
        return stacked_losses(list(self.tasks) * self.copies, params, batches * self.copies)

    def state_dict(self) -> dict[str, Any]:
        """Everything a copy needs to go on exactly."""
        return {**super().state_dict(), "drift": self.drift}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        super().load_state_dict(state)
        self.drift = moved(state["drift"], self._device)


class EvolutionStrategies(RuleObjective):
    """Antithetic differences of whole runs: the gradient of a smoothed objective, without bias.

    ``g = mean of (L(θ + ε) - L(θ - ε)) / (2 σ²) · ε`` over pairs of runs with ``ε ~ N(0, σ²)``,
    from equal starts on equal batches. All runs are done side by side by ``torch.func.vmap`` over
    the rule's weights, so that a rule may not branch on the numbers it is given (but for ``step``).
    Memory does not grow with the length of a run. A pair whose losses are not finite counts zero.
    Arguments as of :class:`RuleObjective`, and:

    Args:
        sigma: deviation of the perturbation of each meta-parameter.
        pairs: of runs on each task.

    References:
        Salimans et al., arXiv 1703.03864; Metz et al., arXiv 1810.10180.
    """

    def __init__(
        self,
        rule: Rule,
        suite: TaskSuite,
        *,
        sigma: float = 0.01,
        pairs: int = 1,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(rule, suite, **shared)
        if pairs < 1:
            raise ValueError(f"pairs: expected at least 1, got {pairs}")
        self.sigma, self.pairs = _checked_sigma(sigma), pairs

    def new_worker(self, seed: int) -> PopulationRun:
        return PopulationRun(
            self.rule, self.suite, pairs=self.pairs, options=self.options, seed=seed
        )

    def forward(self, worker: PopulationRun) -> tuple[Tensor, dict[str, float]]:
        return self.estimate(worker, steps=worker.remaining)

    def estimate(self, worker: PopulationRun, *, steps: int) -> tuple[Tensor, dict[str, float]]:
        """A loss whose gradient is the estimate for the next ``steps`` steps; advances them all."""
        noise = {name: self._noise(p, worker.generator) for name, p in self._weights().items()}
        drift = {name: worker.drift.get(name, 0.0) + e for name, e in noise.items()}
        params, state, losses = unroll(
            self._moved(noise), worker, worker.params, worker.state, steps=steps,
            differentiable=False,
        )  # fmt: skip
        every = losses.unflatten(1, (2 * self.pairs, -1)).unbind(1)
        judged = torch.stack([self.judge(worker, own) for own in every])
        log = health(worker, losses)
        worker.remaining -= steps
        if worker.remaining > 0 and not log["diverged"]:
            worker.params = {name: p.detach() for name, p in params.items()}
            worker.state, worker.drift = state, drift
        else:
            worker.reset()
        high, low = judged.chunk(2)
        valid = (high - low).isfinite()
        log["skipped"] = float((~valid).float().mean())
        if not valid.any():
            return self.anchored(high.new_zeros(())), log
        slopes = torch.where(valid, (high - low) / (2 * self.sigma**2), 0.0)
        # Has the mean of all runs as its value, and the estimate as its gradient.
        pull = sum(
            (torch.tensordot(slopes, drift[name], 1) / self.pairs * (p - p.detach())).sum()
            for name, p in self.rule.named_parameters()
            if p.requires_grad
        )
        return self.anchored((high + low)[valid].mean() / 2 + pull), log

    def _weights(self) -> Params:
        return {name: p.detach() for name, p in self.rule.named_parameters() if p.requires_grad}

    def _noise(self, p: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(self.pairs, *p.shape, generator=generator, dtype=p.dtype)
        return self.sigma * noise.to(p.device)

    def _moved(self, noise: Params) -> Step:
        """The step of all copies, each by the rule with its weights moved by its noise."""
        weights = {
            name: torch.cat([p + noise[name], p - noise[name]])
            for name, p in self._weights().items()
        }
        return population_step(self.rule, weights)


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
        truncation: int = 20,
        sigma: float = 0.01,
        pairs: int = 1,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(rule, suite, sigma=sigma, pairs=pairs, **shared)
        self.truncation = checked_truncation(truncation)

    def forward(self, worker: PopulationRun) -> tuple[Tensor, dict[str, float]]:
        return self.estimate(worker, steps=worker.window(self.truncation))


def population_step(rule: Rule, weights: Params) -> Step:
    """A step of as many copies as ``weights`` (copies, *shape) by name has, each by its own.

    Parameters, gradients and states have a leading axis of copies · networks, copies first.
    """
    split = partial(torch.unflatten, dim=0, sizes=(len(next(iter(weights.values()))), -1))

    def step(
        graph: WeightGraph, params: Params, grads: Params, state: State
    ) -> tuple[Params, State]:
        shared = {name: values["step"] for name, values in state.items()}

        def one(own: Params, p: Params, g: Params, s: State) -> tuple[Params, State]:
            count = len(next(iter(p.values())))
            s = {name: {**v, "step": shared[name][:count]} for name, v in s.items()}
            return functional_call(rule, own, (graph, p, g, s))

        rest = {n: {k: x for k, x in v.items() if k != "step"} for n, v in state.items()}
        found = vmap(one)(weights, *(tree_map(split, x) for x in (params, grads, rest)))
        return tree_map(lambda x: x.flatten(0, 1), found)

    return step


def _checked_sigma(sigma: float) -> float:
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma: expected a finite number > 0, got {sigma}")
    return sigma
