"""Edits of images through the weights of the networks that hold them."""

from .blend import Blend
from .chain import EDITS, BlendedStep, EditRecipe, EditStep, edit, resolve
from .closed_form import (
    Brightness,
    ClosedForm,
    Contrast,
    CoordinateEdit,
    Crop,
    DirectedEdit,
    Flip,
    Gain,
    IntensityEdit,
    Invert,
    Rotate,
    Shear,
    Shift,
    Zoom,
)
from .edit import Edit, Meaning, PixelEdit
from .inpainting import InpaintingEditor, LearnedInpaint
from .learned import LearnedEdit, learned_edits
from .learned_editor import LearnedEditor
from .learned_steps import LearnedSteps
from .masks import Inpaint, load_mask
from .measure import check_recipe, measure
from .metrics import psnr
from .refit import Refit, RuleOptimizer
from .report import check_writable, write_report
from .scores import EditReport
from .truth import Truth
from .unfinished import Unfinished

__all__ = [
    "EDITS",
    "Blend",
    "BlendedStep",
    "Brightness",
    "ClosedForm",
    "Contrast",
    "CoordinateEdit",
    "Crop",
    "DirectedEdit",
    "Edit",
    "EditRecipe",
    "EditReport",
    "EditStep",
    "Flip",
    "Gain",
    "Inpaint",
    "InpaintingEditor",
    "IntensityEdit",
    "Invert",
    "LearnedEdit",
    "LearnedEditor",
    "LearnedInpaint",
    "LearnedSteps",
    "Meaning",
    "PixelEdit",
    "Refit",
    "Rotate",
    "RuleOptimizer",
    "Shear",
    "Shift",
    "Truth",
    "Unfinished",
    "Zoom",
    "check_recipe",
    "check_writable",
    "edit",
    "learned_edits",
    "load_mask",
    "measure",
    "psnr",
    "resolve",
    "write_report",
]
