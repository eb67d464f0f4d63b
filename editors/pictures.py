"""Pictures of networks: contact sheets and comparisons with the truth."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from scalegmn_opt.figures import BLUE, ORANGE, new_figure

from .scores import EditReport, StepScore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 8  # networks in a comparison
_ROWS = 3  # networks in a picture of stages
_WIDE = 5  # networks whose figure has room for its title
_LEAST = 1e-14  # no less is shown


def contact_sheet(images: Tensor, *, gap: int = 1) -> Tensor:
    """Images (batch, channels, height, width) row by row on one grey sheet, `gap` pixels apart."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = images.new_full(
        (channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 0.5
    )
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def draw_comparison(report: EditReport) -> "Figure":
    """Input, edited render, target and difference of the first eight networks, with their errors.

    Raises:
        ImportError: matplotlib is missing.
    """
    count = min(len(report.before), _COLUMNS)
    figure = new_figure(max(3.2, 1.15 * count + 1.0), 6.2)
    figure.set_layout_engine("compressed")  # keeps images of a fixed shape close together
    figure.suptitle(_title(report, broken=count < _WIDE), fontsize=11)
    axes = figure.subplots(4, count, squeeze=False)
    difference = report.difference[:count].mean(1, keepdim=True)
    bound = max(float(difference.abs().max()), 1e-3)
    rows = {"input": report.input, "edited": report.edited, "target": report.target}
    for row, (label, images) in zip(axes, rows.items(), strict=False):
        row[0].set_ylabel(label, fontsize=10)
        for ax, image in zip(row, images, strict=False):
            _show(ax, image.clamp(0, 1), cmap="gray", low=0.0, high=1.0)
    axes[3, 0].set_ylabel("edited − target", fontsize=10)
    errors = 10 ** (-report.after.psnr / 10)
    for ax, image, error in zip(axes[3], difference, errors, strict=False):
        _show(ax, image, cmap="RdBu_r", low=-bound, high=bound)
        ax.set_xlabel(f"MSE {error:.2g}", fontsize=8)
    last = axes[3, -1].images[0]
    shrink = min(1.0, 3 / count)
    bar = figure.colorbar(last, ax=axes, location="bottom", fraction=0.03, aspect=30, shrink=shrink)
    bar.set_label("edited − target (intensity)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def draw_stages(report: EditReport) -> "Figure":
    """The first networks before all edits and after each one, on the finer grid, and the target.

    Raises:
        ImportError: matplotlib is missing.
    """
    edits = [f"{step.step.title} {step.step.strength:g}\n{step.mechanism}" for step in report.steps]
    columns = dict(enumerate((*report.stages, report.fine_target)))
    titles = ["input\n", *edits, "target\n"]
    rows, count = min(len(report.fine_target), _ROWS), len(columns)
    height, width = report.fine_target.shape[2:]
    figure = new_figure(1.9 * count, rows * 1.9 * min(height / width, 2.0) + 0.5)
    figure.set_layout_engine("compressed")
    axes = figure.subplots(rows, count, squeeze=False)
    for column, images in columns.items():
        axes[0, column].set_title(titles[column], fontsize=9)
        for ax, image in zip(axes[:, column], images, strict=False):
            _show(ax, image.clamp(0, 1), cmap="gray", low=0.0, high=1.0)
    return figure


def draw_curves(steps: Sequence[StepScore]) -> "Figure":
    """Error against processor time: Adam in place of each edit, and the edit itself.

    Raises:
        ImportError: matplotlib is missing.
    """
    shown = [(step, step.curve) for step in steps if step.curve is not None]
    figure = new_figure(max(4.5, 3.2 * len(shown)), 3.6)
    axes = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for ax, (step, curve) in zip(axes, shown, strict=True):
        points = curve.points
        times = [point.cpu_ms_per_inr for point in points]
        ax.plot(times, [p.mse for p in points], "o-", color=BLUE, label="refit by Adam")
        for point in points:
            place = (point.cpu_ms_per_inr, point.mse)
            ax.annotate(f"{point.steps}", place, (4, 4), textcoords="offset points", fontsize=8)
        own = (max(step.cpu_ms_per_inr, 1e-3), max(curve.mse, _LEAST))
        ax.plot(*own, "*", markersize=13, color=ORANGE, label=f"{step.mechanism}")
        ax.set(xscale="log", yscale="log", xlabel="CPU ms per network")
        ax.set_title(f"{step.step.title} {step.step.strength:g}", fontsize=10)
        ax.xaxis.set_minor_formatter("")
        ax.margins(0.15)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    axes[0].set_ylabel("MSE to the target")
    return figure


def _title(report: EditReport, *, broken: bool) -> str:
    parts = [
        f"{report.recipe.name}: MSE {report.total.mse:.2g} to the target,",
        f"{report.total.mse_do_nothing:.2g} without the edit",
    ]
    return ("\n" if broken else " ").join(parts)


def _show(ax: "Axes", image: Tensor, *, cmap: str, low: float, high: float) -> None:
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    ax.imshow(pixels.numpy(force=True), cmap=cmap, vmin=low, vmax=high)
    ax.set(xticks=[], yticks=[])
