"""Edits of images through the weights of the networks that hold them."""

from .chain import EDITS, EditRecipe, EditStep, apply_recipe, resolve
from .closed_form import (
    Brightness,
    Contrast,
    CoordinateEdit,
    IntensityEdit,
    Invert,
    Rotate,
    Shift,
    Zoom,
)
from .edit import DirectedEdit, Edit
from .learned import LearnedEdit, LearnedEditor, dilation
from .metrics import mse, psnr
from .report import EditReport, measure, write_report

__all__ = [
    "EDITS",
    "Brightness",
    "Contrast",
    "CoordinateEdit",
    "DirectedEdit",
    "Edit",
    "EditRecipe",
    "EditReport",
    "EditStep",
    "IntensityEdit",
    "Invert",
    "LearnedEdit",
    "LearnedEditor",
    "Rotate",
    "Shift",
    "Zoom",
    "apply_recipe",
    "dilation",
    "measure",
    "mse",
    "psnr",
    "resolve",
    "write_report",
]
