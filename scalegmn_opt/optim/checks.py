"""What an optimizer refuses, and how it says so."""

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from scalegmn_opt.graph import WeightGraph


def check_options(group: Mapping[str, Any]) -> None:
    """Raise for options of a parameter group that are out of range."""
    for key in ("lr", "weight_decay"):
        value = group[key]
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"Tensor {key} must be 1-element, got shape {tuple(value.shape)}")
        if not (isinstance(value, Real | Tensor) and 0.0 <= number(value) < inf):
            raise ValueError(f"{key}: expected a finite number of at least 0.0, got {value!r}")
    largest = group["max_change"]
    if largest is not None and not (isinstance(largest, Real) and largest > 0.0):
        raise ValueError(f"max_change: expected None or a number above 0.0, got {largest!r}")


def check_parameters(owner: str, parameters: Mapping[str, Tensor]) -> None:
    """Raise for parameters that are complex, or only a part of which is in this process."""
    for name, p in parameters.items():
        if p.is_complex():
            raise TypeError(f"{owner}: expected real parameters, got complex {name!r}")
        if type(p).__module__.startswith("torch.distributed."):  # DTensor, FlatParameter
            raise TypeError(
                f"{owner}: expected whole parameters, got {name!r} as a {type(p).__name__}: sharded"
                " models (FSDP, tensor parallelism) are not supported; DistributedDataParallel is"
            )


def check_gradient(owner: str, name: str, p: Tensor) -> None:
    """Raise for a gradient that is not dense."""
    if p.grad.layout is not torch.strided:
        raise TypeError(f"{owner}: gradient of {name!r} is {p.grad.layout}, expected dense")


def check_shapes(owner: str, parameters: Mapping[str, Tensor], graph: WeightGraph) -> None:
    """Raise for parameters that are not as they were when the graph was made."""
    for name, p in parameters.items():
        if name not in graph.parameters:
            raise ValueError(
                f"{owner}: expected the parameters that it was given, got also {name!r} in a group;"
                " a network that changes needs a new optimizer, more parameters add_param_group"
            )
        known = graph.parameters[name][0].parameter_shape
        if tuple(p.shape) != known:
            raise ValueError(
                f"{owner}: expected {name!r} of shape {known}, got {tuple(p.shape)}; a network that"
                " changes needs a new optimizer"
            )


def check_devices(owner: str, parameters: Mapping[str, Tensor]) -> None:
    """Raise for parameters on several devices: the graph of a network is processed as one."""
    first: dict[torch.device, str] = {}
    for name, p in parameters.items():
        first.setdefault(p.device, name)
    if len(first) > 1:
        found = " and ".join(f"{name!r} on {device}" for device, name in first.items())
        raise ValueError(f"{owner}: expected all parameters on one device, got {found}")


def check_state(
    owner: str, name: str, state: Mapping[str, Any], expected: Mapping[str, Tensor]
) -> None:
    """Raise unless a loaded state has entries as ``expected`` (1, *shape), and finite numbers."""
    wanted = {key: tuple(value.shape[1:]) for key, value in expected.items()}
    found = {key: tuple(torch.as_tensor(value).shape) for key, value in state.items()}
    if found != wanted:
        raise ValueError(
            f"{owner}: state of {name!r}: expected {wanted}, got {found};"
            " it is of another optimizer, network or version"
        )
    for key, value in state.items():
        if not torch.as_tensor(value).isfinite().all():
            raise ValueError(f"{owner}: state of {name!r}: expected finite numbers in {key!r}")


def number(value: float | Tensor) -> float:
    """A Python number, also of a tensor that has a gradient."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def size_of_inputs(inputs: Sequence[Any]) -> float:
    """Root mean square of the first floating-point input; 1 if there is none, or only zeros.

    Raises:
        ValueError: if it is not finite.
    """
    for x in inputs:
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 0:
            found = float(x.detach().double().square().mean().sqrt())
            if not isfinite(found):
                raise ValueError(f"example_inputs: expected finite numbers, got a size of {found}")
            return found or 1.0
    return 1.0
