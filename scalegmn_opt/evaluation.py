"""`scalegmn-opt evaluate`: optimizers compared on tasks that no rule was meta-trained on.

Optimizers with settings are tuned on each task: every setting of their grid is run from two starts
of its own, the best is run again from fresh ones. They are chosen twice, by the loss on validation
data and by the final training loss, because the one is what counts and the other is what
steps-to-target measures. The target is the final training loss of Adam in the second choice.
"""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm.auto import tqdm

from scalegmn_opt.evaluation_figures import draw_curves
from scalegmn_opt.meta import scores
from scalegmn_opt.meta.contenders import contender
from scalegmn_opt.meta.evaluate import EvaluatedTask, Run, best, cached_run
from scalegmn_opt.processes import completed
from scalegmn_opt.tasks.held_out import held_out_task

TUNING_SEEDS = (1000, 1001)
TARGET = "adam, tuned on training loss"
REPORT = "report.json"


@dataclass(frozen=True)
class _Job:
    """One run, in a form that crosses processes."""

    task: str
    data: Path | None
    optimizer: str
    settings: tuple[tuple[str, float], ...]
    seed: int
    cache: Path


@dataclass(frozen=True)
class Evaluation:
    """What is compared, and where results go.

    Args:
        tasks: names in ``scalegmn_opt.tasks.HELD_OUT``, or ``package.module:NAME``.
        optimizers: names of contenders; Adam, which sets the target, takes part in any case.
        out: folder of ``report.json``, ``curves/`` and ``cache/``; runs found in the cache are not
            repeated, so that an interrupted evaluation goes on where it was.
        data: MNIST's file, or its folder.
        seeds: runs of each row.
        jobs: processes.
        progress: show a progress bar.

    Raises:
        ValueError: if a task or an optimizer is unknown, or a number is below 1.
        TypeError: for a task that is no :class:`EvaluatedTask`.
    """

    tasks: Sequence[str]
    optimizers: Sequence[str]
    out: Path
    data: Path | None = None
    seeds: int = 5
    jobs: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        for name, value in (("seeds", self.seeds), ("jobs", self.jobs)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for optimizer in self.optimizers:
            contender(optimizer)
        for task in self.tasks:
            # What is wrong is known before the first run.
            made = held_out_task(task).make(self.data)
            if not isinstance(made, EvaluatedTask):
                needed = ("module", "example_inputs", "evaluate", "graph", "init", "batch", "loss")
                missing = [name for name in needed if name not in dir(made)]
                raise TypeError(
                    f"{task}: expected a task that can be evaluated, "
                    f"{type(made).__name__} lacks {missing}"
                )

    def run(self) -> dict[str, Any]:
        """All runs, ``report.json`` and a picture of each task; returns the report."""
        optimizers = list(dict.fromkeys(["adam", *self.optimizers]))
        tuning = self._all(
            [
                self._job(task, optimizer, settings, seed)
                for task in self.tasks
                for optimizer in optimizers
                for settings in contender(optimizer).grid
                if len(contender(optimizer).grid) > 1
                for seed in TUNING_SEEDS
            ],
            "tune",
        )
        rows = {task: _rows(optimizers, tuning, task) for task in self.tasks}
        jobs = {
            (task, label, seed): self._job(task, optimizer, settings, seed)
            for task in self.tasks
            for label, (optimizer, settings) in rows[task].items()
            for seed in range(self.seeds)
        }
        found = self._all(jobs.values(), "compare")
        runs: dict[str, dict[str, list[Run]]] = {task: {} for task in self.tasks}
        for (task, label, _), job in jobs.items():
            runs[task].setdefault(label, []).append(found[job])
        report = _report(runs)
        self._write(report, runs)
        return report

    def _job(self, task: str, optimizer: str, settings: Mapping[str, float], seed: int) -> _Job:
        chosen = tuple(sorted(settings.items()))
        return _Job(task, self.data, optimizer, chosen, seed, self.out / "cache")

    def _all(self, jobs: Iterable[_Job], title: str) -> dict[_Job, Run]:
        """The runs of all jobs, each done once."""
        every = list(dict.fromkeys(jobs))
        done = completed(_run, every, jobs=self.jobs)
        return dict(tqdm(done, total=len(every), desc=title, disable=not self.progress))

    def _write(self, report: dict[str, Any], runs: dict[str, dict[str, list[Run]]]) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = self.out / f"{REPORT}.partial"
        temporary.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        temporary.replace(self.out / REPORT)
        (self.out / "curves").mkdir(exist_ok=True)
        for task, rows in runs.items():
            name = task.replace(":", "-").replace("/", "-")
            shown = {label: found for label, found in rows.items() if _is_drawn(label)}
            figure = draw_curves(task, shown, target=report["tasks"][task]["target"])
            figure.savefig(self.out / "curves" / f"{name}.png", dpi=150)


def _is_drawn(label: str) -> bool:
    """Curves are of the training loss, so that the other choice and most defaults are left out."""
    return "," not in label or label.endswith("training loss") or label == "adam, default"


@lru_cache(maxsize=2)
def _task(name: str, data: Path | None) -> tuple[EvaluatedTask, int]:
    held_out = held_out_task(name)
    return held_out.make(data), held_out.steps


def _run(job: _Job) -> Run:
    task, steps = _task(job.task, job.data)
    settings = dict(job.settings)
    return cached_run(task, job.optimizer, settings, seed=job.seed, steps=steps, cache=job.cache)


def _rows(
    optimizers: Sequence[str], tuning: Mapping[_Job, Run], task: str
) -> dict[str, tuple[str, Mapping[str, float]]]:
    """Optimizer and settings of each row of a task's table."""
    rows: dict[str, tuple[str, Mapping[str, float]]] = {}
    for name in optimizers:
        own = contender(name)
        runs = [run for job, run in tuning.items() if job.task == task and job.optimizer == name]
        if not runs:
            rows[name] = (name, own.grid[0])
            continue
        rows[f"{name}, tuned"] = (name, best(runs, by="validation"))
        rows[f"{name}, tuned on training loss"] = (name, best(runs, by="training"))
        if own.default is not None:
            rows[f"{name}, default"] = (name, own.default)
    return rows


def _report(runs: dict[str, dict[str, list[Run]]]) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for task, rows in runs.items():
        target = median(run.final_loss for run in rows[TARGET])
        tasks[task] = {
            "steps": len(rows[TARGET][0].losses),
            "target": target,
            "rows": {label: _row(found, target) for label, found in rows.items()},
        }
    labels = {label: None for rows in runs.values() for label in rows}
    return {
        "machine": {"torch": torch.__version__, "machine": platform.machine()},
        "tasks": tasks,
        "summary": {label: _summary(tasks, label) for label in labels},
    }


def _row(runs: Sequence[Run], target: float) -> dict[str, Any]:
    """Numbers of one optimizer on one task, by seed where they are lists."""
    reached = [scores.steps_to(run.losses, target) for run in runs]
    accuracies = [run.held_out["test"]["accuracy"] for run in runs]
    known = [a for a in accuracies if a is not None]
    return {
        "settings": runs[0].settings,
        "steps_to_target": reached,
        # Where the target is not reached, nothing is known of how many steps it would take: zero.
        "speedup": [len(runs[0].losses) / steps if steps else 0.0 for steps in reached],
        "seconds_to_target": [
            run.seconds[steps - 1] if steps else None
            for run, steps in zip(runs, reached, strict=True)
        ],
        "final_loss": [_finite(run.final_loss) for run in runs],
        "validation_loss": [_finite(run.validation_loss) for run in runs],
        "test_accuracy": known,
        "diverged": sum(scores.diverged(run.losses) for run in runs),
        "ms_per_step": 1e3 * median(run.seconds[-1] / len(run.seconds) for run in runs),
    }


def _summary(tasks: dict[str, Any], label: str) -> dict[str, Any]:
    """Numbers of one row's optimizer over all tasks."""
    own = {name: task["rows"][label] for name, task in tasks.items()}
    adam = {name: task["rows"][TARGET] for name, task in tasks.items()}
    validated = {name: task["rows"]["adam, tuned"] for name, task in tasks.items()}
    speedups = {name: row["speedup"] for name, row in own.items()}
    mean, low, high = scores.interval(speedups, generator=torch.Generator().manual_seed(0))
    better = [_middle(own[name]["final_loss"]) < _middle(adam[name]["final_loss"]) for name in own]
    differences = [
        median(own[name]["test_accuracy"]) - median(validated[name]["test_accuracy"])
        for name in own
        if own[name]["test_accuracy"] and validated[name]["test_accuracy"]
    ]
    return {
        "speedup": mean,
        "speedup_interval": [low, high],
        "lower_final_loss_than_adam": sum(better) / len(better),
        "worst_accuracy_difference": min(differences, default=None),
        "diverged": sum(row["diverged"] for row in own.values()),
        "runs": sum(len(row["speedup"]) for row in own.values()),
    }


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _middle(values: Sequence[float | None]) -> float:
    return median(float("inf") if value is None else value for value in values)
