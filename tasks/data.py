"""A data set as three fixed parts in memory; scikit-learn's digits, and MNIST from a file."""

import zipfile
from dataclasses import dataclass
from math import prod
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MNIST_KEYS = ("x_train", "y_train", "x_test", "y_test")
SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class Dataset:
    """Inputs (samples, features) and what a network should give for them.

    Targets are class indices: (samples,), or (samples, positions) of a sequence, whose inputs are
    integers, too. Where ``classes`` is None they are numbers (samples, outputs).

    Args:
        shape: of one input as a picture or signal, (channels, *extent); flat if not given.

    Raises:
        ValueError: if a part is empty, its shapes disagree or a target is not a class.
    """

    train_inputs: Tensor
    train_targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: int | None
    name: str
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for split in SPLITS:
            self._check_shapes(split)
            if self.classes is not None:
                self._check_classes(split, self.classes)
        if self.shape and prod(self.shape) != self.features:
            raise ValueError(
                f"{self.name}, shape: expected a product of {self.features}, got {self.shape}"
            )

    def _check_shapes(self, split: str) -> None:
        inputs, targets = self.part(split)
        if self.classes is None:
            expected, right = "(samples, outputs)", targets.ndim == 2
        elif inputs.is_floating_point():
            expected, right = "(samples,)", targets.ndim == 1
        else:
            expected, right = "(samples, features)", targets.shape == inputs.shape
        if inputs.ndim != 2 or len(targets) != len(inputs) or not right or not len(inputs):
            raise ValueError(
                f"{self.name}, {split} part: expected inputs (samples, features) and targets "
                f"{expected}, got {tuple(inputs.shape)} and {tuple(targets.shape)}"
            )

    def _check_classes(self, split: str, classes: int) -> None:
        targets = self.part(split)[1]
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"{self.name}, {split} part: expected targets in 0..{classes - 1}, "
                f"got {low}..{high}"
            )

    @property
    def features(self) -> int:
        """Number of input features."""
        return self.train_inputs.shape[1]

    def part(self, split: str) -> tuple[Tensor, Tensor]:
        """Inputs (samples, features) and targets (samples,) of one split.

        Raises:
            ValueError: if ``split`` is not one of ``SPLITS``.
        """
        parts = {
            "training": (self.train_inputs, self.train_targets),
            "validation": (self.validation_inputs, self.validation_targets),
            "test": (self.test_inputs, self.test_targets),
        }
        if split not in parts:
            raise ValueError(f"unknown split {split!r}; choose from {list(parts)}")
        return parts[split]


def digits() -> Dataset:
    """Scikit-learn's 1797 digits of 8×8 pixels, in [0, 1], with 64 features.

    The order is shuffled once and for all (seed 0): 1197 training, 300 validation, 300 test.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'digits() needs scikit-learn: pip install "scalegmn-opt[data]"'
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    inputs = torch.as_tensor(pixels / 16.0, dtype=torch.float32)[order]
    targets = torch.as_tensor(labels, dtype=torch.int64)[order]
    sizes = (1197, 300, 300)
    (x0, x1, x2), (y0, y1, y2) = inputs.split(sizes), targets.split(sizes)
    return Dataset(x0, y0, x1, y1, x2, y2, classes=10, name="digits", shape=(1, 8, 8))


def mnist(path: str | PathLike[str]) -> Dataset:
    """MNIST from a file in the layout of Keras's ``mnist.npz``, in [0, 1], with 784 features.

    The last sixth of the file's training part (10,000 of 60,000) is the validation part.

    Raises:
        FileNotFoundError: if there is no file at ``path``.
        ValueError: if the file is not such an archive, lacks an array or has one of another shape.
    """
    arrays = _read_archive(Path(path))
    x_train, y_train = _images(arrays, path, part="train")
    x_test, y_test = _images(arrays, path, part="test")
    cut = len(x_train) - len(x_train) // 6
    (x0, x1), (y0, y1) = x_train.tensor_split([cut]), y_train.tensor_split([cut])
    return Dataset(x0, y0, x1, y1, x_test, y_test, classes=10, name="mnist", shape=(1, 28, 28))


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"path: expected an mnist.npz file, found no file at {path}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: expected an .npz archive of arrays, {path} is not one") from error
    missing = [key for key in MNIST_KEYS if key not in arrays]
    if missing:
        raise ValueError(
            f"path: {path} lacks {missing}; expected {list(MNIST_KEYS)}, found {sorted(arrays)}"
        )
    return arrays


def _images(
    arrays: dict[str, np.ndarray], path: str | PathLike[str], *, part: str
) -> tuple[Tensor, Tensor]:
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if x.shape[1:] != (28, 28) or y.shape != x.shape[:1] or len(x) < 6:
        raise ValueError(
            f"path: expected x_{part} (samples, 28, 28) and y_{part} (samples,) with at least "
            f"6 samples, got {x.shape} and {y.shape} in {path}"
        )
    if x.dtype != np.uint8 or y.dtype.kind not in "iu":
        raise ValueError(
            f"path: expected x_{part} of uint8 and y_{part} of integers, "
            f"got {x.dtype} and {y.dtype} in {path}"
        )
    inputs = torch.from_numpy(x.astype(np.float32) / 255.0).flatten(1)
    return inputs, torch.from_numpy(y.astype(np.int64))
