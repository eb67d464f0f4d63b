"""What a recipe does to some networks: distances to the truth, and processor time."""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from scalegmn_opt.inr import INRStore, SirenSpec, joined, psnr_from_mse, refine, render

from .chain import LEARNED, EditRecipe, EditStep, resolve
from .edit import Edit, Meaning, widened
from .learned_steps import LearnedSteps
from .refit import Refit
from .scores import SAMPLE, EditReport, RefitCurve, RefitPoint, Score, StepScore
from .truth import Truth
from .unfinished import Unfinished

CURVE = (10, 50, 150)  # Adam steps
_PART = 2**19  # pixels of the networks between two files of an unfinished run

Params = dict[str, Tensor]


@dataclass
class _Grid:
    """Renders on one grid, before all edits, before the present one and after it, and the truth."""

    truth: Truth
    size: tuple[int, int]
    first: Tensor
    current: Tensor
    scores: list[Score] = field(default_factory=list)
    changes: bool = False  # whether anything was to change that has a truth

    def advance(self, edit: Meaning, params: Params, spec: SirenSpec, strength: float) -> None:
        last, self.truth = self.truth, self.truth.after(edit, strength)
        before, self.current = self.current, render(params, spec, *self.size)
        changes = self.truth.differs(last)
        self.changes |= changes
        self.scores.append(_score(self.current, self.truth, before=before, changes=changes))

    def total(self) -> Score:
        return _score(self.current, self.truth, before=self.first, changes=self.changes)


def measure(
    store: INRStore,
    recipe: EditRecipe,
    edits: Mapping[str, Meaning],
    *,
    images: Tensor | None = None,
    scale: int = 4,
    curve: bool = False,
    progress: bool = False,
    unfinished: Unfinished | None = None,
) -> EditReport:
    """Apply a recipe and compare the renders with the edited `images`.

    Args:
        store: networks to edit; not modified.
        recipe: edits in order, each looked up in `edits`.
        edits: edits by name.
        images: what the networks hold, `(batch, channels, height, width)`; their own renders at
            `store.image_size` if None.
        scale: of the finer grid.
        curve: whether Adam is measured beside every edit whose target is known.
        progress: whether refits show a progress bar.
        unfinished: keeps what is finished, and has what an interrupted run finished.

    Raises:
        ValueError: images of another shape than the renders, `scale` below 1, or whatever an edit
            rejects.
    """
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    coarse, fine = _grid(store, images), _fine_grid(store[:SAMPLE], scale)
    mse_of_input = coarse.truth.mse(coarse.current).mean().item()
    now, steps, stages = store, [], [fine.first]
    for number, step in enumerate(tqdm(recipe.edits, desc="edit", disable=not progress)):
        edit = resolve(step, edits, spec=now.spec, image_size=now.image_size, progress=progress)
        run = _Step(edit, step.strength, number, unfinished)
        score, now = _scored(run, _as_taken(step, edit), now, (coarse, fine), curve=curve)
        steps.append(score)
        stages.append(fine.current)
    psnr = psnr_from_mse(coarse.truth.mse(coarse.current))
    return EditReport(
        recipe=recipe,
        ground_truth="renders of the networks" if images is None else "source images",
        before=store,
        after=replace(now, psnr=psnr),
        input=coarse.first,
        edited=coarse.current,
        target=coarse.truth.images,
        difference=(coarse.current - coarse.truth.images) * coarse.truth.known,
        scale=scale,
        stages=tuple(stages),
        fine_target=fine.truth.images,
        steps=tuple(steps),
        mse_of_input=mse_of_input,
        total=coarse.total(),
        scaled=fine.total(),
    )


def _scored(
    run: "_Step", taken: EditStep, before: INRStore, grids: tuple[_Grid, _Grid], *, curve: bool
) -> tuple[StepScore, INRStore]:
    """One step taken, on both grids, and the networks after it."""
    edit, strength, (coarse, fine) = run.edit, run.strength, grids
    alone = Truth.of_networks(before.params, before.spec, before.image_size).after(edit, strength)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        timed = run.timed(before)
    warned = {str(warning.message): warning.category for warning in caught}
    for message, category in warned.items():
        warnings.warn(message, category, stacklevel=3)
    after = replace(before, params=timed.params, spec=widened(before.spec, timed.params))
    coarse.advance(edit, after.params, after.spec, strength)
    fine.advance(edit, _first(after.params, SAMPLE), after.spec, strength)
    own = alone.mse(coarse.current).mean().item()
    guesses = edit.guessed is not None
    # A refit in place of a guess would have another target.
    compared = curve and not guesses
    points = _kept_curve(before, coarse, run.number, run.unfinished) if compared else None
    scores = coarse.scores[-1], fine.scores[-1]
    times = timed.ms_per_inr, timed.cpu_ms_per_inr
    told = guesses, tuple(warned)
    return StepScore(taken, edit.mechanism, *scores, own, *times, points, *told), after


def check_recipe(
    recipe: EditRecipe,
    edits: Mapping[str, Meaning],
    *,
    spec: SirenSpec,
    image_size: tuple[int, int],
) -> None:
    """Reject what `measure` would reject, before any networks are there, on an empty picture.

    Raises:
        ValueError, FileNotFoundError: as `resolve`, or a strength that an edit rejects.
    """
    truth = Truth.of_images(torch.zeros(1, spec.out_features, *image_size))
    for step in recipe.edits:
        edit = resolve(step, edits, spec=spec, image_size=image_size)
        try:
            truth = truth.after(edit, step.strength)
        except ValueError as error:
            raise ValueError(f"{step.edit}: {error}") from error


def _as_taken(step: EditStep, edit: Edit) -> EditStep:
    """The step with the number of a refit's steps, which it may have left out."""
    return step.model_copy(update={"steps": edit.steps}) if isinstance(edit, Refit) else step


def _grid(store: INRStore, images: Tensor | None) -> _Grid:
    renders = render(store.params, store.spec, *store.image_size)
    if images is not None and images.shape != renders.shape:
        raise ValueError(
            f"images must have shape {tuple(renders.shape)}, got {tuple(images.shape)}"
        )
    truth = (
        Truth.of_networks(store.params, store.spec, store.image_size)
        if images is None
        else Truth.of_images(images)
    )
    return _Grid(truth, store.image_size, renders, renders)


def _fine_grid(store: INRStore, scale: int) -> _Grid:
    truth = Truth.of_networks(store.params, store.spec, store.image_size, scale)
    height, width = store.image_size
    return _Grid(truth, (scale * height, scale * width), truth.images, truth.images)


@dataclass(frozen=True, eq=False)
class _Timed:
    params: Params
    ms_per_inr: float
    cpu_ms_per_inr: float


@dataclass(frozen=True, eq=False)
class _Step:
    """One edit of a recipe, applied to some networks after the other."""

    edit: Edit
    strength: float
    number: int
    unfinished: Unfinished | None

    def timed(self, before: INRStore) -> _Timed:
        # Weights are loaded now, outside of the time.
        if self.edit.mechanism == LEARNED:
            self.edit.apply(_first(before.params, 1), before.spec, self.strength)
        elif isinstance(self.edit, Refit) and isinstance(self.edit.optimizer, LearnedSteps):
            _ = self.edit.optimizer.step
        if self.unfinished is None:
            return self._apply(before)
        size = max(1, _PART // (before.image_size[0] * before.image_size[1]))
        parts, wall, cpu = [], 0.0, 0.0
        for start in range(0, len(before), size):
            some = before[start : start + size]
            name = f"{self.number:02d}-{start:08d}"
            part, times = self.unfinished.networks(name, lambda some=some: self._finished(some))
            parts.append(part)
            wall, cpu = (
                total + times[kind] * len(some) / len(before)
                for total, kind in ((wall, "ms"), (cpu, "cpu ms"))
            )
        return _Timed(joined(parts).params, wall, cpu)

    def _finished(self, some: INRStore) -> tuple[INRStore, dict[str, float]]:
        done = self._apply(some)
        store = replace(some, params=done.params, spec=widened(some.spec, done.params))
        return store, {"ms": done.ms_per_inr, "cpu ms": done.cpu_ms_per_inr}

    def _apply(self, some: INRStore) -> _Timed:
        return _time(lambda: self.edit.apply(some.params, some.spec, self.strength))


def _time(function: Callable[[], Params]) -> _Timed:
    began, cpu = time.perf_counter(), time.process_time()
    params = function()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    count = len(params["layers.0.bias"])
    return _Timed(params, 1000 * seconds / count, 1000 * cpu / count)


def _kept_curve(
    before: INRStore, grid: _Grid, number: int, unfinished: Unfinished | None
) -> RefitCurve:
    def make() -> RefitCurve:
        return _curve(before.params, before.spec, grid)

    if unfinished is None:
        return make()
    found = unfinished.numbers(f"{number:02d}-refits", lambda: asdict(make()))
    points = tuple(RefitPoint(**point) for point in found["points"])
    return RefitCurve(**{**found, "points": points})


def _curve(params: Params, spec: SirenSpec, grid: _Grid) -> RefitCurve:
    """Refits from the networks before an edit to the target that `grid` has reached."""
    some, truth = _first(params, SAMPLE), grid.truth
    count = len(some["layers.0.bias"])
    target, points = truth.images[:count], []
    few = Truth(target, truth.known, truth.scale)
    for steps in CURVE:
        timed = _time(
            lambda steps=steps: refine(some, target, spec, steps=steps, progress=False).params
        )
        mse = few.mse(render(timed.params, spec, *grid.size)).mean().item()
        points.append(RefitPoint(steps, mse, timed.cpu_ms_per_inr))
    start = few.mse(render(some, spec, *grid.size)).mean().item()
    reached = few.mse(grid.current[:count]).mean().item()
    even = _break_even(reached, [(0, start), *((p.steps, p.mse) for p in points)])
    per_step = points[-1].cpu_ms_per_inr / points[-1].steps
    return RefitCurve(reached, tuple(points), even, None if even is None else even * per_step)


def _break_even(mse: float, curve: list[tuple[int, float]]) -> float | None:
    """Steps at which a curve falls to `mse`, along straight lines in the logarithm."""
    if curve[0][1] <= mse:
        return 0.0
    for (left, high), (right, low) in pairwise(curve):
        if low <= mse < high:
            if low == 0:
                return float(right)
            return left + (right - left) * math.log(high / mse) / math.log(high / low)
    return None


def _first(params: Mapping[str, Tensor], count: int) -> Params:
    return {name: value[:count] for name, value in params.items()}


def _score(images: Tensor, truth: Truth, *, before: Tensor, changes: bool) -> Score:
    error, nothing = (truth.mse(x).mean() for x in (images, before))
    decibels = psnr_from_mse(error).item()
    return Score(
        mse=error.item(),
        mse_do_nothing=nothing.item(),
        psnr=decibels if math.isfinite(decibels) else None,
        share_removed=1 - (error / nothing).item() if changes and nothing > 0 else None,
    )
