"""Distributions of tasks, by name."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType

import torch
from torch import Tensor, nn

from scalegmn_opt.meta import Task, TaskSuite
from scalegmn_opt.recipe import load_recipe

from .classify import MLPClassification
from .data import SPLITS, Dataset, digits
from .families import SuiteRecipe
from .quadratic import QuadraticTask
from .randomness import checked_count, integer, log_integer, log_number
from .sampling import FamilySuite

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU)


@dataclass(frozen=True)
class QuadraticSuite:
    """Least squares of 2 to 32 unknowns, some with a matrix, of conditions 1 to 1000."""

    def sample(self, generator: torch.Generator, count: int) -> list[QuadraticTask]:
        """``count`` problems of one size; each has a condition and targets of its own."""
        dims = log_integer(2, 32, generator=generator)
        columns = integer(0, 8, generator=generator)
        return [
            QuadraticTask.random(
                dims,
                condition=log_number(1, 1000, generator=generator),
                columns=columns,
                generator=generator,
            )
            for _ in range(checked_count(count))
        ]


class DigitsMLPSuite:
    """Small perceptrons on scikit-learn's digits; only their training part is ever drawn from.

    One call of ``sample`` fixes the architecture: input dimension 16 to 400, one to three hidden
    layers of width 8 to 64 (both log-uniform), activation, batch size 16 to 128, 2 to 10 classes.
    Each task has a random projection of the inputs to that dimension with a scale in [0.5, 2], its
    own choice and order of classes, and a reparametrised initialisation.

    Raises:
        ImportError: if scikit-learn is not installed.
    """

    def __init__(self) -> None:
        self._dataset: Dataset = digits()

    def sample(self, generator: torch.Generator, count: int) -> list[MLPClassification]:
        """``count`` tasks of one random architecture."""
        dims = log_integer(16, 400, generator=generator)
        depth = integer(1, 3, generator=generator)
        hidden = [log_integer(8, 64, generator=generator) for _ in range(depth)]
        activation = ACTIVATIONS[integer(0, len(ACTIVATIONS) - 1, generator=generator)]
        batch_size = log_integer(16, 128, generator=generator)
        classes = integer(2, self._dataset.classes, generator=generator)
        return [
            MLPClassification(
                self._dataset,
                hidden=hidden,
                activation=activation,
                batch_size=batch_size,
                projection=_projection(self._dataset.features, dims, generator=generator),
                labels=_classes(self._dataset.classes, classes, generator=generator),
                init_spread=0.5,
            )
            for _ in range(checked_count(count))
        ]


class DigitsTinySuite:
    """The least that shows learning: ReLU perceptrons of 16 inputs and 12 to 24 hidden neurons.

    Each task has a random projection of scikit-learn's digits (training part) to 16 dimensions.

    Raises:
        ImportError: if scikit-learn is not installed.
    """

    def __init__(self) -> None:
        self._dataset: Dataset = digits()

    def sample(self, generator: torch.Generator, count: int) -> list[MLPClassification]:
        """``count`` tasks of one random width."""
        width = integer(12, 24, generator=generator)
        return [
            MLPClassification(
                self._dataset,
                hidden=[width],
                batch_size=32,
                projection=_projection(self._dataset.features, 16, generator=generator),
            )
            for _ in range(checked_count(count))
        ]


def family_suite(path_or_name: str | Path, split: str = "training") -> FamilySuite:
    """One split of a suite that a recipe describes, by the recipe's file or name.

    Raises:
        FileNotFoundError: if there is no such recipe.
        ValueError: if it is no recipe of a suite, or ``split`` is not one of ``SPLITS``.
        ImportError: if scikit-learn is needed and not installed.
    """
    recipe = load_recipe(path_or_name, SuiteRecipe)
    families = {
        "training": recipe.training,
        "validation": recipe.validation,
        "test": recipe.test,
    }
    if split not in families:
        raise ValueError(f"unknown split {split!r}; choose from {list(families)}")
    return FamilySuite(families[split])


@dataclass(frozen=True)
class SampledSuite:
    """A suite that is a function of a generator and a number of tasks."""

    function: Callable[[torch.Generator, int], Sequence[Task]]

    def sample(self, generator: torch.Generator, count: int) -> Sequence[Task]:
        """``count`` tasks of one architecture."""
        return self.function(generator, count)


SUITES: dict[str, Callable[[], TaskSuite]] = {
    "digits-mlp": DigitsMLPSuite,
    "digits-tiny": DigitsTinySuite,
    "quadratic": QuadraticSuite,
    **{
        name if split == "training" else f"{name}/{split}": partial(
            family_suite, f"{name}_suite", split
        )
        for name in ("apart", "mixed", "mlp", "plain", "tiny", "vision")
        for split in SPLITS
    },
}


def resolve_suite(name: str) -> TaskSuite:
    """The suite registered as ``name``, or what a user names.

    That is ``package.module:NAME`` of a class, of a function without arguments that makes a suite,
    or of a function ``sample(generator, count)`` that is all there is to one; or the file of a
    suite's recipe, ``mine.yaml``, or ``mine.yaml/validation`` for its other splits.

    Raises:
        FileNotFoundError: if there is no such recipe.
        ValueError: if nothing is found under ``name``.
        TypeError: if what is found there does not make a suite.
    """
    path, slash, split = name.rpartition("/")
    if slash and split in SPLITS and path.endswith(".yaml"):
        return family_suite(path, split)
    if name.endswith(".yaml"):
        return family_suite(name)
    factory = SUITES[name] if name in SUITES else _load(name)
    if not isinstance(factory, type) and callable(factory) and len(_arguments(factory)) == 2:
        return SampledSuite(factory)
    suite = factory()
    if not isinstance(suite, TaskSuite):
        raise TypeError(
            f"name: expected {name!r} to make a TaskSuite (a class with a method "
            f"sample(generator, count)), got {type(suite).__name__}"
        )
    return suite


def _arguments(function: Callable[..., object]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _load(name: str) -> Callable[[], TaskSuite]:
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise ValueError(
            f"unknown suite {name!r}; choose from {sorted(SUITES)} or 'package.module:NAME'"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module was found; something that it imports was not
        raise ValueError(f"suite {name!r}: there is no module {error.name!r}") from error
    if attribute not in vars(module):
        kinds = (type, FunctionType)
        found = sorted(key for key, value in vars(module).items() if isinstance(value, kinds))
        raise ValueError(f"suite {name!r}: {module_name} has no {attribute!r}; choose from {found}")
    return vars(module)[attribute]


def _projection(features: int, dims: int, *, generator: torch.Generator) -> Tensor:
    """(features, dims), which multiplies the root mean square of inputs by 0.5 to 2."""
    scale = log_number(0.5, 2.0, generator=generator)
    return torch.randn(features, dims, generator=generator) * (scale / features**0.5)


def _classes(total: int, count: int, *, generator: torch.Generator) -> Sequence[int]:
    return torch.randperm(total, generator=generator)[:count].tolist()
