"""Random elements of a graph's symmetry group, and their action on parameters and gradients."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from scalegmn_opt.graph import WeightBlock, WeightGraph, pack, unpack


@dataclass(frozen=True)
class Transform:
    """One group element: for each neuron group an order (nodes,) and multipliers ``q`` (nodes,).

    ``W'_l = P_l Q_l W_l Q_{l-1}^{-1} P_{l-1}^{-1}`` (Kalogeropoulos et al. 2024, eq. 3), for
    activations with ``σ(q z) = q σ(z)``.
    """

    graph: WeightGraph
    orders: dict[str, Tensor]
    scales: dict[str, Tensor]

    def apply(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``g·θ``: parameters (*shape) or stacked parameters (batch, *shape), transformed."""
        return self._act(params, power=1)

    def apply_to_gradients(self, grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``g·∇L``: gradients and momenta, which scale inversely; shapes as in ``apply``."""
        return self._act(grads, power=-1)

    def apply_to_nodes(self, group: str, x: Tensor, *, power: int = 1) -> Tensor:
        """Node features (batch, nodes, channels) with multiplier ``q ** power``."""
        scale = self.scales[group].to(x) ** power
        return (x * scale[:, None])[:, self.orders[group].to(x.device)]

    def _act(self, values: Mapping[str, Tensor], *, power: int) -> dict[str, Tensor]:
        shapes = {block.parameter: block.parameter_shape for block in self.graph.blocks}
        if all(tuple(value.shape) == shapes.get(name) for name, value in values.items()):
            stacked = {name: value.unsqueeze(0) for name, value in values.items()}
            return {name: v.squeeze(0) for name, v in self._act(stacked, power=power).items()}
        edges = pack(self.graph, values)
        acted = {
            block.parameter: self.act_on_edges(block, edges[block.parameter], power=power)
            for block in self.graph.blocks
        }
        return unpack(self.graph, acted)

    def act_on_edges(self, block: WeightBlock, edges: Tensor, *, power: int = 1) -> Tensor:
        """Edges (..., out, in, kernel) with multiplier ``(q_out / q_in) ** power``."""
        q_out, q_in = (self.scales[end].to(edges) ** power for end in (block.target, block.source))
        scaled = edges * (q_out[:, None, None] / q_in[:, None])
        rows, columns = (self.orders[e].to(edges.device) for e in (block.target, block.source))
        return scaled.index_select(-3, rows).index_select(-2, columns)


def random_transform(
    graph: WeightGraph, generator: torch.Generator, *, spread: float = 1.0
) -> Transform:
    """A random element of the symmetry group of ``graph``; ``log |q|`` has deviation ``spread``."""
    pairs = {
        group.name: group.symmetry.random_element(group.size, generator=generator, spread=spread)
        for group in graph.groups
    }
    orders, scales = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
    return Transform(graph, orders, scales)


@dataclass(frozen=True)
class Verification:
    """Largest relative change of a module's outputs under random group elements.

    True if each claimed symmetry leaves the function as it is.
    """

    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the change is within the tolerance."""
        return self.error <= self.tolerance

    def __bool__(self) -> bool:
        return self.ok


def verify(
    module: nn.Module,
    graph: WeightGraph,
    example_inputs: Sequence[Any],
    *,
    trials: int = 3,
    tolerance: float = 1e-8,
) -> Verification:
    """Check in float64 that random elements of ``graph``'s group leave ``module``'s function alone.

    The module is copied, not changed, and evaluated in eval mode (dropout is random).

    Raises:
        ValueError: if ``graph`` is not the graph of ``module``'s parameters.
    """
    module = copy.deepcopy(module).double().eval()
    inputs = tree_map(_to_double, tuple(example_inputs))
    params = {name: p.detach()[None] for name, p in module.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        expected = _outputs(module(*inputs))
        errors = []
        for _ in range(trials):
            acted = random_transform(graph, generator, spread=0.5).apply(params)
            state = {name: value[0] for name, value in acted.items()}
            found = _outputs(torch.func.functional_call(module, state, inputs))
            errors += [_relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    return Verification(max(errors, default=0.0), tolerance)


def _to_double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _outputs(tree: Any) -> list[Tensor]:
    leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point()]


def _relative_error(found: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp_min(1e-300)
    return float((found - expected).abs().max() / scale)
