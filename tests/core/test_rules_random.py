"""Random compositions of operators: whatever they are, all that is claimed of them is true."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scalegmn_opt.graph import trace
from scalegmn_opt.symmetry import verify

TOKENS, START = 4, 3
GENERATOR = torch.Generator().manual_seed(0)


class Program(nn.Module):
    """Applies steps to (2, TOKENS, width) tensors; the last two tensors are at hand."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.made = nn.ModuleDict()
        self.weights = nn.ParameterDict()

    def layer(self, i, kind, *args, **options):
        if f"{i}" not in self.made:
            self.made[f"{i}"] = kind(*args, **options)
        return self.made[f"{i}"]

    def weight(self, i, *shape):
        if f"{i}" not in self.weights:
            self.weights[f"{i}"] = nn.Parameter(torch.randn(shape))
        return self.weights[f"{i}"]

    def forward(self, x):
        before = h = self.layer("first", nn.Linear, START, 6)(x)
        for i, step in enumerate(self.steps):
            before, h = h, STEPS[step](self, i, h, before)
        return self.layer("last", nn.Linear, h.shape[-1], 2)(h)


def fitting(m, i, h, other):
    """``other`` on as many neurons as ``h`` has."""
    if other.shape == h.shape:
        return other
    return m.layer(f"{i}fit", nn.Linear, other.shape[-1], h.shape[-1])(other)


def residual(m, i, h, _):
    return h + m.layer(i, nn.Linear, h.shape[-1], h.shape[-1])(h)


def shared(m, i, h, _):
    layer = m.layer(f"shared{h.shape[-1]}", nn.Linear, h.shape[-1], h.shape[-1])
    return layer(h)


def tied(m, i, h, _):
    w = m.weight(f"tied{h.shape[-1]}", 4, h.shape[-1])
    return F.linear(F.linear(h, w).tanh(), w.t())


def chunked(m, i, h, other):
    w = m.weight(i, 12, h.shape[-1])
    first, second = w.chunk(2)
    return F.linear(h, first) * F.linear(fitting(m, i, h, other), second)


def attend(m, i, h, other):
    q, k, v = m.layer(i, nn.Linear, h.shape[-1], 18)(h).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def halves(m, i, h, _):
    width = h.shape[-1] // 2
    return h[..., :width] * F.silu(h[..., width : 2 * width])


def rotated(m, i, h, _):
    return torch.cat([-h[..., h.shape[-1] // 2 :], h[..., : h.shape[-1] // 2]], -1)


def heads(m, i, h, _):
    if h.shape[-1] % 2:
        return h
    return h.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def mixed(m, i, h, _):
    """A layer over tokens."""
    return m.layer(i, nn.Linear, TOKENS, TOKENS)(h.transpose(1, 2)).transpose(1, 2)


STEPS = {
    "linear": lambda m, i, h, _: m.layer(i, nn.Linear, h.shape[-1], 6)(h),
    "narrow": lambda m, i, h, _: m.layer(i, nn.Linear, h.shape[-1], 4)(h),
    "relu": lambda m, i, h, _: h.relu(),
    "tanh": lambda m, i, h, _: h.tanh(),
    "gelu": lambda m, i, h, _: F.gelu(h),
    "square": lambda m, i, h, _: h.relu().square(),
    "softmax": lambda m, i, h, _: h.softmax(-1),
    "residual": residual,
    "add": lambda m, i, h, other: h + fitting(m, i, h, other),
    "multiply": lambda m, i, h, other: h * fitting(m, i, h, other),
    "cat": lambda m, i, h, other: torch.cat([h, other], -1)[..., :12],
    "slice": lambda m, i, h, _: h[..., 1:] if h.shape[-1] > 2 else h,
    "shared": shared,
    "tied": tied,
    "chunked": chunked,
    "attend": attend,
    "halves": halves,
    "rotated": rotated,
    "heads": heads,
    "mixed": mixed,
    "LayerNorm": lambda m, i, h, _: m.layer(i, nn.LayerNorm, h.shape[-1])(h),
    "RMSNorm": lambda m, i, h, _: m.layer(i, nn.RMSNorm, h.shape[-1])(h),
    "GroupNorm": lambda m, i, h, _: m.layer(i, nn.GroupNorm, 1, h.shape[-1])(h.mT).mT,
    "normalize": lambda m, i, h, _: F.normalize(h, dim=-1),
    "mean": lambda m, i, h, _: h - h.mean(-1, keepdim=True),
    "pooled": lambda m, i, h, _: h + h.mean(1, keepdim=True),
    "largest": lambda m, i, h, _: h * h.amax(-1, keepdim=True),
    "scalar": lambda m, i, h, _: h * m.weight(i, 1),
    "gate": lambda m, i, h, _: h * m.weight(i, h.shape[-1]),
    "bias": lambda m, i, h, _: h + m.weight(i, h.shape[-1]),
    "positions": lambda m, i, h, _: h + m.weight(i, TOKENS, h.shape[-1]),
    "gram": lambda m, i, h, _: h @ (h.mT @ h),
    "stack": lambda m, i, h, o: torch.stack([h, fitting(m, i, h, o)], -1).flatten(-2)[..., :12],
    "flip": lambda m, i, h, _: h.flip(1),
    "roll": lambda m, i, h, _: h.roll(1, -1),
}


class ImageProgram(Program):
    """Applies steps to (3, channels, 4, 4) images."""

    def forward(self, x):
        before = h = self.layer("first", nn.Conv2d, 2, 6, 3, padding=1)(x)
        for i, step in enumerate(self.steps):
            before, h = h, IMAGE_STEPS[step](self, i, h, before)
        return self.layer("last", nn.Linear, 16 * h.shape[1], 2)(h.flatten(1))


def conv(out, size=3, **options):
    return lambda m, i, h, _: convolve(m, i, h, out, size, **options)


def convolve(m, i, h, out, size=3, kind=nn.Conv2d, **options):
    return m.layer(i, kind, h.shape[1], out, size, padding=size // 2, **options)(h)


def even(h):
    return h[:, : h.shape[1] // 2 * 2]


def fitting_image(m, i, h, other):
    return other if other.shape == h.shape else convolve(m, f"{i}fit", other, h.shape[1], 1)


def shuffled(m, i, h, _):
    return even(h).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def squeeze_excite(m, i, h, _):
    inner = convolve(m, f"{i}a", F.adaptive_avg_pool2d(h, 1), 3, 1).relu()
    return h * convolve(m, f"{i}b", inner, h.shape[1], 1).sigmoid()


def attend_image(m, i, h, _):
    tokens, width = h.flatten(2).mT, h.shape[1]
    q, k, v = m.layer(i, nn.Linear, width, 3 * width)(tokens).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v).mT.unflatten(2, (4, 4))


def tied_image(m, i, h, _):
    layer = m.layer(f"tied{h.shape[1]}", nn.Conv2d, h.shape[1], 4, 3)
    inner = F.conv2d(h, layer.weight, padding=1).relu()
    return F.conv_transpose2d(inner, layer.weight, padding=1)


def half_convolved(m, i, h, _):
    first, second = even(h).chunk(2, 1)
    return torch.cat([first, convolve(m, i, second, 4, 1).relu()], 1)


def channels_last(m, i, h, _):
    return m.layer(i, nn.LayerNorm, h.shape[1])(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


IMAGE_STEPS = {
    "conv": conv(6),
    "conv of pixels": conv(4, 1, bias=False),
    "depthwise": lambda m, i, h, _: convolve(m, i, h, h.shape[1], groups=h.shape[1]),
    "two of each": lambda m, i, h, _: convolve(m, i, h, 2 * h.shape[1], groups=h.shape[1])[:, :10],
    "grouped": lambda m, i, h, _: convolve(m, i, even(h), 8, groups=2),
    "transposed": conv(6, kind=nn.ConvTranspose2d),
    "transposed, grouped": lambda m, i, h, _: convolve(
        m, i, even(h), 6, kind=nn.ConvTranspose2d, groups=2
    ),
    "tied": tied_image,
    "shuffled": shuffled,
    "squeeze and excite": squeeze_excite,
    "attend": attend_image,
    "BatchNorm": lambda m, i, h, _: m.layer(i, nn.BatchNorm2d, h.shape[1])(h),
    "InstanceNorm": lambda m, i, h, _: m.layer(i, nn.InstanceNorm2d, h.shape[1])(h),
    "GroupNorm": lambda m, i, h, _: m.layer(i, nn.GroupNorm, 2, even(h).shape[1])(even(h)),
    "GroupNorm of all": lambda m, i, h, _: m.layer(i, nn.GroupNorm, 1, h.shape[1])(h),
    "LayerNorm": channels_last,
    "relu": lambda m, i, h, _: h.relu(),
    "tanh": lambda m, i, h, _: h.tanh(),
    "silu": lambda m, i, h, _: F.silu(h),
    "max": lambda m, i, h, _: F.max_pool2d(h, 3, 1, 1),
    "average": lambda m, i, h, _: F.avg_pool2d(h, 3, 1, 1),
    "add": lambda m, i, h, other: h + fitting_image(m, i, h, other),
    "multiply": lambda m, i, h, other: h * fitting_image(m, i, h, other),
    "residual": lambda m, i, h, _: h + convolve(m, i, h.relu(), h.shape[1]),
    "cat": lambda m, i, h, other: torch.cat([h, other], 1)[:, :12],
    "slice": lambda m, i, h, _: h[:, 1:] if h.shape[1] > 2 else h,
    "half": half_convolved,
    "glu": lambda m, i, h, _: F.glu(even(h), 1) if h.shape[1] >= 4 else h,
    "flip": lambda m, i, h, _: h.flip(1),
    "centred": lambda m, i, h, _: h - h.mean((2, 3), keepdim=True),
    "normalize": lambda m, i, h, _: F.normalize(h, dim=1),
}


def check(kind, steps, x):
    torch.manual_seed(0)
    module = kind(steps)
    module(x)  # makes the layers
    graph = trace(module, (x,))
    assert list(graph.parameters) == [name for name, _ in module.named_parameters()]
    assert verify(module, graph, (x,)).error <= 1e-8


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8))
def test_claims_about_random_programs_are_true(steps):
    check(Program, steps, torch.randn(2, TOKENS, START, generator=GENERATOR))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(IMAGE_STEPS)), min_size=1, max_size=8))
def test_claims_about_random_image_programs_are_true(steps):
    check(ImageProgram, steps, torch.randn(3, 2, 4, 4, generator=GENERATOR))
