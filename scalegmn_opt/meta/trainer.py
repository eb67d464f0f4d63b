"""MetaTrainer: minimizes an objective over virtual workers, on one process or many."""

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from scalegmn_opt.meta import checkpoint
from scalegmn_opt.meta.estimators import Worker


class MetaTrainer:
    """Adam on the mean loss of ``workers`` virtual workers, which processes share among them.

    Workers are seeded by their number, not by process, so that any number of processes that divides
    ``workers`` gives the same result up to the order of sums. ``log.jsonl`` in ``output`` has one
    line a step; ``checkpoints/`` the last two complete states; ``weights.safetensors`` the trained
    weights of the last checkpoint.

    Args:
        objective: an ``nn.Module`` that satisfies ``scalegmn_opt.meta.Objective``.
        output: folder to write to.
        steps: meta-steps in total; the learning rate falls to zero along a cosine.
        workers: virtual workers; each gives one term of every meta-gradient.
        lr: peak learning rate of Adam, reached after a twentieth of the steps.
        clip: largest norm of the meta-gradient.
        checkpoint_every: steps between two checkpoints.
        seconds: stop after this time, too (with a checkpoint); the schedule then follows the
            larger of elapsed time and steps.
        seed: worker ``i`` has seed ``seed + i``.
        accelerator: an ``accelerate.Accelerator``; a new one if None.
        progress: show a progress bar (on the main process).

    Raises:
        ValueError: if ``workers`` is not a multiple of the number of processes.
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
        checkpoint_every: int = 100,
        seconds: float | None = None,
        seed: int = 0,
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
        self.output, self.steps, self.lr, self.clip = Path(output), steps, lr, clip
        self.checkpoint_every, self.seconds, self.progress = checkpoint_every, seconds, progress
        self.step, self.elapsed = 0, 0.0
        numbers = range(self.accelerator.process_index, workers, processes)
        self.workers: dict[int, Worker] = {i: objective.new_worker(seed + i) for i in numbers}
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
        if found:
            self._load(found)
        self.output.mkdir(parents=True, exist_ok=True)
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
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.clip)
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.elapsed += time.perf_counter() - began
        record = {"step": self.step, **logs, "grad_norm": float(norm), "lr": lr}
        self._write({**record, "seconds": round(self.elapsed, 3)})
        return record

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
                log.write(json.dumps(record) + "\n")

    def _forget_log_after(self, step: int) -> None:
        """Drop log lines of steps that will be done again."""
        path = self.output / "log.jsonl"
        if self.accelerator.is_main_process and path.exists():
            lines = [
                line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")
            ]
            path.write_text("".join(li for li in lines if json.loads(li)["step"] <= step))

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
            progress = {"step": self.step, "elapsed": self.elapsed}
            (temporary / "progress.json").write_text(json.dumps(progress))
            checkpoint.commit(temporary, final)
            self.accelerator.unwrap_model(self.objective).save(self.output / "weights.safetensors")
        self.accelerator.wait_for_everyone()

    def _load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))
        for number, worker in self.workers.items():
            worker.load_state_dict(torch.load(folder / f"worker_{number}.pt", weights_only=True))
        progress = json.loads((folder / "progress.json").read_text())
        self.step, self.elapsed = progress["step"], progress["elapsed"]


def _schedule(fraction: float) -> float:
    """Linear warm-up over a twentieth, then a cosine to zero."""
    warm = min(1.0, (fraction + 1e-3) / 0.05)
    return warm * 0.5 * (1 + math.cos(math.pi * fraction))
