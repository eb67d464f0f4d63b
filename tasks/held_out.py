"""The tasks that learned optimizers are judged on; none is in a suite of meta-training.

The suite ``apart``, which the packaged rules were made on, has none of their data sets, widths and
depths either. In the other suites, which have no MNIST, are digits with at most three hidden
layers, photos as classes of patches and not as pictures to draw, and text of other topics for a
transformer of one block.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from scalegmn_opt.inr import SirenSpec

from .data import Dataset, digits, mnist
from .models import CharTransformer, FreshSiren, conv_net, mlp
from .sources import photo_picture, reconstruction, text
from .supervised import Initialisation, SupervisedTask

PathOrNone = str | PathLike[str] | None


@dataclass(frozen=True)
class HeldOut:
    """A task and the number of steps that it is trained for.

    ``make`` takes the path of MNIST's file, which tasks on other data ignore.
    """

    steps: int
    make: Callable[[PathOrNone], SupervisedTask]


def _mnist(path: PathOrNone) -> Dataset:
    if path is None:
        raise FileNotFoundError("--data: expected the path of mnist.npz, but it was not given")
    file = Path(path)
    return mnist(file / "mnist.npz" if file.is_dir() else file)


def _perceptron(
    *hidden: int, activation: type[nn.Module] = nn.ReLU, spread: float = 0.0
) -> HeldOut:
    def make(path: PathOrNone) -> SupervisedTask:
        return SupervisedTask(
            _mnist(path),
            mlp((784, *hidden, 10), activation),
            loss="cross-entropy",
            initialisation=Initialisation(spread=spread),
        )

    return HeldOut(500, make)


def _convolutions(*, norm: bool) -> HeldOut:
    def make(path: PathOrNone) -> SupervisedTask:
        data = _mnist(path)
        module = conv_net(data.shape, (8, 16, 32), 10, activation=nn.ReLU, norm=norm)
        return SupervisedTask(data, module, loss="cross-entropy")

    return HeldOut(500, make)


def _autoencoder(path: PathOrNone) -> SupervisedTask:
    data = reconstruction(_mnist(path))
    return SupervisedTask(data, mlp((784, 128, 32, 128, 784), nn.ReLU), loss="squares")


def _digits(*hidden: int) -> Callable[[PathOrNone], SupervisedTask]:
    def make(path: PathOrNone) -> SupervisedTask:
        return SupervisedTask(digits(), mlp((64, *hidden, 10), nn.ReLU), loss="cross-entropy")

    return make


def _siren(path: PathOrNone) -> SupervisedTask:
    data = photo_picture(torch.Generator().manual_seed(0), 0)
    module = FreshSiren(SirenSpec(hidden=(32, 32), out_features=3))
    return SupervisedTask(data, module, loss="squares", batch_size=256)


def _transformer(path: PathOrNone) -> SupervisedTask:
    data = text(late=True)
    module = CharTransformer(96, data.features, width=32, heads=2, depth=2)
    return SupervisedTask(data, module, loss="cross-entropy", batch_size=16)


HELD_OUT: dict[str, HeldOut] = {
    "mnist-64": _perceptron(64),
    "mnist-128-128": _perceptron(128, 128),
    "mnist-256-tanh": _perceptron(256, activation=nn.Tanh),
    "mnist-cnn": _convolutions(norm=False),
    "mnist-cnn-batchnorm": _convolutions(norm=True),
    "mnist-autoencoder": HeldOut(500, _autoencoder),
    "mnist-64-rescaled": _perceptron(64, spread=1.0),
    "digits-5-layers": HeldOut(500, _digits(32, 32, 32, 32, 32)),
    "digits-long": HeldOut(5000, _digits(32)),
    "photo-siren": HeldOut(500, _siren),
    "text-transformer": HeldOut(500, _transformer),
}


def held_out_task(name: str) -> HeldOut:
    """The task called ``name`` in ``HELD_OUT``, or ``package.module:NAME``, a ``HeldOut``.

    Raises:
        ValueError: if there is none.
        TypeError: if what is found is no ``HeldOut``.
    """
    if name in HELD_OUT:
        return HELD_OUT[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"unknown task {name!r}; choose from {sorted(HELD_OUT)} or 'package.module:NAME'"
        )
    known = vars(importlib.import_module(module_name))
    if attribute not in known:
        raise ValueError(f"{name}: expected a HeldOut, there is nothing of that name in the module")
    found = known[attribute]
    if not isinstance(found, HeldOut):
        raise TypeError(f"{name}: expected a HeldOut, got {type(found).__name__}")
    return found
