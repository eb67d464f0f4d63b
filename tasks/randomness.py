"""Draws of a generator that the suites share."""

from collections.abc import Sequence
from math import exp, log
from typing import TypeVar

import torch

Item = TypeVar("Item")


def checked_count(count: int) -> int:
    """``count``, if it is a number of tasks that can be drawn."""
    if count < 1:
        raise ValueError(f"count: expected a number of tasks >= 1, got {count}")
    return count


def integer(low: int, high: int, *, generator: torch.Generator) -> int:
    """An integer in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def number(low: float, high: float, *, generator: torch.Generator) -> float:
    """A number in [low, high], uniform."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def log_number(low: float, high: float, *, generator: torch.Generator) -> float:
    """A number in [low, high], log-uniform."""
    return exp(number(log(low), log(high), generator=generator))


def log_integer(low: int, high: int, *, generator: torch.Generator) -> int:
    """An integer in [low, high], with about equal chances for each factor of size."""
    return min(high, int(log_number(low, high + 1, generator=generator)))


def choice(items: Sequence[Item], *, generator: torch.Generator) -> Item:
    """One of the items."""
    return items[integer(0, len(items) - 1, generator=generator)]
