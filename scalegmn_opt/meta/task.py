"""What is optimized: one task, a distribution of tasks, and a base class for tasks on modules."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

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
class TaskSuite(Protocol):
    """A distribution of tasks."""

    def sample(self, generator: torch.Generator, count: int) -> Sequence[Task]:
        """``count`` tasks of one architecture; their parameters stack along a new axis."""


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
        # Clones: a module in training mode, such as BatchNorm, writes to its buffers.
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        state = {**buffers, **params}
        return torch.func.functional_call(self.module, state, inputs, strict=True)

    @abstractmethod
    def batch(self, generator: torch.Generator) -> Any:
        """A batch, in whatever form ``loss`` takes."""

    @abstractmethod
    def loss(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The scalar loss () of one network on one batch."""


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.MultiheadAttention):
        module._reset_parameters()  # the one class of torch.nn that does not follow the convention
    elif isinstance(module, _Resettable):
        module.reset_parameters()
