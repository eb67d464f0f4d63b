"""Random compositions of operators: whatever they are, all that is claimed of them is true."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scalegmn_opt.graph import trace
from scalegmn_opt.symmetry import verify

TOKENS, START = 4, 3


class Program(nn.Module):
    """Applies steps to (2, TOKENS, width) tensors; the last two tensors are at hand."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.made = nn.ModuleDict()
        self.weights = nn.ParameterDict()

    def layer(self, i, kind, *args):
        if f"{i}" not in self.made:
            self.made[f"{i}"] = kind(*args)
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
    "slice": lambda m, i, h, _: h[..., 1:],
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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8))
def test_claims_about_random_programs_are_true(steps):
    torch.manual_seed(0)
    module, x = Program(steps), torch.randn(2, TOKENS, START)
    module(x)  # makes the layers
    graph = trace(module, (x,))
    assert list(graph.parameters) == [name for name, _ in module.named_parameters()]
    assert verify(module, graph, (x,)).error <= 1e-8
