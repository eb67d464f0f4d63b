"""From what the rules found out to a weight graph: groups, blocks, and what ties them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod

from scalegmn_opt.graph.axes import POSITIONS, Dim, Piece
from scalegmn_opt.graph.blocks import WeightBlock
from scalegmn_opt.graph.groups import NONZERO_SCALE, Activation
from scalegmn_opt.graph.layout import Pattern, layout_of, slots_of
from scalegmn_opt.graph.naming import Key, Naming, nesting
from scalegmn_opt.graph.program import Place, Program, Value
from scalegmn_opt.graph.scales import Powers
from scalegmn_opt.graph.weight_graph import (
    NeuronGroup,
    Role,
    WeightGraph,
    constant_group,
    isolated,
)

_Path = Sequence[tuple[int, int, int]]  # terms of sums, as of a Piece


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
    def key(self) -> Key:
        return frozenset(self.axes), tuple(sorted(self.scale.items()))


class _Builder:
    def __init__(self, program: Program, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._program, self._shapes = program, shapes
        self._axes, self._scales = program.axes, program.scales
        self._groups: dict[Key, NeuronGroup] = {}
        self._orders: dict[Key, tuple[int, ...]] = {}
        self._within = nesting(program)
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
        named = Naming(self._axes, self._scales, self._groups, self._orders, self._within)
        groups = (constant_group(), *named.groups(), *lone)
        return WeightGraph(groups, tuple(blocks), named.axes(), named.scales())

    def _give_up(self, name: str) -> None:
        """A parameter that is no edges between groups stays as it is."""
        value = self._program.parameters.get(name)
        if value and (
            self._scales.resolve(value.scale)
            or any(map(self._axes.is_free, self._axes.atoms(value.dims)))
        ):
            self.misfits.append(lambda: self._program.give_up([value], "not edges between groups"))

    def _reason(self, name: str) -> str:
        value = self._program.parameters.get(name)
        axes = [a for dim in value.dims for a in self._axes.resolve(dim)] if value else []
        reasons = [self._axes.facts(a).fixed for a in axes if self._axes.facts(a).fixed]
        return reasons[0] if reasons else "not used" if value is None else "not placed"

    def _blocks(self, name: str) -> list[WeightBlock]:
        """One block for each combination of terms of the dimensions; none if it has no place."""
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
        square = bool(self._program.repeated(value))
        for place in places:
            ends = self._ends(place, atoms, path, weight, square=square)
            if ends is not None and not any(end and end.repeats for end in ends):
                return self._make(value, pieces, place, ends)
        return None

    def _under(self, scale: Powers, path: _Path) -> Powers:
        for axis, start, stop in path:
            scale = self._scales.part(scale, axis, start, stop)
        return self._scales.resolve(scale)

    def _ends(
        self,
        place: Place,
        atoms: set[int],
        path: _Path,
        weight: Powers,
        *,
        square: bool,
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
        if place.target_scale is not None:
            known = self._under(place.target_scale, target.path)
            if known != outgoing and not square:
                return None  # of another window of the parameter, with neurons of the same order
            outgoing = known
        return self._end(target, atoms, outgoing), self._end(source, atoms, incoming)

    def _match(self, dim: Dim, atoms: set[int], path: _Path) -> Piece | None:
        """The piece of an end that a parameter's piece is about."""
        roots = {(self._axes.root(axis), start, stop) for axis, start, stop in path}
        found = []
        for piece in self._axes.pieces(dim):
            steps = {(self._axes.root(axis), start, stop) for axis, start, stop in piece.path}
            others = set(piece.axes) - atoms  # a parameter is broadcast along positions
            fits = (set(piece.axes) & atoms or not piece.axes) and steps <= roots
            if fits and not any(map(self._is_neuron, others)):
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
        found = layout_of(pieces, self._shapes[value.parameter], self._axes)
        if found is None:
            return None
        window, dims, owners = found
        present = [end for end in ends if end]
        groups = [self._group(end, value.parameter, i) for i, end in enumerate(present)]
        orders = [self._orders[end.key] for end in present]
        own = [value.dims[i] for i in owners]
        slots = [slots_of(own, dim) for dim in (place.target, place.source)][: len(present)]
        square = self._program.repeated(Value(tuple(map(tuple, dims))))
        if square and len(present) == 2 and not _tell_apart(slots, len(own)):
            return None
        pattern = Pattern(self._axes, dims, orders, slots)
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
        return next(
            n for i in range(2, len(taken) + 3) if (n := f"{parameter}:{end}{i}") not in taken
        )

    def _new_group(self, end: _End, parameter: str, kind: str) -> NeuronGroup:
        facts = [self._axes.facts(axis) for axis in end.axes]
        permutes = any(map(self._axes.is_free, end.axes))
        symmetry = self._scales.symmetry(end.scale, permutes=permutes)
        free = permutes or not symmetry.scalar_free
        reasons = [fact.fixed for fact in facts if fact.fixed]
        role = (
            Role.HIDDEN
            if free
            else next(
                (role for role in (Role.OUTPUT, Role.INPUT) if role.value in reasons), Role.FIXED
            )
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


def _tell_apart(slots: list[set[int]], rank: int) -> bool:
    """Give each end of a square weight its dimensions; one that has none gets what is left."""
    first, second = slots
    slots[:] = [first or set(range(rank)) - second, second or set(range(rank)) - first]
    return not slots[0] & slots[1]
