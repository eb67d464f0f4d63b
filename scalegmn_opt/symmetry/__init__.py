"""What may be done to a network's parameters without changing its function."""

from scalegmn_opt.symmetry.gauge import (
    Gauge,
    activity_sweep,
    backward_sweep,
    forward_sweep,
    gauged,
    largest_change,
    only_permuted,
    scale_ratio,
)
from scalegmn_opt.symmetry.transform import Transform, Verification, random_transform, verify

__all__ = [
    "Gauge",
    "Transform",
    "Verification",
    "activity_sweep",
    "backward_sweep",
    "forward_sweep",
    "gauged",
    "largest_change",
    "only_permuted",
    "random_transform",
    "scale_ratio",
    "verify",
]
