"""Inner training runs that the meta-gradient is taken through."""

from collections.abc import Sequence
from math import exp, log
from typing import Any

import torch
from torch import Tensor

from scalegmn_opt.graph import stack_parameters
from scalegmn_opt.meta.task import (
    Task,
    TaskSuite,
    draw_batches,
    each_loss,
    stacked_losses,
)
from scalegmn_opt.optim.rule import UpdateRule
from scalegmn_opt.optim.state import State


class InnerRun:
    """``networks`` networks of one architecture in training, side by side: a virtual worker.

    All randomness comes from the run's own generator, so that a run is the same in whatever process
    it lives, and can be stored and continued exactly.

    Args:
        suite: where tasks come from.
        networks: how many tasks are stacked.
        horizon: shortest and longest length of a run in steps, drawn log-uniformly.
        seed: of the run's generator.
    """

    def __init__(
        self, suite: TaskSuite, *, networks: int, horizon: tuple[int, int], seed: int
    ) -> None:
        if networks < 1:
            raise ValueError(f"networks: expected at least 1, got {networks}")
        if not 1 <= horizon[0] <= horizon[1]:
            raise ValueError(f"horizon: expected 1 <= shortest <= longest, got {tuple(horizon)}")
        self._suite, self._networks, self._horizon = suite, networks, horizon
        self.generator = torch.Generator().manual_seed(seed)
        self.resets = 0
        self.reset()

    def reset(self) -> None:
        """Begin a new run: new tasks, new parameters, a new length."""
        self._task_seed = int(torch.randint(2**62, (), generator=self.generator))
        self.tasks: Sequence[Task] = self._sample()
        self.params = stack_parameters([task.init(self.generator) for task in self.tasks])
        rms = torch.tensor([task.input_rms for task in self.tasks])
        graph = self.tasks[0].graph
        self.state: State = UpdateRule.init(graph, self.params, input_rms=rms)
        shortest, longest = self._horizon
        uniform = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        self.remaining = round(exp(log(shortest) + uniform * log(longest / shortest)))
        self.resets += 1
        with torch.no_grad():
            batches = draw_batches(self.tasks, self.generator)
            self.first_losses = stacked_losses(self.tasks, self.params, batches)
            _check_stacking(self.first_losses, each_loss(self.tasks, self.params, batches))

    def _sample(self) -> Sequence[Task]:
        tasks = self._suite.sample(torch.Generator().manual_seed(self._task_seed), self._networks)
        if len(tasks) != self._networks or any(t.graph != tasks[0].graph for t in tasks):
            raise ValueError(
                f"suite: expected {self._networks} tasks of one architecture, got {len(tasks)} "
                f"tasks of {len({t.graph for t in tasks})} architectures"
            )
        return tasks

    def losses(self, params: dict[str, Tensor]) -> Tensor:
        """Losses (networks,) of stacked ``params`` on a new batch of each task."""
        return stacked_losses(self.tasks, params, draw_batches(self.tasks, self.generator))

    def state_dict(self) -> dict[str, Any]:
        """Everything a copy needs to go on exactly."""
        return {
            "generator": self.generator.get_state(),
            "task_seed": self._task_seed,
            "params": self.params,
            "state": self.state,
            "first_losses": self.first_losses,
            "remaining": self.remaining,
            "resets": self.resets,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.generator.set_state(state["generator"])
        self._task_seed = state["task_seed"]
        self.tasks = self._sample()
        self.params, self.state = state["params"], state["state"]
        self.first_losses = state["first_losses"]
        self.remaining, self.resets = state["remaining"], state["resets"]


def _check_stacking(together: Tensor, alone: Tensor) -> None:
    if not torch.allclose(together, alone, rtol=1e-2, atol=1e-3, equal_nan=True):
        raise ValueError(
            "suite: expected losses() of the first task to give each task's own loss(), "
            f"{alone.tolist()}, got {together.tolist()}; what differs between tasks belongs in "
            "their batches"
        )
