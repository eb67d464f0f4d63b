"""Learned optimizers and weight editing on scale-equivariant graph metanetworks."""

from pathlib import Path

# A checkout keeps tasks/, editors/ and recipes/ beside the package; a wheel holds them inside.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "tasks" / "__init__.py").is_file():
    __path__.append(str(_checkout))

from scalegmn_opt.backbone import ScaleGMN  # noqa: E402
from scalegmn_opt.graph import WeightFeatures, WeightGraph, trace  # noqa: E402
from scalegmn_opt.heads import DeltaHead, Readout  # noqa: E402
from scalegmn_opt.optim import LearnedOptimizer, UpdateRule  # noqa: E402
from scalegmn_opt.symmetry import random_transform, verify  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "DeltaHead",
    "LearnedOptimizer",
    "Readout",
    "ScaleGMN",
    "UpdateRule",
    "WeightFeatures",
    "WeightGraph",
    "random_transform",
    "trace",
    "verify",
]
