"""Edits of images through the weights of the networks that hold them."""

from .chain import EDITS, EditRecipe, EditStep, edit, resolve
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
from .learned import LearnedEdit, LearnedEditor, learned_edits
from .masks import Inpaint, load_mask
from .measure import check_recipe, measure
from .metrics import mse, psnr
from .refit import Refit, RuleOptimizer
from .report import check_writable, write_report
from .scores import EditReport
from .truth import Truth

__all__ = [
    "EDITS",
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
    "IntensityEdit",
    "Invert",
    "LearnedEdit",
    "LearnedEditor",
    "Meaning",
    "PixelEdit",
    "Refit",
    "Rotate",
    "RuleOptimizer",
    "Shear",
    "Shift",
    "Truth",
    "Zoom",
    "check_recipe",
    "check_writable",
    "edit",
    "learned_edits",
    "load_mask",
    "measure",
    "mse",
    "psnr",
    "resolve",
    "write_report",
]
