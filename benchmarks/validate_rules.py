"""Validation losses of rules: what is chosen by before any held-out task is run.

`python benchmarks/validate_rules.py [--suites SUITE ...] [--weights NAME_OR_FILE ...]`. The mean of
`log(loss + 0.02)` on validation batches over 24 runs of 300 steps, two networks in each, on the
validation families of a suite (:class:`RuleValidation`), which are the same for all rules.
"initial" are the numbers that a new rule has; files named `no-graph` run without a graph.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from measure import report
from tqdm import tqdm

from scalegmn_opt import UpdateRule
from scalegmn_opt.meta.estimators import TruncatedBackprop
from scalegmn_opt.meta.validation import RuleValidation
from scalegmn_opt.tasks import resolve_suite

RUNS = 24


def rows_of(suite: str, rules: dict[str, UpdateRule]) -> list[dict[str, Any]]:
    """A row for each rule."""
    validation = RuleValidation(resolve_suite(f"{suite}/validation"), runs=RUNS, steps=300)
    rows = []
    for label, rule in rules.items():
        graph = not label.startswith("no-graph")
        objective = TruncatedBackprop(rule, validation.suite, graph=graph)
        losses = torch.tensor(
            [validation.loss(objective, number) for number in tqdm(range(RUNS), desc=label)]
        )
        rows.append(
            {
                "suite": suite,
                "rule": label,
                "mean log loss": losses.mean().item(),
                "worst run": losses.max().item(),
            }
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suites", nargs="+", default=["apart", "plain"])
    parser.add_argument("--weights", nargs="*", default=["general", "permutation", "no-graph"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rules = {"initial": UpdateRule(channels=0)}
    for weights in arguments.weights:
        rules[Path(weights).stem] = UpdateRule.from_pretrained(weights)
    report("validate_rules", [row for suite in arguments.suites for row in rows_of(suite, rules)])
