"""Recipes of edits: which edits there are, and several of them in order."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError
from torch import Tensor

from scalegmn_opt.inr import SirenSpec, StackedOptimizer
from scalegmn_opt.recipe import choice_message, load_recipe, one_of

from .blend import Blend
from .closed_form import (
    CHANNELS,
    Box,
    Brightness,
    Contrast,
    Crop,
    Flip,
    Gain,
    Invert,
    Rotate,
    Shear,
    Shift,
    Zoom,
    check_box,
)
from .edit import Edit, Meaning, PixelEdit, widened
from .inpainting import LearnedInpaint
from .learned import COPIES, MEANINGS, LearnedEdit, learned_edits
from .learned_steps import LearnedSteps
from .masks import Inpaint, load_mask
from .refit import LEARNED_REFIT, REFIT, Refit

_CLOSED_FORM: tuple[Edit, ...] = (
    Brightness(),
    Contrast(),
    Invert(),
    Gain(),
    Shift(),
    Rotate(),
    Zoom(),
    Shear(),
    Flip(),
    Crop(),
)
_ON_PIXELS: tuple[Meaning, ...] = (
    *(PixelEdit(name, unit, target) for name, (target, unit) in MEANINGS.items()),
    Inpaint(),
)
_LEARNED: tuple[Edit, ...] = learned_edits()  # they load their weights when they are needed
# Every edit that a recipe may name, with the cheapest mechanism that there is for it.
EDITS: dict[str, Meaning] = {
    meaning.name: meaning for meaning in (*_CLOSED_FORM, *_ON_PIXELS, *_LEARNED)
}
LEARNED = "learned"
MECHANISMS = ("closed form", LEARNED, REFIT, LEARNED_REFIT)
_STEPS = {REFIT: 50, LEARNED_REFIT: 8}
_LEARNED_STEPS = LearnedSteps()


class EditStep(BaseModel):
    """One edit of a recipe, with its strength in the edit's own unit.

    `angle` (degrees counter-clockwise), `channel` (red, green or blue) and `box` (left, top, right,
    bottom in fractions of the picture) are for edits that have them. `mask`, a box or the path of
    a grey image, says where the edit is seen. Without `mechanism` the cheapest one is taken.
    `copies`, 1, 2, 4 or 8 of a network side by side, and `midpoints`, for less noise between the
    pixels, are for learned edits. `blend` is another edit of the same picture, which takes a share
    of this one's place.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    edit: Annotated[str, one_of("edit", EDITS)]
    strength: float
    angle: float | None = None
    channel: Annotated[str, one_of("channel", CHANNELS)] | None = None
    box: Box | None = None
    mask: Box | str | None = None
    mechanism: Annotated[str, one_of("mechanism", MECHANISMS)] | None = None
    steps: int | None = Field(default=None, ge=1)
    copies: int | None = None
    midpoints: bool | None = None
    blend: "BlendedStep | None" = None

    @field_validator("angle", "channel", "box")
    @classmethod
    def _is_an_option(cls, value: Any, info: ValidationInfo) -> Any:
        edit, option = info.data.get("edit"), str(info.field_name)
        if value is None or edit is None:  # an unknown edit is reported already
            return value
        if option not in EDITS[edit].options:
            able = sorted(name for name in EDITS if option in EDITS[name].options)
            raise _mistake(f"{edit} takes no {option}; those that do: {', '.join(able)}")
        return value

    @field_validator("box", "mask")
    @classmethod
    def _is_a_box(cls, value: Box | str | None, info: ValidationInfo) -> Box | str | None:
        if isinstance(value, tuple):
            try:
                check_box(str(info.field_name), value)
            except ValueError as error:
                raise _mistake(str(error)) from error
        return value

    @field_validator("steps")
    @classmethod
    def _is_a_refit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("mechanism") not in _STEPS:
            raise _mistake("steps are those of a refit; add mechanism: refit or learned refit")
        return value

    @field_validator("copies", "midpoints")
    @classmethod
    def _is_learned(cls, value: int | None, info: ValidationInfo) -> int | None:
        edit, mechanism = info.data.get("edit"), info.data.get("mechanism")
        if value is None or edit is None:
            return value
        able = (edit in MEANINGS and not info.data.get("mask")) or edit == Inpaint.name
        if not able or mechanism not in (None, LEARNED):
            known = sorted([*MEANINGS, Inpaint.name])
            raise _mistake(f"{info.field_name} are those of a learned edit, one of {known}")
        if info.field_name == "copies" and value not in COPIES:
            raise _mistake(f"copies must be one of {COPIES}, got {value}")
        return value

    @property
    def title(self) -> str:
        """The edit's name, or that of a blend."""
        if self.blend is None:
            return self.edit
        return (
            f"{self.blend.weight:g} of {self.blend.edit} {self.blend.strength:g} over {self.edit}"
        )

    def options(self) -> dict[str, Any]:
        """What is said about the edit itself."""
        given = {"angle": self.angle, "channel": self.channel, "box": self.box}
        return {name: value for name, value in given.items() if value is not None}


class BlendedStep(EditStep):
    """The second of two blended edits; `weight` is its share of the picture, from 0 to 1."""

    weight: float = Field(ge=0, le=1)

    @field_validator("blend")
    @classmethod
    def _is_alone(cls, value: "BlendedStep | None") -> None:
        if value is not None:
            raise _mistake("a blend is of two edits")


class EditRecipe(BaseModel):
    """A named, ordered list of edits."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    description: str = ""
    edits: list[EditStep] = Field(min_length=1)

    def with_copies(self, copies: int) -> "EditRecipe":
        """The same with a number of copies for the last edit, which makes networks wider.

        Raises:
            ValueError: another number than 1, 2, 4 or 8, or a last edit that is not learned.
        """
        last = {**self.edits[-1].model_dump(exclude_none=True), "copies": copies}
        try:
            step = EditStep.model_validate(last)
        except ValidationError as error:
            raise ValueError(f"copies: {error.errors()[0]['msg']}") from error
        return self.model_copy(update={"edits": [*self.edits[:-1], step]})


def _mistake(message: str) -> PydanticCustomError:
    # Passed as context, because braces in the template would be read as fields.
    return PydanticCustomError("edit_step", "{message}", {"message": message})


def edit(
    params: Mapping[str, Tensor],
    recipe: EditRecipe | str | Path,
    *,
    spec: SirenSpec,
    image_size: tuple[int, int],
    optimizer: StackedOptimizer | None = None,
) -> tuple[dict[str, Tensor], SirenSpec]:
    """Apply the edits of a recipe in order; `params` are not modified.

    Args:
        recipe: or the path of a file, or the name of a packaged one.
        spec: of the networks.
        image_size: `(height, width)` of their pictures, for edits that need pixels.
        optimizer: of refits; the Adam of `inr.fit` if None.

    Returns:
        The edited networks, and their spec: hidden layers may have become wider.

    Raises:
        FileNotFoundError, RecipeError: no such recipe, or a mistake in it.
        ValueError: a strength, mask or network that an edit rejects.
    """
    loaded = recipe if isinstance(recipe, EditRecipe) else load_recipe(recipe, EditRecipe)
    edited = dict(params)
    for step in loaded.edits:
        mechanism = resolve(step, EDITS, spec=spec, image_size=image_size, optimizer=optimizer)
        edited = mechanism.apply(edited, spec, step.strength)
        spec = widened(spec, edited)
    return edited, spec


def resolve(
    step: EditStep,
    edits: Mapping[str, Meaning],
    *,
    spec: SirenSpec,
    image_size: tuple[int, int],
    optimizer: StackedOptimizer | None = None,
    progress: bool = False,
) -> Edit:
    """The mechanism of a step: the cheapest that can edit such networks, or the one it names.

    A closed form or a trained editor, if there is one for these networks and no mask; else a refit.
    A region is inpainted by a trained editor if the step says so.

    Raises:
        ValueError: an edit that `edits` lacks, a mechanism that it does not have, networks that the
            mechanism is not made for, or a mask that does not fit the pictures.
        FileNotFoundError: no such mask.
    """
    options = {"spec": spec, "image_size": image_size, "optimizer": optimizer, "progress": progress}
    edit = _resolve_one(step, edits, **options)
    if step.blend is None:
        return edit
    other = _resolve_one(step.blend, edits, **options)
    return Blend(edit, other, step.blend.strength, step.blend.weight)


def _resolve_one(
    step: EditStep,
    edits: Mapping[str, Meaning],
    *,
    spec: SirenSpec,
    image_size: tuple[int, int],
    optimizer: StackedOptimizer | None,
    progress: bool,
) -> Edit:
    if step.edit not in edits:
        raise ValueError(choice_message("edit", step.edit, edits))
    meaning = edits[step.edit].with_options(step.options())
    mask = None if step.mask is None else load_mask(step.mask, image_size)
    direct = meaning if isinstance(meaning, Edit) and mask is None else None
    special = step.copies is not None or step.midpoints is not None
    options = {"copies": step.copies or 1, "midpoints": step.midpoints or False}
    if isinstance(meaning, Inpaint):
        meaning, mask = meaning.of(mask), None
        direct = LearnedInpaint(meaning.region, **options)
    elif special and isinstance(direct, LearnedEdit):
        direct = direct.of(**options)
    free = step.mechanism is None and not special
    if step.mechanism in _STEPS or (free and not _fits(direct, spec, image_size)):
        kind = step.mechanism or REFIT
        by = _LEARNED_STEPS if kind == LEARNED_REFIT else optimizer
        return Refit(meaning, image_size, step.steps or _STEPS[kind], mask, by, progress)
    if direct is None or step.mechanism not in (None, direct.mechanism):
        where = " with a mask" if mask is not None else ""
        known = [*([] if direct is None else [direct.mechanism]), *_STEPS]
        raise ValueError(
            f"mechanism of {step.edit}{where} must be one of {known}, got {step.mechanism!r}"
        )
    direct.check(spec, image_size)
    return direct


def _fits(edit: Edit | None, spec: SirenSpec, image_size: tuple[int, int]) -> bool:
    """Whether an edit can be taken unasked, which a guess is not."""
    if edit is None or edit.guessed is not None:
        return False
    try:
        edit.check(spec, image_size)
    except ValueError:
        return False
    return True
