"""Adam for stacked networks: nothing is shared between them, so each can stop on its own."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

State = dict[str, dict[str, Tensor]]  # by parameter and quantity; networks along the first axis


class StackedOptimizer(Protocol):
    """An optimizer of many networks at once; every tensor has them along the first axis.

    Networks that are done are dropped from parameters, gradients and state alike.
    """

    def init(self, params: Mapping[str, Tensor]) -> State:
        """The state before the first step."""

    def step(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State]:
        """What to add to the parameters, and the next state; nothing given is modified."""


@dataclass(frozen=True)
class Adam:
    """`-lr m̂ / (√v̂ + ε)`.

    The default of `betas` is a short memory: gradients of all pixels carry no noise. On MNIST, with
    SIRENs 2-32-32-1 and cosine decay from 1e-2, 40 steps lead to 43 dB and 100 to 67 dB; with betas
    (0.9, 0.95) they lead to 33 and 58 dB. With 16384 of 40000 pixels in a step it still wins.

    Args:
        learning_rate: change of a parameter per step.

    Raises:
        ValueError: a learning rate that is not finite and positive.

    References:
        Kingma and Ba, arXiv 1412.6980.
    """

    learning_rate: float = 1e-2
    betas: tuple[float, float] = (0.7, 0.8)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be finite and positive, got {self.learning_rate}")

    def init(self, params: Mapping[str, Tensor]) -> State:
        return {
            name: {
                "step": torch.zeros(len(value)).to(value),
                "mean": torch.zeros_like(value),
                "square": torch.zeros_like(value),
            }
            for name, value in params.items()
        }

    def step(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State]:
        updates, after = {}, {}
        for name, grad in grads.items():
            step = state[name]["step"] + 1
            mean = torch.lerp(grad, state[name]["mean"], self.betas[0])
            square = torch.lerp(grad.square(), state[name]["square"], self.betas[1])
            bias = [1 - (b**step).reshape(-1, *[1] * (grad.ndim - 1)) for b in self.betas]
            size = (square / bias[1]).sqrt_().add_(self.eps)
            updates[name] = (mean / bias[0]).div_(size).mul_(-self.learning_rate)
            after[name] = {"step": step, "mean": mean, "square": square}
        return updates, after
