"""Pictures of networks: contact sheets and comparisons with the truth."""

import math
from typing import TYPE_CHECKING

from torch import Tensor

from scalegmn_opt.figures import new_figure

from .metrics import mse

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 8  # networks in a comparison


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


def draw_comparison(before: Tensor, edited: Tensor, target: Tensor, *, title: str) -> "Figure":
    """Input, edited render, target and difference of the first eight networks, with their errors.

    Shapes: before, edited, target `(batch, channels, height, width)`.

    Raises:
        ImportError: matplotlib is missing.
    """
    count = min(len(before), _COLUMNS)
    figure = new_figure(max(6.0, 1.15 * count + 1.0), 6.2)
    figure.set_layout_engine("compressed")  # keeps images of a fixed shape close together
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(4, count, squeeze=False)
    difference = (edited - target)[:count].mean(1, keepdim=True)
    bound = max(float(difference.abs().max()), 1e-3)
    rows = {"input": before, "edited": edited, "target": target}
    for row, (label, images) in zip(axes, rows.items(), strict=False):
        row[0].set_ylabel(label, fontsize=10)
        for ax, image in zip(row, images, strict=False):
            _show(ax, image.clamp(0, 1), cmap="gray", low=0.0, high=1.0)
    axes[3, 0].set_ylabel("edited − target", fontsize=10)
    errors = mse(edited, target)
    for ax, image, error in zip(axes[3], difference, errors, strict=False):
        _show(ax, image, cmap="RdBu_r", low=-bound, high=bound)
        ax.set_xlabel(f"MSE {error:.2g}", fontsize=8)
    last = axes[3, -1].images[0]
    shrink = min(1.0, 3 / count)
    bar = figure.colorbar(last, ax=axes, location="bottom", fraction=0.03, aspect=30, shrink=shrink)
    bar.set_label("edited − target (intensity)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _show(ax: "Axes", image: Tensor, *, cmap: str, low: float, high: float) -> None:
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    ax.imshow(pixels.numpy(force=True), cmap=cmap, vmin=low, vmax=high)
    ax.set(xticks=[], yticks=[])
