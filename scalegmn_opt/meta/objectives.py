"""What a rule is trained for: a number for the losses of inner training runs."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from scalegmn_opt.meta.task import Task, draw_batches, stacked_losses

LOSS_FLOOR = 0.02  # log(loss + floor): a loss near zero is as good as zero
ADAM_RATES = (1e-3, 1e-2, 1e-1)  # of the reference curve
Aim = Literal["log", "mean", "log-ratio"]


def log_loss(losses: Tensor) -> Tensor:
    """``log(loss + 0.02)``, elementwise: equal factors of the loss count the same everywhere."""
    return torch.log(losses + LOSS_FLOOR)


def _log(losses: Tensor, reference: Tensor | None) -> Tensor:
    return log_loss(losses).mean()


def _mean(losses: Tensor, reference: Tensor | None) -> Tensor:
    return losses.mean()


def _log_ratio(losses: Tensor, reference: Tensor | None) -> Tensor:
    assert reference is not None, "a run for log-ratio has a reference"
    return (log_loss(losses) - log_loss(reference)).mean()


# By backpropagation "log-ratio" has the gradient of "log", and evolution strategies differ by no
# more: the reference is a constant. It is for reading: 0 is Adam's level at the same step.
AIMS: dict[Aim, Callable[[Tensor, Tensor | None], Tensor]] = {
    "log": _log,
    "mean": _mean,
    "log-ratio": _log_ratio,
}


def adam_curve(
    tasks: Sequence[Task],
    params: dict[str, Tensor],
    *,
    steps: int,
    validation: bool,
    generator: torch.Generator,
) -> Tensor:
    """Losses (steps, networks) after each step of Adam, at each network's best of three rates.

    Args:
        params: where training starts, (networks, *shape); not modified.
        validation: measure on validation batches instead of training batches.
    """
    state = generator.get_state()
    curves = []
    for lr in ADAM_RATES:
        generator.set_state(state)  # the same batches at all rates
        curves.append(_adam(tasks, params, steps, lr, validation=validation, generator=generator))
    stacked = torch.stack(curves).nan_to_num(nan=torch.inf)
    best = log_loss(stacked).mean(1).argmin(0)  # (networks,)
    return stacked.gather(0, best.expand(1, steps, -1))[0]


def _adam(
    tasks: Sequence[Task],
    params: dict[str, Tensor],
    steps: int,
    lr: float,
    *,
    validation: bool,
    generator: torch.Generator,
) -> Tensor:
    own = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    optimizer = torch.optim.Adam(own.values(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        stacked_losses(tasks, own, draw_batches(tasks, generator)).sum().backward()
        optimizer.step()
        with torch.no_grad():
            batches = draw_batches(tasks, generator, validation=validation)
            losses.append(stacked_losses(tasks, own, batches))
    return torch.stack(losses)
