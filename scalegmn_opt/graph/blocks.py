"""One parameter, or a part of one, as the edges between two groups of neurons."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from einops import rearrange
from torch import Tensor

CONSTANT = "1"  # name of the group with the one neuron whose activation is 1: the source of biases


@dataclass(frozen=True)
class Window:
    """A part of a parameter: its shape is viewed as ``shape``, of which ``ranges`` are taken."""

    parameter_shape: tuple[int, ...]
    shape: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        whole = zip(self.ranges, self.shape, strict=True)
        return ", ".join(":" if r == (0, size) else f"{r[0]}:{r[1]}" for r, size in whole)

    def view(self, values: Tensor) -> Tensor:
        """The part (batch, *sizes of the ranges) of a parameter (batch, *shape).

        It shares the memory of a contiguous one.
        """
        part = values.reshape(len(values), *self.shape)
        return part[(slice(None), *(slice(*r) for r in self.ranges))]


@dataclass(frozen=True)
class WeightBlock:
    """A parameter, or a part of one, as the edges from a ``source`` group to a ``target`` group.

    ``pattern`` is the parameter's einops pattern over axes that are called ``out*``, ``src*``,
    ``blk*`` or ``k*``, with the length of each in ``sizes``, e.g. ``"out (src k0)"`` for a linear
    layer after a flatten. A ``k`` axis is a kernel: parallel edges. A ``blk`` axis is shared by
    both ends, as the channel of a depthwise convolution or the groups of a grouped one: there are
    ``folds`` smaller blocks, which are kept in the batch axis. ``ends`` has the axes of the target
    and of the source neurons in their groups' order. A parameter without ``src`` or ``blk`` axes
    and with :data:`CONSTANT` as its source is a bias.
    """

    parameter: str
    target: str
    source: str
    pattern: str
    sizes: tuple[tuple[str, int], ...]
    ends: tuple[str, str] = ("out", "src")
    window: Window | None = None

    @cached_property
    def name(self) -> str:
        """The parameter's name, and the part of it where a parameter has several blocks."""
        return f"{self.parameter}[{self.window}]" if self.window else self.parameter

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Number of target neurons, source neurons and kernel elements of each fold."""
        out, source = (prod(self._size[name] for name in self._own(end)) for end in self.ends)
        kernel = (size for name, size in self.sizes if name.startswith("k"))
        return out, source, prod(kernel)

    @cached_property
    def nodes(self) -> tuple[int, int]:
        """Number of target and of source neurons of all folds together."""
        out, source, _ = self.shape
        return out * self.folds, source * (1 if self.is_vector else self.folds)

    @cached_property
    def folds(self) -> int:
        """Number of blocks on the diagonal, 1 for all but grouped weights."""
        return prod(size for name, size in self.sizes if name.startswith("blk"))

    @cached_property
    def parameter_shape(self) -> tuple[int, ...]:
        """Shape of the parameter itself."""
        if self.window:
            return self.window.parameter_shape
        return self._part_shape

    @cached_property
    def _part_shape(self) -> tuple[int, ...]:
        return tuple(parse_shape(self.pattern, self._size))

    @cached_property
    def is_vector(self) -> bool:
        """Whether the block is a bias: edges from the constant neuron."""
        return self.source == CONSTANT

    @cached_property
    def _size(self) -> dict[str, int]:
        return dict(self.sizes)

    def _own(self, end: str) -> list[str]:
        """Axes of an end that the other end does not have."""
        return [name for name in end.split() if name in self._size and not name.startswith("blk")]

    @cached_property
    def _blk(self) -> str:
        return " ".join(name for name in self.ends[0].split() if name.startswith("blk"))

    @cached_property
    def _layout(self) -> tuple[list[int], list[int]]:
        """Sizes of the pattern's axes, and which of them each axis of the edges is."""
        names = re.findall(r"[^()\s]+", self.pattern)
        kernel = [name for name, _ in self.sizes if name.startswith("k")]
        edges = [*self._blk.split(), *self._own(self.ends[0]), *self._own(self.ends[1]), *kernel]
        return [self._size[name] for name in names], [names.index(name) for name in edges]

    def pack(self, values: Tensor) -> Tensor:
        """A parameter or gradient (batch, *shape) as edges (batch · folds, out, in, kernel)."""
        part = self.window.view(values) if self.window else values
        (sizes, order), batch = self._layout, part.shape[0]
        if order == sorted(order):
            return part.reshape(batch * self.folds, *self.shape)
        axes = part.reshape(batch, *sizes).permute(0, *(1 + i for i in order))
        return axes.reshape(batch * self.folds, *self.shape)

    def unpack(self, edges: Tensor) -> Tensor:
        """Edges as the parameter (batch, *shape), or as the part of it; inverse of ``pack``."""
        (sizes, order), batch = self._layout, edges.shape[0] // self.folds
        if order == sorted(order):
            return edges.reshape(batch, *self._part_shape)
        axes = edges.reshape(batch, *(sizes[i] for i in order))
        places = sorted(range(len(order)), key=order.__getitem__)
        return axes.permute(0, *(1 + i for i in places)).reshape(batch, *self._part_shape)

    def fold(self, nodes: Tensor, end: int) -> Tensor:
        """Target (0) or source (1) neurons (batch, nodes, ...) as (batch · folds, own nodes, ...).

        As the edges are: each fold has the neurons that it connects.
        """
        if self.folds == 1:
            return nodes
        own = " ".join(self._own(self.ends[end]))
        pattern = f"b ({self.ends[end]}) ... -> (b {self._blk}) ({own}) ..."
        return rearrange(nodes, pattern, **self._node_sizes(end))

    def unfold(self, nodes: Tensor, end: int) -> Tensor:
        """The inverse of :meth:`fold`."""
        if self.folds == 1:
            return nodes
        own = " ".join(self._own(self.ends[end]))
        pattern = f"(b {self._blk}) ({own}) ... -> b ({self.ends[end]}) ..."
        return rearrange(nodes, pattern, **self._node_sizes(end))

    def _node_sizes(self, end: int) -> dict[str, int]:
        return {name: self._size[name] for name in self.ends[end].split()}


def parse_shape(pattern: str, sizes: Mapping[str, int]) -> list[int]:
    """The lengths of the dimensions of an einops ``pattern`` without nested parentheses."""
    dims = re.findall(r"\(([^)]*)\)|(\S+)", pattern)
    return [prod(sizes[axis] for axis in (inner or outer).split()) for inner, outer in dims]
