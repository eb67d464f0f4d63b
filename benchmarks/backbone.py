"""Cost of a training step of ScaleGMN on 64 networks 2-32-32-1: CPU seconds and peak memory.

Each width runs in a process of its own, so that its peak memory is its own.
"""

import multiprocessing
from typing import Any

import torch
from measure import cpu_seconds, median, peak_bytes, report

from scalegmn_opt import DeltaHead, ScaleGMN, WeightFeatures
from scalegmn_opt.inr import SirenSpec, initial_parameters, siren_graph

NETWORKS, LAYERS, REPEATS = 64, 4, 5


def measure(width: int) -> dict[str, Any]:
    """One row: a model with ``width`` node channels and half as many edge channels, at most 32."""
    torch.set_num_threads(1)
    spec, edge_channels = SirenSpec(), min(width // 2, 32)
    graph = siren_graph(spec)
    params = initial_parameters(spec, NETWORKS, torch.Generator().manual_seed(0))
    model = ScaleGMN(node_channels=width, edge_channels=edge_channels, num_layers=LAYERS)
    head = DeltaHead(edge_channels, outputs=8)
    baseline = peak_bytes()

    def step() -> None:
        deltas = head(model(WeightFeatures.from_parameters(graph, params)))
        sum(delta.square().sum() for delta in deltas.values()).backward()

    seconds = cpu_seconds(step, repeats=REPEATS)
    return {
        "node channels": width,
        "edge channels": edge_channels,
        "layers": LAYERS,
        "parameters": sum(p.numel() for p in model.parameters()),
        "CPU s per step (median)": median(seconds),
        "CPU s per step (min)": min(seconds),
        "extra peak MB": (peak_bytes() - baseline) / 1e6,
        "MB per network": (peak_bytes() - baseline) / 1e6 / NETWORKS,
    }


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    rows = []
    for width in (32, 128):
        with context.Pool(1) as pool:
            rows.append(pool.apply(measure, (width,)))
    report("backbone", rows)
