"""Validation losses of rules: what is chosen by before any held-out task is run.

`python benchmarks/validate_rules.py [--on NAME ...] [--weights NAME_OR_FILE ...]`. The mean of
`log(loss + 0.02)` on validation batches over 24 runs of 300 steps on `apart/validation`, two
networks in each (:class:`RuleValidation`), and over 4 runs on each of two transformers on the words
of the suite, which has those of one block; the same for all rules. "initial" are the numbers that
a new rule has; files named `no-graph` run without a graph. Other rows stay as they are. In the
results here are, beside `general`, the rule before (`plain`), and those of docs/meta_training.md,
"Nothing of the evaluation": `second`, and `quarter`, `three-quarters`, `whole`, where `general`
lies half-way.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, report
from rule_settings import family
from tqdm import tqdm

from scalegmn_opt import UpdateRule
from scalegmn_opt.meta.estimators import TruncatedBackprop
from scalegmn_opt.meta.validation import RuleValidation
from scalegmn_opt.tasks import FamilySuite, resolve_suite

SUITES = {
    "apart/validation": (resolve_suite("apart/validation"), 24),
    "transformer, one block": (
        FamilySuite([family("words", "transformer", 24, 1, batch_size=8)]),
        4,
    ),
    "transformer, two blocks": (
        FamilySuite([family("words", "transformer", 30, 2, batch_size=8)]),
        4,
    ),
}


def rows_of(name: str, rules: dict[str, UpdateRule]) -> list[dict[str, Any]]:
    """A row for each rule."""
    suite, runs = SUITES[name]
    validation = RuleValidation(suite, runs=runs, steps=300)
    rows = []
    for label, rule in rules.items():
        graph = not label.startswith("no-graph")
        objective = TruncatedBackprop(rule, validation.suite, graph=graph)
        losses = torch.tensor(
            [validation.loss(objective, number) for number in tqdm(range(runs), desc=label)]
        )
        rows.append(
            {
                "suite": name,
                "rule": label,
                "mean log loss": losses.mean().item(),
                "worst run": losses.max().item(),
            }
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", nargs="+", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--weights", nargs="*", default=["general", "permutation", "no-graph"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rules = {"initial": UpdateRule(channels=0)}
    for weights in arguments.weights:
        rules[Path(weights).stem] = UpdateRule.from_pretrained(weights)
    rows = [row for name in arguments.on for row in rows_of(name, rules)]
    measured = {(row["suite"], row["rule"]) for row in rows}
    path = RESULTS / "validate_rules.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    rows += [r for r in known if (r["suite"], r["rule"]) not in measured]
    report("validate_rules", sorted(rows, key=lambda row: list(SUITES).index(row["suite"])))
