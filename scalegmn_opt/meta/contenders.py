"""Optimizers to compare, by name, with the settings that each is tuned over."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scalegmn_opt.optim import GaugeAdam, GaugeMuon, LearnedOptimizer, UpdateRule

Settings = Mapping[str, float]
_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
_TRIALS = 20  # of the random search
LEARNED = "learned:"
NO_GRAPH = "no-graph:"
_OF_BASELINES = ("muon", "soap")
_ADAM_BY_MUON = {"betas": (0.9, 0.999), "eps": 1e-8}  # as torch.optim.Adam has them


class Stepper(Protocol):
    """What a training loop needs of an optimizer."""

    def step(self) -> Any:
        """Change the parameters by their gradients."""

    def zero_grad(self) -> None:
        """Forget the gradients."""


Make = Callable[[nn.Module, Sequence[Any], Settings], Stepper]


@dataclass(frozen=True)
class Contender:
    """An optimizer to compare.

    Args:
        make: makes it for a module, example inputs and settings.
        grid: the settings to choose from on each task; where there is but one, nothing is tuned.
        default: the settings of who does not tune, None if those of the grid need no tuning.
    """

    make: Make
    grid: tuple[Settings, ...] = ({},)
    default: Settings | None = None


def _sgd(model: nn.Module, inputs: Sequence[Any], settings: Settings) -> Stepper:
    return torch.optim.SGD(model.parameters(), momentum=0.9, **settings)


def _adam(model: nn.Module, inputs: Sequence[Any], settings: Settings) -> Stepper:
    return torch.optim.Adam(model.parameters(), **settings)


def _adamw(model: nn.Module, inputs: Sequence[Any], settings: Settings) -> Stepper:
    return torch.optim.AdamW(model.parameters(), **settings)


def _nadamw(model: nn.Module, inputs: Sequence[Any], settings: Settings) -> Stepper:
    return torch.optim.NAdam(
        model.parameters(),
        lr=settings["lr"],
        betas=(1 - settings["1-beta1"], 1 - settings["1-beta2"]),
        weight_decay=settings["weight_decay"],
        decoupled_weight_decay=True,
    )


def _baselines() -> Any:
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise ImportError(
            "the contenders muon and soap need pytorch_optimizer: "
            'pip install "scalegmn-opt[baselines]"'
        ) from error
    return pytorch_optimizer


def _muon(model: nn.Module, inputs: Sequence[Any], settings: Settings) -> Stepper:
    """Muon for matrices and kernels, Adam for the rest, at one learning rate."""
    params = list(model.parameters())
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "use_muon": True, "use_adjusted_lr": True},
        {"params": [p for p in params if p.ndim < 2], "use_muon": False, **_ADAM_BY_MUON},
    ]
    return _float32_muon()([{**group, **settings} for group in groups if group["params"]])


@cache
def _float32_muon() -> Any:
    """Muon that iterates in float32: many CPUs emulate bfloat16."""
    from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5

    class Float32Muon(_baselines().Muon):
        @staticmethod
        def _orthogonalize(group: Mapping[str, Any], updates: Sequence[Tensor]) -> list[Tensor]:
            options = {"num_steps": group["ns_steps"], "weights": group["ns_coeffs"]}
            return [
                zero_power_via_newton_schulz_5(x.flatten(1), dtype=torch.float32, **options)
                for x in updates
            ]

    return Float32Muon


def _soap(model: nn.Module, inputs: Sequence[Any], settings: Settings) -> Stepper:
    return _baselines().SOAP(model.parameters(), weight_decay=0.0, **settings)


def _gauge_adam(model: nn.Module, inputs: Sequence[Any], settings: Settings) -> Stepper:
    return GaugeAdam.for_model(model, inputs)


def _gauge_muon(model: nn.Module, inputs: Sequence[Any], settings: Settings) -> Stepper:
    return GaugeMuon.for_model(model, inputs)


def _no_graph(model: nn.Module, inputs: Sequence[Any], settings: Settings) -> Stepper:
    return LearnedOptimizer(model.parameters())


def _untrained(model: nn.Module, inputs: Sequence[Any], settings: Settings) -> Stepper:
    return LearnedOptimizer.for_model(model, inputs, rule=UpdateRule(channels=0))


def _learned(weights: str, *, graph: bool) -> Make:
    rule = UpdateRule.from_pretrained(weights)

    def make(model: nn.Module, inputs: Sequence[Any], settings: Settings) -> Stepper:
        if not graph:
            return LearnedOptimizer(model.parameters(), rule=rule)
        return LearnedOptimizer.for_model(model, inputs, rule=rule)

    return make


def _rates(*values: float) -> tuple[Settings, ...]:
    return tuple({"lr": lr} for lr in values)


def _search() -> tuple[Settings, ...]:
    """Random settings, always the same: each log-uniform in its range."""
    ranges = {
        "lr": (1e-4, 1e-1),
        "1-beta1": (0.03, 0.3),
        "1-beta2": (1e-3, 1e-1),
        "weight_decay": (1e-5, 1e-1),
    }
    draws = torch.rand(_TRIALS, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return tuple(
        {
            name: low * math.exp(float(u) * math.log(high / low))
            for u, (name, (low, high)) in zip(row, ranges.items(), strict=True)
        }
        for row in draws
    )


_NADAMW_DEFAULT: Settings = {"lr": 2e-3, "1-beta1": 0.1, "1-beta2": 1e-3, "weight_decay": 0.01}
CONTENDERS: dict[str, Contender] = {
    "sgd": Contender(_sgd, _rates(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0), {"lr": 1e-3}),
    "adam": Contender(_adam, _rates(*_RATES), {"lr": 1e-3}),
    "adamw": Contender(_adamw, _rates(*_RATES), {"lr": 1e-3}),
    "nadamw": Contender(_nadamw, _search(), _NADAMW_DEFAULT),
    "muon": Contender(_muon, _rates(*_RATES), {"lr": 1e-3}),
    "soap": Contender(_soap, _rates(*_RATES), {"lr": 3e-3}),
    "gauge-adam": Contender(_gauge_adam),
    "gauge-muon": Contender(_gauge_muon),
    "no-graph": Contender(_no_graph),
    "untrained": Contender(_untrained),
}


def contender(name: str) -> Contender:
    """The contender called ``name``; ``learned:WEIGHTS`` by packaged name or path.

    ``no-graph:WEIGHTS`` is a rule that is given no model, one of ``graph: false``.

    Raises:
        ValueError: if there is none.
        FileNotFoundError: if there are no such weights.
        ImportError: if it is of a package that is not installed.
    """
    for prefix, graph in ((LEARNED, True), (NO_GRAPH, False)):
        if name.startswith(prefix):
            return Contender(_learned(name.removeprefix(prefix), graph=graph))
    if name not in CONTENDERS:
        raise ValueError(
            f"unknown optimizer {name!r}; choose from {sorted(CONTENDERS)}, 'learned:WEIGHTS' or "
            "'no-graph:WEIGHTS'"
        )
    if name in _OF_BASELINES:
        _baselines()
    return CONTENDERS[name]
