"""The backbone on torch_geometric graphs: networks of different architectures in one pass.

Importing this module loads torch_geometric; nothing else in the package imports it. The functions
are the layers of :mod:`scalegmn_opt.nn`, whose parameters they read, on rows of nodes and edges.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter

from scalegmn_opt.backbone import Layer, ScaleGMN
from scalegmn_opt.graph import WeightFeatures
from scalegmn_opt.graph.pyg import features_from_pyg
from scalegmn_opt.heads import DeltaHead
from scalegmn_opt.nn import EdgeUpdate, StreamLinear, group_encodings, kernel_positions
from scalegmn_opt.nn.scale import ScaleEq, ScaleInv, StreamNorm, exchange


class SparseScaleGMN(nn.Module):
    """A :class:`ScaleGMN`, with its own parameters, on one ``Data`` or on a ``Batch``.

    Nodes and edges are rows, whatever network and group they belong to, and a symmetry is a mask
    of rows: no loop over networks, groups or blocks. Networks of one architecture are cheaper in
    the dense model, which keeps nothing per edge that it can broadcast.

    Shapes:
        ``Data`` of :func:`scalegmn_opt.graph.to_pyg` -> the same with ``x`` (nodes, 2
        node_channels), ``edge_attr`` (edges, 2 edge_channels) and ``invariants`` (nodes,
        extra_channels), covariant channels first

    Raises:
        ValueError: if ``data`` has other channels than the model was built for.
    """

    def __init__(self, dense: ScaleGMN) -> None:
        super().__init__()
        self.dense = dense
        self.sums = nn.ModuleList(map(EdgeSum, ("source_to_target", "target_to_source")))

    def forward(self, data: Data) -> Data:
        self._check(data)
        place, extra = Place.of(data), self._extra(data)
        nodes = self._embed_nodes(data, place, extra)
        edges = _linear(self.dense.embed_edges, data.edge_attr, place.edge_mixes)
        for layer in self.dense.layers:
            nodes, edges = self._layer(layer, place, nodes, edges, extra)
        out = copy.copy(data)
        out.x, out.edge_attr, out.invariants = nodes, edges, extra
        return out

    def features(self, data: Data) -> list[WeightFeatures]:
        """What the dense model makes of each network alone, for any head."""
        out = self(data)
        networks = out.to_data_list() if isinstance(out, Batch) else [out]
        nodes, edges = ((rows.shape[1] // 2,) * 2 for rows in (out.x, out.edge_attr))
        return [features_from_pyg(n, node_features=nodes, edge_features=edges) for n in networks]

    def _extra(self, data: Data) -> Tensor:
        """Encodings and invariant inputs (nodes, channels)."""
        rows = []
        for graph in data.graph if isinstance(data.graph, list) else [data.graph]:
            encodings = group_encodings(graph, self.dense.neuron_encoding)
            rows += [encodings[group.name].expand(group.size, -1) for group in graph.groups]
        return torch.cat([torch.cat(rows).to(data.invariants), data.invariants], 1)

    def _embed_nodes(self, data: Data, place: "Place", extra: Tensor) -> Tensor:
        dense = self.dense
        biases = torch.where(data.bias[:, None], data.edge_attr, 0.0)
        x = _linear(dense.embed_biases, place.sum_in(biases), place.mixes)
        if dense.embed_nodes is not None:
            x = x + _linear(dense.embed_nodes, data.x, place.mixes)
        return _norm(dense.norm, torch.where(place.free, x + dense.embed_extra(extra), x), place)

    def _layer(
        self, layer: Layer, place: "Place", nodes: Tensor, edges: Tensor, extra: Tensor
    ) -> tuple[Tensor, Tensor]:
        products = _product(_linear(layer.products.linear, edges, place.edge_mixes)).tanh()
        received = self._receive(layer, place, nodes, edges)
        known = torch.cat([extra, *place.means(products)], 1)
        halves = zip(*(part.chunk(2, 1) for part in (nodes, *received)), strict=True)
        joined = torch.cat([part for half in halves for part in half], 1)
        updated = _equivariant(layer.nodes.update, joined, known, place)
        nodes = _norm(layer.nodes.norm, updated, place)
        return nodes, _edge_update(layer.edges, place, nodes, edges, products, extra)

    def _receive(self, layer: Layer, place: "Place", nodes: Tensor, edges: Tensor) -> list[Tensor]:
        """Normalised sums of the messages along the edges and, if any, against them."""
        received = []
        for reverse, message in enumerate(layer.messages):
            values = _linear(message.value, nodes, place.mixes)
            streams = exchange(edges, 1) if reverse else edges
            total = self.sums[reverse](place.edge_index, streams, values)
            received.append(total * place.fans[reverse].to(total) ** -layer.fan_exponent)
        return received

    def _check(self, data: Data) -> None:
        for name, expected in (
            ("edge_attr", sum(self.dense.edge_features)),
            ("x", sum(self.dense.node_features)),
            ("invariants", self.dense.invariant_features),
        ):
            found = data[name].shape[1]
            if found != expected:
                raise ValueError(f"data.{name}: expected {expected} channels, got {found}")


def deltas(model: SparseScaleGMN, head: DeltaHead, data: Data) -> list[dict[str, Tensor]]:
    """The changes (outputs, *shape) of all parameters, by name, of each network of a ``Batch``."""
    found = (head(features) for features in model.features(data))
    return [{name: delta[0] for name, delta in network.items()} for network in found]


class EdgeSum(MessagePassing):
    """``Σ e_ij ⊙ v_j`` over the edges of each node, from its neighbours at their other end.

    Shapes:
        edge_index (2, edges), edges (edges, channels), values (nodes, channels) -> as values
    """

    def __init__(self, flow: str) -> None:
        super().__init__(aggr="add", flow=flow)

    def forward(self, edge_index: Tensor, edges: Tensor, values: Tensor) -> Tensor:
        return self.propagate(edge_index, edges=edges, values=values)

    def message(self, edges: Tensor, values_j: Tensor) -> Tensor:
        return edges * values_j


@dataclass(frozen=True)
class Place:
    """What layers ask about each node and edge; masks are columns, for all channels of a row."""

    edge_index: Tensor
    flips: Tensor
    rescales: Tensor
    common: Tensor  # one positive scale for all nodes of the group
    leader: Tensor  # the first node of a node's group
    fans: tuple[Tensor, Tensor]  # numbers of incoming and of outgoing weights
    block_fans: tuple[Tensor, Tensor]  # edges of the same block at the target and at the source
    kernels: Tensor  # encodings of all elements of kernels of all sizes
    kernel: Tensor  # an edge's row there

    @classmethod
    def of(cls, data: Data) -> "Place":
        """The place of all rows of a ``Data`` or ``Batch``."""
        sizes, which = data.kernel_size.unique(return_inverse=True)
        return cls(
            data.edge_index,
            *(data[name][:, None] for name in ("flips", "rescales", "common")),
            leader=torch.arange(len(data.neuron), device=data.neuron.device) - data.neuron,
            fans=(data.fan_in[:, None], data.fan_out[:, None]),
            block_fans=(data.block_fan_in[:, None], data.block_fan_out[:, None]),
            kernels=torch.cat([kernel_positions(n) for n in sizes.tolist()]).to(data.edge_attr),
            kernel=(sizes.cumsum(0) - sizes)[which] + data.kernel,
        )

    @property
    def mixes(self) -> Tensor:
        """Nodes whose two streams may mix."""
        return ~self.rescales

    @property
    def edge_mixes(self) -> Tensor:
        """Edges whose two streams may mix: those between two such nodes."""
        return self.mixes[self.edge_index].all(0)

    @property
    def free(self) -> Tensor:
        """Nodes to whose features a constant may be added."""
        return ~(self.flips | self.rescales)

    def sum_in(self, edges: Tensor) -> Tensor:
        """Sums (nodes, channels) over incoming edges (edges, channels)."""
        return scatter(edges, self.edge_index[1], dim_size=len(self.leader))

    def means(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Means over each block's incoming and over its outgoing edges, summed over blocks."""
        return tuple(
            scatter(edges / fans, self.edge_index[row], dim_size=len(self.leader))
            for fans, row in zip(self.block_fans, (1, 0), strict=True)
        )

    def canon(self, x: Tensor) -> Tensor:
        """``x`` without its positive scale, as in :meth:`Symmetry.canon`."""
        square = x.square().sum(1, keepdim=True)
        mean = scatter(square, self.leader, dim_size=len(x), reduce="mean")[self.leader]
        square = torch.where(self.common, mean, square)
        empty = square == 0
        scaled = torch.where(empty, 0.0, x * torch.where(empty, 1.0, square).rsqrt())
        return torch.where(self.rescales, scaled, x)


def _linear(module: StreamLinear, x: Tensor, mixes: Tensor) -> Tensor:
    together, apart = (F.linear(x, module.matrix(self_inverse=both)) for both in (True, False))
    return torch.where(mixes, together, apart)


def _product(x: Tensor) -> Tensor:
    plus, minus = x.chunk(2, 1)
    return plus * minus


def _norm(module: StreamNorm, x: Tensor, place: Place) -> Tensor:
    means = torch.stack([stream.square().mean(1, keepdim=True) for stream in x.chunk(2, 1)])
    empty = means == 0
    roots = torch.where(empty, 0.0, torch.where(empty, 1.0, means).sqrt())
    square = torch.where(place.rescales, roots.prod(0), means.mean(0))
    return x * (1 + module.strength.square() * square).rsqrt()


def _invariant(module: ScaleInv, x: Tensor, extra: Tensor, place: Place) -> Tensor:
    plus, minus = x.chunk(2, 1)
    canonical = torch.cat([place.canon(plus), place.canon(minus)], 1)
    odd = F.linear(canonical, module.canonical)
    products = F.linear(plus, module.product_plus) * F.linear(minus, module.product_minus)
    even = module.invariant(torch.cat([products.tanh(), extra], 1))
    hidden, mirrored = F.relu(even + odd), F.relu(even - odd)
    return module.out(torch.where(place.flips, (hidden + mirrored) / 2, hidden))


def _equivariant(module: ScaleEq, x: Tensor, extra: Tensor, place: Place) -> Tensor:
    gate, free = _invariant(module.gate, x, extra, place).chunk(2, 1)
    gated = _linear(module.linear, x, place.mixes) * gate
    return torch.where(place.free, gated + free, gated)


def _edge_update(
    module: EdgeUpdate, place: Place, nodes: Tensor, edges: Tensor, products: Tensor, extra: Tensor
) -> Tensor:
    source, target = place.edge_index
    as_target, as_source = _invariant(module.nodes, nodes, extra, place).chunk(2, 1)
    position = F.linear(place.kernels, module.position)[place.kernel]
    hidden = F.linear(products, module.products) + as_target[target] + as_source[source] + position
    gates = F.linear(hidden.relu(), module.gate, module.gate_bias)
    to_target = _linear(module.rank_one.target, nodes, place.mixes)
    to_source = exchange(_linear(module.rank_one.source, nodes, place.mixes), 1)
    gated = _linear(module.linear, edges, place.edge_mixes) * gates
    return gated + to_target[target] * to_source[source]
