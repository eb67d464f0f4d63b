"""The folder that an edit leaves: networks, pictures, and a report to read and one to parse."""

import json
import os
from pathlib import Path

from torch import Tensor

from scalegmn_opt.inr import save_png

from .markdown import as_markdown
from .pictures import contact_sheet, draw_comparison, draw_curves, draw_stages
from .scores import SAMPLE, EditReport


def write_report(report: EditReport, out: Path, *, source: str, compare: bool = True) -> None:
    """Write the edited networks, pictures, `report.json` and `report.md` to the folder `out`.

    Args:
        report: what `measure` found.
        out: made if it does not exist; files in it are replaced.
        source: where the networks come from, for the report.
        compare: whether `stages.png` and `comparison.png` are drawn, and `refit.png` if refits were
            measured.

    Raises:
        OSError: `out` is no folder, or cannot be written.
        ImportError: Pillow or, for the comparison, matplotlib is missing.
    """
    check_writable(out)
    pictures = _write_sheets(report, out)
    if compare:
        pictures = [*_write_figures(report, out), *pictures]
    report.after.save(out / "edited.safetensors")
    fields = {"input": source, **report.as_dict()}
    _replace(out / "report.json", json.dumps(fields, indent=2) + "\n")
    _replace(out / "report.md", as_markdown(report, source, pictures))


def check_writable(out: Path) -> None:
    """Make the folder `out` if it does not exist, and see whether files can be made in it.

    Raises:
        OSError: it is no folder, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        message = f"out must be a folder that can be written, got {out}: {error.strerror}"
        raise type(error)(message) from error


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_figures(report: EditReport, out: Path) -> list[str]:
    figures = {"stages.png": draw_stages(report), "comparison.png": draw_comparison(report)}
    if any(step.curve is not None for step in report.steps):
        figures["refit.png"] = draw_curves(report.steps)
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=150)
    return list(figures)


def _write_sheets(report: EditReport, out: Path) -> list[str]:
    coarse = {
        "input": report.input,
        "edited": report.edited,
        "target": report.target,
        "difference": report.difference.abs(),
    }
    fine = {
        "input": report.stages[0],
        "edited": report.stages[-1],
        "target": report.fine_target,
        "difference": (report.stages[-1] - report.fine_target).abs(),
    }
    names = _save(out, coarse, suffix="", gap=1)
    if report.scale > 1:
        names += _save(out, fine, suffix=f"_x{report.scale}", gap=report.scale)
    return names


def _save(out: Path, sheets: dict[str, Tensor], *, suffix: str, gap: int) -> list[str]:
    for name, images in sheets.items():
        save_png(out / f"{name}{suffix}.png", contact_sheet(images[:SAMPLE], gap=gap))
    return [f"{name}{suffix}.png" for name in sheets]
