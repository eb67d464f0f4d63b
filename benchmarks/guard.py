"""What the guard costs: steps with it and without it in turns, networks of optimizer_step.py.

Medians of 20 CPU times each on one thread, after 2 steps; the share is the median of three such
rounds. Without it nothing is masked, known or measured of sizes, or replaced. What `PathSGD`
measures for its limit counts as its own.
"""

from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from measure import cpu_seconds, report
from optimizer_step import NETWORKS, OURS
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.optim import base, controls, edges, rule

STEPS, ROUNDS = 20, 3
MEASURED = [name for name in OURS if "graph network" not in name and "compiled" not in name]


def _of_nothing(graph: WeightGraph, *_: Any) -> Tensor:
    return torch.zeros(1, len(graph.blocks))


UNGUARDED: dict[Any, dict[str, Callable[..., Any]]] = {
    base: {
        "finite": lambda grads, health: dict(grads),
        "relative_sizes": lambda names, *_: dict.fromkeys(names, 0.0),
        "guarded": lambda updates, sizes, *_, **__: (updates, sizes),
    },
    controls._AdamRule: {
        "_measured": lambda *_: {},
        "_sizes": lambda self, graph, *_: _of_nothing(graph),
    },
    edges.Edges: {"_sizes": lambda *_: {}},
    rule: {"in_order": _of_nothing},
}


def share(optimizer: Optimizer) -> tuple[float, float]:
    """The guard's share of a step, and a step's seconds."""
    guarded, bare = [], []
    for _ in range(STEPS):
        guarded.extend(cpu_seconds(optimizer.step, repeats=1))
        with ExitStack() as patches:
            for place, parts in UNGUARDED.items():
                patches.enter_context(patch.multiple(place, **parts))
            bare.extend(cpu_seconds(optimizer.step, repeats=1))
    return 1 - median(bare) / median(guarded), median(guarded)


def measure(network: str, name: str) -> dict[str, Any]:
    """One row."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[network]()
    optimizer = OURS[name](model, (inputs,))
    model(inputs).square().mean().backward()
    for _ in range(2):
        optimizer.step()
    shares, seconds = zip(*(share(optimizer) for _ in range(ROUNDS)), strict=True)
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
