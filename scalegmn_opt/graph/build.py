"""From what the rules found out to a weight graph: groups, blocks, and what ties them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import prod
from typing import Any

from scalegmn_opt.graph.axes import POSITIONS, AxisTable, Dim, Piece
from scalegmn_opt.graph.groups import NONZERO_SCALE, Activation
from scalegmn_opt.graph.program import Place, Program, Value
from scalegmn_opt.graph.scales import Powers
from scalegmn_opt.graph.weight_graph import (
    CONSTANT,
    Axis,
    NeuronGroup,
    Role,
    Scale,
    WeightBlock,
    WeightGraph,
    Window,
    constant_group,
    isolated,
)

_Key = tuple[frozenset[int], tuple[tuple[int, int], ...]]  # axes, and powers of multipliers


def build(program: Program, shapes: Mapping[str, tuple[int, ...]]) -> WeightGraph:
    """The graph of a propagated program with parameters of ``shapes``.

    A multiplier is given up where a group cannot carry it: if it depends on an axis that the
    group's neurons do not have, or if no group's weights tell its size.
    """
    while True:
        builder = _Builder(program, shapes)
        graph = builder.graph()
        if not builder.misfits:
            return graph
        for mend in builder.misfits:
            mend()


@dataclass(frozen=True)
class _End:
    """Neurons at an end of a block: axes in their group's order, and their multiplier."""

    axes: tuple[int, ...]
    scale: Powers

    @property
    def repeats(self) -> bool:
        """Whether an axis is there twice, as after two shuffles of channels."""
        return len(set(self.axes)) < len(self.axes)

    @property
    def key(self) -> _Key:
        return frozenset(self.axes), tuple(sorted(self.scale.items()))


class _Builder:
    def __init__(self, program: Program, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._program, self._shapes = program, shapes
        self._axes, self._scales = program.axes, program.scales
        self._groups: dict[_Key, NeuronGroup] = {}
        self._orders: dict[_Key, tuple[int, ...]] = {}
        self._within = _nesting(program)
        self.misfits: list[Callable[[], None]] = []  # what to give up, and to build again

    def graph(self) -> WeightGraph:
        blocks: list[WeightBlock] = []
        lone: list[NeuronGroup] = []
        for name, shape in self._shapes.items():
            found = self._blocks(name)
            if not found:
                self._give_up(name)
                groups, block = isolated(name, shape, reason=self._reason(name))
                lone += groups
                found = [block]
            blocks += found
        self._require_owners(blocks)
        named = _Naming(self._axes, self._scales, self._groups, self._orders, self._within)
        groups = (constant_group(), *named.groups(), *lone)
        return WeightGraph(groups, tuple(blocks), named.axes(), named.scales())

    def _give_up(self, name: str) -> None:
        """A parameter that is no edges between groups stays as it is."""
        value = self._program.parameters.get(name)
        if value and (self._scales.resolve(value.scale) or any(map(self._axes.is_free, self._axes.atoms(value.dims)))):
            self.misfits.append(lambda: self._program.give_up([value], "not edges between groups"))

    def _reason(self, name: str) -> str:
        value = self._program.parameters.get(name)
        axes = [a for dim in value.dims for a in self._axes.resolve(dim)] if value else []
        reasons = [self._axes.facts(a).fixed for a in axes if self._axes.facts(a).fixed]
        return reasons[0] if reasons else "not used" if value is None else "not placed"

    def _blocks(self, name: str) -> list[WeightBlock]:
        """One block for each combination of terms of the parameter's dimensions; none if unplaced."""
        places = self._program.places.get(name)
        if not places:
            return []
        value = self._program.parameters[name]
        combinations = list(product(*(self._axes.pieces(dim) for dim in value.dims)))
        blocks = [self._block(value, pieces, places) for pieces in combinations]
        return [] if None in blocks else blocks

    def _block(
        self, value: Value, pieces: Sequence[Piece], places: Sequence[Place]
    ) -> WeightBlock | None:
        path = [step for piece in pieces for step in piece.path]
        atoms = {axis for piece in pieces for axis in piece.axes}
        weight = self._under(value.scale, path)
        for place in places:
            ends = self._ends(place, atoms, path, weight)
            if ends is not None and not any(end and end.repeats for end in ends):
                return self._make(value, pieces, place, ends)
        return None

    def _under(self, scale: Powers, path: Sequence[tuple[int, int, int]]) -> Powers:
        for axis, start, stop in path:
            scale = self._scales.part(scale, axis, start, stop)
        return self._scales.resolve(scale)

    def _ends(
        self,
        place: Place,
        atoms: set[int],
        path: Sequence[tuple[int, int, int]],
        weight: Powers,
    ) -> tuple[_End, _End | None] | None:
        """The two ends of a block; none if the place is of other neurons."""
        target = self._match(place.target, atoms, path)
        if target is None:
            return None
        if place.source is None:
            return self._end(target, atoms, weight), None
        source = self._match(place.source, atoms, path)
        if source is None:
            return None
        incoming = self._under(place.source_scale, source.path)
        if place.source == place.target:  # a factor of each neuron, or a number on it
            carried = {a for i in incoming for a in self._scales.axes(i)}
            if not incoming or not carried <= atoms:
                return self._end(target, atoms, weight), None
        outgoing = self._scales.times(weight, incoming)
        return self._end(target, atoms, outgoing), self._end(source, atoms, incoming)

    def _match(
        self, dim: Dim, atoms: set[int], path: Sequence[tuple[int, int, int]]
    ) -> Piece | None:
        """The piece of an end that a parameter's piece is about."""
        roots = {(self._axes.root(axis), start, stop) for axis, start, stop in path}
        found = []
        for piece in self._axes.pieces(dim):
            steps = {(self._axes.root(axis), start, stop) for axis, start, stop in piece.path}
            if set(piece.axes) & atoms and steps <= roots or not piece.axes:
                found.append((set(piece.path) <= set(path), piece))
        return max(found, key=lambda item: item[0])[1] if found else None

    def _end(self, piece: Piece, atoms: set[int], scale: Powers) -> _End:
        own = [axis for axis in piece.axes if axis in atoms]
        carried = {a for i in scale for a in self._scales.axes(i)}
        for i in scale:
            if extra := self._scales.axes(i) - set(own):
                dims = [(axis,) for axis in sorted(extra)]
                self.misfits.append(partial(self._scales.hold, {i: 1}, dims))
        neurons = [a for a in own if a in carried or self._is_neuron(a)]
        kept = neurons if any(self._axes.is_free(a) or a in carried for a in neurons) else own
        return _End(tuple(kept), scale)

    def _is_neuron(self, axis: int) -> bool:
        facts = self._axes.facts(axis)
        return facts.produced and facts.fixed != POSITIONS

    def _make(
        self,
        value: Value,
        pieces: Sequence[Piece],
        place: Place,
        ends: tuple[_End, _End | None],
    ) -> WeightBlock | None:
        found = _window(pieces, self._shapes[value.parameter], self._axes)
        if found is None:
            return None
        window, dims, owners = found
        present = [end for end in ends if end]
        groups = [self._group(end, value.parameter, i) for i, end in enumerate(present)]
        own = [value.dims[i] for i in owners]
        slots = [
            [_slots(own, dim) for dim in (place.target, place.source)][i]
            for i, _ in enumerate(present)
        ]
        orders = [self._orders[end.key] for end in present]
        pattern = _Pattern(self._axes, dims, orders, slots)
        return pattern.block(value.parameter, groups, window)

    def _group(self, end: _End, parameter: str, place: int) -> NeuronGroup:
        if end.key not in self._groups:
            self._orders[end.key] = end.axes
            self._groups[end.key] = self._new_group(end, parameter, "in" if place else "out")
        return self._groups[end.key]

    def _new_name(self, parameter: str, end: str) -> str:
        """After the module, or after the parameter in a module with several such groups."""
        taken = {group.name for group in self._groups.values()}
        name = f"{parameter.rpartition('.')[0] or parameter}:{end}"
        for candidate in (name, f"{parameter}:{end}"):
            if candidate not in taken:
                return candidate
        return next(n for i in range(2, len(taken) + 3) if (n := f"{parameter}:{end}{i}") not in taken)

    def _new_group(self, end: _End, parameter: str, kind: str) -> NeuronGroup:
        facts = [self._axes.facts(axis) for axis in end.axes]
        permutes = any(map(self._axes.is_free, end.axes))
        symmetry = self._scales.symmetry(end.scale, permutes=permutes)
        free = permutes or not symmetry.scalar_free
        reasons = [fact.fixed for fact in facts if fact.fixed]
        role = Role.HIDDEN if free else next(
            (role for role in (Role.OUTPUT, Role.INPUT) if role.value in reasons), Role.FIXED
        )
        reason = next((r for r in reasons if r not in ("input", "output")), "")
        return NeuronGroup(
            self._new_name(parameter, kind),
            prod(fact.size for fact in facts),
            role,
            symmetry,
            self._activation(end, symmetry == NONZERO_SCALE) if free else None,
            reason=reason,
        )

    def _activation(self, end: _End, linear: bool) -> Activation | None:
        """The one activation of the neurons, if it is one."""
        found = []
        for value, activation in self._program.activations:
            atoms = {a for a in self._axes.atoms(value.dims) if self._is_neuron(a)}
            if _End(tuple(atoms), self._scales.resolve(value.scale)).key == end.key:
                found.append(activation)
        if not found and linear:
            return Activation("identity")
        return found[0] if len(found) == 1 else None

    def _require_owners(self, blocks: Sequence[WeightBlock]) -> None:
        """Each multiplier has a group of its own whose incoming weights tell its size."""
        targets = {block.target for block in blocks}
        owned = {
            powers[0][0]
            for (_, powers), group in self._groups.items()
            if len(powers) == 1 and abs(powers[0][1]) == 1 and group.name in targets
        }
        used = {i for _, powers in self._groups for i, _ in powers}
        self.misfits += [partial(self._scales.forbid, {i: 1}) for i in sorted(used - owned)]


_Windowed = tuple[Window | None, list[list[int]], list[int]]


def _window(pieces: Sequence[Piece], shape: tuple[int, ...], axes: AxisTable) -> _Windowed | None:
    """The part of a parameter that pieces of its dimensions are; None if it is no such part.

    With the axes of each dimension of the part, and the parameter's dimension that each is of.
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


def _slots(own: Sequence[Dim], end: Dim | None) -> set[int]:
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


class _Pattern:
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
        self._axes, self._dims, self._orders = axes, dims, orders
        self._names: dict[tuple[int, int], str] = {}  # of an axis in a dimension
        self._ends = ["out", "src"]
        by_preference = ([*(i for i in range(len(dims)) if i not in own), *own] for own in slots)
        places = [{a: i for i in order for a in dims[i]} for order in by_preference]
        ends = [[(places[e].get(a), a) for a in order] for e, order in enumerate(orders)]
        shared = [slot for slot in ends[0] if slot in ends[-1]] if len(ends) == 2 else []
        kinds = {"blk": shared}
        for kind, end in zip(("out", "src"), ends, strict=False):
            kinds[kind] = [slot for slot in end if slot not in shared]
        for kind, members in kinds.items():
            self._name(kind, members, ends)
        for i, end in enumerate(ends):
            self._ends[i] = " ".join(dict.fromkeys(self._names[slot] for slot in end)) or self._ends[i]

    def _name(
        self,
        kind: str,
        members: Sequence[tuple[int, int]],
        ends: Sequence[Sequence[tuple[int, int]]],
    ) -> None:
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
        sizes: dict[str, int] = {}
        terms = []
        for i, dim in enumerate(self._dims):
            names: list[str] = []
            for axis in dim:
                name = self._names.get((i, axis), f"k{len(sizes)}")
                sizes[name] = sizes.get(name, 1) * self._axes.facts(axis).size
                if name not in names:
                    names.append(name)
            if not names:  # a dimension of one element
                names = [f"k{len(sizes)}"]
                sizes[names[0]] = 1
            terms.append(f"({' '.join(names)})" if len(names) > 1 else names[0])
        return WeightBlock(
            parameter,
            groups[0].name,
            groups[1].name if len(groups) > 1 else CONSTANT,
            " ".join(terms),
            tuple(sizes.items()),
            (self._ends[0], self._ends[1]),
            window,
        )


def _contains(dim: Sequence[int], members: Sequence[int]) -> bool:
    """Whether ``members`` follow one another in ``dim``."""
    wanted = list(members)
    return any(list(dim[i : i + len(wanted)]) == wanted for i in range(len(dim)))


def _nesting(program: Program) -> dict[int, tuple[int, ...]]:
    """For each free axis the free axes that it never occurs without, so that its order may differ.

    Of two axes that only occur together, the minor one is within the major one.
    """
    table = program.axes
    common: dict[int, list[int]] = {}
    for value in program.every_value():
        for pieces in product(*(table.pieces(dim) for dim in value.dims)):
            atoms = [a for piece in pieces for a in piece.axes]
            for axis in filter(table.is_free, atoms):
                known = common.get(axis, atoms)
                common[axis] = [a for a in known if a in atoms]
    within: dict[int, tuple[int, ...]] = {}
    for axis, others in common.items():
        apart = {table.root(a) for a in table.facts(axis).apart}
        minor = {a for a in others[others.index(axis) :] if axis in common.get(a, ())}
        free = [a for a in others if table.is_free(a) and a not in minor | apart]
        within[axis] = tuple(free)
    return within


class _Naming:
    """Names for the axes and multipliers that groups share, after the groups."""

    def __init__(
        self,
        axes: Any,
        scales: Any,
        groups: Mapping[_Key, NeuronGroup],
        orders: Mapping[_Key, tuple[int, ...]],
        within: Mapping[int, tuple[int, ...]],
    ) -> None:
        self._axes, self._scales, self._groups = axes, scales, groups
        self._orders, self._within = orders, within
        users: dict[int, int] = {}
        for order, powers in zip(orders.values(), (p for _, p in groups), strict=True):
            for axis in order:
                users[axis] = users.get(axis, 0) + 1
            for i, _ in powers:
                users[-1 - i] = users.get(-1 - i, 0) + 1
        self._users = users
        self._axis_names: dict[int, str] = {}
        self._scale_names: dict[int, str] = {}
        for key, group in groups.items():
            if not self._is_alone(key):
                self._name(key, group)

    def _is_alone(self, key: _Key) -> bool:
        """Whether a group shares nothing, so that its symmetry says all."""
        order, powers = self._orders[key], key[1]
        if not powers and not any(map(self._axes.is_free, order)):
            return True
        own = {a for i, _ in powers for a in self._scales.axes(i)}
        return (
            len(order) <= 1
            and len(powers) <= 1
            and all(power == 1 and self._users[-1 - i] == 1 for i, power in powers)
            and all(self._users[axis] == 1 and not self._within.get(axis) for axis in order)
            and not any(self._scales.erased(i) for i, _ in powers)
            and own in (set(), set(order))
        )

    def _name(self, key: _Key, group: NeuronGroup) -> None:
        order = self._orders[key]
        for i, axis in enumerate(order):
            name = group.name if len(order) == 1 else f"{group.name}.{i}"
            self._axis_names.setdefault(axis, name)
        for i, power in key[1]:
            self._scale_names.setdefault(i, _unused(group.name, self._scale_names.values()))

    def groups(self) -> tuple[NeuronGroup, ...]:
        """The groups, with the axes and scales that they share."""
        out = []
        for key, group in self._groups.items():
            if not self._is_alone(key):
                axes = tuple(self._axis_names[a] for a in self._orders[key])
                powers = tuple((self._scale_names[i], power) for i, power in key[1])
                group = replace(group, axes=axes, scales=powers)
            out.append(group)
        return tuple(out)

    def axes(self) -> tuple[Axis, ...]:
        """All axes with a name."""
        return tuple(
            Axis(
                name,
                self._axes.facts(axis).size,
                self._axes.is_free(axis),
                tuple(self._axis_names[a] for a in self._within.get(axis, ()) if a in self._axis_names),
            )
            for axis, name in self._axis_names.items()
        )

    def scales(self) -> tuple[Scale, ...]:
        """All multipliers with a name."""
        out = []
        for i, name in self._scale_names.items():
            symmetry = self._scales.symmetry({i: 1}, permutes=False)
            axes = tuple(self._axis_names[a] for a in sorted(self._scales.axes(i)))
            erased = self._scales.erased(i)
            out.append(Scale(name, axes, symmetry.flips, symmetry.rescales, erased))
        return tuple(out)


def _unused(name: str, taken: Any) -> str:
    known = set(taken)
    return next(n for i in range(len(known) + 1) if (n := f"{name}{'*' * i}") not in known)
