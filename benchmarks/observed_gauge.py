"""Does a gauge that is observed train better than the swept one? On scikit-learn's digits.

Each optimizer at its own step, ``lr=1``: mean and last training loss, and test accuracy, of runs
of 200 steps from three starts; nothing is tuned, so that the test digits choose nothing either.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measure import median, report
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from scalegmn_opt import LearnedOptimizer
from scalegmn_opt.optim import GaugeAdam, GaugeMuon

STEPS, STARTS, BATCH = 200, 3, 64
OPTIMIZERS = (LearnedOptimizer, GaugeAdam, GaugeMuon)


def perceptron(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Hidden layers of ``widths`` between 64 pixels and 10 classes."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip((64, *widths), widths, strict=False):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


def convolutional() -> nn.Module:
    """Three convolutions with BatchNorm."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for fan_in, fan_out in ((1, 8), (8, 16), (16, 16)):
        layers += [
            nn.Conv2d(fan_in, fan_out, 3, padding=1),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "64-32-10": lambda: perceptron(32),
    "64-128-128-10": lambda: perceptron(128, 128),
    "64-64-64-10, tanh": lambda: perceptron(64, 64, activation=nn.Tanh),
    "64-64-64-10, GELU": lambda: perceptron(64, 64, activation=nn.GELU),
    "CNN with BatchNorm": convolutional,
}


def digits() -> tuple[Tensor, ...]:
    """Pixels and classes of training and of test digits."""
    images, classes = load_digits(return_X_y=True)
    pixels = torch.tensor(images / 16.0 - 0.3, dtype=torch.float32)
    parts = train_test_split(pixels, torch.tensor(classes), test_size=0.25, random_state=0)
    return tuple(parts)


def run(
    model: nn.Module, cls: type, gauge: str, data: tuple[Tensor, ...], seed: int
) -> tuple[float, float, float]:
    """Mean and last training loss, and test accuracy."""
    x, x_test, y, y_test = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = cls.for_model(model, (x[:BATCH],), gauge=gauge)
    losses = []
    for _ in range(STEPS):
        batch = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        accuracy = (model(x_test).argmax(1) == y_test).double().mean().item()
    return sum(losses) / STEPS, sum(losses[-30:]) / 30, accuracy


def rows() -> list[dict[str, Any]]:
    """Medians over starts, one row for each network, optimizer and gauge."""
    data, found = digits(), []
    for network, make in NETWORKS.items():
        for cls in OPTIMIZERS:
            results: dict[str, list[tuple[float, float, float]]] = {"swept": [], "observed": []}
            for seed in range(STARTS):
                torch.manual_seed(seed)
                model = make()
                for gauge, own in results.items():
                    own.append(run(copy.deepcopy(model), cls, gauge, data, seed))
            for gauge, own in results.items():
                mean, last, accuracy = (median(list(column)) for column in zip(*own, strict=True))
                found.append(
                    {
                        "network": network,
                        "optimizer": cls.__name__,
                        "gauge": gauge,
                        "mean loss": mean,
                        "last loss": last,
                        "test accuracy": accuracy,
                    }
                )
            print(network, cls.__name__, flush=True)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    report("observed_gauge", rows())
