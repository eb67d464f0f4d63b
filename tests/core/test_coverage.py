"""Is every symmetry found that theory knows of? Counted by hand, from the architectures alone.

Each expectation has the axes that may be reordered, the multipliers, and what is left. An axis is
counted once, however many layers it runs through. Reordering and rescaling single neurons is all
that is counted: turning pairs of them, as RoPE allows, or mixing the widths of a head by any
invertible matrix is not.
"""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from zoo import ZOO

from scalegmn_opt.graph import CONSTANT, trace


@dataclass(frozen=True)
class Theory:
    """What an architecture allows.

    ``axes`` counts those that permute by size, a number; or, where an axis has an order of its own
    for each index of others, by its size and theirs. Multipliers are counted by the sizes of the
    axes, sorted, of which each index has one. ``positive`` ones must not be negative, ``nonzero``
    ones may be, and () stands for one number in all. ``fixed`` counts the sizes of neurons that
    neither permute nor rescale.
    """

    axes: dict
    positive: dict = field(default_factory=dict)
    nonzero: dict = field(default_factory=dict)
    fixed: dict = field(default_factory=dict)


# Rules of thumb that the counts below use.
#
# - Behind a ReLU, max pooling included, channels permute and have a positive multiplier each.
# - In front of a BatchNorm each channel has a positive multiplier that the statistics divide out;
#   behind its weight and bias there is another, which the layer after next has to undo. They are
#   two multipliers on one axis. (A negative one in front would be undone by the sign of the
#   BatchNorm's weight. That is a symmetry, too, but one this library does not claim: the graph has
#   no group whose multiplier is the sign of another's. So is a LayerNorm's.)
# - In front of a LayerNorm or RMSNorm all channels have one positive number in common, and behind
#   its weight each channel has any number but zero, if only linear layers read it.
# - Terms of a sum, so all layers that write to a residual stream, share their axis and multiplier.
# - Queries and keys meet in a product: one multiplier, in the one as it is, in the other inverse.
# - Values are only averaged before the output layer: any multiplier but zero.
# - Heads permute, and within each head its widths do, the values' apart from the queries'.
# - GELU and SiLU hidden neurons permute and have no multiplier. The linear half of a gated layer
#   has one.
# - Inputs, classes and words keep their places.

THEORY = {}

# 7 -> 11 -> 13 -> 3: the two hidden layers.
THEORY["mlp"] = Theory({11: 1, 13: 1}, positive={(11,): 1, (13,): 1}, fixed={7: 1, 3: 1})

# Two convolutions with BatchNorm, ReLU and max pooling, of 6 and 8 channels, then a hidden linear
# layer of 14. The flatten in between is 8 channels of 3 x 2 positions, of which only the channels
# permute. Multipliers: in front of and behind each BatchNorm, and behind the hidden layer's ReLU.
THEORY["vgg_bn"] = Theory(
    {6: 1, 8: 1, 14: 1},
    positive={(6,): 2, (8,): 2, (14,): 1},
    fixed={3: 1, 5: 1},
)

# A stem and three blocks. The first block keeps the stem's stream of 6 channels, the second goes
# over to one of 8 by its shortcut, which the third keeps. Each block has a hidden layer of its own.
# Axes: the streams 6 and 8, the hidden 6, 8 and 8. Multipliers in front of a BatchNorm: one for
# each convolution, of which stem, 1.conv1 and 1.conv2 have 6 channels; 2.conv1, 2.conv2, 2.short,
# 3.conv1 and 3.conv2 have 8. Behind one: a hidden layer has its own; a stream has one in all, that
# its adding layers share: 2 with 6 and 3 with 8.
THEORY["resnet"] = Theory(
    {6: 2, 8: 3},
    positive={(6,): 3 + 2, (8,): 5 + 3},
    fixed={3: 1, 5: 1},
)

# Concatenation makes no axis: what is read is 6, then 6 + 4, then 6 + 4 + 4 channels, a transition
# to 7, then 7 + 4. Axes: 6, two of 4, 7, and the last 4. Each of the five convolutions writes raw
# channels with one multiplier: the BatchNorms that read them divide it out, the last head undoes
# it behind a ReLU. Each BatchNorm writes channels with further ones: the first of 6, the second of
# 6 and 4, the transition's of 6, 4 and 4, the last of 7.
THEORY["densenet"] = Theory(
    {6: 1, 4: 3, 7: 1},
    positive={(6,): 1 + 3, (4,): 3 + 3, (7,): 1 + 1},
    fixed={3: 1, 5: 1},
)

# Width 12, two blocks: 4 heads of 3 and 19 hidden neurons, 3 heads of 4 and 20. The stream is one
# axis of 12, with one multiplier c in common, for it ends in a LayerNorm. The head is the
# embedding, so that the last LayerNorm's output must be multiplied by 1/c: nothing new. Each block
# has two LayerNorms (12 each), queries with keys, and values. Words (23) and positions (9) stay.
THEORY["nano_gpt"] = Theory(
    {12: 1, 4: 1, (3, 4): 2, 19: 1, 3: 1, (4, 3): 2, 20: 1},
    positive={(): 1},
    nonzero={(12,): 4, (3, 4): 4},  # 3 x 4 and 4 x 3
    fixed={23: 1, 9: 1},
)

# The same with width 24, two layers of 4 heads of 6 and 36 hidden neurons, 41 words, 16 positions.
# One layer is the queries, keys and values together: its 72 outputs are 3 parts of 4 x 6.
THEORY["gpt2"] = Theory(
    {24: 1, 4: 2, (6, 4): 4, 36: 2},
    positive={(): 1},
    nonzero={(24,): 4, (4, 6): 4},
    fixed={41: 1, 16: 1},
)

# The same without a tied head: the last LayerNorm, which the classifier reads, has 24 multipliers
# of its own. Inputs are 3 colours; the place in a patch and the patch's are no neurons.
THEORY["vit"] = Theory(
    {24: 1, 4: 2, (6, 4): 4, 36: 2},
    positive={(): 1},
    nonzero={(24,): 5, (4, 6): 4},
    fixed={3: 1, 5: 1},
)

# Width 24; 4 query heads of 6, of which two and two share one of 2 key heads. Key heads permute,
# and the two queries of each do, in an order of their own. RoPE turns width i and i + 3 by an angle
# that depends on i, so that neither the 3 pairs nor the two of a pair may be reordered; but
# a pair may be multiplied: one number for each key head and pair, inverse in both of its queries.
# Values: 6 widths of each key head permute and have any multiplier, the same for both queries.
# The hidden 36 have one order, and multipliers of their linear half. The RMSNorms: two a layer, and
# the last one, for the head is not tied. Words: 41 at the embedding, and 41 at the head.
THEORY["llama"] = Theory(
    {24: 1, 2: 2, (2, 2): 2, (6, 2): 2, 36: 2},
    positive={(): 1},
    nonzero={(24,): 5, (2, 3): 2, (2, 6): 2, (36,): 2},
    fixed={41: 2},
)


@pytest.fixture(scope="module", params=THEORY)
def case(request):
    module, inputs = ZOO[request.param].make()
    return trace(module, inputs), THEORY[request.param]


def test_every_axis_that_permutes_is_found(case):
    graph, theory = case
    found = Counter()
    for axis in graph.every_axis:
        within = [graph.axis[name].size for name in axis.within]
        found[(axis.size, *within) if within else axis.size] += axis.permutes
    assert +found == Counter(theory.axes)


def test_every_multiplier_is_found(case):
    graph, theory = case
    assert not [scale for scale in graph.every_scale if not scale.rescales]
    for flips, expected in ((False, theory.positive), (True, theory.nonzero)):
        sizes = [
            tuple(sorted(graph.axis[name].size for name in scale.axes))
            for scale in graph.every_scale
            if scale.flips == flips
        ]
        assert Counter(sizes) == Counter(expected)


def test_nothing_else_is_fixed(case):
    graph, theory = case
    fixed = Counter(
        group.size
        for group in graph.groups
        if group.name != CONSTANT and not group.symmetry.permutes and group.symmetry.scalar_free
    )
    assert fixed == Counter(theory.fixed)


def test_heads_are_named_on_the_layers_that_they_are_of():
    """Which neurons share an order, by name, for the attention of the first layer of Llama."""
    module, inputs = ZOO["llama"].make()
    graph = trace(module, inputs)
    block = {block.parameter.removeprefix("model.model."): block for block in graph.blocks}
    attention = "layers.0.self_attn"
    query, key, value = (
        graph.group[block[f"{attention}.{kind}_proj.weight"].target] for kind in "qkv"
    )
    merged = graph.group[block[f"{attention}.o_proj.weight"].source]
    heads, queries, pair = query.axes
    assert key.axes == (heads, pair)
    assert value.axes[0] == heads
    assert merged.axes == (heads, queries, value.axes[1])
    assert not graph.axis[pair].permutes
    assert dict(query.scales) == {name: -power for name, power in key.scales}
    assert merged.scales == value.scales
    stream = graph.group[block["embed_tokens.weight"].target]
    for writer in (f"{attention}.o_proj.weight", "layers.1.mlp.down_proj.weight"):
        assert block[writer].target == stream.name
    assert graph.group[block["model.lm_head.weight"].source].axes == stream.axes
