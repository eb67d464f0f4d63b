"""What a step works on, and how precisely: models inside wrappers, dtypes, learning rates."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of ``DistributedDataParallel``, compiled or not."""
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    return inner.module if isinstance(inner, DistributedDataParallel) else model


def rate(group: dict[str, Any]) -> float | Tensor:
    """The learning rate of a parameter group; a tensor as one of no axes."""
    lr = group["lr"]
    return lr.reshape(()) if isinstance(lr, Tensor) else lr


def constant(p: Tensor) -> Tensor:
    """``p`` for the rule; a copy where autograd runs through the step, which then changes ``p``."""
    return p.clone() if torch.is_grad_enabled() else p.detach()


def working_dtype(parameters: dict[str, Tensor]) -> torch.dtype:
    """float32, or float64 if there are float64 parameters."""
    double = any(p.dtype is torch.float64 for p in parameters.values())
    return torch.float64 if double else torch.float32


def own_precision(device: torch.device) -> AbstractContextManager[Any]:
    """What keeps a step inside ``torch.autocast`` as precise as outside."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
