"""Which tensor axes are the same neurons? Union-find over axes, with products for reshapes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from scalegmn_opt.graph.groups import Activation, Symmetry, common_symmetry

Dim = tuple[int, ...]  # one tensor dimension as a product of axes, major first
Dims = tuple[Dim, ...]


@dataclass
class _Facts:
    """What is known about one set of equal axes."""

    size: int
    produced: bool = False  # the output of a weight: neurons of this network
    fixed: str = ""  # why the axis may not be acted on
    symmetries: list[Symmetry] = field(default_factory=list)
    activations: list[Activation] = field(default_factory=list)


class AxisTable:
    """Axes of all tensors of a traced program; equal axes share their facts."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._facts: list[_Facts] = []
        self._factors: dict[int, Dim] = {}  # an axis that turned out to be a product

    def new(self, size: int, *, fixed: str = "") -> int:
        """A new axis of ``size`` elements."""
        self._parent.append(len(self._parent))
        self._facts.append(_Facts(size, fixed=fixed))
        return len(self._parent) - 1

    def new_dims(self, shape: Sequence[int], *, fixed: str = "") -> Dims:
        """One new axis for each dimension of ``shape``."""
        return tuple((self.new(int(size), fixed=fixed),) for size in shape)

    def root(self, axis: int) -> int:
        """The representative of the set that ``axis`` belongs to."""
        while self._parent[axis] != axis:
            self._parent[axis] = self._parent[self._parent[axis]]
            axis = self._parent[axis]
        return axis

    def facts(self, axis: int) -> _Facts:
        """The facts shared by the set of ``axis``."""
        return self._facts[self.root(axis)]

    def resolve(self, dim: Dim) -> Dim:
        """``dim`` as a product of representatives that are not products themselves."""
        out: list[int] = []
        for axis in map(self.root, dim):
            out += self.resolve(self._factors[axis]) if axis in self._factors else [axis]
        return tuple(out)

    def size(self, dim: Dim) -> int:
        """Number of elements along ``dim``."""
        return prod(self.facts(axis).size for axis in dim)

    def split(self, axis: int, sizes: Sequence[int]) -> Dim:
        """Factor an axis into axes of ``sizes``, major first; each inherits its facts."""
        whole = self.facts(axis)
        parts = tuple(self.new(size, fixed=whole.fixed) for size in sizes)
        for part in parts:
            facts = self.facts(part)
            facts.produced = whole.produced
            facts.symmetries = list(whole.symmetries)
            facts.activations = list(whole.activations)
        self._factors[self.root(axis)] = parts
        return parts

    def unite(self, first: Dim, second: Dim) -> None:
        """Say that two dimensions of equal length run over the same neurons in the same order."""
        left, right = list(self.resolve(first)), list(self.resolve(second))
        while left and right:
            a, b = left.pop(), right.pop()
            size_a, size_b = self.facts(a).size, self.facts(b).size
            if size_a == size_b:
                self._join(a, b)
            elif size_a % size_b == 0:
                left += self.split(a, (size_a // size_b, size_b))
                right.append(b)
            elif size_b % size_a == 0:
                right += self.split(b, (size_b // size_a, size_a))
                left.append(a)
            else:
                self.fix([(*left, a), (*right, b)], "reshaped across neurons")
                return
            left, right = list(self.resolve(tuple(left))), list(self.resolve(tuple(right)))

    def _join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a == b:
            return
        self._parent[b] = a
        mine, other = self._facts[a], self._facts[b]
        mine.produced |= other.produced
        mine.fixed = mine.fixed or other.fixed
        mine.symmetries += other.symmetries
        mine.activations += other.activations

    def reshape(self, dims: Dims, shape: Sequence[int]) -> Dims:
        """The dimensions of a view of ``shape``: factors are regrouped, and split where needed."""
        factors = [axis for dim in dims for axis in self.resolve(dim)]
        out: list[Dim] = []
        for size in map(int, reversed(shape)):
            taken: list[int] = []
            missing = size
            while missing > 1:
                axis = factors.pop()
                length = self.facts(axis).size
                if missing % length == 0:
                    taken.insert(0, axis)
                    missing //= length
                elif length % missing == 0:
                    factors += self.split(axis, (length // missing, missing))
                else:
                    self.fix(dims, "reshaped across neurons")
                    return self.new_dims(shape, fixed="reshaped across neurons")
            out.insert(0, tuple(taken) or (self.new(1),))
        return tuple(out)

    def fix(self, dims: Sequence[Dim], reason: str) -> None:
        """Forbid to act on the axes of ``dims``."""
        for dim in dims:
            for axis in self.resolve(dim):
                self.facts(axis).fixed = self.facts(axis).fixed or reason

    def constrain(self, dims: Sequence[Dim], symmetry: Symmetry) -> None:
        """Allow on the axes of ``dims`` what ``symmetry`` allows, at most."""
        for dim in dims:
            for axis in self.resolve(dim):
                self.facts(axis).symmetries.append(symmetry)

    def activate(self, dims: Sequence[Dim], activation: Activation) -> None:
        """Record an elementwise activation on a tensor with ``dims``."""
        self.constrain(dims, activation.symmetry)
        for dim in dims:
            for axis in self.resolve(dim):
                self.facts(axis).activations.append(activation)

    def produce(self, dim: Dim) -> None:
        """Mark ``dim`` as the output neurons of a weight."""
        for axis in self.resolve(dim):
            self.facts(axis).produced = True

    def is_free(self, axis: int) -> bool:
        """Whether the axis is neurons of this network that may be acted on."""
        facts = self.facts(axis)
        return facts.produced and not facts.fixed

    def symmetry(self, axis: int) -> Symmetry:
        """What all uses of a free axis allow."""
        return common_symmetry(self.facts(axis).symmetries)
