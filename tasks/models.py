"""Small networks of several families; a task draws their parameters again."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from scalegmn_opt.inr import Siren, SirenSpec
from scalegmn_opt.inr.siren import initial_parameters

Activation = Callable[[], nn.Module]


def mlp(sizes: Sequence[int], activation: Activation) -> nn.Sequential:
    """A perceptron of layer widths ``sizes``, from inputs to logits, without a last activation."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):  # what is drawn here is never used
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def residual_mlp(
    inputs: int, width: int, outputs: int, *, depth: int, activation: Activation
) -> nn.Sequential:
    """A linear map to ``width``, ``depth`` blocks ``x + W σ(V x)``, an activation, a linear map."""
    with torch.random.fork_rng(devices=[]):
        blocks = [
            Residual(nn.Sequential(nn.Linear(width, width), activation(), nn.Linear(width, width)))
            for _ in range(depth)
        ]
        return nn.Sequential(
            nn.Linear(inputs, width), *blocks, activation(), nn.Linear(width, outputs)
        )


def conv_net(
    shape: Sequence[int],
    channels: Sequence[int],
    outputs: int,
    *,
    activation: Activation,
    norm: bool = False,
    residual: bool = False,
) -> nn.Sequential:
    """Convolutions of kernel 3 on flat pictures or signals, a mean over places, a linear map.

    A stage is a convolution, BatchNorm if ``norm`` (with the statistics of the batch, always), the
    activation, and pooling by 2 where more than three places are left. With ``residual`` a stage
    ends with ``x + convolution(activation(convolution(x)))``.

    Args:
        shape: (channels, *extent) of an input, one or two extents.
        channels: of each stage.
    """
    two = len(shape) == 3
    pool, mean = (
        (nn.AvgPool2d, nn.AdaptiveAvgPool2d) if two else (nn.AvgPool1d, nn.AdaptiveAvgPool1d)
    )
    extent = min(shape[1:])
    layers: list[nn.Module] = [nn.Unflatten(1, tuple(shape))]
    with torch.random.fork_rng(devices=[]):
        for fan_in, fan_out in pairwise((shape[0], *channels)):
            layers += [*_convolution(two, fan_in, fan_out, norm=norm), activation()]
            if extent > 3:
                layers.append(pool(2))
                extent //= 2
            if residual:
                inner = (_convolution(two, fan_out, fan_out, norm=norm) for _ in range(2))
                first, second = inner
                layers.append(Residual(nn.Sequential(*first, activation(), *second)))
        return nn.Sequential(*layers, mean(1), nn.Flatten(), nn.Linear(channels[-1], outputs))


def _convolution(two: bool, fan_in: int, fan_out: int, *, norm: bool) -> list[nn.Module]:
    convolution = nn.Conv2d if two else nn.Conv1d
    batch_norm = nn.BatchNorm2d if two else nn.BatchNorm1d
    layers: list[nn.Module] = [convolution(fan_in, fan_out, 3, padding=1)]
    return [*layers, batch_norm(fan_out, track_running_stats=False)] if norm else layers


class CausalAttention(nn.Module):
    """Attention of each position to itself and those before, (batch, positions, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, positions, width = x.shape
        shape = (batch, positions, self.heads, width // self.heads)
        q, k, v = (y.view(shape).transpose(1, 2) for y in self.project(x).chunk(3, -1))
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, positions, width))


class CharTransformer(nn.Module):
    """A causal transformer with LayerNorm first, from tokens (batch, positions) to logits.

    Logits are (batch, positions, alphabet). Embeddings start at deviation 0.1.

    Raises:
        ValueError: if ``width`` is not a multiple of ``heads``.
    """

    def __init__(
        self, alphabet: int, positions: int, *, width: int, heads: int, depth: int
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width: expected a multiple of {heads} heads, got {width}")
        with torch.random.fork_rng(devices=[]):
            self.tokens = nn.Embedding(alphabet, width)
            self.places = nn.Parameter(torch.zeros(positions, width))
            self.blocks = nn.Sequential(*(self._block(width, heads) for _ in range(depth)))
            self.norm = nn.LayerNorm(width)
            self.logits = nn.Linear(width, alphabet)
            self.reset_parameters()

    @staticmethod
    def _block(width: int, heads: int) -> nn.Sequential:
        attention = nn.Sequential(nn.LayerNorm(width), CausalAttention(width, heads))
        perceptron = nn.Sequential(nn.LayerNorm(width), *mlp((width, 4 * width, width), nn.GELU))
        return nn.Sequential(Residual(attention), Residual(perceptron))

    def reset_parameters(self) -> None:
        """Draw the embeddings of characters and places."""
        nn.init.normal_(self.tokens.weight, std=0.1)
        nn.init.normal_(self.places, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(self.norm(self.blocks(self.tokens(tokens) + self.places)))


class FreshSiren(Siren):
    """A SIREN that draws its own initialisation again, from PyTorch's random state."""

    def __init__(self, spec: SirenSpec) -> None:
        super().__init__(spec, generator=torch.Generator().manual_seed(0))

    def reset_parameters(self) -> None:
        """Draw all parameters as SIRENs are initialised."""
        drawn = initial_parameters(self.spec, 1, torch.default_generator)
        self.load_state_dict({name: value[0] for name, value in drawn.items()})
