"""Inner training runs that the meta-gradient is taken through."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log
from typing import Any, Literal

import torch
from torch import Tensor

from scalegmn_opt.graph import WeightGraph, stack_parameters
from scalegmn_opt.meta.objectives import Reference, adam_curve, last_tenth
from scalegmn_opt.meta.task import (
    Task,
    TaskSuite,
    device_of,
    draw_batches,
    each_loss,
    moved,
    stacked_losses,
)
from scalegmn_opt.optim.state import Rule, State

Batches = Literal["training", "validation", "both"]
Params = dict[str, Tensor]
Step = Callable[[WeightGraph, Params, Params, State], tuple[Params, State]]


@dataclass(frozen=True)
class RunOptions:
    """What all inner runs of a meta-training have in common.

    Args:
        networks: how many tasks are stacked.
        horizon: shortest and longest length of a run in steps, drawn log-uniformly.
        batches: measure each step on training or validation batches, or on both in turns.
        referenced: find Adam's losses on the tasks, too, at the start of a run.
        graph: let the rule see the networks' graphs; without, each parameter is a block by itself.
    """

    networks: int
    horizon: tuple[int, int]
    batches: Batches = "training"
    referenced: bool = False
    graph: bool = True

    def __post_init__(self) -> None:
        if self.networks < 1:
            raise ValueError(f"networks: expected at least 1, got {self.networks}")
        if not 1 <= self.horizon[0] <= self.horizon[1]:
            raise ValueError(
                f"horizon: expected 1 <= shortest <= longest, got {tuple(self.horizon)}"
            )


class InnerRun:
    """``networks`` networks of one architecture in training, side by side: a virtual worker.

    All randomness comes from the run's own generator, on the CPU, so that a run is the same in
    whatever process it lives, and can be stored and continued exactly. Networks are trained where
    the rule is.

    Args:
        rule: gives the state that a run starts with.
        suite: where tasks come from.
        options: how many networks, how long, and what is measured.
        seed: of the run's generator.
    """

    def __init__(
        self,
        rule: Rule,
        suite: TaskSuite,
        *,
        options: RunOptions,
        seed: int,
    ) -> None:
        self._rule, self._suite, self.options = rule, suite, options
        self.generator = torch.Generator().manual_seed(seed)
        self.resets = 0
        self.reset()

    def reset(self) -> None:
        """Begin a new run: new tasks, new parameters, a new length."""
        self._task_seed = int(torch.randint(2**62, (), generator=self.generator))
        self.tasks: Sequence[Task] = self._sample()
        drawn = stack_parameters([task.init(self.generator) for task in self.tasks])
        self.params = moved(drawn, self._device)
        rms = torch.tensor([task.input_rms for task in self.tasks])
        self.state: State = self._rule.init(self.graph, self.params, input_rms=rms)
        shortest, longest = self.options.horizon
        uniform = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        self.length = round(exp(log(shortest) + uniform * log(longest / shortest)))
        self.remaining = self.length
        self.resets += 1
        with torch.no_grad():
            batches = draw_batches(self.tasks, self.generator)
            self.first_losses = stacked_losses(self.tasks, self.params, batches)
            _check_stacking(self.first_losses, each_loss(self.tasks, self.params, batches))
        self.reference = self._find_reference() if self.options.referenced else None

    def _find_reference(self) -> Tensor:
        return adam_curve(
            self.tasks,
            self.params,
            steps=self.length,
            validation=self.options.batches == "validation",
            generator=torch.Generator().manual_seed(self._task_seed),
        )

    def _sample(self) -> Sequence[Task]:
        tasks = self._suite.sample(
            torch.Generator().manual_seed(self._task_seed), self.options.networks
        )
        if len(tasks) != self.options.networks or any(t.graph != tasks[0].graph for t in tasks):
            raise ValueError(
                f"suite: expected {self.options.networks} tasks of one architecture, "
                f"got {len(tasks)} tasks of {len({t.graph for t in tasks})} architectures"
            )
        return tasks

    @property
    def _device(self) -> torch.device:
        return device_of(dict(self._rule.named_parameters()))

    @property
    def graph(self) -> WeightGraph:
        """The graph of all networks of the run, as the rule sees it."""
        graph = self.tasks[0].graph
        return graph if self.options.graph else _isolated(graph)

    def on_validation(self, number: int) -> bool:
        """Whether step ``number`` of a window is measured on validation batches."""
        return self.options.batches == "validation" or (
            self.options.batches == "both" and number % 2 == 1
        )

    def window(self, truncation: int) -> int:
        """Steps of the next window: ``truncation``, or what is left of the run."""
        return min(truncation, self.remaining)

    def reference_of(self, steps: int) -> Reference | None:
        """What Adam does at the next ``steps`` steps of the run, and at its end."""
        if self.reference is None:
            return None
        done = self.length - self.remaining
        return Reference(self.reference[done : done + steps], last_tenth(self.reference))

    def losses(self, params: Mapping[str, Tensor]) -> Tensor:
        """Losses (networks,) of stacked ``params`` on a new training batch of each task."""
        return self.losses_on(params, draw_batches(self.tasks, self.generator))

    def measure(self, params: Mapping[str, Tensor], *, validation: bool) -> Tensor:
        """Losses (networks,) as the meta-objective reads them, on a new batch of each task."""
        return self.losses_on(
            params, draw_batches(self.tasks, self.generator, validation=validation)
        )

    def losses_on(self, params: Mapping[str, Tensor], batches: list[Any]) -> Tensor:
        """Losses (networks,) of stacked ``params`` on a batch of each task."""
        return stacked_losses(self.tasks, params, batches)

    def state_dict(self) -> dict[str, Any]:
        """Everything a copy needs to go on exactly."""
        return {
            "generator": self.generator.get_state(),
            "task_seed": self._task_seed,
            "params": self.params,
            "state": self.state,
            "first_losses": self.first_losses,
            "length": self.length,
            "remaining": self.remaining,
            "reference": self.reference,
            "resets": self.resets,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.generator.set_state(state["generator"])
        self._task_seed = state["task_seed"]
        self.tasks = self._sample()
        there = moved(state, self._device)
        self.params, self.state = there["params"], there["state"]
        self.first_losses, self.reference = there["first_losses"], there["reference"]
        self.length, self.remaining = state["length"], state["remaining"]
        self.resets = state["resets"]


@lru_cache(maxsize=256)
def _isolated(graph: WeightGraph) -> WeightGraph:
    """The same parameters as blocks by themselves."""
    return WeightGraph.from_parameters(
        {name: blocks[0].parameter_shape for name, blocks in graph.parameters.items()}
    )


def unroll(
    step: Step,
    run: InnerRun,
    params: Params,
    state: State,
    *,
    steps: int,
    differentiable: bool,
) -> tuple[Params, State, Tensor]:
    """Train for ``steps`` steps: parameters, state, and losses (steps, networks) after each step.

    Gradients, parameters and momenta that ``step`` reads are constants (first order); with
    ``differentiable`` the losses depend on what it computes. Draws from the run's generator.
    """
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    measured = []
    for number in range(steps):
        losses = run.losses(params)
        if number > 0 and not run.on_validation(number - 1):
            measured.append(losses)  # the batch of the next gradient measures this step
        grads = _gradients(losses, params, retain_graph=differentiable)
        read = {name: p.detach() for name, p in params.items()}
        with torch.set_grad_enabled(differentiable):
            updates, state = step(run.graph, read, grads, state)
            params = {name: p + updates[name] for name, p in params.items()}
        if not differentiable:
            params = {name: p.detach().requires_grad_() for name, p in params.items()}
        if run.on_validation(number):
            measured.append(run.measure(params, validation=True))
    if not run.on_validation(steps - 1):
        measured.append(run.measure(params, validation=False))
    losses = torch.stack(measured)
    return params, state, losses if differentiable else losses.detach()


def _gradients(losses: Tensor, params: Params, *, retain_graph: bool) -> Params:
    """Gradients of each network's own loss; zero for a parameter its loss does not read."""
    found = torch.autograd.grad(
        losses.sum(), list(params.values()), retain_graph=retain_graph, allow_unused=True
    )
    return {
        name: torch.zeros_like(p) if grad is None else grad.detach()
        for (name, p), grad in zip(params.items(), found, strict=True)
    }


def _check_stacking(together: Tensor, alone: Tensor) -> None:
    if not torch.allclose(together, alone, rtol=1e-2, atol=1e-3, equal_nan=True):
        raise ValueError(
            "suite: expected losses() of the first task to give each task's own loss(), "
            f"{alone.tolist()}, got {together.tolist()}; what differs between tasks belongs in "
            "their batches"
        )
