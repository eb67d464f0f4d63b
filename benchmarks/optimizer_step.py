"""Cost of one optimizer step against torch.optim.Adam: time and extra memory per parameter.

Each optimizer and network runs in a process of its own; times are CPU time on one thread, means
over steps 2 to 27, in which the whiteners of large matrices are renewed more often than later, and
over 32 later steps, a whole number of periods of all sizes of 64 times a power of two. The memory
that compiling takes is not counted. "Peak extra" is of the resident size since the first step, of
which some 10 MB are code that is loaded then, and what the heap does not give back; "allocated" is
what tensors alone take at most beside the state, within steps 2 to 4.

    python optimizer_step.py [--networks NAME ...] [--optimizers NAME ...]

With names, only these networks and optimizers are measured, and the other rows stay as they are.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterable
from functools import partial
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Any

import torch
from measure import RESULTS, cpu_seconds, peak_bytes, report, reset_peak_bytes
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, GPT2LMHeadModel

from scalegmn_opt import LearnedOptimizer, UpdateRule
from scalegmn_opt.optim import GaugeAdam, GaugeMuon, PathSGD

STEPS, LATER_STEPS = 26, 32
COMPILED = "LearnedOptimizer, compiled"
ALLOCATING_STEPS = 3
LATER = 1024  # number of a step by which whiteners are renewed at their period


def perceptron(*sizes: int) -> tuple[nn.Module, Tensor]:
    """ReLU layers of ``sizes``, and inputs."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), torch.randn(64, sizes[0])


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (
                    nn.ReLU(),
                    nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(channels),
                )
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def resnet(channels: int, blocks: int) -> tuple[nn.Module, Tensor]:
    """A small residual network on 8x8 pictures."""
    body = [Residual(channels) for _ in range(blocks)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    first = nn.Conv2d(3, channels, 3, padding=1, bias=False)
    return nn.Sequential(first, *body, *head), torch.randn(8, 3, 8, 8)


class Logits(nn.Module):
    """GPT-2 from tokens to logits."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.gpt = GPT2LMHeadModel(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gpt(tokens, use_cache=False).logits


def gpt(width: int, layers: int) -> tuple[nn.Module, Tensor]:
    """GPT-2 with 512 tokens."""
    config = GPT2Config(
        n_embd=width,
        n_layer=layers,
        n_head=4,
        vocab_size=512,
        n_positions=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Logits(config), torch.randint(512, (4, 16))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "perceptron 0.1 M": partial(perceptron, 784, 128, 10),
    "perceptron 1 M": partial(perceptron, 784, 1024, 256, 10),
    "perceptron 10 M, deep": partial(perceptron, 784, 1024, *[256, 1024] * 18, 10),
    "perceptron 10 M": partial(perceptron, 784, 2048, 2048, 2048, 10),
    "ResNet 0.1 M": partial(resnet, 32, 5),
    "ResNet 1 M": partial(resnet, 96, 6),
    "ResNet 10 M": partial(resnet, 256, 8),
    "GPT 0.1 M": partial(gpt, 48, 3),
    "GPT 1 M": partial(gpt, 128, 5),
    "GPT 10 M": partial(gpt, 384, 6),
}
ADAMS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "Adam": Adam,
    "Adam, foreach": partial(Adam, foreach=True),
    "Adam, fused": partial(Adam, fused=True),
}
OURS: dict[str, Callable[[nn.Module, tuple[Tensor]], Optimizer]] = {
    "LearnedOptimizer": LearnedOptimizer.for_model,
    COMPILED: partial(LearnedOptimizer.for_model, compile=True),
    "LearnedOptimizer, no graph": lambda model, _: LearnedOptimizer(model.parameters()),
    "LearnedOptimizer, permutations alone": partial(LearnedOptimizer.for_model, rule="permutation"),
    "LearnedOptimizer, graph network": partial(LearnedOptimizer.for_model, rule=UpdateRule()),
    "GaugeAdam": GaugeAdam.for_model,
    "GaugeMuon": GaugeMuon.for_model,
    "PathSGD": PathSGD.for_model,
}


def measure(name: str, network: str) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, inputs = NETWORKS[network]()
    optimizer = ADAMS[name](model.parameters()) if name in ADAMS else OURS[name](model, (inputs,))
    model(inputs).square().mean().backward()
    count = sum(p.numel() for p in model.parameters())
    if name == COMPILED:
        optimizer.step()
    baseline = reset_peak_bytes() - _state_bytes(optimizer)
    seconds = cpu_seconds(optimizer.step, repeats=STEPS)
    later = _later_seconds(optimizer) if name in OURS else seconds
    state, peak = _state_bytes(optimizer), peak_bytes()
    mean = sum(seconds) / len(seconds)
    return {
        "network": network,
        "optimizer": name,
        "parameters": count,
        "ms per step": 1e3 * mean,
        "us per parameter": 1e6 * mean / count,
        "us per parameter later": 1e6 * sum(later) / len(later) / count,
        "state bytes per parameter": state / count,
        "peak extra bytes per parameter": (peak - baseline) / count,
        "allocated bytes per parameter": _allocated_bytes(optimizer) / count,
        "peak MB in all": peak / 1e6,
    }


def _state_bytes(optimizer: Optimizer) -> int:
    return sum(
        value.nbytes
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    )


def _allocated_bytes(optimizer: Optimizer) -> int:
    """What tensors take at most within some steps, beside what there is before and after."""
    _set_step(optimizer, 1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        for _ in range(ALLOCATING_STEPS):
            optimizer.step()
    events = found.profiler.kineto_results.events()
    sizes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return max(accumulate(size for _, size in sorted(sizes, key=itemgetter(0))))


def _later_seconds(optimizer: Optimizer) -> list[float]:
    """CPU seconds of steps after the first ones."""
    _set_step(optimizer, LATER - 1)
    return cpu_seconds(optimizer.step, repeats=LATER_STEPS)


def _set_step(optimizer: Optimizer, number: int) -> None:
    for own in optimizer.state.values():
        own["step"].fill_(number)


if __name__ == "__main__":
    networks, names = list(NETWORKS), [*ADAMS, *OURS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=networks, default=networks)
    parser.add_argument("--optimizers", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    known = json.loads((RESULTS / "optimizer_step.json").read_text())["rows"]
    rows = {(row["network"], row["optimizer"]): row for row in known}
    for network in arguments.networks:
        for name in arguments.optimizers:
            with context.Pool(1) as pool:
                rows[network, name] = pool.apply(measure, (name, network))
            print(network, name, f"{rows[network, name]['us per parameter']:.3g} us", flush=True)
    for (network, _), row in rows.items():
        row["times Adam"] = row["ms per step"] / rows[network, "Adam"]["ms per step"]
    order = [(network, name) for network in networks for name in names]
    report("optimizer_step", [rows[key] for key in order if key in rows])
