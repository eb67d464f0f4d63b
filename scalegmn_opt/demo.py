"""The demo: a learned optimizer against Adam, an edit of networks, and a rule that learns."""

import copy
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from scalegmn_opt.editors import EDITS, EditRecipe, EditReport, measure
from scalegmn_opt.editors.pictures import draw_comparison
from scalegmn_opt.editors.training import resize
from scalegmn_opt.figures import BLUE, GREY, ORANGE, draw_losses, new_figure
from scalegmn_opt.inr import SirenSpec, fit_store
from scalegmn_opt.meta import MetaTrainer
from scalegmn_opt.meta.recipe import RuleRecipe
from scalegmn_opt.meta.trainer import read_log
from scalegmn_opt.optim import LearnedOptimizer, UpdateRule
from scalegmn_opt.recipe import load_recipe
from scalegmn_opt.tasks import MLPClassification, digits, resolve_suite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RULE = "general"
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # of Adam
STEPS, SEEDS = 300, 3
DIGITS = 8
META_RECIPE = "demo_rule"
REPORT = "report.json"

_EVERY = 5  # steps between two points of a curve

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class Curves:
    """Runs of one optimizer from several seeds; losses are mean cross-entropies in nats.

    Shapes: `training_loss` `(seeds, points)`, on the whole training part; after the last step
    `validation_loss` and `validation_accuracy` `(seeds,)`.
    """

    training_loss: Tensor
    validation_loss: Tensor
    validation_accuracy: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Medians over the seeds, and the final training loss of each."""
        return {
            "training_loss": self.training_loss[:, -1].median().item(),
            "training_loss_of_each_seed": self.training_loss[:, -1].tolist(),
            "validation_loss": self.validation_loss.median().item(),
            "validation_accuracy": self.validation_accuracy.median().item(),
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """A learned optimizer and Adam at several learning rates, on the same runs."""

    steps: tuple[int, ...]
    learned: Curves
    adam: dict[float, Curves]

    @property
    def best_lr(self) -> float:
        """Adam's learning rate of least median validation loss."""
        return min(self.adam, key=lambda lr: _or_infinite(self.adam[lr].validation_loss))

    def as_dict(self) -> dict[str, Any]:
        """The numbers that the picture shows."""
        return {
            "steps": self.steps[-1],
            "learned": self.learned.as_dict(),
            "adam_learning_rate": self.best_lr,
            "adam": self.adam[self.best_lr].as_dict(),
            "adam_of_each_learning_rate": {f"{lr:g}": c.as_dict() for lr, c in self.adam.items()},
        }


def run_demo(out: Path) -> dict[str, Any]:
    """Do all parts, write three pictures and `report.json` to `out`, and return the report.

    Raises:
        ImportError: scikit-learn or matplotlib is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    parts = {"optimizer": _optimizer_part, "edit": _edit_part, "meta": _meta_part}
    for name, part in parts.items():
        began = time.perf_counter()
        figure, numbers = part()
        figure.savefig(out / f"{name}.png", dpi=150)
        report[name] = {**numbers, "seconds": round(time.perf_counter() - began, 1)}
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def compare_optimizers(
    *,
    rule: UpdateRule | str = RULE,
    learning_rates: Sequence[float] = LEARNING_RATES,
    steps: int = STEPS,
    seeds: int = SEEDS,
) -> Comparison:
    """Train a 64-32-10 ReLU perceptron on digits, from the same starts and on the same batches.

    Raises:
        ImportError: scikit-learn is missing.
        FileNotFoundError, ValueError: `rule` names no usable weights.
    """
    task = MLPClassification(digits())
    learned = partial(LearnedOptimizer.for_model, example_inputs=task.example_inputs, rule=rule)
    runs = seeds * (1 + len(learning_rates))
    with tqdm(total=runs * steps, desc="optimizers", unit="step") as bar:
        curves = partial(_curves, task, steps=steps, seeds=seeds, bar=bar)
        adam = {lr: curves(partial(_adam, lr=lr)) for lr in learning_rates}
        return Comparison((*range(0, steps, _EVERY), steps), curves(learned), adam)


def edit_digits() -> tuple[EditReport, Tensor]:
    """Dilate networks fitted to digits of the test part; also those images, (batch, 1, 28, 28).

    Raises:
        ImportError: scikit-learn is missing.
        FileNotFoundError: the editor's weights are missing.
    """
    small = digits().test_inputs[:DIGITS].reshape(-1, 1, 8, 8)
    images = resize(small, 28)
    names = tuple(f"digit{i}" for i in range(len(images)))
    store = fit_store(images, names, SirenSpec(), generator=torch.Generator().manual_seed(0))
    return measure(store, load_recipe("dilate", EditRecipe), EDITS, images=images), images


def learn_rule(recipe: RuleRecipe) -> list[float]:
    """Meta-losses, one a meta-step, of a fresh rule.

    Raises:
        ImportError: scikit-learn is missing.
    """
    objective = recipe.build(resolve_suite(recipe.suite))
    with tempfile.TemporaryDirectory() as folder:
        options = recipe.trainer.model_dump()
        accelerator = Accelerator(cpu=True)
        trainer = MetaTrainer(
            objective, folder, seed=recipe.seed, accelerator=accelerator, **options
        )
        trainer.train()
        return list(read_log(Path(folder), "loss").values())


def draw_comparison_of_optimizers(comparison: Comparison) -> "Figure":
    """Training loss against steps: the median over seeds, with a band from least to largest.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = new_figure(7.5, 4.8)
    ax = figure.subplots()
    for lr, curves in comparison.adam.items():
        if lr != comparison.best_lr:
            median = _median(curves)
            ax.plot(comparison.steps, median, color=GREY, linewidth=1)
            end = (comparison.steps[-1], median[-1].item())
            ax.annotate(f"{lr:g}", end, (4, -3), textcoords="offset points", fontsize=8)
    shown = {
        f"Adam, learning rate {comparison.best_lr:g}": (comparison.adam[comparison.best_lr], BLUE),
        "LearnedOptimizer, untuned": (comparison.learned, ORANGE),
    }
    for name, (curves, color) in shown.items():
        label = f"{name}: {curves.validation_accuracy.median():.1%} validation accuracy"
        low, high = curves.training_loss.amin(0), curves.training_loss.amax(0)
        ax.fill_between(comparison.steps, low, high, color=color, alpha=0.25, linewidth=0)
        ax.plot(comparison.steps, _median(curves), color=color, linewidth=2, label=label)
    ax.plot([], [], color=GREY, linewidth=1, label="Adam at other learning rates, median only")
    seeds = len(comparison.learned.training_loss)
    ax.set(yscale="log", xlabel="steps", ylabel="training loss (nats)")
    ax.set_xlim(0, 1.07 * comparison.steps[-1])  # room for the numbers beside the grey curves
    title = "Perceptron 64-32-10 on digits"
    ax.set_title(f"{title}: median and range of {seeds} seeds", fontsize=10)
    ax.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=9)
    return figure


def _optimizer_part() -> tuple["Figure", dict[str, Any]]:
    comparison = compare_optimizers(rule=RULE)
    return draw_comparison_of_optimizers(comparison), comparison.as_dict()


def _edit_part() -> tuple["Figure", dict[str, Any]]:
    report, _ = edit_digits()
    figure = draw_comparison(report)
    return figure, {**report.as_dict(), "mse_of_the_fit": report.mse_of_input}


def _meta_part() -> tuple["Figure", dict[str, Any]]:
    losses = learn_rule(load_recipe(META_RECIPE, RuleRecipe))
    quarter = max(1, len(losses) // 4)
    numbers = {
        "meta_steps": len(losses),
        "meta_loss_first_quarter": mean(losses[:quarter]),
        "meta_loss_last_quarter": mean(losses[-quarter:]),
    }
    return draw_losses(losses, label="meta-loss: mean of log(loss + 0.02)"), numbers


def _adam(model: nn.Module, *, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def _curves(
    task: MLPClassification, make: MakeOptimizer, *, steps: int, seeds: int, bar: tqdm
) -> Curves:
    runs = [_train(task, make, steps=steps, seed=seed, bar=bar) for seed in range(seeds)]
    training, loss, accuracy = (torch.stack(values) for values in zip(*runs, strict=True))
    return Curves(training, loss, accuracy)


def _train(
    task: MLPClassification, make: MakeOptimizer, *, steps: int, seed: int, bar: tqdm
) -> tuple[Tensor, Tensor, Tensor]:
    """Training losses (points,), and validation loss () and accuracy () at the end."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(task.module)
    model.load_state_dict(task.init(generator))
    optimizer, params = make(model), dict(model.named_parameters())
    losses = []
    for step in range(steps):
        if step % _EVERY == 0:
            losses.append(task.evaluate(params, "training")[0])
        optimizer.zero_grad()
        task.loss(params, task.batch(generator)).backward()
        optimizer.step()
        bar.update()
    losses.append(task.evaluate(params, "training")[0])
    return torch.stack(losses), *task.evaluate(params, "validation")


def _median(curves: Curves) -> Tensor:
    return curves.training_loss.median(0).values


def _or_infinite(losses: Tensor) -> float:
    """The median; infinite if it is not a number, so that a diverged run never wins."""
    return losses.median().nan_to_num(nan=torch.inf, posinf=torch.inf).item()
