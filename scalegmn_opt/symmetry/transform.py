"""Random elements of a graph's symmetry group, and their action on parameters and gradients."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from scalegmn_opt.graph import Axis, NeuronGroup, Scale, WeightBlock, WeightGraph, pack, unpack

_BATCH_NORM = inspect.signature(F.batch_norm)
_INSTANCE_NORM = inspect.signature(F.instance_norm)
_ERASED = 1e8  # makes an epsilon of 1e-5 a part in 1e21 of a variance of 1


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
        parameters = self.graph.parameters.items()
        shapes = {name: blocks[0].parameter_shape for name, blocks in parameters}
        if all(tuple(value.shape) == shapes.get(name) for name, value in values.items()):
            stacked = {name: value.unsqueeze(0) for name, value in values.items()}
            return {name: v.squeeze(0) for name, v in self._act(stacked, power=power).items()}
        edges = pack(self.graph, values)
        acted = {
            block.name: self.act_on_edges(block, edges[block.name], power=power)
            for block in self.graph.blocks
        }
        return unpack(self.graph, acted)

    def act_on_edges(self, block: WeightBlock, edges: Tensor, *, power: int = 1) -> Tensor:
        """Edges (batch · folds, ..., out, in, kernel), times ``(q_out / q_in) ** power``."""
        ends = (block.target, block.source)
        q_out, q_in = (
            block.fold((self.scales[name].to(edges) ** power)[None], end)
            for end, name in enumerate(ends)
        )
        channels = prod(edges.shape[1:-3])
        x = edges.reshape(len(edges) // block.folds, block.folds, channels, *edges.shape[-3:])
        x = x * (q_out[:, :, None, None] / q_in[:, None, :, None])[:, None]
        rows, columns = (
            _folded_order(block, self.orders[name], end).to(edges.device)
            for end, name in enumerate(ends)
        )
        own_out, own_in, _ = block.shape
        folds = (rows[:, :1] // own_out)[..., None]
        moved = x[:, folds, :, (rows % own_out)[:, :, None], (columns % own_in)[:, None]]
        return moved.permute(3, 0, 4, 1, 2, 5).reshape(edges.shape)


def _folded_order(block: WeightBlock, order: Tensor, end: int) -> Tensor:
    """For each fold and own neuron, (folds, own), the place it comes from in the folded order."""
    places = block.fold(torch.arange(len(order))[None], end).flatten()
    return torch.argsort(places)[block.fold(order[None], end)]


def random_transform(
    graph: WeightGraph, generator: torch.Generator, *, spread: float = 1.0, erased: float = 1.0
) -> Transform:
    """A random element of the symmetry group of ``graph``; ``log |q|`` has deviation ``spread``.

    Args:
        erased: factor of the multipliers that a normalisation divides out. As it grows, the
            normalisation's epsilon, which is no part of the symmetry, becomes negligible.
    """
    orders = {axis.name: _random_order(graph, axis, generator) for axis in graph.every_axis}
    scales = {
        scale.name: _random_scale(graph, scale, generator, spread, erased)
        for scale in graph.every_scale
    }
    return Transform(
        graph,
        {group.name: _group_order(graph, group, orders) for group in graph.groups},
        {group.name: _group_scale(graph, group, scales) for group in graph.groups},
    )


def _random_order(graph: WeightGraph, axis: Axis, generator: torch.Generator) -> Tensor:
    """Old indices (*sizes of ``axis.within``, size): an order for each index of the other axes."""
    shape = (*(graph.axis[name].size for name in axis.within), axis.size)
    if not axis.permutes:
        return torch.arange(axis.size).expand(shape)
    return torch.rand(shape, generator=generator).argsort(-1)


def _random_scale(
    graph: WeightGraph, scale: Scale, generator: torch.Generator, spread: float, erased: float
) -> Tensor:
    """Multipliers (*sizes of ``scale.axes``) of the neurons in their old order."""
    shape = [graph.axis[name].size for name in scale.axes]
    q = torch.ones(shape, dtype=torch.float64)
    if scale.rescales:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        q = torch.exp(spread * noise) * (erased if scale.erased else 1.0)
    if scale.flips:
        q = q * (2 * torch.randint(2, shape, generator=generator) - 1)
    return q


def _group_order(graph: WeightGraph, group: NeuronGroup, orders: dict[str, Tensor]) -> Tensor:
    """The old place (nodes,) of each neuron of a group, by the orders of its axes."""
    names = graph.group_axes(group)
    places = torch.zeros(1, dtype=torch.long)
    new = dict(zip(names, _indices(graph, names), strict=True))
    for name in names:
        axis = graph.axis[name]
        old = orders[name][(*(new[other] for other in axis.within), new[name])]
        places = places * axis.size + old
    return places


def _group_scale(graph: WeightGraph, group: NeuronGroup, scales: dict[str, Tensor]) -> Tensor:
    """The multiplier (nodes,) of each neuron of a group, in the old order."""
    names = graph.group_axes(group)
    index = dict(zip(names, _indices(graph, names), strict=True))
    q = torch.ones(group.size, dtype=torch.float64)
    for name, power in graph.group_scales(group):
        q = q * scales[name][tuple(index[axis] for axis in graph.scale[name].axes)] ** power
    return q


def _indices(graph: WeightGraph, names: Sequence[str]) -> list[Tensor]:
    """The index (nodes,) along each axis of the neurons of a product of axes, major first."""
    ranges = [torch.arange(graph.axis[name].size) for name in names]
    return [grid.flatten() for grid in torch.meshgrid(*ranges, indexing="ij")]


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

    The module is copied, not changed, and evaluated in eval mode (dropout is random), but with
    batch normalisation by the batch's own statistics, as in training: running averages are no
    parameters, they would have to move along. The epsilon of a normalisation is no part of a claim:
    what a normalisation divides out is multiplied by ``1e8`` before outputs are compared.

    Raises:
        ValueError: if ``graph`` is not the graph of ``module``'s parameters, or if these have no
            data (meta device).
    """
    for name, p in module.named_parameters():
        if p.is_meta:
            raise ValueError(f"module: expected parameters with data, got {name!r} on meta")
    module = copy.deepcopy(module).double().eval()
    inputs = tree_map(_to_double, tuple(example_inputs))
    params = {name: _to_double(p.detach())[None] for name, p in module.named_parameters()}
    generator = torch.Generator().manual_seed(0)

    def outputs(spread: float) -> list[Tensor]:
        return evaluate(
            random_transform(graph, generator, spread=spread, erased=_ERASED).apply(params)
        )

    def evaluate(stacked: Mapping[str, Tensor]) -> list[Tensor]:
        state = {name: value[0] for name, value in stacked.items()}
        fresh = copy.deepcopy(module)  # some modules keep what they have computed once
        with torch.no_grad(), _Exact():
            return _outputs(torch.func.functional_call(fresh, state, inputs))

    expected = evaluate(params)
    if any(scale.erased for scale in graph.scales):
        expected = outputs(spread=0.0)
    errors = []
    for _ in range(trials):
        pairs = zip(outputs(spread=0.5), expected, strict=True)
        errors += [_relative_error(a, b) for a, b in pairs]
    return Verification(max(errors, default=0.0), tolerance)


class _Exact(TorchFunctionMode):
    """All in float64, and normalisation by statistics of what is there, as in training."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args = tuple(map(_not_lower, args))
        kwargs = {name: _not_lower(value) for name, value in (kwargs or {}).items()}
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        if func is F.batch_norm:
            given = _BATCH_NORM.bind(*args, **kwargs).arguments
            given |= {"running_mean": None, "running_var": None, "training": True}
            return func(**given)
        if func is F.instance_norm:
            given = _INSTANCE_NORM.bind(*args, **kwargs).arguments
            given |= {"running_mean": None, "running_var": None, "use_input_stats": True}
            return func(**given)
        if func is torch.batch_norm:  # input, weight, bias, mean, variance, training, ...
            args = (*args[:3], None, None, True, *args[6:])
        return func(*args, **kwargs)


def _not_lower(x: Any) -> Any:
    """A dtype that would round to less than float64, as some normalisations ask for, is float64."""
    is_lower = isinstance(x, torch.dtype) and x.is_floating_point
    return torch.float64 if is_lower else x


def _to_double(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    wider = {True: torch.complex128, False: torch.float64}[x.is_complex()]
    return x.to(wider) if x.is_floating_point() or x.is_complex() else x


def _outputs(tree: Any) -> list[Tensor]:
    leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point() or leaf.is_complex()]


def _relative_error(found: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp_min(1e-300)
    return float((found - expected).abs().max() / scale)
