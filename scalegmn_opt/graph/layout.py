"""Where a block's numbers lie in its parameter: a window of it, and an einops pattern."""

from collections.abc import Sequence

from scalegmn_opt.graph.axes import AxisTable, Dim, Piece
from scalegmn_opt.graph.blocks import CONSTANT, WeightBlock, Window
from scalegmn_opt.graph.weight_graph import NeuronGroup

# a window, the axes of each of its dimensions, and the parameter's dimension that each is of
Layout = tuple[Window | None, list[list[int]], list[int]]
Slot = tuple[int | None, int]  # an axis in a dimension


def layout_of(pieces: Sequence[Piece], shape: tuple[int, ...], axes: AxisTable) -> Layout | None:
    """The part of a parameter that pieces of its dimensions are; None if it is no such part.

    Without sums there is no window.
    """
    if not any(piece.path for piece in pieces):
        return None, [list(piece.axes) for piece in pieces], list(range(len(pieces)))
    view: list[int] = []
    ranges: list[tuple[int, int]] = []
    dims: list[list[int]] = []
    owners: list[int] = []
    for place, (piece, size) in enumerate(zip(pieces, shape, strict=True)):
        outer, offset = size, piece.offset
        for members, length, stride in [*_runs(piece, axes), ([], 1, 1)]:
            start = offset // stride
            if outer % stride or start + length > outer // stride:
                return None
            if outer > 1 or members:
                view.append(outer // stride)
                ranges.append((start, start + length))
                dims.append(members)
                owners.append(place)
            outer, offset = stride, offset % stride
    return Window(tuple(shape), tuple(view), tuple(ranges)), dims, owners


def slots_of(own: Sequence[Dim], end: Dim | None) -> set[int]:
    """The dimensions that an end's axes are of: a square matrix has the same ones twice."""
    return {i for i, dim in enumerate(own) if set(dim) & set(end or ())}


def _runs(piece: Piece, axes: AxisTable) -> list[tuple[list[int], int, int]]:
    """Axes that lie densely in one another, joined: members, length and stride of each run."""
    runs: list[tuple[list[int], int, int]] = []
    for axis, stride in zip(piece.axes, piece.strides, strict=True):
        size = axes.facts(axis).size
        if runs and runs[-1][2] == size * stride:
            members, length, _ = runs[-1]
            runs[-1] = ([*members, axis], length * size, stride)
        else:
            runs.append(([axis], size, stride))
    return runs


class Pattern:
    """The einops pattern of a block: names for the axes of a parameter's dimensions.

    Args:
        dims: the axes of each dimension.
        orders: the axes of the target and, if there are any, the source neurons.
        slots: for each end the dimensions that its axes are rather of, if there is a choice.
    """

    def __init__(
        self,
        axes: AxisTable,
        dims: Sequence[list[int]],
        orders: Sequence[tuple[int, ...]],
        slots: Sequence[set[int]],
    ) -> None:
        self._axes, self._dims = axes, dims
        self._names: dict[Slot, str] = {}
        ends = [self._slots(order, own) for order, own in zip(orders, slots, strict=True)]
        shared = [slot for slot in ends[0] if slot in ends[-1]] if len(ends) == 2 else []
        self._name("blk", shared, ends)
        for kind, end in zip(("out", "src"), ends, strict=False):
            self._name(kind, [slot for slot in end if slot not in shared], ends)
        names = [" ".join(dict.fromkeys(self._names[slot] for slot in end)) for end in ends]
        self._ends = (names[0] or "out", (names[1] if len(names) == 2 else "") or "src")

    def _slots(self, order: Sequence[int], preferred: set[int]) -> list[Slot]:
        others = [i for i in range(len(self._dims)) if i not in preferred]
        place = {axis: i for i in (*others, *sorted(preferred)) for axis in self._dims[i]}
        return [(place.get(axis), axis) for axis in order]

    def _name(self, kind: str, members: Sequence[Slot], ends: Sequence[Sequence[Slot]]) -> None:
        """One name for all axes of a kind if they lie together everywhere; else one for each."""
        slots = [[(i, axis) for axis in dim] for i, dim in enumerate(self._dims)]
        orders = [end for end in ends if set(members) & set(end)]
        together = len(members) == 1 or (
            any(_contains(dim, members) for dim in slots)
            and all(_contains(order, members) for order in orders)
        )
        for i, slot in enumerate(members):
            self._names[slot] = kind if together else f"{kind}{i}"

    def block(
        self, parameter: str, groups: Sequence[NeuronGroup], window: Window | None
    ) -> WeightBlock:
        """The block of a parameter with one group, or from the second to the first of two."""
        sizes: dict[str, int] = {}
        terms = []
        for i, dim in enumerate(self._dims):
            names = self._add(i, dim, sizes)
            terms.append(f"({' '.join(names)})" if len(names) > 1 else names[0])
        return WeightBlock(
            parameter,
            groups[0].name,
            groups[1].name if len(groups) > 1 else CONSTANT,
            " ".join(terms),
            tuple(sizes.items()),
            self._ends,
            window,
        )

    def _add(self, place: int, dim: Sequence[int], sizes: dict[str, int]) -> list[str]:
        """The names of a dimension's axes; their sizes go into ``sizes``."""
        names: list[str] = []
        for axis in dim:
            name = self._names.get((place, axis), f"k{len(sizes)}")
            sizes[name] = sizes.get(name, 1) * self._axes.facts(axis).size
            if name not in names:
                names.append(name)
        if not names:  # a dimension of one element
            names = [f"k{len(sizes)}"]
            sizes[names[0]] = 1
        return names


def _contains(dim: Sequence[Slot], members: Sequence[Slot]) -> bool:
    """Whether ``members`` follow one another in ``dim``."""
    wanted = list(members)
    return any(list(dim[i : i + len(wanted)]) == wanted for i in range(len(dim)))
