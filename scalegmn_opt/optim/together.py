"""Parameters that a rule works on as one, so that many small ones cost little more than one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from scalegmn_opt.graph import WeightBlock, WeightGraph
from scalegmn_opt.optim.directions import constants
from scalegmn_opt.optim.state import State
from scalegmn_opt.optim.units import step_scale

_STACKED = 1 << 16  # largest number of weights of a stack


@dataclass(frozen=True)
class Given:
    """What a step is given, with weights as edges by block, and what a rule makes of kinds."""

    graph: WeightGraph
    weights: Mapping[str, Tensor]
    grads: Mapping[str, Tensor]
    state: State
    factors: Mapping[str, Tensor]

    def states(self, names: Sequence[str], key: str) -> list[Tensor]:
        """One entry of the states of some parameters."""
        return [self.state[name][key] for name in names]

    def kind_factors(self, blocks: Sequence[WeightBlock]) -> Tensor:
        """What kinds of blocks multiply steps by (blocks,)."""
        return torch.stack([self.factors[block.name] for block in blocks])

    def scales(self, blocks: Sequence[WeightBlock]) -> Tensor:
        """Relative sizes of steps (blocks,)."""
        like = next(iter(self.weights.values()))
        return constants([step_scale(self.graph, block) for block in blocks], like)


@lru_cache(maxsize=256)
def together(
    graph: WeightGraph, names: tuple[str, ...], *, alone: bool
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Parameters that are worked on as one: stacks of congruent ones, and all biases.

    A stack has a bounded number of weights: small blocks cost less together, large ones need
    their memory one after the other. Those with a kept whitener are all larger.

    Args:
        names: of these parameters.
        alone: each parameter but biases by itself.
    """
    stacks: dict[Any, list[list[str]]] = {}
    biases = []
    for name in names:
        blocks = graph.parameters[name]
        if len(blocks) == 1 and _is_plain_bias(blocks[0]):
            biases.append(name)
            continue
        count = prod(blocks[0].parameter_shape)
        looks = tuple((b.pattern, b.sizes, b.ends, b.window, b.is_vector) for b in blocks)
        known = stacks.setdefault(name if alone else looks, [[]])
        if count * (len(known[-1]) + 1) > _STACKED:
            known.append([])
        known[-1].append(name)
    found = tuple(tuple(names) for known in stacks.values() for names in known if names)
    return found, tuple(biases)


def _is_plain_bias(block: WeightBlock) -> bool:
    return block.is_vector and block.shape[1:] == (1, 1) and block.folds == 1


def joint(values: Sequence[Tensor]) -> Tensor:
    """Values (batch, ...) one after the other, (stack · batch, ...)."""
    return values[0] if len(values) == 1 else torch.cat(list(values))


def below(values: Sequence[Tensor]) -> Tensor:
    """Values (batch, ...) of neurons one below the other, (batch, neurons)."""
    return torch.cat([x.reshape(len(x), -1) for x in values], 1)


def given_back(
    names: Sequence[str],
    state: State,
    changed: Mapping[str, Sequence[Tensor]],
    *,
    overwrites: bool,
) -> State:
    """The states of parameters that were worked on as one, from what of them changed.

    Args:
        overwrites: into the memory of ``state``.
    """
    keys = list(changed)
    olds = [state[name][key] for name in names for key in keys]
    news = [changed[key][i] for i in range(len(names)) for key in keys]
    news = [new.reshape(old.shape) for new, old in zip(news, olds, strict=True)]
    if overwrites:
        torch._foreach_copy_(olds, news)
        return {name: state[name] for name in names}
    own = (news[i : i + len(keys)] for i in range(0, len(news), len(keys)))
    return {
        name: {**state[name], **dict(zip(keys, found, strict=True))}
        for name, found in zip(names, own, strict=True)
    }
