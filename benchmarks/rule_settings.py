"""The numbers of the plain rule: a search over settings on families of the suite `mixed`.

`python benchmarks/rule_settings.py [--jobs 2]`: each setting trains two networks of each family for
300 steps, from the same starts on the same batches; what counts is the mean of log(loss + 0.02)
over steps and families, on training and validation batches in turns.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from math import log
from typing import Any

import torch
from measure import report

from scalegmn_opt import UpdateRule
from scalegmn_opt.meta.unroll import InnerRun, RunOptions, unroll
from scalegmn_opt.tasks import Family, FamilySuite

STEPS, NETWORKS, FLOOR = 300, 2, 0.02
FAMILIES = (
    Family(data="digits", model="mlp", width=(32, 96), inputs=(64, 784), depth=(1, 2)),
    Family(data="signals", model="mlp", depth=(2, 3)),
    Family(data="teacher", model="mlp", width=(8, 64)),
    Family(data="digits", model="residual-mlp", depth=(2, 2)),
    Family(data="signals", model="autoencoder", depth=(1, 2)),
    Family(data="digits", model="cnn", width=(8, 24), depth=(2, 2), batch_size=(32, 64)),
    Family(data="digits", model="cnn-batchnorm", width=(8, 24), depth=(2, 2), batch_size=(32, 64)),
    Family(data="digit-picture", model="siren", width=(24, 48), depth=(2, 2)),
    Family(data="text", model="transformer", width=(16, 32), depth=(1, 1), batch_size=(8, 8)),
)
Setting = tuple[float, float, float, float]  # first step, rank exponent, fast and slow momentum
SETTINGS: tuple[Setting, ...] = (
    (2.0, 0.5, 0.0, 0.0),
    (1.0, 0.25, 0.0, 0.0),
    (2.0, 0.5, -0.2, -0.2),
    (3.0, 0.5, -0.2, -0.2),
    (1.4, 0.5, -0.2, -0.2),
    (2.0, 0.25, -0.2, -0.2),
    (2.0, 0.5, -0.4, 0.0),
    (2.0, 0.5, -0.4, -0.2),
    (2.0, 0.5, 0.0, -0.4),
    (1.0, 0.0, -0.2, -0.2),
    (1.0, 0.5, 0.0, 0.0),
    (1.0, 0.5, -0.2, -0.2),
    (1.0, 0.25, -0.2, -0.2),
    (0.7, 0.25, 0.0, 0.0),
    (1.4, 0.5, 0.0, 0.0),
    (1.0, 0.75, -0.2, -0.2),
    (1.4, 0.75, -0.2, -0.2),
    (0.7, 0.25, -0.2, -0.2),
    (1.0, 0.75, 0.0, 0.0),
    (0.7, 0.5, 0.0, 0.0),
    (1.4, 1.0, 0.0, 0.0),
    (0.7, 0.75, -0.2, -0.2),
)


def rule_with(setting: Setting) -> UpdateRule:
    """The plain rule with other numbers than it starts with."""
    first, exponent, fast, slow = setting
    rule = UpdateRule(channels=0).requires_grad_(False)
    rule.schedule[0] = log(first / 2.0)
    rule.rank_exponent.fill_(exponent)
    rule.mixture.copy_(torch.tensor([fast, slow, 1.0]))
    return rule


def measure(setting: Setting) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(1)
    rule, found = rule_with(setting), {}
    for seed, family in enumerate(FAMILIES):
        options = RunOptions(NETWORKS, (STEPS, STEPS), batches="both")
        run = InnerRun(rule, FamilySuite([family]), options=options, seed=seed)
        losses = unroll(rule, run, run.params, run.state, steps=STEPS, differentiable=False)[2]
        found[f"{family.data} {family.model}"] = (losses + FLOOR).log().mean().item()
    names = ("first step", "rank exponent", "fast", "slow")
    mean = sum(found.values()) / len(found)
    return {**dict(zip(names, setting, strict=True)), "mean": mean, **found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    with ProcessPoolExecutor(parser.parse_args().jobs) as pool:
        report("rule_settings", list(pool.map(measure, SETTINGS)))
