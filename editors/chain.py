"""Recipes of edits: which edits there are, and several of them in order."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from scalegmn_opt.inr import SirenSpec
from scalegmn_opt.recipe import choice_message, one_of

from .closed_form import Brightness, Contrast, Invert, Rotate, Shift, Zoom
from .edit import DirectedEdit, Edit
from .learned import dilation

# Every edit that a recipe may name; a learned one loads its weights when it is applied.
EDITS: dict[str, Edit] = {
    edit.name: edit
    for edit in (Brightness(), Contrast(), Invert(), Shift(), Rotate(), Zoom(), dilation())
}


class EditStep(BaseModel):
    """One edit of a recipe, with its strength in the edit's own unit."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    edit: Annotated[str, one_of("edit", EDITS)]
    strength: float
    angle: float | None = None  # degrees counter-clockwise, for edits along a direction only

    @field_validator("angle")
    @classmethod
    def _has_direction(cls, angle: float | None, info: ValidationInfo) -> float | None:
        edit = info.data.get("edit")  # absent where it is unknown, which is reported already
        if edit is not None and not isinstance(EDITS[edit], DirectedEdit):
            directed = sorted(name for name in EDITS if isinstance(EDITS[name], DirectedEdit))
            raise PydanticCustomError(
                "no_direction", f"{edit} takes no angle; those that do: {', '.join(directed)}"
            )
        return angle


class EditRecipe(BaseModel):
    """A named, ordered list of edits."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    description: str = ""
    edits: list[EditStep] = Field(min_length=1)


def apply_recipe(
    params: Mapping[str, Tensor],
    spec: SirenSpec,
    recipe: EditRecipe,
    edits: Mapping[str, Edit],
) -> dict[str, Tensor]:
    """Apply the edits of a recipe in order, each looked up in `edits`; `params` are not modified.

    Raises:
        ValueError: an edit that `edits` lacks, an angle for an edit without direction, or a
            strength or network that an edit rejects.
    """
    edited = dict(params)
    for step in recipe.edits:
        edited = resolve(step, edits).apply(edited, spec, step.strength)
    return edited


def resolve(step: EditStep, edits: Mapping[str, Edit]) -> Edit:
    """The edit of a step, along the step's direction if it has one.

    Raises:
        ValueError: an edit that `edits` lacks, or an angle for an edit without direction.
    """
    if step.edit not in edits:
        raise ValueError(choice_message("edit", step.edit, edits))
    edit = edits[step.edit]
    if step.angle is None:
        return edit
    if not isinstance(edit, DirectedEdit):
        raise ValueError(f"angle must be left out for {step.edit}, got {step.angle}")
    return edit.at_angle(step.angle)
