"""What a recipe did to some networks: distances to the truth, processor time, pictures."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scalegmn_opt.inr import INRStore, psnr_from_mse, render, save_png

from .chain import EditRecipe, resolve
from .edit import Edit
from .metrics import mse, psnr
from .pictures import contact_sheet, draw_comparison

_SHEET = 16  # networks on a contact sheet
_SCALED = "input and edited are rendered again; target and difference have enlarged pixels"


@dataclass(frozen=True)
class Score:
    """Distances to the target, as means over the networks, and the cost of getting there.

    Attributes:
        mse: of the edited render.
        mse_do_nothing: of the render before the edit.
        psnr: of the edited render in dB, from `mse`; None where it is infinite.
        cpu_ms_per_inr: processor time in milliseconds per network, loading of weights left out.
    """

    mse: float
    mse_do_nothing: float
    psnr: float | None
    cpu_ms_per_inr: float


@dataclass(frozen=True)
class StepScore:
    """The score of one edit of a recipe; its target is the edit of the target before it."""

    edit: str
    strength: float
    angle: float | None
    mechanism: str
    score: Score

    def as_dict(self) -> dict[str, Any]:
        """One flat mapping, without an angle where there is none."""
        angle = {} if self.angle is None else {"angle": self.angle}
        step = {"edit": self.edit, "strength": self.strength, **angle}
        return {**step, "mechanism": self.mechanism, **asdict(self.score)}


@dataclass(frozen=True, eq=False)
class EditReport:
    """Networks before and after a recipe, their renders, and how close these are to the target.

    Shapes: `input`, `edited`, `target` `(batch, channels, height, width)`.
    """

    recipe: str
    ground_truth: str
    before: INRStore
    after: INRStore
    input: Tensor
    edited: Tensor
    target: Tensor
    steps: tuple[StepScore, ...]
    total: Score

    def as_dict(self) -> dict[str, Any]:
        """Everything but tensors."""
        return {
            "recipe": self.recipe,
            "count": len(self.before),
            "ground_truth": self.ground_truth,
            "edits": [step.as_dict() for step in self.steps],
            "total": asdict(self.total),
        }


def measure(
    store: INRStore,
    recipe: EditRecipe,
    edits: Mapping[str, Edit],
    *,
    images: Tensor | None = None,
) -> EditReport:
    """Apply a recipe and compare the renders with the edited `images`.

    Args:
        store: networks to edit; not modified.
        recipe: edits in order, each looked up in `edits`.
        edits: edits by name.
        images: what the networks hold, `(batch, channels, height, width)`; their own renders at
            `store.image_size` if None.

    Raises:
        ValueError: images of another shape than the renders, or whatever an edit rejects.
    """
    original = _render(store.params, store)
    if images is not None and images.shape != original.shape:
        raise ValueError(
            f"images must have shape {tuple(original.shape)}, got {tuple(images.shape)}"
        )
    params, current, target = store.params, original, original if images is None else images
    steps: list[StepScore] = []
    for step in recipe.edits:
        edit = resolve(step, edits)
        target = edit.target(target, step.strength)
        params, milliseconds = _timed(edit, params, store, step.strength)
        before, current = current, _render(params, store)
        score = _score(current, target, before=before, milliseconds=milliseconds)
        steps.append(StepScore(edit.name, step.strength, step.angle, edit.mechanism, score))
    milliseconds = sum(step.score.cpu_ms_per_inr for step in steps)
    return EditReport(
        recipe=recipe.name,
        ground_truth="renders of the networks" if images is None else "source images",
        before=store,
        after=INRStore(params, store.spec, store.names, psnr(current, target), store.image_size),
        input=original,
        edited=current,
        target=target,
        steps=tuple(steps),
        total=_score(current, target, before=original, milliseconds=milliseconds),
    )


def write_report(
    report: EditReport, out: Path, *, source: str, scale: int = 4, compare: bool = True
) -> None:
    """Write the edited networks, pictures and `report.json` to the folder `out`.

    Args:
        report: what `measure` found.
        out: made if it does not exist; files in it are replaced.
        source: where the networks come from, for the report.
        scale: resolution of the larger pictures, in multiples of the networks' image size.
        compare: whether `comparison.png` is drawn.

    Raises:
        ValueError: `scale` below 1.
        ImportError: Pillow or, for the comparison, matplotlib is missing.
    """
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    out.mkdir(parents=True, exist_ok=True)
    _write_sheets(report, out, scale=scale)
    if compare:
        figure = draw_comparison(
            report.input, report.edited, report.target, title=comparison_title(report)
        )
        figure.savefig(out / "comparison.png", dpi=150)
    report.after.save(out / "edited.safetensors")
    fields = {"input": source, **report.as_dict(), "scale": scale, "scaled_pictures": _SCALED}
    (out / "report.json").write_text(json.dumps(fields, indent=2) + "\n")


def comparison_title(report: EditReport) -> str:
    """The recipe and its errors in one line."""
    return (
        f"{report.recipe}: MSE {report.total.mse:.2g} to the target, "
        f"{report.total.mse_do_nothing:.2g} without the edit"
    )


def _write_sheets(report: EditReport, out: Path, *, scale: int) -> None:
    difference = (report.edited - report.target).abs()
    pictures = {
        "input": report.input,
        "edited": report.edited,
        "target": report.target,
        "difference": difference,
    }
    for name, images in pictures.items():
        save_png(out / f"{name}.png", contact_sheet(images[:_SHEET]))
    if scale == 1:
        return
    for name, store in (("input", report.before), ("edited", report.after)):
        some = store[:_SHEET]
        large = _render(some.params, some, scale=scale)
        save_png(out / f"{name}_x{scale}.png", contact_sheet(large, gap=scale))
    for name in ("target", "difference"):
        # The truth is known at the pixels only.
        save_png(out / f"{name}_x{scale}.png", contact_sheet(pictures[name][:_SHEET]), scale)


def _render(params: Mapping[str, Tensor], store: INRStore, *, scale: int = 1) -> Tensor:
    height, width = store.image_size
    return render(params, store.spec, scale * height, scale * width)


def _timed(
    edit: Edit, params: Mapping[str, Tensor], store: INRStore, strength: float
) -> tuple[dict[str, Tensor], float]:
    """The edited networks, and the processor time in milliseconds per network."""
    first = {name: value[:1] for name, value in params.items()}
    edit.apply(first, store.spec, strength)  # a learned edit loads its weights now
    began = time.process_time()
    edited = edit.apply(params, store.spec, strength)
    return edited, 1000 * (time.process_time() - began) / len(store)


def _score(images: Tensor, target: Tensor, *, before: Tensor, milliseconds: float) -> Score:
    error = mse(images, target).mean()
    decibels = psnr_from_mse(error).item()
    return Score(
        mse=error.item(),
        mse_do_nothing=mse(before, target).mean().item(),
        psnr=decibels if math.isfinite(decibels) else None,
        cpu_ms_per_inr=milliseconds,
    )
