"""What the guard costs: steps with it and without it in turns, networks of optimizer_step.py.

Steps of training, each after a forward and a backward pass, on one thread, after 2 of them. The
share is of the medians of 40 CPU times each, the median of three such rounds. Without the guard
nothing is masked, known or measured of sizes, or replaced. What `PathSGD` measures for its limit
counts as its own.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from measure import report
from optimizer_step import NETWORKS, OURS
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.optim import base, edges, rule

STEPS, ROUNDS = 40, 3
MEASURED = [name for name in OURS if "graph network" not in name and "compiled" not in name]


def _of_nothing(graph: WeightGraph, *_: Any) -> Tensor:
    return torch.zeros(1, len(graph.blocks))


UNGUARDED: dict[Any, dict[str, Callable[..., Any]]] = {
    base: {
        "finite": lambda grads, health: dict(grads),
        "relative_sizes": lambda names, *_: dict.fromkeys(names, 0.0),
        "guarded": lambda updates, sizes, *_, **__: (updates, sizes),
    },
    edges.Edges: {"_sizes": lambda *_: {}},
    rule: {"in_order": _of_nothing},
}


def step(model: nn.Module, inputs: Tensor, optimizer: Optimizer) -> float:
    """CPU seconds of one step after new gradients."""
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    began = time.process_time()
    optimizer.step()
    return time.process_time() - began


def share(model: nn.Module, inputs: Tensor, optimizer: Optimizer) -> tuple[float, float]:
    """The guard's share of a step, and a step's seconds."""
    guarded, bare = [], []
    for _ in range(STEPS):
        guarded.append(step(model, inputs, optimizer))
        with ExitStack() as patches:
            for place, parts in UNGUARDED.items():
                patches.enter_context(patch.multiple(place, **parts))
            bare.append(step(model, inputs, optimizer))
    return 1 - median(bare) / median(guarded), median(guarded)


def measure(network: str, name: str) -> dict[str, Any]:
    """One row."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[network]()
    optimizer = OURS[name](model, (inputs,))
    for _ in range(2):
        step(model, inputs, optimizer)
    shares, seconds = zip(*(share(model, inputs, optimizer) for _ in range(ROUNDS)), strict=True)
    return {
        "network": network,
        "optimizer": name,
        "guard, % of a step": 100 * median(shares),
        "from": 100 * min(shares),
        "to": 100 * max(shares),
        "ms per step": 1e3 * median(seconds),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    every = [(n, o) for n in NETWORKS if "10 M" not in n for o in MEASURED]
    report("guard", [measure(*which) for which in tqdm(every)])
