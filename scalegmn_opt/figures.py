"""Figures of runs; matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.75"  # told apart by the colour-blind, too


def new_figure(width: float, height: float) -> "Figure":
    """An empty matplotlib figure of a size in inches, apart from pyplot's state.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "scalegmn-opt[images]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_losses(
    losses: Sequence[float], *, label: str, validation: Mapping[int, float] | None = None
) -> "Figure":
    """Meta-losses against meta-steps, as they are and averaged over a tenth of the run.

    Args:
        validation: validation losses by step, drawn on an axis of their own.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = new_figure(7.5, 4.2)
    ax = figure.subplots()
    steps = range(1, len(losses) + 1)
    ax.plot(steps, losses, color=GREY, linewidth=1, label="each meta-step")
    ax.plot(steps, _smoothed(losses), color=ORANGE, linewidth=2, label="moving average")
    ax.set(xlabel="meta-steps", ylabel=label)
    ax.grid(alpha=0.3)
    if validation:
        other = ax.twinx()
        other.plot(
            *zip(*validation.items(), strict=True), color=BLUE, marker="o", label="validation"
        )
        other.set(ylabel="validation loss")
    figure.legend(loc="outside upper right", ncols=3, fontsize=9)
    return figure


def _smoothed(losses: Sequence[float]) -> list[float]:
    half = max(1, len(losses) // 20)
    return [mean(losses[max(0, i - half) : i + half + 1]) for i in range(len(losses))]
