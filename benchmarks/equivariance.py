"""Do trainings from equivalent parameters stay equivalent? Ours beside Adam, in float64.

`python benchmarks/equivariance.py`: two copies of a network, one of them with permuted neurons, or
with permuted and rescaled ones (by exp(N(0, 1)) where an activation or normalisation allows, signs
where it does not), are trained for 20 steps on the same batches. What is reported is the largest
difference of their outputs, relative to the largest output. Rescaling is a symmetry of a
normalisation but for its epsilon, which is 0 here, and in one row as it is.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, Optimizer
from tqdm import tqdm

from scalegmn_opt import LearnedOptimizer, UpdateRule, random_transform, trace
from scalegmn_opt.optim import GaugeAdam, GaugeMuon, PathSGD
from scalegmn_opt.symmetry import only_permuted
from scalegmn_opt.tasks import digits
from scalegmn_opt.tasks.models import CharTransformer, conv_net, mlp
from scalegmn_opt.tasks.sources import text

STEPS, BATCH = 20, 64
NORMS = (nn.BatchNorm2d, nn.LayerNorm)


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def without_epsilon(model: nn.Module) -> nn.Module:
    """``model`` with normalisations that are symmetric to rounding."""
    for module in model.modules():
        if isinstance(module, NORMS):
            module.eps = 1e-300
    return model


def pictures(**options: Any) -> nn.Module:
    """A network of two convolutional stages for digits."""
    return conv_net((1, 8, 8), (8, 16), 10, activation=nn.ReLU, **options)


def transformer() -> nn.Module:
    """A transformer of two blocks for characters."""
    return CharTransformer(96, text(late=False).features, width=16, heads=2, depth=2)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: mlp((64, 32, 32, 10), nn.ReLU),
    "perceptron, tanh": lambda: mlp((64, 32, 32, 10), nn.Tanh),
    "CNN": partial(pictures, norm=False),
    "CNN, BatchNorm": lambda: without_epsilon(pictures(norm=True)),
    "CNN, BatchNorm, epsilon 1e-5": partial(pictures, norm=True),
    "ResNet": lambda: without_epsilon(pictures(norm=True, residual=True)),
    "transformer": lambda: without_epsilon(transformer()),
}
OPTIMIZERS: dict[str, Callable[[nn.Module, tuple[Tensor]], Optimizer]] = {
    "LearnedOptimizer": LearnedOptimizer.for_model,
    "LearnedOptimizer, graph network": partial(LearnedOptimizer.for_model, rule=UpdateRule()),
    "LearnedOptimizer, no graph": lambda model, _: LearnedOptimizer(model.parameters()),
    "LearnedOptimizer, permutations alone": partial(LearnedOptimizer.for_model, rule="permutation"),
    "GaugeAdam": GaugeAdam.for_model,
    "GaugeMuon": GaugeMuon.for_model,
    "PathSGD": PathSGD.for_model,
    "Adam": lambda model, _: Adam(model.parameters(), lr=1e-3),
}


def batches(network: str) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets of each step, and of the comparison."""
    data = text(late=False) if network == "transformer" else digits()
    chosen = torch.randint(len(data.train_inputs), (STEPS + 1, BATCH), generator=seeded(0))
    inputs = data.train_inputs if network == "transformer" else data.train_inputs.double()
    return [(inputs[i], data.train_targets[i]) for i in chosen]


def trained(model: nn.Module, make: Callable[..., Optimizer], data: list[Any]) -> Tensor:
    """What the model computes on the last batch after a step on each of the others."""
    optimizer = make(model, (data[0][0],))
    for inputs, targets in data[:-1]:
        optimizer.zero_grad()
        cross_entropy(model(inputs).flatten(0, -2), targets.flatten()).backward()
        optimizer.step()
    return model(data[-1][0]).detach()


def measure(network: str, optimizer: str) -> dict[str, Any]:
    """One row."""
    torch.manual_seed(0)
    model, data = NETWORKS[network]().double(), batches(network)
    graph, make = trace(model, (data[0][0],)), OPTIMIZERS[optimizer]
    params = {name: p.detach()[None] for name, p in model.named_parameters()}
    begun = model(data[-1][0]).detach()
    expected = trained(copy.deepcopy(model), make, data)
    row: dict[str, Any] = {"network": network, "optimizer": optimizer}
    for label, known in (("permuted", only_permuted(graph)), ("and rescaled", graph)):
        moved = random_transform(known, seeded(1), spread=1.0).apply(params)
        model.load_state_dict({n: p[0] for n, p in moved.items()}, strict=False)
        found = trained(copy.deepcopy(model), make, data)
        row[label] = float((found - expected).abs().max() / expected.abs().max())
    row["change by training"] = float((expected - begun).abs().max() / expected.abs().max())
    return row


if __name__ == "__main__":
    torch.set_num_threads(1)
    pairs = [(network, optimizer) for network in NETWORKS for optimizer in OPTIMIZERS]
    report("equivariance", [measure(*pair) for pair in tqdm(pairs)])
