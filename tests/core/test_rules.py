"""Every operator's rule, between two trainable layers: is what is claimed true, and all of it?

A case is a small network and the groups it should get, ``6ps`` for 6 neurons that are permuted and
rescaled: p permutes, f flips, s rescales, c one multiplier for all.
"""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from scalegmn_opt.graph import TraceWarning, trace
from scalegmn_opt.graph.rules import RULES
from scalegmn_opt.symmetry import verify


class Function(nn.Module):
    """A forward function of parts: shapes of parameters, or layers that are not made yet."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            made = parameter(*part) if isinstance(part, tuple) else part
            setattr(self, name, made() if isinstance(made, partial) else made)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


def hidden(graph):
    """Sizes and symmetries of the groups that may be acted on, as in ``6ps 4p``."""
    texts = []
    for group in graph.groups:
        s = group.symmetry
        flags = (s.permutes, s.flips, s.rescales, s.common)
        letters = "".join(letter for letter, on in zip("pfsc", flags, strict=True) if on)
        texts += [f"{group.size}{letters}"] if letters else []
    return sorted(texts)


def layer(kind, *args, **options):
    return partial(getattr(nn, kind), *args, **options)


L = partial(layer, "Linear")


def network(first, out, f, x, parts, channel):
    """``out(f(first(x)))``, with as many inputs of ``out`` as there are."""
    with torch.no_grad():
        inner = Function(f, **parts)
        size = f(inner, first(x)).shape[channel]
    return Function(lambda m, x: m.out(f(m.f, m.first(x))), first=first, f=inner, out=out(size)), x


def flat(f, *, width=6, shape=(5, 3), **parts):
    """A case with 6 neurons, the last dimension of what ``f`` gets."""
    out = partial(nn.Linear, out_features=2)
    return lambda: network(nn.Linear(shape[-1], width), out, f, torch.randn(shape), parts, -1)


tokens = partial(flat, shape=(2, 5, 3))  # the same for 2 sequences of 5 tokens


def space(f, *, rank=2, batch=(2,), size=6, **parts):
    """A case with 6 channels, followed by dimensions of space."""
    conv = getattr(nn, f"Conv{rank}d")
    shape = (*batch, 2, *[size] * rank)

    def out(channels):
        return conv(channels, 2, 1)

    return lambda: network(conv(2, 6, 1), out, f, torch.randn(shape), parts, -rank - 1)


def attend(f, *, keys=12, **parts):
    """A case with 12 query neurons, ``keys`` key and value neurons, and 5 tokens."""
    parts = {"q": L(3, 12), "k": L(3, keys), "v": L(3, keys), "out": L(12, 2), **parts}

    def forward(m, x):
        return m.out(f(m, m.q(x), m.k(x), m.v(x)))

    return lambda: (Function(forward, **parts), torch.randn(2, 5, 3))


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def merge(x):
    return x.transpose(1, 2).flatten(2)


def sdpa(q, k, v, groups=3, count=3, **options):
    q, k, v = heads(q, count), heads(k, groups), heads(v, groups)
    return merge(F.scaled_dot_product_attention(q, k, v, **options))


def manual(q, k, v, bias=0.0, scale=0.5, norm=lambda x: x):
    q, k, v = (heads(x, 3) for x in (q, k, v))
    return merge(torch.softmax(norm(q) @ norm(k).transpose(-1, -2) * scale + bias, -1) @ v)


def repeated(q, k, v, repeat):
    """Four query heads, of which two share a head of keys and values."""
    k, v = repeat(heads(k, 2)), repeat(heads(v, 2))
    return merge(F.scaled_dot_product_attention(heads(q, 4), k, v))


def shared_key(q, k, v):
    """All four query heads share the one head of keys and values."""
    k, v = (heads(x, 1).expand(-1, 4, -1, -1) for x in (k, v))
    return merge(F.scaled_dot_product_attention(heads(q, 4), k, v))


def halves(x, angles):
    first, second = x.chunk(2, -1)
    angles = torch.cat([angles, angles], -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def pairs(x, angles):
    first, second = x[..., ::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)


def rope(rotate):
    def f(m, q, k, v):
        q, k = (rotate(heads(x, 3), m.angles) for x in (q, k))
        return merge(F.scaled_dot_product_attention(q, k, heads(v, 3)))

    return attend(f, angles=layer("Buffer", torch.linspace(0, 1, 10).view(5, 2)))


def multihead(mask=None, *, once=True, average=True, **options):
    """An attention module on hidden neurons; ``once``: all three of its inputs are one tensor."""

    def forward(m, x, *masks):
        inputs = [m.q(x)] * 3 if once else [m.q(x), m.k(x), m.v(x)]
        given = dict(zip([mask or ""], masks, strict=False))
        return m.out(m.mha(*inputs, **given)[0])

    parts = {"mha": layer("MultiheadAttention", 6, 2, batch_first=True, **options)}
    for name in "q" if once else "qkv":
        parts[name] = L(3, options.get("vdim", 6) if name == "v" else 6)
    masks = {"key_padding_mask": (POSITIONS > 3).expand(2, 5), "attn_mask": DISTANCES > 4}
    inputs = (torch.randn(2, 5, 3), *(masks[mask],)) if mask else (torch.randn(2, 5, 3),)
    return lambda: (Function(forward, out=L(6, 2), **parts), *inputs)


def in_place(*steps):
    def f(m, h):
        h = h.clone()
        for step in steps:
            step(m, h)
        return h

    return f


def assign(where, value):
    def step(_, h):
        h[where] = value(h)

    return step


def without_gradient(_, h):
    with torch.no_grad():
        largest = h.abs().amax(1, keepdim=True)
    return h / largest


POSITIONS = torch.arange(5)
DISTANCES = POSITIONS[:, None] - POSITIONS + 4
LEFT, RIGHT = (slice(None), slice(3)), (slice(None), slice(3, None))

POINTWISE = {
    "6ps": "relu leaky_relu abs relu_ leaky_relu_",
    "6pf": "tanh erf sin atan hardtanh tanh_ hardtanh_ asinh sinh tan softshrink softsign",
    "6p": "gelu silu sigmoid softplus elu selu mish cos exp hardswish hardsigmoid expm1 logsigmoid "
    "celu elu_ silu_ sigmoid_ mish_ hardswish_ hardsigmoid_ relu6 erfc floor round ceil",
    "6pfs": "neg neg_",
}
IN_PLACE = ("silu_", "elu_", "mish_", "hardswish_", "hardsigmoid_", "leaky_relu_", "hardtanh_")


def pointwise(name):
    """The elementwise function of this name, wherever torch has it."""
    if name in IN_PLACE:
        return flat(lambda _, h: getattr(F, name[:-1])(h.clone(), inplace=True))
    if name.endswith("_"):
        return flat(lambda _, h: getattr(h.clone(), name)())
    return flat(lambda _, h: (getattr(F, name, None) or getattr(torch, name))(h))


ELEMENTWISE = {
    **{name: (pointwise(name), g) for g, names in POINTWISE.items() for name in names.split()},
    "sign": (flat(lambda _, h: h.sign()), "6pf"),  # weaker: |q| does not matter
    "log": (flat(lambda _, h: torch.log(h.square() + 1)), "6p 6pf"),
    "log1p": (flat(lambda _, h: torch.log1p(h.square())), "6p 6pf"),
    "atanh": (flat(lambda _, h: torch.atanh(torch.tanh(h))), "6pf"),
    "threshold": (flat(lambda _, h: F.threshold(h, 0.1, 20.0)), "6p"),
    "clamp": (flat(lambda _, h: h.clamp(0)), "6ps"),
    "clamp_": (flat(lambda _, h: h.clone().clamp_(-1, 2)), "6p"),
    "clamp_min": (flat(lambda _, h: h.clamp_min(0)), "6ps"),
    "clamp_min_": (flat(lambda _, h: h.clone().clamp_min_(0)), "6ps"),
    "rsub": (flat(lambda _, h: 1 - h), "6p"),
    "sqrt": (flat(lambda _, h: h.square().sqrt()), "6ps"),
    "sqrt_": (flat(lambda _, h: (h.exp() + 0).sqrt_()), "6p"),
    "rsqrt": (flat(lambda _, h: h.square().rsqrt()), "6ps 6ps"),
    "square": (flat(lambda _, h: h.square()), "6pfs 6ps"),
    "pow 3": (flat(lambda _, h: h**3), "6pfs 6pfs"),
    "pow -1": (flat(lambda _, h: h**-1), "6pfs 6pfs"),
    "pow 1.5": (flat(lambda _, h: (h * h) ** 1.5), "6ps 6ps"),
    "pow_": (flat(lambda _, h: (h * 1).pow_(2)), "6p"),  # weaker: pf
    "2 ** h": (flat(lambda _, h: 2**h), "6p"),
    "reciprocal": (flat(lambda _, h: 1 / h), "6pfs 6pfs"),
    "div_": (flat(lambda _, h: h.clone().div_(2)), "6pfs"),
    "floor_divide": (flat(lambda _, h: h // 2), "6p"),
    "remainder": (flat(lambda _, h: h % 2), "6p"),
    "fmod": (flat(lambda _, h: torch.fmod(h, 2)), "6p"),
    "where": (flat(lambda _, h: torch.where(h > 0, h, 0.1 * h)), "6ps"),
    "where a number": (flat(lambda _, h: torch.where(h >= 0, h, 0.0)), "6ps"),
    "where above 1": (flat(lambda _, h: torch.where(h > 1, h, 0.1 * h)), "6p"),
    "masked_fill": (flat(lambda _, h: h.masked_fill(h < 0, 0)), "6ps"),
    "masked_fill 1": (flat(lambda _, h: h.masked_fill(h <= 0, 1)), "6p"),
    "masked_fill_": (flat(lambda _, h: h.clone().masked_fill_(h < 0, 0)), "6ps"),
    "logic": (flat(lambda _, h: h * ((h > 0) & (h < 1) | h.eq(2) & h.ne(3))), "6p"),
    "bitwise": (flat(lambda _, h: h * (~(h > 0)).bitwise_or(h > 0).bitwise_and(h < 0)), "6ps"),
    "logical": (
        flat(lambda _, h: h * (h > 0).logical_not().logical_and(h < 1).logical_or(h.isnan())),
        "6p",
    ),
    "isinf": (flat(lambda _, h: h.masked_fill(h.isinf(), 0)), "6p"),  # weaker: pfs
    "atan2": (flat(lambda m, h: torch.atan2(h, m.b(h)), b=L(6, 6)), "6p"),  # weaker: ps
    "lerp": (flat(lambda m, h: torch.lerp(h, m.b(h), 0.3), b=L(6, 6)), "6p"),  # weaker: pfs
    "maximum": (flat(lambda m, h: torch.maximum(h, m.b(h)), b=L(6, 6)), "6ps"),
    "minimum": (flat(lambda m, h: torch.minimum(h, m.b(h)), b=L(6, 6)), "6ps"),
    "max of two": (flat(lambda m, h: torch.max(h, m.b(h)), b=L(6, 6)), "6ps"),
    "sub_": (flat(lambda m, h: h.clone().sub_(m.b(h)), b=L(6, 6)), "6pfs"),
    "glu": (flat(lambda _, h: F.glu(h)), "3p 3pfs"),
    "geglu": (flat(lambda _, h: h[:, :3] * F.gelu(h[:, 3:])), "3p 3pfs"),
    "swiglu": (flat(lambda m, h: F.silu(m.b(h)) * m.c(h), b=L(6, 4), c=L(6, 4)), "4p 4pfs 6pfs"),
    "prelu": (flat(lambda m, h: F.prelu(h, m.w), w=(6,)), "6p 6ps"),
    "prelu of one": (flat(lambda m, h: F.prelu(h, m.w), w=(1,)), "6ps"),
    "prelu of tokens": (tokens(lambda m, h: F.prelu(h, m.w), w=(5,)), "6ps"),
    "layer scale": (flat(lambda m, h: h + m.g * m.b(h).relu(), b=L(6, 6), g=(6,)), "6pfs 6ps"),
    "rezero": (flat(lambda m, h: h + m.g * m.b(h).relu(), b=L(6, 6), g=()), "1sc 6ps 6ps"),
    "scalar": (flat(lambda m, h: torch.relu(h * m.g), g=()), "1sc 6ps 6ps"),
    "gate": (flat(lambda m, h: h * torch.sigmoid(m.g), g=(6,)), "6p 6pfs"),
    "in place": (flat(in_place(lambda m, h: h.add_(m.b(h)).mul_(m.g)), b=L(6, 6), g=(6,)), "6pfs"),
    "mul_": (flat(in_place(lambda m, h: h.mul_(m.b(h))), b=L(6, 6)), "6p 6pfs"),
    "copy into a slice": (flat(in_place(assign(LEFT, lambda h: h[RIGHT].relu()))), "3ps"),
    "view in place": (flat(in_place(lambda m, h: h.view(-1).add_(m.g)), g=(30,)), "6pfs"),
    "part in place": (flat(in_place(lambda _, h: h[LEFT].add_(1))), "3p 3pfs"),
}


def convolution(rank):
    conv, transposed = partial(layer, f"Conv{rank}d"), partial(layer, f"ConvTranspose{rank}d")
    wide, deep = conv(6, 4, 2, stride=2, padding=1, dilation=2), conv(6, 12, 2, groups=6)
    return {
        f"conv{rank}d": (space(lambda m, h: m.b(h).relu(), rank=rank, b=wide), "4ps 6pfs"),
        f"conv{rank}d depthwise": (
            space(lambda m, h: m.b(h).relu(), rank=rank, b=deep),
            "12ps 6pfs",
        ),
        f"conv{rank}d groups": (
            space(lambda m, h: m.b(h).relu(), rank=rank, b=conv(6, 4, 2, groups=2)),
            "4ps 6pfs",
        ),
        f"conv{rank}d one input": (
            space(lambda m, h: m.b(h).relu(), rank=rank, batch=(), b=conv(6, 4, 2)),
            "4ps 6pfs",
        ),
        f"conv_transpose{rank}d": (
            space(lambda m, h: m.b(h).relu(), rank=rank, b=transposed(6, 4, 2, stride=2)),
            "4ps 6pfs",
        ),
    }


def pool(function, _, h):
    return function(h, 2)


def resize(mode, _, h):
    return F.interpolate(h, scale_factor=2, mode=mode)


def pools(rank):
    return {
        f"{name}{rank}d": (
            space(partial(pool, getattr(F, f"{name}{rank}d")), rank=rank),
            "6ps" if "max" in name else "6pfs",
        )
        for name in ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")
    }


LINEAR = {
    **{name: case for rank in (1, 2, 3) for name, case in convolution(rank).items()},
    "linear vector": (flat(lambda m, h: F.linear(h, m.v)[:, None], v=(6,)), "1fsc 6pfs"),
    "mv": (flat(lambda m, h: torch.mv(h, m.v)[:, None], v=(6,)), "1fsc 6pfs"),
    "dot": (flat(lambda m, h: torch.dot(h[0], m.v)[None, None], v=(6,)), "1fsc 6pfs"),
    "mm": (flat(lambda m, h: torch.mm(h, m.w).relu(), w=(6, 4)), "4ps 6pfs"),
    "matmul": (tokens(lambda m, h: (h @ m.w).relu(), w=(6, 4)), "4ps 6pfs"),
    "addmm": (flat(lambda m, h: torch.addmm(m.b, h, m.w).relu(), b=(4,), w=(6, 4)), "4ps 6pfs"),
    "baddbmm": (
        tokens(lambda m, h: torch.baddbmm(m.b, h, m.w), b=(2, 1, 4), w=(2, 6, 4)),
        "4pfs 6pfs",
    ),
    "bmm": (
        tokens(lambda m, h: torch.bmm(h, torch.bmm(h.transpose(1, 2), m.b(h))), b=L(6, 6)),
        "6pfs 6pfs 6pfsc",  # weaker: the multipliers of a gram matrix are of its neurons
    ),
    "outer": (
        flat(lambda m, h: (h[:, :, None] * m.b(h)[:, None]).flatten(1), b=L(6, 3)),
        "18pfs 3pfs 6pfs",
    ),
    "bilinear": (
        flat(lambda m, h: m.b(h, m.c(h).relu()), b=layer("Bilinear", 6, 4, 5), c=L(6, 4)),
        "24pfs 4ps 5pfs 6pfs",
    ),
    "einsum": (tokens(lambda m, h: torch.einsum("...i,io->...o", h, m.w), w=(6, 4)), "4pfs 6pfs"),
    "experts": (
        flat(
            lambda m, h: torch.einsum(
                "eho,beh->bo", m.v, torch.einsum("eih,bi->beh", m.w, h).relu()
            ),
            w=(2, 6, 5),
            v=(2, 5, 4),
        ),
        "10ps 4pfs 6pfs",
    ),
    "embedding": (flat(lambda m, h: h + m.e(POSITIONS), e=layer("Embedding", 5, 6)), "6pfs"),
    "low rank": (
        flat(lambda m, h: h @ m.w + h @ m.a @ m.b, w=(6, 4), a=(6, 2), b=(2, 4)),
        "2pfs 4pfs 6pfs",
    ),
    "twice": (flat(lambda m, h: m.s(m.s(h).relu()).relu(), s=L(6, 6)), "6ps"),
    "shared blocks": (
        flat(lambda m, h: (lambda z: z + m.s(z).relu())(h + m.s(h).relu()), s=L(6, 6)),
        "6ps",
    ),
    "tied transposed": (
        flat(lambda m, h: F.linear(F.linear(h, m.w).relu(), m.w.t()), w=(4, 6)),
        "4psc 6pfs 6pfs",
    ),
    "pruned": (
        flat(
            lambda m, h: F.linear(h, m.w * m.mask), w=(4, 6), mask=layer("Buffer", torch.ones(4, 6))
        ),
        "6fs 6fs",
    ),
    "checkpoint": (
        flat(lambda m, h: checkpoint(m.b, h, use_reentrant=False).relu(), b=L(6, 4)),
        "4ps 6pfs",
    ),
    "sdpa": (attend(lambda _, *x: sdpa(*x)), "12pfs 12pfs 12pfs"),
    "sdpa causal": (attend(lambda _, *x: sdpa(*x, is_causal=True)), "12pfs 12pfs 12pfs"),
    "sdpa mask": (
        attend(lambda m, *x: sdpa(*x, attn_mask=m.b), b=(3, 5, 5)),
        "12pfs 12pfs 12pfs 3p",
    ),
    "sdpa gqa": (
        attend(lambda _, *x: sdpa(*x, 2, 4, enable_gqa=True), keys=6),
        "12pfs 12pfs 6pfs 6pfs",
    ),
    "sdpa gqa mask": (
        attend(lambda m, *x: sdpa(*x, 2, 4, enable_gqa=True, attn_mask=m.b), keys=6, b=(4, 5, 5)),
        "12pfs 12pfs 4p 6pfs 6pfs",
    ),
    "sdpa mqa": (attend(lambda _, *x: shared_key(*x), keys=3), "12pfs 12pfs 3pfs 3pfs"),
    "repeated keys": (
        attend(lambda _, *x: repeated(*x, lambda k: k.repeat_interleave(2, 1)), keys=6),
        "12pfs 12pfs 6pfs 6pfs",
    ),
    "tiled keys": (
        attend(lambda _, *x: repeated(*x, lambda k: k.repeat(1, 2, 1, 1)), keys=6),
        "12pfs 12pfs 6pfs 6pfs",
    ),
    "softmax over tokens": (attend(lambda _, *x: manual(*x)), "12pfs 12pfs 12pfs"),
    "position bias": (
        attend(
            lambda m, *x: manual(*x, m.b(DISTANCES).permute(2, 0, 1)), b=layer("Embedding", 9, 3)
        ),
        "12pfs 12pfs 12pfs 3p",
    ),
    "position bias by index": (
        attend(lambda m, *x: manual(*x, m.b[DISTANCES].permute(2, 0, 1)), b=(9, 3)),
        "12pfs 12pfs 12pfs 3p",
    ),
    "cosine attention": (
        attend(lambda m, *x: manual(*x, scale=m.t, norm=partial(F.normalize, dim=-1)), t=(3, 1, 1)),
        "12pfs 12ps 12ps 3p",
    ),
    "rope halves": (rope(halves), "12pfs 6pfs 6pfs"),
    "rope pairs": (rope(pairs), "12pfs 6pfs 6pfs"),
    "MultiheadAttention": (multihead(), "6pfs 6pfs 6pfs 6pfs 6pfs"),
    "MultiheadAttention kdim": (
        multihead(once=False, kdim=6, vdim=4),
        "4pfs 6pfs 6pfs 6pfs 6pfs 6pfs 6pfs",
    ),
    **{
        f"{kind} {options}": (
            tokens(lambda m, h: m.n(h)[0], n=layer(kind, 6, 4, **options)),
            "6pfs",
        )
        for kind in ("GRU", "LSTM", "RNN")
        for options in (
            {},
            {"bidirectional": True, "num_layers": 2, "batch_first": True},
            {"bias": False, "num_layers": 2},
        )
    },
    "RNN relu": (
        tokens(lambda m, h: m.n(h)[0], n=layer("RNN", 6, 4, nonlinearity="relu")),
        "6pfs",
    ),
}


def norms(affine, after):
    """``after``: what the neurons behind a normalisation may undergo, before a ReLU."""
    end, some = {"affine": affine}, {"elementwise_affine": affine}
    return {
        "BatchNorm1d": (flat(lambda m, h: m.n(h).relu(), n=layer("BatchNorm1d", 6, **end)), "6ps"),
        "BatchNorm1d of tokens": (
            tokens(lambda m, h: m.n(h.mT).mT.relu(), n=layer("BatchNorm1d", 6, **end)),
            "6ps",
        ),
        "BatchNorm2d": (space(lambda m, h: m.n(h).relu(), n=layer("BatchNorm2d", 6, **end)), "6ps"),
        "BatchNorm3d": (
            space(lambda m, h: m.n(h).relu(), rank=3, n=layer("BatchNorm3d", 6, **end)),
            "6ps",
        ),
        "InstanceNorm2d": (
            space(lambda m, h: m.n(h).relu(), n=layer("InstanceNorm2d", 6, **end)),
            "6ps",
        ),
        "GroupNorm": (space(lambda m, h: m.n(h).relu(), n=layer("GroupNorm", 2, 6, **end)), "6ps"),
        "GroupNorm 1": (
            space(lambda m, h: m.n(h).relu(), n=layer("GroupNorm", 1, 6, **end)),
            "6psc",
        ),
        "GroupNorm flat": (
            flat(lambda m, h: m.n(h).relu(), n=layer("GroupNorm", 2, 6, **end)),
            "6ps",
        ),
        "LayerNorm": (flat(lambda m, h: m.n(h).relu(), n=layer("LayerNorm", 6, **some)), "6psc"),
        "LayerNorm 2": (
            tokens(lambda m, h: m.n(h).relu(), n=layer("LayerNorm", (5, 6), **some)),
            "6psc",
        ),
        "RMSNorm": (flat(lambda m, h: m.n(h).relu(), n=layer("RMSNorm", 6, **some)), "6psc"),
    }


def affine_and_not():
    for affine, after in ((True, "6ps"), (False, "6p")):
        for name, (make, before) in norms(affine, after).items():
            yield f"{name} {affine}", (make, f"{before} {after}")


NORMS = {
    **dict(affine_and_not()),
    **{name: case for rank in (1, 2, 3) for name, case in pools(rank).items()},
    "eval": (
        space(lambda m, h: m.n(h).relu(), n=partial(lambda: nn.BatchNorm2d(6).eval())),
        "6ps 6ps",
    ),
    "hand-written RMSNorm": (
        flat(lambda _, h: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)),
        "6p 6psc",
    ),
    "normalize": (flat(lambda _, h: F.normalize(h)), "6p 6psc"),
    "norm": (flat(lambda _, h: h / h.norm(dim=1, keepdim=True)), "6p 6psc"),
    "norm of all": (flat(lambda _, h: h / h.norm()), "6p 6psc"),
    "norm 1": (flat(lambda _, h: h / h.norm(1, dim=1, keepdim=True)), "6p 6psc"),
    "std": (flat(lambda _, h: h * h.std(1, True)[:, None]), "6psc 6psc"),
    "std of inputs": (flat(lambda _, h: h * h.std(0)), "6ps 6ps"),
    "var": (flat(lambda _, h: h * h.var(1, unbiased=True)[:, None]), "6psc 6psc"),
    "hand-written LayerNorm": (
        flat(lambda _, h: (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + 1e-5)),
        "6p",  # weaker: 6p 6psc; the epsilon is added to the root
    ),
    "amax": (flat(lambda _, h: h * h.amax(1, keepdim=True)), "6psc 6psc"),
    "amin": (flat(lambda _, h: h * h.amin(0)), "6ps 6ps"),
    "min": (flat(lambda _, h: h * h.min(1, keepdim=True).values), "6psc 6psc"),
    "max of all": (flat(lambda _, h: h * h.max()), "6psc 6psc"),
    "sum": (flat(lambda _, h: h.sum(1, keepdim=True)), "1fsc 6pfsc"),
    "mean of tokens": (tokens(lambda _, h: h.mean(1)), "6pfs"),
    "no gradient": (flat(without_gradient), "6p 6psc"),
    "softmax": (flat(lambda _, h: torch.softmax(h, 1)), "6p"),
    "log_softmax": (flat(lambda _, h: torch.log_softmax(h, 1)), "6p"),
    "softmax over heads": (
        tokens(lambda _, h: torch.softmax(h.unflatten(-1, (2, 3)), 2).flatten(2)),
        "6p",
    ),
    "cat, BatchNorm": (
        flat(
            lambda m, h: m.n(torch.cat([h, m.b(h).relu()], 1)), b=L(6, 3), n=layer("BatchNorm1d", 9)
        ),
        "3pfs 3ps 6pfs 6ps",
    ),
}
SHAPES = {
    "split": (
        flat(lambda _, h: torch.cat([h[:, :2], *h.split([2, 2, 2], 1)[1:]], 1)),
        "2pfs 2pfs 2pfs",
    ),
    "split by size": (flat(lambda _, h: sum(h.split(2, 1))), "2pfs"),
    "chunk": (flat(lambda _, h: h.chunk(3, -1)[0] * h.chunk(3, -1)[2]), "2pfs 2pfs 2pfs 2pfs"),
    "unbind": (flat(lambda _, h: sum(h.unflatten(1, (3, 2)).unbind(1))), "2pfs"),
    "select": (flat(lambda _, h: h.relu() * h[:, -1, None]), "1sc 1sc 5ps 5ps"),
    "step": (flat(lambda _, h: h[:, ::2]), "3pfs 3pfs"),
    "negative": (flat(lambda _, h: h[:, -4:-1]), "1fsc 2pfs 3pfs"),
    "dense": (
        flat(
            lambda m, h: (lambda z: torch.cat([z, m.c(z).relu()], 1))(
                torch.cat([h, m.b(h).relu()], 1)
            ),
            b=L(6, 3),
            c=L(9, 2),
        ),
        "2ps 3ps 6pfs",
    ),
    "cat three": (
        flat(lambda m, h: torch.cat([h, m.b(h), m.c(h).tanh()], 1), b=L(6, 2), c=L(6, 3)),
        "2pfs 3pf 6pfs",
    ),
    "cat twice": (flat(lambda _, h: torch.concat([h, -h], 1).relu()), "6ps"),
    "cat tokens": (tokens(lambda m, h: torch.cat([h, m.b(h).relu()], 1), b=L(6, 6)), "6ps"),
    "class token": (
        tokens(
            lambda m, h: torch.cat([m.p.expand(2, -1, -1), h], 1) + m.q, p=(1, 1, 6), q=(1, 6, 6)
        ),
        "6pfs",
    ),
    "stack": (flat(lambda _, h: torch.stack([h, h.relu()], 2).flatten(1)), "6ps"),
    "expand": (tokens(lambda _, h: h.unsqueeze(1).expand(-1, 3, -1, -1).flatten(1, 2)), "6pfs"),
    "repeat": (flat(lambda m, h: (h.repeat(1, 2) + m.p).relu(), p=(12,)), "6ps"),
    "tile": (flat(lambda _, h: torch.tile(h, (2, 2))), "6pfs"),
    "repeat_interleave": (
        flat(lambda m, h: (h.repeat_interleave(2, 1) + m.p).relu(), p=(12,)),
        "6ps",
    ),
    "roll": (tokens(lambda _, h: h.roll(1, 1)), "6pfs"),
    "roll neurons": (flat(lambda _, h: h.roll(1, 1)), "6fsc"),
    "flip": (tokens(lambda _, h: h.flip(1)), "6pfs"),
    "cumsum": (tokens(lambda _, h: h.cumsum(1)), "6pfs"),
    "pad tokens": (tokens(lambda _, h: F.pad(h, (0, 0, 1, 1))), "6pfs"),
    "pad tokens by 1": (tokens(lambda _, h: F.pad(h, (0, 0, 1, 1), value=1.0)), "6p"),
    "pad neurons": (flat(lambda _, h: F.pad(h, (0, 1))), "6fsc 7fsc"),  # weaker: 6pfs
    "index": (flat(lambda _, h: h[:, [0, 2]]), "2fsc 6fsc"),  # weaker: a multiplier of each
    "index inputs": (flat(lambda _, h: h[[0, 2]]), "6pfs"),
    "pixel_shuffle": (
        space(lambda m, h: F.pixel_shuffle(m.b(h), 2), b=layer("Conv2d", 6, 12, 1)),
        "3pfs 6pfs",
    ),
    "channel shuffle": (
        space(lambda _, h: h.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2).relu()),
        "6ps",
    ),
    **{
        f"interpolate {mode} {rank}": (
            space(partial(resize, mode), rank=rank),
            "6pfs",
        )
        for mode, rank in (
            *(("nearest", rank) for rank in (1, 2, 3)),
            *(("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3), ("area", 2)),
        )
    },
    **{
        name: (flat(f), "")
        for name, f in {
            "topk": lambda _, h: h.topk(3)[0],
            "sort": lambda _, h: h.sort()[0],
            "argsort": lambda _, h: h.argsort().to(h),
            "argmax": lambda _, h: h * h.argmax(1, keepdim=True),
            "argmin": lambda _, h: h * h.argmin(1, keepdim=True),
            "gather": lambda _, h: h.gather(1, torch.zeros(5, 2, dtype=torch.long)),
        }.items()
    },
}
MORE = {
    "slice of a residual stream": (
        flat(lambda m, h: (h + m.b(h))[:, :3], b=L(6, 6)),
        "3pfs 3pfs",
    ),
    "residual of a cat": (
        flat(lambda m, h: (lambda z: z + m.b(z))(torch.cat([h, m.c(h)], 1)), b=L(9, 9), c=L(6, 3)),
        "3pfs 6pfs",
    ),
    "MultiheadAttention of three tensors": (
        multihead(once=False),
        "6pfs 6pfs 6pfs 6pfs 6pfs 6pfs 6pfs",
    ),
    "parts of a weight": (
        flat(
            lambda m, h: (lambda q, k: heads(q, 2).sum(-1, keepdim=True) * heads(k, 2))(
                *(F.linear(h[:, None], w) for w in m.w.chunk(2))
            ).flatten(1),
            w=(12, 6),
        ),
        "6pfs 6pfs 6pfs 6pfs",
    ),
    "unused part of a weight": (
        flat(lambda m, h: F.linear(h, m.w.chunk(2)[1]).relu(), w=(8, 6)),
        "",  # weaker: 4ps 6pfs
    ),
    "weight and its transpose": (
        flat(lambda m, h: F.linear(h, m.w) + F.linear(h, m.w.t()), w=(6, 6)),
        "6pfsc 6pfsc",
    ),
    "conv_transpose2d groups": (
        space(lambda m, h: m.b(h).relu(), b=layer("ConvTranspose2d", 6, 4, 2, groups=2)),
        "4ps 6pfs",
    ),
    "conv_transpose2d dilation": (
        space(lambda m, h: m.b(h).relu(), b=layer("ConvTranspose2d", 6, 4, 2, dilation=2)),
        "4ps 6pfs",
    ),
    "rsub of tensors": (flat(lambda m, h: torch.rsub(h, m.b(h)), b=L(6, 6)), "6pfs"),
    "to integers": (flat(lambda _, h: (3 * h).int().to(h.dtype)), "6p"),
    "var of all": (flat(lambda _, h: h * h.var(unbiased=False)), "6psc 6psc"),
    "var keepdim": (flat(lambda _, h: h * h.var(1, unbiased=False, keepdim=True)), "6psc 6psc"),
    "max, its place": (flat(lambda _, h: h * h.max(1, keepdim=True).indices), "6sc"),
    "lookup by neurons": (
        flat(lambda m, h: m.t[(h > 0).long()].flatten(1), t=(5, 2)),
        "6p 6ps",
    ),
    "roll of all": (flat(lambda _, h: h.roll(2)), "6fsc"),
    "diff": (flat(lambda _, h: h.diff(n=2)), "6fsc 4fsc"),
    "constant_pad_nd": (flat(lambda _, h: torch.constant_pad_nd(h, (0, 0, 0, 1), 1.0)), "6p"),
    "inverse of a clamp": (flat(lambda _, h: 1 / h.clamp(min=1e-5)), "6p"),
    "inverse of relu": (flat(lambda _, h: torch.rsqrt(h.relu() ** 2 + 1e-5)), "6p"),
    "running instance statistics": (
        space(lambda m, h: m.n(h), n=layer("InstanceNorm2d", 6, track_running_stats=True)),
        "6ps 6p",
    ),
    "gqa without a batch": (
        lambda: (
            Function(
                lambda m, x: m.out(
                    F.scaled_dot_product_attention(
                        *(p(x).unflatten(-1, (-1, 3)).transpose(0, 1) for p in (m.q, m.k, m.v)),
                        enable_gqa=True,
                    )
                    .transpose(0, 1)
                    .flatten(1)
                ),
                q=L(3, 12),
                k=L(3, 6),
                v=L(3, 6),
                out=L(12, 2),
            ),
            torch.randn(5, 3),
        ),
        "12pfs 12pfs 6pfs 6pfs",
    ),
    "gram matrix": (
        flat(lambda _, h: torch.bmm(h[:, :, None], h[:, None]).flatten(1)),
        "6fc",  # weaker: 6pf
    ),
}
# new tensors, copies, and operators that are known to leave no symmetry
OTHERS = {
    name: (flat(f) if shape == "flat" else space(f), groups)
    for groups, shape, functions in (
        (
            "6pfs",
            "flat",
            {
                "view_as": lambda _, h: h.view_as(h * 1),
                "reshape_as": lambda _, h: h.reshape_as(h * 1),
                "swapaxes": lambda _, h: h.swapaxes(0, 1).swapaxes(0, 1),
                "T": lambda _, h: h.T.T,
                "numpy_T": lambda _, h: torch.ops.aten.numpy_T(torch.ops.aten.numpy_T(h)),
                "type_as": lambda _, h: h.type_as(h * 1),
                "broadcast_to": lambda _, h: h[:, None].broadcast_to(5, 2, 6).flatten(0, 1),
                "dropout": lambda _, h: F.dropout(h, 0.5, False),
                "dropout_": lambda _, h: F.dropout(h * 1, 0.5, False, True),
                "alpha_dropout": lambda _, h: F.alpha_dropout(h, 0.5, False),
                "alias": lambda _, h: torch.ops.aten.alias(h),
                "detach": lambda _, h: h + (h * 2).detach(),
                "detach_": lambda _, h: h + (h * 2).detach_(),
                "zeros_like": lambda _, h: h + torch.zeros_like(h) * h,
                "ones_like": lambda _, h: h * torch.ones_like(h),
                "full_like": lambda _, h: h * torch.full_like(h, 2.0),
                "new_ones": lambda _, h: h * h.new_ones(6),
                "new_zeros": lambda _, h: h * (1 + h.new_zeros(6)),
                "new_full": lambda _, h: h * h.new_full((5, 1), 2.0),
                "ones": lambda _, h: h * torch.ones(6),
                "full": lambda _, h: h * torch.full((5, 1), 2.0),
            },
        ),
        (
            "6pfs",
            "space",
            {
                "dropout2d": lambda _, h: F.dropout2d(h, 0.5, False),
                "antialias": lambda _, h: F.interpolate(h, (4, 4), mode="bilinear", antialias=True),
            },
        ),
        (
            "6s",
            "flat",
            {
                "any": lambda _, h: h * (h > 0).any(1, keepdim=True),
                "all": lambda _, h: h * (h > 0).all(1, keepdim=True),
            },
        ),
        (
            "",
            "flat",
            {
                "empty_like": lambda _, h: torch.empty_like(h).copy_(h),
                "new_empty": lambda _, h: h.new_empty(5, 6).copy_(h),
                "rand_like": lambda _, h: h + 0 * torch.rand_like(h),
                "randn_like": lambda _, h: h + 0 * torch.randn_like(h),
                "bernoulli": lambda _, h: h + 0 * torch.bernoulli(h.sigmoid()),
                "multinomial": lambda _, h: h + 0 * h.softmax(1).multinomial(6),
                "one_hot": lambda _, h: F.one_hot(h.argmax(1), 6) * h,
                "scatter": lambda _, h: h.scatter(1, POSITIONS[:, None], 0.0),
                "scatter_": lambda _, h: (h * 1).scatter_(1, POSITIONS[:, None], 0.0),
                "index_put": lambda _, h: h.index_put((POSITIONS,), h + 1),
                "index_put_": lambda _, h: (h * 1).index_put_((POSITIONS,), h + 1),
                "index_add": lambda _, h: h.index_add(0, POSITIONS, h),
                "index_add_": lambda _, h: (h * 1).index_add_(0, POSITIONS, h),
                "histc": lambda _, h: h * torch.histc(h, 6),
                "real": lambda _, h: torch.real(torch.fft.fftn(h)),
                "irfft2": lambda _, h: torch.fft.irfft2(torch.fft.rfft2(h), (5, 6)),
                "meshgrid": lambda _, h: h * torch.meshgrid(h[:, 0], h[0], indexing="ij")[0],
            },
        ),
    )
    for name, f in functions.items()
}
CASES = {**ELEMENTWISE, **LINEAR, **NORMS, **SHAPES, **MORE, **OTHERS}


def check(make, groups):
    torch.manual_seed(0)
    module, *inputs = make()
    graph = trace(module, inputs)
    assert list(graph.parameters) == [name for name, _ in module.named_parameters()]
    assert verify(module, graph, inputs).error <= 1e-8
    assert hidden(graph) == sorted(groups.split())


@pytest.mark.parametrize("name", CASES)
def test_claims(name):
    check(*CASES[name])


@pytest.mark.parametrize("parametrise", [weight_norm, spectral_norm, orthogonal])
def test_parametrised_weights_are_fixed_with_a_warning(parametrise):
    torch.manual_seed(0)
    module = nn.Sequential(L(3, 6)(), nn.Tanh(), parametrise(nn.Linear(6, 4)), nn.Tanh(), L(4, 2)())
    x = torch.randn(5, 3)
    with pytest.warns(TraceWarning, match="no rule for operator aten"):
        graph = trace(module, (x,))
    assert list(graph.parameters) == [name for name, _ in module.named_parameters()]
    assert verify(module, graph, (x,)).error <= 1e-8
    assert not any(group.symmetry.permutes for group in graph.groups)


def operators(module, inputs):
    exported = torch.export.export(module, tuple(inputs), strict=False)
    graphs = [m.graph for m in exported.graph_module.modules() if hasattr(m, "graph")]
    targets = [node.target for graph in graphs for node in graph.nodes]
    return {getattr(target, "overloadpacket", target) for target in targets}


def test_every_operator_is_in_a_case():
    reached = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for make, _ in CASES.values():
            torch.manual_seed(0)
            module, *inputs = make()
            reached |= operators(module, inputs)
    missing = sorted(str(operator) for operator in set(RULES) - reached)
    assert missing == []
