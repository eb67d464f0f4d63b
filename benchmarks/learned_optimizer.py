"""The packaged rule against Adam at seven learning rates: loss against steps, from equal starts.

`python benchmarks/learned_optimizer.py [mnist.npz] [--weights FILE]`: a digits perceptron (of the
family that the rule was meta-trained on) and, where the file is given, two MNIST perceptrons (other
data, twelve times the inputs). Adam is shown at its learning rates of least validation loss, least
mean training loss and least training loss of the last 50 steps, and at its default.
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import median, report
from torch import nn
from torch.optim import Adam, Optimizer

from scalegmn_opt import LearnedOptimizer, UpdateRule
from scalegmn_opt.optim import GaugeAdam, GaugeMuon
from scalegmn_opt.tasks import MLPClassification, digits, mnist

STEPS, SEEDS = 500, 3
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
Make = Callable[[nn.Module], Optimizer]


def train(task: MLPClassification, make: Make, seed: int) -> dict[str, float]:
    """Mean and final training loss, and validation loss and accuracy, of one run."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(task.module)
    model.load_state_dict(task.init(generator))
    optimizer, params, losses = make(model), dict(model.named_parameters()), []
    began = time.process_time()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = task.loss(params, task.batch(generator))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    seconds = time.process_time() - began
    loss, accuracy = task.evaluate(params, "validation")
    return {
        "mean loss": sum(losses) / STEPS,
        "last 50 steps": sum(losses[-50:]) / 50,
        "validation loss": loss.item(),
        "validation accuracy": accuracy.item(),
        "ms per step": 1e3 * seconds / STEPS,
    }


def medians(task: MLPClassification, make: Make) -> dict[str, float]:
    """Medians of :func:`train` over the seeds."""
    runs = [train(task, make, seed) for seed in range(SEEDS)]
    return {key: median([run[key] for run in runs]) for key in runs[0]}


def adam(model: nn.Module, *, lr: float) -> Optimizer:
    """Adam with PyTorch's defaults but the learning rate."""
    return Adam(model.parameters(), lr=lr)


def compare(name: str, task: MLPClassification, rule: UpdateRule) -> list[dict[str, Any]]:
    """Rows for Adam tuned in three ways and by default, the rule, trained or not, and controls."""
    found = {lr: medians(task, partial(adam, lr=lr)) for lr in LEARNING_RATES}
    goals = ("validation loss", "mean loss", "last 50 steps")
    best = {goal: min(found, key=lambda lr: found[lr][goal]) for goal in goals}
    learned = partial(LearnedOptimizer.for_model, example_inputs=task.example_inputs, rule=rule)
    ways = {
        **{
            f"Adam, lr {lr:g} (best {goal} of {len(found)})": found[lr] for goal, lr in best.items()
        },
        "Adam, lr 0.001 (default)": found[1e-3],
        "LearnedOptimizer": medians(task, learned),
        "LearnedOptimizer, untrained rule": medians(task, partial(learned, rule=UpdateRule())),
        **{
            control.__name__: medians(
                task, partial(control.for_model, example_inputs=task.example_inputs)
            )
            for control in (GaugeAdam, GaugeMuon)
        },
    }
    return [{"task": name, "optimizer": way, **numbers} for way, numbers in ways.items()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mnist", type=Path, nargs="?")
    parser.add_argument("--weights", type=Path, default="general")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tasks = {"digits 64-32-10": MLPClassification(digits())}
    if arguments.mnist is not None:
        data = mnist(arguments.mnist)
        tasks["MNIST 784-64-10"] = MLPClassification(data, hidden=(64,))
        tasks["MNIST 784-128-128-10"] = MLPClassification(data, hidden=(128, 128))
    rule = UpdateRule.from_pretrained(arguments.weights)
    report("learned_optimizer", [row for n, t in tasks.items() for row in compare(n, t, rule)])
