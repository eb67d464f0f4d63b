"""MetaTrainer: minimizes an objective over virtual workers, on one process or many."""

import json
import math
import os
import shutil
import time
from collections import deque
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from scalegmn_opt.meta import checkpoint
from scalegmn_opt.meta.estimators import Objective, Worker

_REMEMBERED = 100  # norms of the meta-gradient that a quantile is taken of
_FEWEST = 10  # norms before which there is no quantile
_PROGRESS = ("step", "elapsed", "skipped", "best")


class Validation(Protocol):
    """Fixed runs that tell how good what an objective trains has become."""

    every: int
    runs: int

    def loss(self, objective: Any, number: int) -> float:
        """The loss of run ``number`` of ``runs``; depends on its arguments alone."""


class MetaTrainer:
    """Adam on the mean loss of ``workers`` virtual workers, which processes share among them.

    Workers are seeded by their number, not by process, so that any number of processes that divides
    ``workers`` gives the same result up to the order of sums. ``log.jsonl`` in ``output`` has one
    line a step, which also goes to the accelerator's trackers; ``checkpoints/`` the last two
    complete states; ``weights.safetensors`` the trained weights of the last checkpoint, and
    ``best.safetensors`` those of the least validation loss. A run that is killed loses the steps
    since its last checkpoint, and goes on exactly. A meta-gradient that is not finite is skipped.

    Args:
        objective: an ``nn.Module`` that satisfies ``scalegmn_opt.meta.Objective``.
        output: folder to write to.
        steps: meta-steps in total; the learning rate falls to zero along a cosine.
        workers: virtual workers; each gives one term of every meta-gradient.
        lr: peak learning rate of Adam, reached after a twentieth of the steps.
        clip: largest norm of the meta-gradient.
        clip_quantile: and no larger than this quantile of its last 100 norms, if given.
        average: decay per step of an exponential moving average of the weights, which is then what
            is validated and written; 0 for none.
        interpolation: how far the weights that are validated and written lie from the initial ones
            (0) to the trained ones (1); less is safer on tasks unlike the suite's (Wortsman et al.,
            "Robust fine-tuning of zero-shot models", arXiv 2109.01903).
        checkpoint_every: steps between two checkpoints.
        seconds: stop after this time, too (with a checkpoint); the schedule then follows the
            larger of elapsed time and steps.
        seed: worker ``i`` has seed ``seed + i``.
        validation: run every so often, if given.
        accelerator: an ``accelerate.Accelerator``; a new one if None.
        progress: show a progress bar (on the main process).

    Raises:
        ValueError: if ``workers`` is not a multiple of the number of processes, or a number is
            out of its range.
    """

    def __init__(
        self,
        objective: nn.Module,
        output: str | os.PathLike[str],
        *,
        steps: int,
        workers: int = 2,
        lr: float = 1e-3,
        clip: float = 1.0,
        clip_quantile: float | None = None,
        average: float = 0.0,
        interpolation: float = 1.0,
        checkpoint_every: int = 100,
        seconds: float | None = None,
        seed: int = 0,
        validation: Validation | None = None,
        accelerator: Accelerator | None = None,
        progress: bool = True,
    ) -> None:
        self.accelerator = accelerator or Accelerator()
        processes = self.accelerator.num_processes
        if workers < 1 or workers % processes:
            raise ValueError(
                f"workers: expected a positive multiple of {processes} processes, got {workers}"
            )
        for name, value in (("steps", steps), ("checkpoint_every", checkpoint_every)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if clip_quantile is not None and not 0 < clip_quantile <= 1:
            raise ValueError(f"clip_quantile: expected in (0, 1], got {clip_quantile}")
        if not 0 <= average < 1:
            raise ValueError(f"average: expected in [0, 1), got {average}")
        if not 0 < interpolation <= 1:
            raise ValueError(f"interpolation: expected in (0, 1], got {interpolation}")
        self.output, self.steps, self.lr, self.clip = Path(output), steps, lr, clip
        self.checkpoint_every, self.seconds, self.progress = checkpoint_every, seconds, progress
        self.clip_quantile, self.validation = clip_quantile, validation
        self.step, self.elapsed, self.skipped, self.best = 0, 0.0, 0, math.inf
        self._norms: deque[float] = deque(maxlen=_REMEMBERED)
        objective.to(self.accelerator.device)  # before workers, which train where the rule is
        numbers = range(self.accelerator.process_index, workers, processes)
        self.workers: dict[int, Worker] = {i: objective.new_worker(seed + i) for i in numbers}
        self.interpolation = interpolation
        self._start: dict[str, Tensor] = {}
        if interpolation < 1:
            self._start = {n: p.detach().clone() for n, p in objective.named_parameters()}
        rule = get_ema_multi_avg_fn(average)
        self._average = AveragedModel(objective, multi_avg_fn=rule) if average else None
        optimizer = torch.optim.Adam(objective.parameters(), lr=lr)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)

    def train(self, *, resume: bool = False) -> None:
        """Run to the end; with ``resume``, from the newest intact checkpoint if there is one.

        Raises:
            FileExistsError: if ``output`` holds checkpoints and ``resume`` is false.
        """
        root = self.output / "checkpoints"
        found = checkpoint.latest(root)
        if found and not resume:
            raise FileExistsError(f"output: {root} holds checkpoints; resume, or choose another")
        self.output.mkdir(parents=True, exist_ok=True)
        if found:
            self._load(found)
            self._export("weights")  # a kill may have come between the checkpoint and this
        self._forget_log_after(self.step)
        hidden = not (self.progress and self.accelerator.is_main_process)
        total = None if self.seconds else self.steps  # the clock, not the steps, ends a timed run
        with tqdm(total=total, initial=self.step, desc="meta-train", disable=hidden) as bar:
            while not self._done():
                record = self._step()
                bar.update()
                bar.set_postfix(loss=f"{record['loss']:.3f}")
                if self.step % self.checkpoint_every == 0 or self._done():
                    self._save()

    @property
    def _fraction(self) -> float:
        time_share = self.elapsed / self.seconds if self.seconds else 0.0
        return min(1.0, max(self.step / self.steps, time_share))

    def _done(self) -> bool:
        """Decided by the main process's clock, so that all processes stop at the same step."""
        done = torch.tensor(float(self._fraction >= 1.0), device=self.accelerator.device)
        return bool(self.accelerator.reduce(done, "sum") > 0)

    def _step(self) -> dict[str, float]:
        began = time.perf_counter()
        lr = self.lr * _schedule(self._fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        logs = self._backward()
        norm = float(
            self.accelerator.clip_grad_norm_(self.objective.parameters(), self._largest_norm())
        )
        self._update(norm, logs["loss"])
        self.step += 1
        last = self.step == self.steps
        if self.validation and (last or self.step % self.validation.every == 0):
            logs["validation"] = self._validate(self.validation)
        self.elapsed += time.perf_counter() - began
        record = {"step": self.step, **logs, "grad_norm": norm, "lr": lr}
        record["skipped_steps"] = self.skipped
        self._write({**record, "seconds": round(self.elapsed, 3)})
        return record

    def _largest_norm(self) -> float:
        if self.clip_quantile is None or len(self._norms) < _FEWEST:
            return self.clip
        norms = torch.tensor(list(self._norms), dtype=torch.float64)
        return min(self.clip, float(norms.quantile(self.clip_quantile)))

    def _update(self, norm: float, loss: float) -> None:
        """One step of Adam, unless the gradient or the loss is not finite."""
        if math.isfinite(norm) and math.isfinite(loss):
            self._norms.append(norm)
            self.optimizer.step()
        else:
            self.skipped += 1
        self.optimizer.zero_grad()
        if self._average is not None:
            self._average.update_parameters(self.accelerator.unwrap_model(self.objective))

    @property
    def trained(self) -> Objective:
        """The objective with the weights that count: averaged, and interpolated, if asked for."""
        objective = self.accelerator.unwrap_model(self.objective)
        if self._average is not None:
            objective = self._average.module
        if not self._start:
            return objective
        between = deepcopy(objective)
        with torch.no_grad():
            for name, p in between.named_parameters():
                p.copy_(torch.lerp(self._start[name], p, self.interpolation))
        return between

    def _validate(self, validation: Validation) -> float:
        """Mean validation loss over all runs, which processes share; the best weights are kept."""
        processes = self.accelerator.num_processes
        numbers = range(self.accelerator.process_index, validation.runs, processes)
        trained = self.trained
        total = sum(validation.loss(trained, number) for number in numbers)
        device = self.accelerator.device
        summed = self.accelerator.reduce(
            torch.tensor(total, dtype=torch.float64, device=device), "sum"
        )
        loss = float(summed) / validation.runs
        if loss < self.best:
            self.best = loss
            self._export("best")
        return loss

    def _export(self, name: str) -> None:
        if self.accelerator.is_main_process:
            self.trained.save(self.output / f"{name}.safetensors")

    def _backward(self) -> dict[str, float]:
        """Gradients of the mean loss; numbers for the log, averaged over all workers."""
        totals: dict[str, Tensor] = {}
        last = len(self.workers) - 1
        for i, worker in enumerate(self.workers.values()):
            if i < last:
                with self.accelerator.no_sync(self.objective):
                    logs = self._backward_one(worker)
            else:
                logs = self._backward_one(worker)
            for name, value in logs.items():
                totals[name] = totals.get(name, 0.0) + value / len(self.workers)
        names = sorted(totals)
        values = torch.tensor([totals[n] for n in names], device=self.accelerator.device)
        return dict(zip(names, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def _backward_one(self, worker: Worker) -> dict[str, float]:
        loss, logs = self.objective(worker)
        self.accelerator.backward(loss / len(self.workers))
        return {"loss": float(loss.detach()), **logs}

    def _write(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.output / "log.jsonl").open("a") as log:
                log.write(json.dumps(_finite(record), allow_nan=False) + "\n")
        numbers = {name: value for name, value in record.items() if name != "step"}
        self.accelerator.log(numbers, step=self.step)

    def _forget_log_after(self, step: int) -> None:
        """Drop log lines of steps that will be done again."""
        path = self.output / "log.jsonl"
        if self.accelerator.is_main_process and path.exists():
            lines = [
                line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")
            ]
            temporary = path.with_suffix(".partial")
            temporary.write_text("".join(li for li in lines if json.loads(li)["step"] <= step))
            os.replace(temporary, path)

    def _save(self) -> None:
        final = checkpoint.directory(self.output / "checkpoints", self.step)
        temporary = final.with_suffix(".partial")
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        for number, worker in self.workers.items():
            torch.save(worker.state_dict(), temporary / f"worker_{number}.pt")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            progress = {name: getattr(self, name) for name in _PROGRESS} | {
                "norms": list(self._norms)
            }
            (temporary / "progress.json").write_text(json.dumps(progress))
            if self._average is not None:
                torch.save(self._average.state_dict(), temporary / "average.pt")
            if self._start:
                torch.save(self._start, temporary / "start.pt")
            checkpoint.commit(temporary, final)
            self._export("weights")
        self.accelerator.wait_for_everyone()

    def _load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))
        for number, worker in self.workers.items():
            worker.load_state_dict(_read(folder / f"worker_{number}.pt"))
        if self._average is not None:
            self._average.load_state_dict(_read(folder / "average.pt"))
        if self._start:
            start = _read(folder / "start.pt")
            self._start = {name: start[name].to(x) for name, x in self._start.items()}
        progress = json.loads((folder / "progress.json").read_text())
        self._norms.extend(progress.pop("norms"))
        for name in _PROGRESS:
            setattr(self, name, progress[name])


def _read(path: Path) -> dict[str, Any]:
    """What was saved, on the CPU: it goes from there to where this process trains."""
    return torch.load(path, map_location="cpu", weights_only=True)


def _schedule(fraction: float) -> float:
    """Linear warm-up over a twentieth, then a cosine to zero."""
    warm = min(1.0, (fraction + 1e-3) / 0.05)
    return warm * 0.5 * (1 + math.cos(math.pi * fraction))


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON knows; None stands for the others."""
    return {name: value if math.isfinite(value) else None for name, value in record.items()}


def read_log(folder: Path, key: str) -> dict[int, float]:
    """What a ``MetaTrainer`` logged as ``key``, by step; steps without it are left out.

    A number that was not finite is NaN.
    """
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    found = {record["step"]: record[key] for record in records if key in record}
    return {step: math.nan if value is None else value for step, value in found.items()}
