"""Images as networks: SIRENs, fitting them by the thousand, and storing them."""

from .fit import FitResult, fit, psnr_from_mse, refine
from .graph import siren_graph
from .images import load_images, save_png
from .siren import (
    Siren,
    SirenSpec,
    check_parameters,
    evaluate,
    initial_parameters,
    pixel_grid,
    render,
)
from .store import INRStore, fit_store

__all__ = [
    "FitResult",
    "INRStore",
    "Siren",
    "SirenSpec",
    "check_parameters",
    "evaluate",
    "fit",
    "fit_store",
    "initial_parameters",
    "load_images",
    "pixel_grid",
    "psnr_from_mse",
    "refine",
    "render",
    "save_png",
    "siren_graph",
]
