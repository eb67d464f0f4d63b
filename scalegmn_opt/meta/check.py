"""What is wrong with a task, in words."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.meta.objectives import LOSS_FLOOR
from scalegmn_opt.meta.task import HeldOutTask, StackedTask, Task, stacked_losses


class TaskError(ValueError):
    """A task that cannot be trained on; one line a defect.

    Attributes:
        defects: what is wrong, in words.
    """

    def __init__(self, task: object, defects: list[str]) -> None:
        self.defects = defects
        name = type(task).__name__
        super().__init__("\n".join(f"{name}.{defect}" for defect in defects))


def check_task(task: Task, *, seed: int = 0) -> None:
    """Try a task as meta-training will use it.

    Checked are the initial parameters and the graph that covers them, that ``init``, ``batch`` and
    ``loss`` depend on their arguments alone and change none of them, and that the loss is one
    finite number, not below zero, with finite gradients, and finite on validation batches, too.

    Raises:
        TypeError: if ``task`` lacks a method or attribute of :class:`Task`.
        TaskError: if a check fails, with all defects that were found.
    """
    if not isinstance(task, Task):
        needed = ("graph", "input_rms", "init", "batch", "loss")
        missing = [name for name in needed if name not in dir(task)]
        raise TypeError(f"task: expected a Task, {type(task).__name__} lacks {missing}")
    defects = list(_defects(task, seed))
    if defects:
        raise TaskError(task, defects)


def _defects(task: Task, seed: int) -> Iterator[str]:
    params = task.init(_seeded(seed))
    wrong = list(_wrong_params(params))
    yield from wrong
    if wrong:
        return  # nothing else can be tried
    yield from _wrong_graph(task.graph, params)
    if not (isinstance(task.input_rms, float | int) and 0 < task.input_rms < float("inf")):
        yield f"input_rms: expected a number above 0, got {task.input_rms!r}"
    yield from _not_repeatable("init", task.init, seed)
    if not _differ(params, task.init(_seeded(seed + 1))):
        yield "init: expected other parameters from another generator; does it use its generator?"
    yield from _not_repeatable("batch", task.batch, seed)
    if isinstance(task, HeldOutTask):
        yield from _not_repeatable("validation_batch", task.validation_batch, seed)
    yield from _wrong_loss(task, params, seed)
    if isinstance(task, HeldOutTask):
        yield from _wrong_validation_loss(task, params, seed)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _wrong_params(params: Any) -> Iterator[str]:
    if not isinstance(params, dict) or not params:
        yield f"init: expected a dictionary of tensors by name, got {type(params).__name__}"
        return
    for name, p in params.items():
        if not (isinstance(p, Tensor) and p.is_floating_point()):
            kind = p.dtype if isinstance(p, Tensor) else type(p).__name__
            yield f"init: expected a tensor of real numbers as {name!r}, got {kind}"
        elif not p.isfinite().all():
            yield f"init: expected finite numbers in {name!r}, got some that are not"


def _wrong_graph(graph: WeightGraph, params: dict[str, Tensor]) -> Iterator[str]:
    known = {name: tuple(blocks[0].parameter_shape) for name, blocks in graph.parameters.items()}
    for name in sorted(set(params) - set(known)):
        yield f"graph: expected a block of parameter {name!r}, which init gives, got none"
    for name in sorted(set(known) - set(params)):
        yield f"graph: expected only parameters that init gives, got {name!r}"
    for name in sorted(set(known) & set(params)):
        if known[name] != tuple(params[name].shape):
            yield (
                f"graph: expected the shape {tuple(params[name].shape)} that init gives {name!r}, "
                f"got {known[name]}"
            )


def _not_repeatable(name: str, draw: Callable[[torch.Generator], Any], seed: int) -> Iterator[str]:
    """Twice from equal generators, while the global random state is another."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed + 1)
        first = draw(_seeded(seed))
        torch.default_generator.manual_seed(seed + 2)
        second = draw(_seeded(seed))
    if _differ(first, second):
        yield (
            f"{name}: expected the same from equal generators, got something else; all randomness "
            "has to come from the generator"
        )


def _wrong_loss(task: Task, params: dict[str, Tensor], seed: int) -> Iterator[str]:
    batch = task.batch(_seeded(seed))
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    before = [x.clone() for x in _tensors([leaves, batch])]
    loss = task.loss(leaves, batch)
    if not (isinstance(loss, Tensor) and loss.shape == () and loss.is_floating_point()):
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        yield f"loss: expected one real number, a tensor of shape (), got {got}"
        return
    if any(not torch.equal(a, b) for a, b in zip(before, _tensors([leaves, batch]), strict=True)):
        yield "loss: expected parameters and batch to be left alone, but it changed them"
        return
    if not loss.isfinite():
        yield f"loss: expected a finite number at the start, got {float(loss.detach())}"
    if loss <= -LOSS_FLOOR:
        yield (
            f"loss: expected none below 0, got {float(loss.detach())}; "
            "objectives but the mean take logs of losses"
        )
    again = task.loss(leaves, batch)
    if not torch.equal(loss, again) and bool(loss.isfinite()):
        yield (
            "loss: expected the same for the same arguments, got "
            f"{float(loss.detach())} and {float(again.detach())}; is there dropout?"
        )
    yield from _wrong_gradients(loss, leaves)
    yield from _wrong_stack(task, params, batch)


def _wrong_validation_loss(
    task: HeldOutTask, params: dict[str, Tensor], seed: int
) -> Iterator[str]:
    try:
        loss = torch.as_tensor(task.loss(params, task.validation_batch(_seeded(seed))))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        yield f"loss: expected to take what validation_batch gives, got {error}"
        return
    if not loss.isfinite().all():
        yield "loss: expected a finite number on what validation_batch gives, got one that is not"


def _wrong_gradients(loss: Tensor, leaves: dict[str, Tensor]) -> Iterator[str]:
    if not loss.requires_grad:
        yield "loss: expected gradients, but it does not depend on the parameters"
        return
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    for name, grad in zip(leaves, found, strict=True):
        if grad is None:
            yield f"loss: expected a gradient for {name!r}, but the loss does not read it"
        elif not grad.isfinite().all():
            yield f"loss: expected finite gradients, those of {name!r} are not"


def _wrong_stack(task: Task, params: dict[str, Tensor], batch: Any) -> Iterator[str]:
    if not isinstance(task, StackedTask):
        return
    stacked = {name: torch.stack([p, p]) for name, p in params.items()}
    together, alone = stacked_losses([task] * 2, stacked, [batch] * 2), task.loss(params, batch)
    if together.shape != (2,) or not torch.allclose(together, alone, rtol=1e-3, atol=1e-5):
        yield (
            f"losses: expected {float(alone.detach())} for each of two equal networks, "
            f"got {together.tolist()}"
        )


def _tensors(tree: Any) -> list[Tensor]:
    return [x.detach() for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _differ(first: Any, second: Any) -> bool:
    one, two = _tensors(first), _tensors(second)
    return len(one) != len(two) or not all(map(_equal, one, two))


def _equal(first: Tensor, second: Tensor) -> bool:
    return (
        first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
    )
