"""Changes of pictures, learned from examples."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_DILATIONS = (1, 1, 2, 4, 1)  # together every pixel sees nine pixels in each direction


class PictureOperator(nn.Module):
    """``x ↦ change of x``, a small convolutional network with one strength for each edit.

    Every channel of a picture is treated by itself, so that grey and colour need the same weights.
    Half of the first layer's channels are max-pooled. Strengths scale and shift the hidden
    channels; where all are 0, there is no change.

    Args:
        edits: how many edits there are strengths for.
        channels: width of the hidden layers, even.
        masked: whether a mask is read, too.

    Shapes:
        images (batch, channels, height, width), strengths (batch, edits), masks (batch, 1, height,
        width) of numbers -> as images

    References:
        Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", arXiv 1709.07871.
    """

    def __init__(self, edits: int, *, channels: int = 16, masked: bool = False) -> None:
        super().__init__()
        widths = [1 + masked, *[channels] * len(_DILATIONS)]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, channels, 3, padding=d, dilation=d, padding_mode="replicate")
            for before, d in zip(widths[:-1], _DILATIONS, strict=True)
        )
        self.condition = nn.Sequential(
            nn.Linear(edits, 2 * channels),
            nn.ReLU(),
            nn.Linear(2 * channels, 2 * channels * len(_DILATIONS)),
        )
        self.out = nn.Conv2d(channels, 1, 1)
        self.to(memory_format=torch.channels_last)  # half the time on a processor

    def forward(self, images: Tensor, strengths: Tensor, masks: Tensor | None = None) -> Tensor:
        x = images.flatten(0, 1).unsqueeze(1)
        if masks is not None:
            x = torch.cat([x, masks.repeat_interleave(images.shape[1], 0)], 1)
        x = x.contiguous(memory_format=torch.channels_last)
        strengths = strengths.repeat_interleave(images.shape[1], 0)
        films = self.condition(strengths)[..., None, None].chunk(len(self.layers), 1)
        for layer, film in zip(self.layers, films, strict=True):
            gain, shift = film.chunk(2, 1)
            hidden = functional.relu(torch.addcmul(shift, layer(x), 1 + gain))
            x = _half_pooled(hidden) if layer is self.layers[0] else x + hidden
        size = strengths.abs().sum(1)[:, None, None, None]
        return (size * self.out(x)).reshape(images.shape)


def _half_pooled(x: Tensor) -> Tensor:
    kept, pooled = x.chunk(2, 1)
    return torch.cat([kept, functional.max_pool2d(pooled, 3, stride=1, padding=1)], 1)


def one_hot(names: Sequence[str], name: str, strength: Tensor) -> Tensor:
    """Strengths (batch, edits) of which only the one of ``name`` is not 0, from (batch,)."""
    place = functional.one_hot(torch.tensor(names.index(name)), len(names))
    return strength[:, None] * place.to(strength)
