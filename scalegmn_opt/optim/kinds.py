"""What an update rule knows of a block of weights, whatever its numbers are."""

from functools import lru_cache
from math import log

from scalegmn_opt.graph import Role, WeightGraph
from scalegmn_opt.optim.whitening import is_whitened, rank

_RANK = 64.0  # smaller side of a matrix at which its step is what the schedule says
PLAIN_LAYERS = 3.0  # and the number of matrices of its network
_FEWEST_LAYERS, _MOST_LAYERS = 2, 60  # no network counts as one of fewer, or of more
_PERIODIC = frozenset({"sine", "cos"})


@lru_cache(maxsize=256)
def layers_of(graph: WeightGraph) -> int:
    """The number of matrices of a network, within limits."""
    return min(max(_FEWEST_LAYERS, sum(map(is_whitened, graph.blocks))), _MOST_LAYERS)


@lru_cache(maxsize=256)
def kinds_of(graph: WeightGraph) -> dict[str, tuple[float, ...]]:
    """What is known of each block: features that its log step is linear in.

    log (n / 64) of a matrix; a vector, which has 0 there; of the last layer; of the first one; of
    neurons with a periodic activation, to which an aligned step of 1 is a radian; and
    log (layers / 3), where layers are matrices, of all of the network.
    """
    layers = layers_of(graph)
    left = {block.source for block in graph.blocks}
    found = {}
    for block in graph.blocks:
        target, matrix = graph.group[block.target], is_whitened(block)
        found[block.name] = (
            log(rank(block) / _RANK) if matrix else 0.0,
            float(not matrix),
            float(target.name not in left),
            float(graph.group[block.source].role is Role.INPUT),
            float(target.activation is not None and target.activation.name in _PERIODIC),
            log(layers / PLAIN_LAYERS),
        )
    return found
