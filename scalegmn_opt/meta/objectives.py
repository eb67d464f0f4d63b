"""What a rule is trained for: a number for the losses of inner training runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scalegmn_opt.meta.task import Task, draw_batches, stacked_losses

LOSS_FLOOR = 0.02  # log(loss + floor): a loss near zero is as good as zero
ADAM_RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # of the reference curve
_SOFTNESS = 0.2  # a loss a fifth above the target is 0.73 of a step, a fifth below it 0.27
Aim = Literal["log", "mean", "log-ratio", "time-to-target"]


@dataclass(frozen=True)
class Reference:
    """What Adam does on the networks of a run, at the best of ``ADAM_RATES`` for each.

    Args:
        curve: losses (steps, networks) after the steps that are judged.
        target: mean log losses (networks,) of the last tenth of the whole run.
    """

    curve: Tensor
    target: Tensor


def log_loss(losses: Tensor) -> Tensor:
    """``log(loss + 0.02)``, elementwise: equal factors of the loss count the same everywhere."""
    return torch.log(losses + LOSS_FLOOR)


def last_tenth(curve: Tensor) -> Tensor:
    """Mean log losses (..., networks) of the end of a curve (..., steps, networks)."""
    return log_loss(curve[..., -max(1, curve.shape[-2] // 10) :, :]).mean(-2)


def _log(losses: Tensor, reference: Reference | None) -> Tensor:
    return log_loss(losses).mean()


def _mean(losses: Tensor, reference: Reference | None) -> Tensor:
    return losses.mean()


def _log_ratio(losses: Tensor, reference: Reference | None) -> Tensor:
    assert reference is not None, "a run for log-ratio has a reference"
    return (log_loss(losses) - log_loss(reference.curve)).mean()


def _time_to_target(losses: Tensor, reference: Reference | None) -> Tensor:
    assert reference is not None, "a run for time-to-target has a reference"
    return torch.sigmoid((log_loss(losses) - reference.target) / _SOFTNESS).mean()


# By backpropagation "log-ratio" has the gradient of "log", and evolution strategies differ by no
# more: the reference is a constant. It is for reading: 0 is Adam's level at the same step.
# "time-to-target" is the share of steps that are above Adam's final level, softened: every family
# of tasks has the same weight in it, and nothing is gained below the level.
AIMS: dict[Aim, Callable[[Tensor, Reference | None], Tensor]] = {
    "log": _log,
    "mean": _mean,
    "log-ratio": _log_ratio,
    "time-to-target": _time_to_target,
}
REFERENCED: frozenset[Aim] = frozenset({"log-ratio", "time-to-target"})


def adam_curve(
    tasks: Sequence[Task],
    params: dict[str, Tensor],
    *,
    steps: int,
    validation: bool,
    generator: torch.Generator,
) -> Tensor:
    """Losses (steps, networks) after each step of Adam, at the rate that ends best for a network.

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
    best = last_tenth(stacked).argmin(0)  # (networks,)
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
