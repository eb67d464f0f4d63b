"""Refitting SIRENs to dilated digits: which optimizer, at which step size, in how many steps.

Arguments: MNIST as a Keras npz. SIRENs 2-32-32-1 fitted to digits are refitted to the dilation of
their own renders. Every optimizer has the step size that is best after 50 steps on 10 training
digits; errors are means over 40 test digits, CPU time is on one thread. `target` is what Adam with
torch's default betas reaches in 50 steps, and a row says in how many steps others get there; and
the same for `tuned`, the best that Adam reaches in 50 steps, whatever its betas. The learned refit
has nothing to tune here.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import report
from torch import Tensor, nn

from scalegmn_opt.editors import LearnedSteps, RuleOptimizer
from scalegmn_opt.editors.targets import dilate
from scalegmn_opt.inr import Adam, SirenSpec, StackedOptimizer, fit, refine, render, siren_graph
from scalegmn_opt.optim import GaugeAdam, GaugeMuon, UpdateRule
from scalegmn_opt.optim.state import Rule

SPEC = SirenSpec()
STEPS = (10, 15, 20, 30, 40, 50)
LEARNED_STEPS = (3, 4, 5, 6, 7, 8, 10)
BETAS = ((0.9, 0.99), (0.9, 0.9), (0.8, 0.95), (0.7, 0.8), (0.5, 0.8))
LEARNED = LearnedSteps()
RATES = (2e-3, 5e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
Params = dict[str, Tensor]


def rule(kind: type[GaugeAdam] | type[GaugeMuon]) -> Rule:
    """The pure rule of an optimizer."""
    return kind([nn.Parameter(torch.zeros(1))]).rule


def by(given: Rule) -> Callable[[float], StackedOptimizer]:
    """The optimizer of a rule at a step size."""
    return lambda rate: RuleOptimizer(given.requires_grad_(False), siren_graph(SPEC), rate)


OPTIMIZERS: dict[str, Callable[[float], StackedOptimizer | None]] = {
    "Adam, default betas": lambda rate: Adam(rate, betas=(0.9, 0.999)),
    "Adam, short memory": Adam,
    "GaugeAdam": by(rule(GaugeAdam)),
    "GaugeMuon": by(rule(GaugeMuon)),
    "UpdateRule, general": by(UpdateRule.from_pretrained("general")),
}


def networks(path: Path, part: str, count: int) -> tuple[Params, Tensor]:
    """Networks fitted to digits, and the dilation of their renders."""
    with np.load(path) as archive:
        images = torch.from_numpy(archive[part][:count]).float()[:, None] / 255
    generator = torch.Generator().manual_seed(0)
    params = fit(images, SPEC, generator=generator, steps=60, progress=False).params
    return params, dilate(render(params, SPEC, 28, 28), 1.0)


def error(params: Params, target: Tensor, optimizer: StackedOptimizer | None, steps: int) -> float:
    """Mean squared error after a refit; infinite if one diverges."""
    try:
        found = refine(params, target, SPEC, steps=steps, optimizer=optimizer, progress=False)
    except ValueError:
        return float("inf")
    return float((render(found.params, SPEC, 28, 28) - target).square().mean())


def learned(params: Params, target: Tensor, steps: int) -> float:
    """Mean squared error after learned steps."""
    found = LEARNED.refine(params, target, SPEC, steps=steps)
    return float((render(found, SPEC, 28, 28) - target).square().mean())


def row(
    name: str, rate: float | None, counts: Sequence[int], refit: Callable[[int], float], count: int
) -> dict[str, Any]:
    """Errors after each number of steps, and what as many take for each of `count` networks."""
    refit(1)  # loads weights, warms up
    errors, times = {}, {}
    for steps in counts:
        began = time.process_time()
        errors[f"MSE x 100, {steps} steps"] = 100 * refit(steps)
        times[f"CPU ms, {steps} steps"] = 1e3 * (time.process_time() - began) / count
    return {"optimizer": name, "step size": rate, "steps": list(counts), **errors, **times}


def with_target(rows: Sequence[dict[str, Any]], kind: str, target: float) -> list[dict[str, Any]]:
    """Rows with the fewest measured steps that reach an error, and their cost."""
    out = []
    for one in rows:
        reached = [n for n in one["steps"] if one[f"MSE x 100, {n} steps"] <= target]
        steps = min(reached, default=None)
        cost = None if steps is None else one[f"CPU ms, {steps} steps"]
        out.append({**one, f"steps to {kind}": steps, f"CPU ms to {kind}": cost})
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mnist", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tuning, data = networks(arguments.mnist, "x_train", 10), networks(arguments.mnist, "x_test", 40)
    betas = min(BETAS, key=lambda b: min(error(*tuning, Adam(r, betas=b), 50) for r in RATES))
    optimizers = {**OPTIMIZERS, f"Adam, tuned betas {betas}": lambda rate: Adam(rate, betas=betas)}
    rows = []
    for name, make in optimizers.items():
        best = min(RATES, key=lambda rate: error(*tuning, make(rate), STEPS[-1]))
        by = make(best)
        rows.append(row(name, best, STEPS, lambda n, by=by: error(*data, by, n), len(data[1])))
    tuned = min(one["MSE x 100, 50 steps"] for one in rows if one["optimizer"].startswith("Adam"))
    rows.append(row("refine", None, STEPS, lambda n: error(*data, None, n), len(data[1])))
    rows.append(
        row("learned refit", None, LEARNED_STEPS, lambda n: learned(*data, n), len(data[1]))
    )
    rows = with_target(rows, "target", rows[0]["MSE x 100, 50 steps"])
    report("inr_refit", with_target(rows, "tuned", tuned))
