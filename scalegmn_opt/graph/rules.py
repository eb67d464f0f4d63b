"""The table of rules: for each operator, which axes of its tensors are the same neurons.

A rule also states which multipliers of its tensors leave its meaning as it is. An operator that is
not here fixes the axes it touches, with a warning.
"""

import operator
from typing import Any

import torch

from scalegmn_opt.graph.groups import NONZERO_SCALE, PERMUTATION, SIGN
from scalegmn_opt.graph.program import Rule
from scalegmn_opt.graph.rules_linear import (
    addmm,
    attention,
    bilinear,
    convolution,
    einsum,
    embedding,
    linear,
    matmul,
    recurrent,
)
from scalegmn_opt.graph.rules_norm import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    pooling,
    reduction,
    resize,
    softmax,
    variance,
)
from scalegmn_opt.graph.rules_pointwise import (
    absolute,
    activation,
    add,
    clamp,
    compare,
    divide,
    elementwise_fixed,
    extremum,
    glu,
    hardtanh,
    masked_fill,
    multiply,
    power,
    prelu,
    unnamed,
    where,
)
from scalegmn_opt.graph.rules_shape import (
    cast,
    cat,
    constant,
    expand,
    getitem,
    index,
    moved,
    opaque,
    pad,
    permute,
    pixel_shuffle,
    repeat,
    repeat_interleave,
    reverse,
    select,
    slice_,
    split,
    stack,
    transparent,
    transpose,
    unbind,
    uniform,
    view,
)

aten = torch.ops.aten
_ACTIVATIONS = {
    **{name: name for name in ("relu", "tanh", "erf", "gelu", "silu", "sigmoid")},
    **{name: name for name in ("softplus", "elu", "selu", "mish", "cos", "exp")},
    "sin": "sine",
    "atan": "arctan",
}
# rule -> operators
_TABLE: dict[Rule, tuple[str, ...]] = {
    linear: ("linear",),
    matmul: ("matmul", "mm", "bmm", "mv", "dot"),
    addmm: ("addmm", "baddbmm"),
    einsum: ("einsum",),
    bilinear: ("bilinear",),
    embedding: ("embedding",),
    attention: ("scaled_dot_product_attention",),
    recurrent: ("gru", "lstm", "rnn_tanh", "rnn_relu"),
    activation("leaky_relu", slope="negative_slope"): ("leaky_relu", "leaky_relu_"),
    absolute: ("abs",),
    hardtanh: ("hardtanh", "hardtanh_"),
    prelu: ("prelu",),
    clamp: ("clamp", "clamp_", "clamp_min", "clamp_min_"),
    glu: ("glu",),
    unnamed(PERMUTATION): (
        *("hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "log", "log1p", "expm1"),
        *("log_sigmoid", "celu", "elu_", "silu_", "sigmoid_", "mish_", "threshold", "relu6"),
        *("bitwise_not", "logical_not", "erfc", "floor", "round", "ceil"),
    ),
    unnamed(SIGN): ("asinh", "sinh", "tan", "atanh", "softshrink", "sign"),
    unnamed(NONZERO_SCALE): ("neg", "neg_"),
    add: ("add", "add_", "sub", "sub_", "rsub", "copy_"),
    multiply: ("mul", "mul_"),
    divide: ("div", "div_"),
    power(): ("pow", "pow_"),
    power(2): ("square",),
    power(0.5): ("sqrt", "sqrt_"),
    power(-0.5): ("rsqrt",),
    power(-1): ("reciprocal",),
    compare: ("gt", "ge", "lt", "le"),
    elementwise_fixed: (
        *("eq", "ne", "logical_and", "logical_or", "bitwise_and", "bitwise_or", "floor_divide"),
        *("__and__", "__or__", "remainder", "fmod", "atan2", "isnan", "isinf", "lerp"),
    ),
    extremum: ("maximum", "minimum", "max", "min"),
    where: ("where",),
    masked_fill: ("masked_fill", "masked_fill_"),
    reduction(): ("mean", "sum"),
    reduction("positive"): ("amax", "amin"),
    reduction("absolute"): ("linalg_vector_norm", "std"),
    variance: ("var",),
    batch_norm: ("batch_norm",),
    instance_norm: ("instance_norm",),
    group_norm: ("group_norm",),
    layer_norm(mean=True): ("layer_norm",),
    layer_norm(mean=False): ("rms_norm",),
    softmax: ("softmax", "log_softmax"),
    resize: (
        *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d")),
        *(f"upsample_{kind}" for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
        "_upsample_bilinear2d_aa",
    ),
    view: (
        *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten"),
        *("squeeze", "unsqueeze"),
    ),
    transparent: (
        *("dropout", "dropout_", "feature_dropout", "alpha_dropout", "contiguous", "clone"),
        *("detach", "detach_", "alias", "lift_fresh_copy"),
    ),
    cast: ("to", "type_as"),
    constant: ("empty_like", "rand_like", "randn_like", "new_empty", "bernoulli"),
    uniform: (
        *("zeros", "ones", "full", "zeros_like", "ones_like", "full_like"),
        *("new_zeros", "new_ones", "new_full"),
    ),
    permute: ("permute",),
    transpose: ("transpose", "swapaxes", "mT"),
    reverse: ("t", "numpy_T"),
    expand: ("expand", "expand_as", "broadcast_to"),
    repeat: ("repeat", "tile"),
    repeat_interleave: ("repeat_interleave",),
    slice_: ("slice",),
    select: ("select",),
    unbind: ("unbind",),
    split: ("split", "split_with_sizes", "chunk"),
    cat: ("cat", "concat"),
    stack: ("stack",),
    index: ("index",),
    pad: ("pad", "constant_pad_nd"),
    moved: ("roll", "flip", "cumsum", "diff"),
    pixel_shuffle: ("pixel_shuffle",),
    opaque: (
        *("topk", "sort", "argsort", "argmax", "argmin", "gather", "scatter", "scatter_", "histc"),
        *("index_put", "index_put_", "index_add", "index_add_", "one_hot"),
        *("fft_fftn", "fft_rfft2", "fft_irfft2", "real", "meshgrid", "multinomial", "any", "all"),
    ),
}
RULES: dict[Any, Rule] = {
    operator.getitem: getitem,
    **{getattr(aten, name): activation(kind) for name, kind in _ACTIVATIONS.items()},
    **{getattr(aten, f"{name}_"): activation(name) for name in ("relu", "tanh")},
    **{getattr(aten, f"conv{n}d"): convolution(n) for n in (1, 2, 3)},
    **{getattr(aten, f"conv_transpose{n}d"): convolution(n, transposed=True) for n in (1, 2, 3)},
    **{
        getattr(aten, f"{kind}_pool{n}d"): pooling(n)
        for kind in ("avg", "adaptive_avg")
        for n in (1, 2, 3)
    },
    **{
        getattr(aten, f"{kind}_pool{n}d"): pooling(n, largest=True)
        for kind in ("max", "adaptive_max")
        for n in (1, 2, 3)
    },
    **{getattr(aten, name): rule for rule, names in _TABLE.items() for name in names},
}
