"""Cost of one optimizer step against torch.optim.Adam: time and extra memory per parameter.

Each optimizer and size runs in a process of its own; step times are CPU time on one thread.
"""

import multiprocessing
from itertools import pairwise
from typing import Any

import torch
from measure import cpu_seconds, median, peak_bytes, report
from torch import nn

from scalegmn_opt import LearnedOptimizer
from scalegmn_opt.optim import GaugeAdam, GaugeMuon

SIZES = {"0.1 M": (784, 128, 10), "1 M": (784, 1024, 256, 10)}
OURS = {cls.__name__: cls for cls in (LearnedOptimizer, GaugeAdam, GaugeMuon)}
REPEATS = 10


def perceptron(sizes: tuple[int, ...]) -> nn.Sequential:
    """ReLU layers of ``sizes``."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def measure(name: str, size: str) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, inputs = perceptron(SIZES[size]), torch.randn(64, 784)
    if name == "Adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters())
    else:
        optimizer = OURS[name].for_model(model, (inputs,))
    model(inputs).square().mean().backward()
    count = sum(p.numel() for p in model.parameters())
    baseline = peak_bytes()
    seconds = cpu_seconds(optimizer.step, repeats=REPEATS)
    state = sum(
        value.nbytes
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    )
    return {
        "optimizer": name,
        "parameters": count,
        "ms per step (median)": 1e3 * median(seconds),
        "ms per step (min)": 1e3 * min(seconds),
        "us per parameter": 1e6 * median(seconds) / count,
        "state bytes per parameter": state / count,
        "peak extra bytes per parameter": (peak_bytes() - baseline) / count,
    }


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    rows = []
    for size in SIZES:
        adam = None
        for name in ("Adam", *OURS):
            with context.Pool(1) as pool:
                row = pool.apply(measure, (name, size))
            adam = adam or row["ms per step (median)"]
            rows.append({**row, "times Adam": row["ms per step (median)"] / adam})
    report("optimizer_step", rows)
