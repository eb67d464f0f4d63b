"""Which network is this? Groups of neurons and the weights between them, without any tensor."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod

from einops import rearrange
from torch import Tensor

from scalegmn_opt.graph.groups import FIXED, Activation, Symmetry

CONSTANT = "1"  # name of the group with the one neuron whose activation is 1: the source of biases


class Role(StrEnum):
    """The place of a neuron group in its network."""

    CONSTANT = "constant"  # the neuron 1 that biases start from
    INPUT = "input"
    HIDDEN = "hidden"
    OUTPUT = "output"
    FIXED = "fixed"  # not understood by the tracer: processed, but no symmetry claimed


@dataclass(frozen=True)
class NeuronGroup:
    """Neurons that are acted on together, e.g. the channels of one feature map."""

    name: str
    size: int
    role: Role
    symmetry: Symmetry = FIXED
    activation: Activation | None = None  # None: none, or more than one


@dataclass(frozen=True)
class WeightBlock:
    """One parameter as the edges from a ``source`` group to a ``target`` group.

    ``pattern`` is the parameter's einops pattern over the axes ``out``, ``src`` and any number of
    kernel axes, ``sizes`` the length of each, e.g. ``"out (src k0)"`` for a linear layer after a
    flatten. A parameter without a ``src`` axis (a bias) starts at the constant neuron.
    """

    parameter: str
    target: str
    source: str
    pattern: str
    sizes: tuple[tuple[str, int], ...]

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Number of target neurons, source neurons and kernel elements: (out, in, kernel)."""
        sizes = dict(self.sizes)
        out, source = sizes.pop("out", 1), sizes.pop("src", 1)
        return out, source, prod(sizes.values())

    @cached_property
    def parameter_shape(self) -> tuple[int, ...]:
        """Shape of the parameter itself."""
        return tuple(parse_shape(self.pattern, dict(self.sizes)))

    @cached_property
    def is_vector(self) -> bool:
        """Whether the block is a bias: edges from the constant neuron."""
        return self.source == CONSTANT

    @cached_property
    def _edges(self) -> str:
        names = [name for name, _ in self.sizes]
        kernel = " ".join(name for name in names if name not in ("out", "src"))
        return " ".join(name if name in names else "1" for name in ("out", "src")) + f" ({kernel})"

    def pack(self, values: Tensor) -> Tensor:
        """A parameter or gradient (batch, *shape) as edges (batch, out, in, kernel)."""
        return rearrange(values, f"b {self.pattern} -> b {self._edges}", **dict(self.sizes))

    def unpack(self, edges: Tensor) -> Tensor:
        """Edges (batch, out, in, kernel) as a parameter (batch, *shape); inverse of ``pack``."""
        return rearrange(edges, f"b {self._edges} -> b {self.pattern}", **dict(self.sizes))


@dataclass(frozen=True)
class WeightGraph:
    """The neuron groups and weight blocks of one network: frozen, hashable, without tensors.

    Raises:
        ValueError: if two groups or blocks share a name, a block names an unknown group, or a
            block's sizes differ from its groups'.
    """

    groups: tuple[NeuronGroup, ...]
    blocks: tuple[WeightBlock, ...]

    def __post_init__(self) -> None:
        _require_unique("groups", [group.name for group in self.groups])
        _require_unique("blocks", [block.parameter for block in self.blocks])
        for block in self.blocks:
            for end, name, size in zip(
                ("target", "source"), (block.target, block.source), block.shape, strict=False
            ):
                if name not in self.group:
                    raise ValueError(f"{end} of block {block.parameter!r}: no group {name!r}")
                if self.group[name].size != size:
                    raise ValueError(
                        f"{end} of block {block.parameter!r}: expected {self.group[name].size} "
                        f"neurons of group {name!r}, got {size}"
                    )

    @classmethod
    def from_parameters(cls, shapes: Mapping[str, Iterable[int]]) -> "WeightGraph":
        """The graph of parameters of which only shapes are known: isolated fixed blocks."""
        parts = [isolated(name, tuple(shape)) for name, shape in shapes.items()]
        groups = [group for groups, _ in parts for group in groups]
        return cls((constant_group(), *groups), tuple(block for _, block in parts))

    @cached_property
    def group(self) -> dict[str, NeuronGroup]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    @cached_property
    def incoming(self) -> dict[str, tuple[WeightBlock, ...]]:
        """Blocks by the name of their target group."""
        return {g.name: tuple(b for b in self.blocks if b.target == g.name) for g in self.groups}

    def self_inverse(self, block: WeightBlock) -> bool:
        """Whether gradients of a block transform as its weights do (no positive scale)."""
        return all(self.group[e].symmetry.self_inverse for e in (block.target, block.source))

    @cached_property
    def node_vectors(self) -> tuple[WeightBlock, ...]:
        """The blocks that start at the constant neuron: biases and other vectors on neurons."""
        return tuple(block for block in self.blocks if block.is_vector)

    @cached_property
    def fan_in(self) -> dict[str, int]:
        """Incoming weights of one neuron, biases not counted, by group name (at least 1)."""
        weights = {
            name: sum(b.shape[1] * b.shape[2] for b in blocks if not b.is_vector)
            for name, blocks in self.incoming.items()
        }
        return {name: max(count, 1) for name, count in weights.items()}

    @cached_property
    def fan_out(self) -> dict[str, int]:
        """Outgoing weights of one neuron by group name (at least 1)."""
        counts = dict.fromkeys(self.group, 0)
        for block in self.blocks:
            counts[block.source] += block.shape[0] * block.shape[2]
        return {name: max(count, 1) for name, count in counts.items()}

    @cached_property
    def sweep(self) -> tuple[tuple[str, tuple[WeightBlock, ...]], ...]:
        """Groups in forward order, each with the incoming blocks whose sources come before it."""
        done = {g.name for g in self.groups if all(b.is_vector for b in self.incoming[g.name])}
        steps = [(name, self.incoming[name]) for name in self.group if name in done]
        while len(done) < len(self.groups):
            name = self._next_group(done)
            blocks = tuple(b for b in self.incoming[name] if b.source in done)
            steps.append((name, blocks))
            done.add(name)
        return tuple(steps)

    def _next_group(self, done: set[str]) -> str:
        waiting = [name for name in self.group if name not in done]

        def missing(name: str) -> tuple[bool, int]:
            known = [b.source in done for b in self.incoming[name] if not b.is_vector]
            return not any(known), known.count(False)

        return min(waiting, key=missing)

    @cached_property
    def depth(self) -> dict[str, int]:
        """Number of weight blocks on the way to a group, along the forward sweep."""
        depth = dict.fromkeys(self.group, 0)
        for name, blocks in self.sweep:
            sources = [depth[b.source] for b in blocks if not b.is_vector and b.source != name]
            depth[name] = 1 + max(sources) if sources else 0
        return depth


def constant_group() -> NeuronGroup:
    """The group of the one neuron whose activation is 1."""
    return NeuronGroup(CONSTANT, 1, Role.CONSTANT)


def isolated(name: str, shape: tuple[int, ...]) -> tuple[list[NeuronGroup], WeightBlock]:
    """The fixed groups and the block of a parameter that nothing is known about."""
    axes = ["out", "src", *(f"k{i}" for i in range(len(shape) - 2))][: len(shape)]
    sizes = tuple(zip(axes, shape, strict=True))
    size = dict(sizes)
    target = NeuronGroup(f"{name}:out", size.get("out", 1), Role.FIXED)
    if "src" not in size:
        return [target], WeightBlock(name, target.name, CONSTANT, " ".join(axes), sizes)
    source = NeuronGroup(f"{name}:in", size["src"], Role.FIXED)
    return [source, target], WeightBlock(name, target.name, source.name, " ".join(axes), sizes)


def parse_shape(pattern: str, sizes: Mapping[str, int]) -> list[int]:
    """The lengths of the dimensions of an einops ``pattern`` without nested parentheses."""
    dims = re.findall(r"\(([^)]*)\)|(\S+)", pattern)
    return [prod(sizes[axis] for axis in (inner or outer).split()) for inner, outer in dims]


def _require_unique(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what}: expected distinct names, got {twice} more than once")
