"""Whether rules train networks of few neurons: many starts of each, and how many stay at chance.

`python benchmarks/small_networks.py [--weights NAME_OR_FILE ...]`: perceptrons of one hidden layer
and a CNN, with ReLU, on pictures of ten random signs, 300 steps with batches of 32. A start counts
as at chance if its loss, averaged over the last 50 steps, is above 0.9 times that of equal
probabilities. "initial" are the numbers that a new rule has, Adam is at the best of four learning
rates. Files named `no-graph` run without a graph.
"""

import argparse
from math import log
from pathlib import Path
from typing import Any

import torch
from measure import report
from rule_settings import RATES, family
from torch import Tensor
from tqdm import tqdm

from scalegmn_opt import UpdateRule
from scalegmn_opt.meta.scores import trailing_mean
from scalegmn_opt.meta.task import draw_batches, stacked_losses
from scalegmn_opt.meta.unroll import InnerRun, RunOptions, unroll
from scalegmn_opt.tasks import FamilySuite

STEPS, CHANCE = 300, 0.9 * log(10)
NETWORKS = {
    **{
        f"perceptron, {width} hidden": (
            family("glyphs", "mlp", width, 1, inputs=64, batch_size=32),
            20,
        )
        for width in (4, 6, 8, 16, 32)
    },
    "CNN, 8 channels": (family("glyphs", "cnn", 8, 2, inputs=144, batch_size=32), 40),
}


def new_run(name: str, rule: UpdateRule, *, graph: bool) -> InnerRun:
    """The same starts and batches for all rules."""
    own, starts = NETWORKS[name]
    options = RunOptions(starts, (STEPS, STEPS), graph=graph)
    return InnerRun(rule, FamilySuite([own]), options=options, seed=3)


def losses_of(name: str, label: str, rule: UpdateRule) -> Tensor:
    """Losses (steps, starts) with a rule."""
    run = new_run(name, rule, graph=not label.startswith("no-graph"))
    return unroll(rule, run, run.params, run.state, steps=STEPS, differentiable=False)[2]


def losses_of_adam(name: str, rule: UpdateRule, *, lr: float) -> Tensor:
    """As :func:`losses_of`, with Adam."""
    run = new_run(name, rule, graph=True)
    params = {n: p.detach().clone().requires_grad_() for n, p in run.params.items()}
    optimizer, losses = torch.optim.Adam(params.values(), lr=lr), []
    generator = torch.Generator().manual_seed(7)
    for _ in range(STEPS):
        optimizer.zero_grad()
        each = stacked_losses(run.tasks, params, draw_batches(run.tasks, generator))
        each.sum().backward()
        optimizer.step()
        losses.append(each.detach())
    return torch.stack(losses)


def row(name: str, label: str, losses: Tensor) -> dict[str, Any]:
    """Starts at chance, and quartiles of final losses."""
    last = [trailing_mean(own.tolist())[-1] for own in losses.T.nan_to_num(nan=torch.inf)]
    low, middle, high = torch.tensor(last).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    dead = sum(not loss < CHANCE for loss in last)
    return {
        "network": name,
        "optimizer": label,
        "starts": len(last),
        "at chance": dead,
        "median loss": middle,
        "from": low,
        "to": high,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", nargs="*", default=["general", "permutation", "no-graph"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rules = {"initial": UpdateRule(channels=0).requires_grad_(False)}
    for weights in arguments.weights:
        rules[Path(weights).stem] = UpdateRule.from_pretrained(weights).requires_grad_(False)
    rows = []
    for name in tqdm(NETWORKS):
        every = [row(name, label, losses_of(name, label, rule)) for label, rule in rules.items()]
        adam = [
            row(name, f"Adam, {lr:g}", losses_of_adam(name, rules["initial"], lr=lr))
            for lr in RATES
        ]
        rows += [*every, min(adam, key=lambda own: own["median loss"])]
    report("small_networks", rows)
