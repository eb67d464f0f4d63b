"""What is optimized: one task, a distribution of tasks, and a base class for tasks on modules."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from scalegmn_opt.graph import WeightGraph, trace


@runtime_checkable
class Task(Protocol):
    """A loss on the parameters of one network.

    ``loss`` is a pure function of its arguments; all randomness comes from the generators that
    ``init`` and ``batch`` are given.
    """

    @property
    def graph(self) -> WeightGraph:
        """The weight graph of the network."""

    @property
    def input_rms(self) -> float:
        """Root mean square of the network's inputs, in units of the inputs."""

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters of one network, by name (*shape)."""

    def batch(self, generator: torch.Generator) -> Any:
        """A batch, in whatever form ``loss`` takes."""

    def loss(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The scalar loss () of one network on one batch."""


@runtime_checkable
class HeldOutTask(Task, Protocol):
    """A task that also has batches of samples that training never sees."""

    def validation_batch(self, generator: torch.Generator) -> Any:
        """A batch as ``batch`` gives it, of held-out samples."""


@runtime_checkable
class StackedTask(Task, Protocol):
    """A task whose loss depends on its arguments and the architecture alone.

    All tasks of a sample then have the same ``loss``, which one of them computes for all: what
    differs between them is in their batches.
    """

    def losses(self, params: Mapping[str, Tensor], batches: Any) -> Tensor:
        """Losses (tasks,) of parameters and batches stacked along a new first axis."""


@runtime_checkable
class TaskSuite(Protocol):
    """A distribution of tasks."""

    def sample(self, generator: torch.Generator, count: int) -> Sequence[Task]:
        """``count`` tasks of one architecture; their parameters stack along a new axis."""


def draw_batches(
    tasks: Sequence[Task], generator: torch.Generator, *, validation: bool = False
) -> list[Any]:
    """A batch of each task; with ``validation`` of held-out samples where a task has them."""
    return [
        task.validation_batch(generator)
        if validation and isinstance(task, HeldOutTask)
        else task.batch(generator)
        for task in tasks
    ]


def stacked_losses(
    tasks: Sequence[Task], params: Mapping[str, Tensor], batches: Sequence[Any]
) -> Tensor:
    """Losses (tasks,) of stacked ``params`` (tasks, *shape): at once where tasks can.

    Batches are moved to where the parameters are.
    """
    if isinstance(tasks[0], StackedTask):
        stacked = tree_map(lambda *leaves: torch.stack(leaves), *batches)
        return tasks[0].losses(params, moved(stacked, device_of(params)))
    return each_loss(tasks, params, batches)


def each_loss(
    tasks: Sequence[Task], params: Mapping[str, Tensor], batches: Sequence[Any]
) -> Tensor:
    """Losses (tasks,) as each task's own ``loss`` gives them."""
    each = [
        task.loss({name: p[i] for name, p in params.items()}, moved(batch, device_of(params)))
        for i, (task, batch) in enumerate(zip(tasks, batches, strict=True))
    ]
    return torch.stack(each)


def device_of(params: Mapping[str, Tensor]) -> torch.device:
    """Where the parameters of a network are; the CPU if it has none."""
    return next((p.device for p in params.values()), torch.device("cpu"))


def moved(tree: Any, device: torch.device) -> Any:
    """All tensors of a tree of containers on ``device``; what else there is stays as it is."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, tree)


@runtime_checkable
class _Resettable(Protocol):
    """A module with PyTorch's convention for drawing its initial parameters again."""

    def reset_parameters(self) -> None:
        """Draw the initial parameters in place."""


class ModuleTask(ABC):
    """Base class of tasks on a module: write ``batch`` and ``loss``, the rest is derived.

    The module is copied, never modified. ``init`` calls ``reset_parameters`` of every submodule
    that has it; parameters of other modules start as they are in ``module``.

    Args:
        module: the network; its present parameters matter only where they cannot be reset.
        example_inputs: typical positional inputs, used for tracing and for ``input_rms``.
    """

    def __init__(self, module: nn.Module, example_inputs: Sequence[Any]) -> None:
        if isinstance(example_inputs, Tensor):
            raise TypeError("example_inputs: expected a tuple of positional inputs, got a Tensor")
        self.module = copy.deepcopy(module)
        self.example_inputs = tuple(example_inputs)

    @cached_property
    def graph(self) -> WeightGraph:
        """The weight graph of the module, traced at first use."""
        return trace(self.module, self.example_inputs)

    @cached_property
    def input_rms(self) -> float:
        """Root mean square over the floating-point example inputs; 1 if there are none."""
        tensors = [x for x in self.example_inputs if isinstance(x, Tensor)]
        floats = [x.flatten() for x in tensors if x.is_floating_point()]
        return float(torch.cat(floats).square().mean().sqrt()) if floats else 1.0

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters, by name (*shape), that depend on ``generator`` alone."""
        device = generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        # Drawn on the CPU, whose global random state alone is forked; it is restored at the end.
        module = copy.deepcopy(self.module).cpu()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for part in reversed(list(module.modules())):  # children before their parents
                _reset(part)
        targets = dict(self.module.named_parameters())
        return {n: p.detach().to(targets[n].device) for n, p in module.named_parameters()}

    def forward(self, params: Mapping[str, Tensor], *inputs: Any) -> Any:
        """The module's outputs with ``params`` in place of its own parameters."""
        device = device_of(params)
        # Copies: a module in training mode, such as BatchNorm, writes to its buffers.
        buffers = {n: buffer.to(device, copy=True) for n, buffer in self.module.named_buffers()}
        state = {**buffers, **params}
        return torch.func.functional_call(self.module, state, inputs, strict=True)

    @abstractmethod
    def batch(self, generator: torch.Generator) -> Any:
        """A batch, in whatever form ``loss`` takes."""

    def validation_batch(self, generator: torch.Generator) -> Any:
        """A batch of held-out samples; like any other if there are none."""
        return self.batch(generator)

    @abstractmethod
    def loss(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The scalar loss () of one network on one batch."""


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.MultiheadAttention):
        module._reset_parameters()  # the one class of torch.nn that does not follow the convention
    elif isinstance(module, _Resettable):
        module.reset_parameters()
