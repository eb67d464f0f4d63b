"""The report of an edit as a page of Markdown."""

from collections.abc import Iterable, Sequence

from .scores import EditReport, RefitCurve, Score, StepScore

_GUESS = (
    "What belongs in the region that is inpainted nobody knows: errors are those of the rest of "
    "the picture, and the target shows the smoothest filling there."
)


def as_markdown(report: EditReport, source: str, pictures: Sequence[str]) -> str:
    """The report as a page, with the files `pictures` in it."""
    parts = [
        f"# {report.recipe.name}",
        report.recipe.description,
        f"{_count(report)} from `{source}`, held to the {report.ground_truth} after "
        "the same edits on pixels; errors are means over the networks. Before any edit the mean "
        f"squared error is {report.mse_of_input:.3g}.",
        _scores(report),
        *(_worse(step) for step in report.steps),
        *(f"Warning: {warning}." for step in report.steps for warning in step.warnings),
        _GUESS if any(step.guesses for step in report.steps) else "",
        f"The grid x{report.scale} is held to the edited renders of the networks themselves, "
        f"{len(report.fine_target)} of them. Alone: to the edit of the render just before, without "
        "the errors of earlier edits.",
        _refits(report.steps),
        *(f"![{name}]({name})" for name in pictures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _worse(step: StepScore) -> str:
    if step.guesses or step.score.mse <= step.score.mse_do_nothing:
        return ""
    return f"**After {step.step.title} the picture is further from the target than without it.**"


def _count(report: EditReport) -> str:
    return "1 network" if len(report.before) == 1 else f"{len(report.before)} networks"


def _scores(report: EditReport) -> str:
    columns = [
        "edit", "strength", "mechanism", "MSE", "MSE of doing nothing", "error removed", "PSNR, dB",
        f"MSE x{report.scale}", f"PSNR x{report.scale}, dB", "MSE alone", "ms per network",
        "CPU ms per network",
    ]  # fmt: skip
    rows = [_row(step) for step in report.steps]
    if len(rows) > 1:
        cells = _cells("**all**", "", "", report.total, report.scaled)
        rows.append([*cells, "", "", _number(report.cpu_ms_per_inr)])
    return _table(columns, rows)


def _row(step: StepScore) -> list[str]:
    cells = _cells(
        step.step.title, f"{step.step.strength:g}", step.mechanism, step.score, step.scaled
    )
    return [*cells, *map(_number, (step.mse_alone, step.ms_per_inr, step.cpu_ms_per_inr))]


def _cells(edit: str, strength: str, mechanism: str, score: Score, scaled: Score) -> list[str]:
    removed = "" if score.share_removed is None else f"{score.share_removed:.1%}"
    numbers = [_number(score.mse), _number(score.mse_do_nothing), removed]
    fine = [_number(scaled.mse), _decibels(scaled)]
    return [edit, strength, mechanism, *numbers, _decibels(score), *fine]


def _refits(steps: Iterable[StepScore]) -> str:
    measured = [(step, step.curve) for step in steps if step.curve is not None]
    if not measured:
        return ""
    counts = [point.steps for point in measured[0][1].points]
    columns = [
        "edit", "its MSE", *(f"{count} Adam steps" for count in counts), "break-even, steps",
        "break-even, CPU ms per network",
    ]  # fmt: skip
    rows = [_refit_row(step.step.title, curve) for step, curve in measured]
    text = (
        "Refitting in place of each edit, by Adam from the networks before it; it has to know the "
        "target. The break-even is where a refit is as good as the edit."
    )
    return f"{text}\n\n{_table(columns, rows)}"


def _refit_row(edit: str, curve: RefitCurve) -> list[str]:
    steps, milliseconds = curve.break_even_steps, curve.break_even_cpu_ms_per_inr
    even = f"more than {curve.points[-1].steps}" if steps is None else f"{steps:.0f}"
    cost = "" if milliseconds is None else _number(milliseconds)
    return [edit, _number(curve.mse), *(_number(p.mse) for p in curve.points), even, cost]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    return f"{value:.3g}"


def _decibels(score: Score) -> str:
    return "∞" if score.psnr is None else f"{score.psnr:.1f}"
