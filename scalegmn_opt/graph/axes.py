"""Which tensor axes are the same neurons? Union-find over axes, with products and sums."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from math import prod

Dim = tuple[int, ...]  # one tensor dimension as a product of axes, major first
Dims = tuple[Dim, ...]
POSITIONS = "positions"  # why axes of space are fixed: they are no neurons


@dataclass
class _Facts:
    """What is known about one set of equal axes."""

    size: int
    produced: bool = False  # the output of a weight: neurons of this network
    fixed: str = ""  # why the axis may not be reordered
    apart: set[int] = field(default_factory=set)  # axes whose order must not depend on this one


@dataclass(frozen=True)
class Piece:
    """A part of a dimension that is a plain product: one term of every sum on the way.

    An element with index ``i_k`` along axis ``k`` lies at ``offset + Σ_k stride_k i_k``. ``path``
    has the terms taken: an axis, and the range of it.
    """

    offset: int
    axes: tuple[int, ...]
    strides: tuple[int, ...]
    path: tuple[tuple[int, int, int], ...] = ()


class AxisTable:
    """Axes of all tensors of a traced program; equal axes share their facts.

    An axis may turn out to be a product of axes (a reshape), major first, or a sum of axes that
    follow one another (a concatenation, a split).
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._facts: list[_Facts] = []
        self._factors: dict[int, Dim] = {}
        self._terms: dict[int, Dim] = {}

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

    def atoms(self, dims: Sequence[Dim]) -> set[int]:
        """All axes of more than one element in ``dims``, resolved."""
        return {a for dim in dims for a in self.resolve(dim) if self.facts(a).size > 1}

    def size(self, dim: Dim) -> int:
        """Number of elements along ``dim``."""
        return prod(self.facts(axis).size for axis in dim)

    def pieces(self, dim: Dim) -> list[Piece]:
        """``dim`` as the sum of its pieces, in order."""
        stride = self.size(dim)
        parts: list[list[Piece]] = []
        for axis in dim:
            stride //= max(self.facts(axis).size, 1)
            parts.append(self._axis_pieces(axis, stride))
        return [_joined(combination) for combination in product(*parts)]

    def _axis_pieces(self, axis: int, stride: int) -> list[Piece]:
        root = self.root(axis)
        if root in self._factors:
            return [_strided(piece, stride) for piece in self.pieces(self._factors[root])]
        if root not in self._terms:
            return [Piece(0, (root,), (stride,)) if self.facts(root).size > 1 else Piece(0, (), ())]
        out, start = [], 0
        for term in self._last_terms(root):
            stop = start + self.facts(term).size
            for piece in self._axis_pieces(term, stride):
                path = ((axis, start, stop), *piece.path)
                out.append(Piece(piece.offset + start * stride, piece.axes, piece.strides, path))
            start = stop
        return out

    def _last_terms(self, axis: int) -> list[int]:
        """The terms of a sum, those that are sums again replaced by theirs."""
        terms = self.terms(axis)
        return [t for term in terms for t in self._last_terms(term)] if terms else [axis]

    def _new_like(self, axis: int, size: int) -> int:
        whole, part = self.facts(axis), self.new(size)
        facts = self._facts[part]
        facts.fixed, facts.produced, facts.apart = whole.fixed, whole.produced, set(whole.apart)
        return part

    def can_split(self, axis: int) -> bool:
        """Whether the axis may still be factored: a sum of axes may not."""
        return self.root(axis) not in self._terms

    def split(self, axis: int, sizes: Sequence[int]) -> Dim:
        """Factor an axis into axes of ``sizes``, major first; each inherits its facts."""
        parts = tuple(self._new_like(axis, size) for size in sizes)
        self._factors[self.root(axis)] = parts
        return parts

    def concatenate(self, dims: Sequence[Dim]) -> Dim:
        """A dimension that is the sum of ``dims``, in order."""
        whole = self.new(sum(map(self.size, dims)))
        self._terms[whole] = tuple(self._as_axis(dim) for dim in dims)
        self._facts[whole].produced = any(self.facts(t).produced for t in self._terms[whole])
        return (whole,)

    def _as_axis(self, dim: Dim) -> int:
        if len(dim) == 1:
            return dim[0]
        axis = self.new(self.size(dim))
        self._factors[axis] = dim
        self._facts[axis].produced = any(self.facts(a).produced for a in self.resolve(dim))
        return axis

    def terms(self, axis: int) -> Dim:
        """The axes that a sum consists of; none if it is not one."""
        return self._terms.get(self.root(axis), ())

    def take(self, dim: Dim, start: int, stop: int) -> Dim | None:
        """The range of a dimension as a dimension; None if it cuts through a product."""
        if (start, stop) == (0, self.size(dim)):
            return dim
        first, *rest = self._factored(dim)
        inner = self.size(tuple(rest))
        if start % inner or stop % inner:
            return None
        part = self._take_axis(first, start // inner, stop // inner)
        return None if part is None else (*part, *rest)

    def _take_axis(self, axis: int, start: int, stop: int) -> Dim | None:
        size, root = self.facts(axis).size, self.root(axis)
        if (start, stop) == (0, size):
            return (axis,)
        if root not in self._terms:
            bounds = sorted({0, start, stop, size})
            sizes = [b - a for a, b in pairwise(bounds)]
            self._terms[root] = tuple(self._new_like(root, size) for size in sizes)
        found: list[Dim] = []
        offset = 0
        for term in self._terms[root]:
            length = self.facts(term).size
            low, high = max(start - offset, 0), min(stop - offset, length)
            if low < high:
                part = self.take((term,), low, high)
                if part is None:
                    return None
                found.append(part)
            offset += length
        return found[0] if len(found) == 1 else self.concatenate(found)

    def unite(self, first: Dim, second: Dim) -> bool:
        """Say that two dimensions of equal length run over the same neurons in the same order.

        False, and both fixed, if their products and sums do not fit together.
        """
        left, right = self._factored(first), self._factored(second)
        while left and right:
            a, b = left.pop(), right.pop()
            size_a, size_b = self.facts(a).size, self.facts(b).size
            if size_a == size_b:
                if not self._join(a, b):
                    return self._misfit([(a,), (b,)])
            elif size_a % size_b == 0 and self.can_split(a):
                left += self.split(a, (size_a // size_b, size_b))
                right.append(b)
            elif size_b % size_a == 0 and self.can_split(b):
                right += self.split(b, (size_b // size_a, size_a))
                left.append(a)
            else:
                return self._misfit([(*left, a), (*right, b)])
            left, right = self._factored(tuple(left)), self._factored(tuple(right))
        return True

    def _factored(self, dim: Dim) -> list[int]:
        """The axes of a product that have more than one element."""
        return [axis for axis in self.resolve(dim) if self.facts(axis).size != 1]

    def _misfit(self, dims: Sequence[Dim]) -> bool:
        self.fix(dims, "reshaped across neurons")
        return False

    def _join(self, a: int, b: int) -> bool:
        a, b = self.root(a), self.root(b)
        if a == b:
            return True
        terms = [self._terms[axis] for axis in (a, b) if axis in self._terms]
        mine, other = self._facts[a], self._facts[b]
        self._parent[b] = a
        if terms:
            self._terms[a] = terms[0]
        if mine.produced or other.produced:
            self.produce([(a,)])
        if mine.fixed or other.fixed:
            self.fix([(a,)], mine.fixed or other.fixed)
        for axis in self._with_terms([(a,)]):
            self.facts(axis).apart |= other.apart
        return self._align(*terms) if len(terms) == 2 else True

    def _align(self, first: Dim, second: Dim) -> bool:
        """Unite two sums term by term; a term that is longer than the other is cut."""
        left, right = list(first), list(second)
        while left and right:
            a, b = left.pop(0), right.pop(0)
            size = min(self.facts(a).size, self.facts(b).size)
            for axis, rest in ((a, left), (b, right)):
                length = self.facts(axis).size
                if length > size:
                    tail = self.take((axis,), size, length)
                    if tail is None:
                        return False
                    rest.insert(0, self._as_axis(tail))
            heads = self.take((a,), 0, size), self.take((b,), 0, size)
            if heads[0] is None or heads[1] is None or not self.unite(heads[0], heads[1]):
                return False
        return True

    def reshape(self, dims: Dims, shape: Sequence[int]) -> Dims | None:
        """The dimensions of a view of ``shape``: factors are regrouped, and split where needed.

        None, and all fixed, if a new dimension would cut through neurons.
        """
        factors = [axis for dim in dims for axis in self._factored(dim)]
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
                elif length % missing == 0 and self.can_split(axis):
                    factors += self.split(axis, (length // missing, missing))
                else:
                    self.fix(dims, "reshaped across neurons")
                    return None
            out.insert(0, tuple(taken) or (self.new(1),))
        return tuple(out)

    def fix(self, dims: Sequence[Dim], reason: str) -> None:
        """Forbid to reorder the axes of ``dims``."""
        for axis in self._with_terms(dims):
            self.facts(axis).fixed = self.facts(axis).fixed or reason

    def produce(self, dims: Sequence[Dim]) -> None:
        """Mark ``dims`` as the output neurons of a weight."""
        for axis in self._with_terms(dims):
            self.facts(axis).produced = True

    def keep_apart(self, mixed: Sequence[Dim], others: Sequence[Dim]) -> None:
        """Forbid the order along ``others`` to depend on the index along ``mixed`` axes."""
        atoms = self.atoms(mixed)
        for axis in self._with_terms(others):
            self.facts(axis).apart |= atoms

    def _with_terms(self, dims: Sequence[Dim]) -> Iterator[int]:
        for dim in dims:
            for axis in self.resolve(dim):
                yield axis
                yield from self._with_terms([(t,) for t in self._terms.get(self.root(axis), ())])

    def is_free(self, axis: int) -> bool:
        """Whether the axis is neurons of this network that may be reordered."""
        facts = self.facts(axis)
        return facts.produced and not facts.fixed and facts.size > 1


def _strided(piece: Piece, stride: int) -> Piece:
    strides = tuple(stride * inner for inner in piece.strides)
    return Piece(piece.offset * stride, piece.axes, strides, piece.path)


def _joined(pieces: Sequence[Piece]) -> Piece:
    return Piece(
        sum(piece.offset for piece in pieces),
        tuple(axis for piece in pieces for axis in piece.axes),
        tuple(stride for piece in pieces for stride in piece.strides),
        tuple(step for piece in pieces for step in piece.path),
    )
