"""Training curves of an evaluation, and its tables."""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from scalegmn_opt.figures import new_figure
from scalegmn_opt.meta.contenders import LEARNED
from scalegmn_opt.meta.evaluate import Run
from scalegmn_opt.meta.scores import trailing_mean
from scalegmn_opt.tables import new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

# Told apart by the colour-blind, too (Okabe and Ito); dashes tell the second round apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw_curves(title: str, rows: Mapping[str, Sequence[Run]], *, target: float) -> "Figure":
    """Training loss, averaged over a tenth of a run, against steps and seconds of one thread.

    A line is the median over the runs, a shade goes from the first to the third quartile.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = new_figure(11.0, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (label, runs) in enumerate(rows.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        dash = ("-", "--", ":", "-.")[number // len(_COLOURS) % 4]
        steps = range(1, len(runs[0].losses) + 1)
        seconds = [median(run.seconds[i] for run in runs) for i in range(len(steps))]
        for axis, places in ((left, list(steps)), (right, seconds)):
            _band(axis, places, runs, colour=colour, dash=dash, label=label)
    for axis, name in ((left, "steps"), (right, "CPU seconds of one thread")):
        axis.axhline(target, color="0.5", linewidth=0.8)
        axis.set(xlabel=name, yscale="log")
        axis.grid(alpha=0.3)
    left.set(ylabel="training loss")
    right.set(xscale="log")
    figure.suptitle(title)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7)
    return figure


def _band(
    axis: "Axes",
    places: Sequence[float],
    runs: Sequence[Run],
    *,
    colour: str,
    dash: str,
    label: str,
) -> None:
    curves = torch.tensor([trailing_mean(run.losses) for run in runs], dtype=torch.float64)
    low, middle, high = (
        [value if isfinite(value) else nan for value in curves.quantile(q, 0).tolist()]
        for q in (0.25, 0.5, 0.75)
    )
    width = 2.4 if label.startswith(LEARNED) else 1.2
    axis.plot(places, middle, color=colour, linestyle=dash, linewidth=width, label=label)
    axis.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def tables(report: Mapping[str, Any]) -> "list[Table]":
    """The summary over all tasks, and medians over the seeds on each task."""
    summary = [
        (
            label,
            f"{row['speedup']:.2f}",
            "{:.2f} to {:.2f}".format(*row["speedup_interval"]),
            f"{row['lower_final_loss_than_adam']:.0%}",
            _number(row["worst_accuracy_difference"], "+.1%"),
            f"{row['diverged']} of {row['runs']}",
        )
        for label, row in report["summary"].items()
    ]
    titles = ("optimizer", "speed-up", "95 %", "lower loss", "accuracy, worst", "diverged")
    found = [
        new_table("all tasks: inter-quartile mean of steps / steps to target", titles, summary)
    ]
    for name, task in report["tasks"].items():
        rows = [_task_row(label, row) for label, row in task["rows"].items()]
        title = f"{name}: {task['steps']} steps, target {task['target']:.3g}"
        columns = ("optimizer", "settings", "steps", "s", "final", "validation", "accuracy", "ms")
        found.append(new_table(title, columns, rows))
    return found


def _task_row(label: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        label,
        " ".join(f"{name}={value:.2g}" for name, value in row["settings"].items()),
        _middle(row["steps_to_target"], ".0f"),
        _middle(row["seconds_to_target"], ".3g"),
        _middle(row["final_loss"], ".3g"),
        _middle(row["validation_loss"], ".3g"),
        _middle(row["test_accuracy"], ".1%"),
        f"{row['ms_per_step']:.3g}",
    )


def _middle(values: Sequence[float | None], form: str) -> str:
    """The median, where None is larger than all numbers."""
    if not values:
        return ""
    middle = sorted(float("inf") if value is None else value for value in values)[len(values) // 2]
    return _number(middle if isfinite(middle) else None, form)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
