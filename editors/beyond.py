"""Strengths beyond those of training, as several within."""

from collections.abc import Mapping

import torch
from torch import Tensor

_REPEATED = ("dilate", "erode", "denoise")  # a strength of 2 is that of 1, twice
_GAUSSIAN = ("blur",)  # variances add up


def within(strengths: Tensor, edits: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """Strengths to apply one after the other, and how many times their change is to be made.

    Together they mean what ``strengths`` mean (:mod:`scalegmn_opt.editors.targets`), and none is
    larger than its edit is trained for. Edits whose strength multiplies a change, and repeated ones
    trained for less than a whole time, are done once, and their change is multiplied.

    Args:
        strengths: (batch, edits), not negative.
        edits: names with the largest strengths of training.

    Returns:
        strengths (pieces, batch, edits) and factors (batch, 1, 1).
    """
    largest = strengths.new_tensor(list(edits.values()))
    over = strengths / largest
    whole = largest.floor()
    repeated = _are(edits, _REPEATED, strengths) & (whole > 0)
    gaussian = _are(edits, _GAUSSIAN, strengths)
    count = torch.where(repeated, (strengths / whole).nan_to_num(1.0), 1.0)
    count = torch.where(gaussian, over.square(), count).ceil()
    count = torch.where(over > 1, count, 1.0)
    pieces = torch.arange(int(count.max())).to(strengths)[:, None, None]
    linear = torch.where(pieces == 0, strengths.minimum(largest), 0.0)
    times = (strengths - pieces * whole).minimum(whole).clamp_min(0)
    equal = torch.where(pieces < count, strengths / count.sqrt(), 0.0)
    split = torch.where(repeated, times, torch.where(gaussian, equal, linear))
    factor = torch.where(repeated | gaussian, 1.0, over.clamp_min(1)).amax(1)
    return torch.where(over > 1, split, linear), factor[:, None, None]


def _are(edits: Mapping[str, float], names: tuple[str, ...], like: Tensor) -> Tensor:
    return torch.tensor([name in names for name in edits], device=like.device)
