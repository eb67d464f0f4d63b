"""Images as networks: SIRENs, fitting them by the thousand, and storing them."""

from .adam import Adam, StackedOptimizer
from .fit import FitResult, fit, psnr_from_mse, refine
from .graph import siren_graph
from .images import load_images, save_png
from .phases import canonical_phases
from .public import load_state_dicts
from .resume import fit_resumable, partial_folder
from .siren import (
    Siren,
    SirenSpec,
    check_parameters,
    evaluate,
    initial_parameters,
    pixel_grid,
    render,
)
from .store import INRStore, fit_store, joined

__all__ = [
    "Adam",
    "FitResult",
    "INRStore",
    "Siren",
    "SirenSpec",
    "StackedOptimizer",
    "canonical_phases",
    "check_parameters",
    "evaluate",
    "fit",
    "fit_resumable",
    "fit_store",
    "initial_parameters",
    "joined",
    "load_images",
    "load_state_dicts",
    "partial_folder",
    "pixel_grid",
    "psnr_from_mse",
    "refine",
    "render",
    "save_png",
    "siren_graph",
]
