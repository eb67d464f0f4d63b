"""Settings of the plain rule against tuned Adam on families like those of the suite `plain`.

`python benchmarks/rule_settings.py [--families mlp-1 ...] [--weights NAME_OR_FILE ...]`: all
settings train the same networks, from the same starts on the same batches, side by side, for 500
steps. What counts is the steps until the training loss, averaged over 50 steps, is what Adam at the
best of four learning rates ends with. None of the held-out tasks is here. "initial" are the numbers
that a new rule has. Rows of weights that are not named stay as they are; with `--weights-only`
those of the settings do, too.
"""

import argparse
import json
from math import log
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, report
from torch import Tensor
from tqdm import tqdm

from scalegmn_opt import UpdateRule
from scalegmn_opt.meta.evolution import PopulationRun, population_step
from scalegmn_opt.meta.objectives import log_loss
from scalegmn_opt.meta.scores import steps_to, trailing_mean
from scalegmn_opt.meta.task import draw_batches, stacked_losses
from scalegmn_opt.meta.unroll import Params, RunOptions, unroll
from scalegmn_opt.tasks import Family, FamilySuite

STEPS, RATES = 500, (1e-3, 3e-3, 1e-2, 3e-2)


def family(data: str, model: str, width: int, depth: int, **more: Any) -> Family:
    """A family of one architecture."""
    sizes = {name: (n, n) for name, n in {"width": width, "depth": depth, **more}.items()}
    return Family(data=data, model=model, augment=False, activations=("relu",), **sizes)


FAMILIES = {
    "mlp-1": family("moved-digits", "mlp", 60, 1, inputs=576, batch_size=64),
    "mlp-3": family("moved-digits", "mlp", 100, 3, inputs=400, batch_size=64),
    "tanh-1": family("moved-digits", "mlp", 160, 1, inputs=400, batch_size=64).model_copy(
        update={"activations": ("tanh",)}
    ),
    "digits-3": family("digits", "mlp", 32, 3, batch_size=64),
    "autoencoder": family("moved-digits", "autoencoder", 64, 1, inputs=256, batch_size=64),
    "cnn": family("moved-digits", "cnn", 8, 2, inputs=144, batch_size=32),
    "siren": family("digit-picture", "siren", 32, 2, batch_size=128),
    "siren-leaves": family("leaves-picture", "siren", 32, 2, batch_size=256),
    "transformer": family("text", "transformer", 24, 1, batch_size=8),
}
# First step, exponents of rank and number of layers, log factor of periodic neurons, exponents of
# the coherence of a block's fast momentum (of its slow one: 0.2 where that is not 0) and of the
# decline of its gradients.
SETTINGS = [
    (3.0, 0.5, -1.2, -1.5, 0.45, 0.0),
    (2.0, 0.5, -1.2, -1.5, 0.45, 0.0),
    (4.5, 0.5, -1.2, -1.5, 0.45, 0.0),
    (3.0, 0.2, -1.2, -1.5, 0.45, 0.0),
    (3.0, 0.5, 0.0, -1.5, 0.45, 0.0),
    (3.0, 0.5, -1.2, 0.0, 0.45, 0.0),
    (3.0, 0.5, -1.2, -3.0, 0.45, 0.0),
    (3.0, 0.5, -1.2, -1.5, 0.0, 0.0),
    (3.0, 0.5, -1.2, -1.5, 0.7, 0.0),
    (3.0, 0.5, -1.2, -1.5, 0.45, 0.4),
    (6.0, 0.5, -1.2, -1.5, 0.45, 0.0),
    (6.0, 0.5, -1.2, -1.5, 0.45, 0.4),
]


def rule_with(
    first: float, rank: float, layers: float, periodic: float, coherent: float, declined: float
) -> UpdateRule:
    """A rule of few numbers: a first step that falls as 1 / t after a warm-up, and exponents."""
    numbers = {
        "schedule": [log(first / 3.0) - 2.8, 2.5, *[0.0] * 5],
        "kinds": [rank, 0.0, 0.0, 0.0, periodic, layers],
        "coherence": [coherent, 0.2 * (coherent > 0)],
        "shallow": [0.0, 0.0],
        "decline": declined,
    }
    rule = UpdateRule(channels=0).requires_grad_(False)
    for name, values in numbers.items():
        rule.get_parameter(name).copy_(torch.tensor(values))
    return rule


def adam_target(run: PopulationRun, params: Params) -> dict[str, float]:
    """Adam's final loss on the tasks of a run, at the best of its rates."""
    found = []
    for lr in RATES:
        generator = torch.Generator().manual_seed(7)
        own = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
        optimizer, losses = torch.optim.Adam(own.values(), lr=lr), []
        for _ in range(STEPS):
            optimizer.zero_grad()
            each = stacked_losses(run.tasks, own, draw_batches(run.tasks, generator))
            each.sum().backward()
            optimizer.step()
            losses.append(each.mean().item())
        found.append({"rate": lr, "target": trailing_mean(losses)[-1]})
    return min(found, key=lambda row: row["target"])


def measure(name: str, rules: dict[str, UpdateRule], networks: int) -> list[dict[str, Any]]:
    """A row for each rule."""
    any_rule, copies = next(iter(rules.values())), len(rules) + len(rules) % 2
    every = [*rules.values(), *[any_rule] * (copies - len(rules))]
    weights = {n: torch.stack([r.get_parameter(n) for r in every]) for n in any_rule.state_dict()}
    options = RunOptions(networks, (STEPS, STEPS))
    run = PopulationRun(
        any_rule, FamilySuite([FAMILIES[name]]), pairs=copies // 2, options=options, seed=3
    )
    adam = adam_target(run, {n: p[:networks] for n, p in run.params.items()})
    step = population_step(any_rule, weights)
    losses = unroll(step, run, run.params, run.state, steps=STEPS, differentiable=False)[2]
    own: list[Tensor] = list(losses.unflatten(1, (copies, networks)).unbind(1))
    return [
        {
            "family": name,
            **adam,
            "rule": label,
            "steps to target": steps_to(found.mean(1).tolist(), adam["target"]),
            "final loss": trailing_mean(found.mean(1).tolist())[-1],
            "mean log loss": log_loss(found).mean().item(),
        }
        for label, found in zip(rules, own, strict=False)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--weights", nargs="*", default=["general"])
    parser.add_argument("--networks", type=int, default=1)
    parser.add_argument("--weights-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads((RESULTS / "rule_settings.json").read_text())["rows"]
    rules = {}
    if not arguments.weights_only:
        rules = {", ".join(map(str, setting)): rule_with(*setting) for setting in SETTINGS}
    rules["initial"] = UpdateRule(channels=0).requires_grad_(False)
    for weights in arguments.weights:
        rules[Path(weights).name] = UpdateRule.from_pretrained(weights).requires_grad_(False)
    rows = [
        row for name in tqdm(arguments.families) for row in measure(name, rules, arguments.networks)
    ]
    measured = {(row["family"], row["rule"]) for row in rows}
    rows += [row for row in known if (row["family"], row["rule"]) not in measured]
    report("rule_settings", sorted(rows, key=lambda row: list(FAMILIES).index(row["family"])))
