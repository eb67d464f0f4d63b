"""The weight graph of a network: which neurons there are, and what may be done to them."""

from scalegmn_opt.graph.blocks import CONSTANT, WeightBlock, Window
from scalegmn_opt.graph.features import (
    Pair,
    WeightFeatures,
    check_parameters,
    pack,
    stack_parameters,
    unpack,
    unpack_blocks,
    unpack_parameter,
)
from scalegmn_opt.graph.groups import (
    ACTIVATIONS,
    FIXED,
    NONZERO_SCALE,
    PERMUTATION,
    POSITIVE_SCALE,
    SIGN,
    Activation,
    Symmetry,
)
from scalegmn_opt.graph.pyg import from_pyg, to_pyg
from scalegmn_opt.graph.trace import TraceWarning, trace
from scalegmn_opt.graph.weight_graph import Axis, NeuronGroup, Role, Scale, WeightGraph

__all__ = [
    "ACTIVATIONS",
    "CONSTANT",
    "FIXED",
    "NONZERO_SCALE",
    "PERMUTATION",
    "POSITIVE_SCALE",
    "SIGN",
    "Activation",
    "Axis",
    "NeuronGroup",
    "Pair",
    "Role",
    "Scale",
    "Symmetry",
    "TraceWarning",
    "WeightBlock",
    "WeightFeatures",
    "WeightGraph",
    "Window",
    "check_parameters",
    "from_pyg",
    "pack",
    "stack_parameters",
    "to_pyg",
    "trace",
    "unpack",
    "unpack_blocks",
    "unpack_parameter",
]
