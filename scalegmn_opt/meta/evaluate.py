"""One training run of one optimizer on one task, measured and kept on disk."""

import copy
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from scalegmn_opt.meta import contenders, scores
from scalegmn_opt.meta.contenders import LEARNED, NO_GRAPH, Settings, contender
from scalegmn_opt.meta.task import Task
from scalegmn_opt.optim import UpdateRule
from scalegmn_opt.optim.optimizer import DEFAULT_RULE_WITHOUT_MODEL

SPLITS = ("validation", "test")


@runtime_checkable
class EvaluatedTask(Task, Protocol):
    """A task on a module, whose loss and accuracy on held-out data can be asked for."""

    module: nn.Module
    example_inputs: tuple[Any, ...]

    def evaluate(self, params: Mapping[str, Tensor], split: str) -> tuple[Tensor, Tensor | None]:
        """Mean loss () and accuracy (), or None, on ``validation`` or ``test``."""


@dataclass(frozen=True)
class Run:
    """What is kept of a training run.

    Attributes:
        losses: training loss of each step's batch, before the step; infinite from where it failed.
        seconds: CPU seconds, of one thread, until the end of each step.
        held_out: loss and accuracy by split; None where there is none.
    """

    optimizer: str
    settings: dict[str, float]
    seed: int
    losses: list[float]
    seconds: list[float]
    held_out: dict[str, dict[str, float | None]]

    @property
    def final_loss(self) -> float:
        """Mean training loss of the last tenth of the steps."""
        return scores.trailing_mean(self.losses)[-1]

    @property
    def validation_loss(self) -> float:
        """Loss on the validation part at the end."""
        loss = self.held_out["validation"]["loss"]
        return float("inf") if loss is None or not isfinite(loss) else loss


def train(task: EvaluatedTask, optimizer: str, settings: Settings, *, seed: int, steps: int) -> Run:
    """Train from the task's initialisation; start and batches depend on ``seed`` alone."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(task.module)
    model.load_state_dict(task.init(generator), strict=False)
    stepper = contender(optimizer).make(model, task.example_inputs, settings)
    params, losses, seconds = dict(model.named_parameters()), [], []
    began = time.process_time()
    for _ in range(steps):
        stepper.zero_grad()
        loss = task.loss(params, task.batch(generator))
        loss.backward()
        losses.append(float(loss.detach()))
        if not isfinite(losses[-1]):
            break
        stepper.step()
        seconds.append(time.process_time() - began)
    missing = steps - len(seconds)
    losses = losses[: steps - missing] + [float("inf")] * missing
    seconds += [seconds[-1] if seconds else 0.0] * missing
    held_out = {split: _held_out(task, params, split) for split in SPLITS}
    return Run(optimizer, dict(settings), seed, losses, seconds, held_out)


def _held_out(
    task: EvaluatedTask, params: Mapping[str, Tensor], split: str
) -> dict[str, float | None]:
    loss, accuracy = task.evaluate(params, split)
    return {"loss": float(loss), "accuracy": None if accuracy is None else float(accuracy)}


def cached_run(
    task: EvaluatedTask, optimizer: str, settings: Settings, *, seed: int, steps: int, cache: Path
) -> Run:
    """:func:`train`, or what it gave when the same was asked before by the same code."""
    key = _key(task, optimizer, settings, seed=seed, steps=steps)
    path = cache / f"{key}.json"
    if path.exists():
        return Run(**json.loads(path.read_text()))
    run = train(task, optimizer, settings, seed=seed, steps=steps)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.partial")
    temporary.write_text(json.dumps(asdict(run)))
    os.replace(temporary, path)
    return run


def _key(task: EvaluatedTask, optimizer: str, settings: Settings, *, seed: int, steps: int) -> str:
    digest = hashlib.sha256()
    facts = [optimizer, sorted(settings.items()), seed, steps, torch.__version__]
    digest.update(json.dumps(facts).encode())
    digest.update(fingerprint(task))
    modules = [contenders.__file__, __file__]
    if not contender(optimizer).grid[0]:  # ours, which depends on the whole package
        modules = sorted(map(str, Path(__file__).parents[1].rglob("*.py")))
        digest.update(_weights(optimizer))
    for module in modules:
        digest.update(Path(module).read_bytes())
    return digest.hexdigest()[:32]


def _weights(optimizer: str) -> bytes:
    """The numbers of a learned optimizer, wherever its file is."""
    name = f"{NO_GRAPH}{DEFAULT_RULE_WITHOUT_MODEL}" if optimizer == "no-graph" else optimizer
    if not name.startswith((LEARNED, NO_GRAPH)):
        return b""
    rule = UpdateRule.from_pretrained(name.partition(":")[2])
    return b"".join(value.numpy().tobytes() for value in rule.state_dict().values())


def fingerprint(task: Task) -> bytes:
    """Bytes that change with a task's network, initialisation, data or batches."""
    generator = torch.Generator().manual_seed(0)
    digest = hashlib.sha256()
    params = task.init(generator)
    batch = task.batch(generator)
    loss = task.loss(params, batch)
    for tensor in torch.utils._pytree.tree_leaves([params, batch, loss]):
        if isinstance(tensor, Tensor):
            array = tensor.detach().cpu().contiguous()
            digest.update(str((array.shape, array.dtype)).encode())
            digest.update(array.numpy().tobytes())
    return digest.digest()


def best(runs: Sequence[Run], *, by: str) -> dict[str, float]:
    """The settings of least mean validation (``by="validation"``) or final training loss."""
    found: dict[tuple[tuple[str, float], ...], list[float]] = {}
    for run in runs:
        value = run.validation_loss if by == "validation" else run.final_loss
        found.setdefault(tuple(sorted(run.settings.items())), []).append(value)
    return dict(min(found, key=lambda settings: sum(found[settings]) / len(found[settings])))
