"""Cost of the message-passing model beside the dense one, and of one batch of three architectures.

Each case runs in a process of its own, so that its peak memory is its own.
"""

import multiprocessing
from functools import partial
from typing import Any

import torch
from measure import cpu_seconds, median, peak_bytes, report
from torch import Tensor
from torch_geometric.data import Batch, Data

from scalegmn_opt import ScaleGMN, WeightFeatures
from scalegmn_opt.graph.pyg import features_to_pyg
from scalegmn_opt.inr import SirenSpec, initial_parameters, siren_graph
from scalegmn_opt.sparse import SparseScaleGMN

REPEATS = 5
ONE = {(32, 32): 64}  # hidden widths and the number of such networks
MIXED = {(32, 32): 16, (48,): 16, (16, 16, 16): 16}


def networks(hidden: tuple[int, ...], count: int) -> WeightFeatures:
    """SIRENs of one architecture."""
    spec = SirenSpec(hidden=hidden)
    params = initial_parameters(spec, count, torch.Generator().manual_seed(0))
    return WeightFeatures.from_parameters(siren_graph(spec), params)


def dense_outputs(model: ScaleGMN, features: list[WeightFeatures]) -> list[Tensor]:
    """One pass for each architecture."""
    return [edges for part in features for pair in model(part).edges.values() for edges in pair]


def sparse_outputs(model: SparseScaleGMN, batch: Data) -> list[Tensor]:
    """One pass."""
    return [model(batch).edge_attr]


def measure(name: str, counts: dict[tuple[int, ...], int], sparse: bool) -> dict[str, Any]:
    """One row: a forward pass, and one with derivatives, of a model with default widths."""
    torch.set_num_threads(1)
    features = [networks(hidden, count) for hidden, count in counts.items()]
    batch = Batch.from_data_list([data for part in features for data in features_to_pyg(part)])
    model = ScaleGMN()
    if sparse:
        function = partial(sparse_outputs, SparseScaleGMN(model), batch)
    else:
        function = partial(dense_outputs, model, features)
    baseline = peak_bytes()
    with torch.no_grad():
        forward = cpu_seconds(function, repeats=REPEATS)
    forward_peak = peak_bytes() - baseline
    both = cpu_seconds(
        lambda: sum(edges.square().sum() for edges in function()).backward(), repeats=REPEATS
    )
    return {
        "networks": name,
        "model": "sparse" if sparse else "dense",
        "edges": batch.num_edges,
        "forward CPU s (median)": median(forward),
        "forward MB": forward_peak / 1e6,
        "forward and backward CPU s": median(both),
        "forward and backward MB": (peak_bytes() - baseline) / 1e6,
    }


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    rows = []
    for name, counts in (("64 of one architecture", ONE), ("16 of each of three", MIXED)):
        for sparse in (False, True):
            with context.Pool(1) as pool:
                rows.append(pool.apply(measure, (name, counts, sparse)))
    report("pyg", rows)
