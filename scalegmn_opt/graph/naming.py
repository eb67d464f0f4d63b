"""What groups share: the order of which axes, in which nesting, and which multipliers."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product

from scalegmn_opt.graph.axes import AxisTable
from scalegmn_opt.graph.program import Program
from scalegmn_opt.graph.scales import ScaleTable
from scalegmn_opt.graph.weight_graph import Axis, NeuronGroup, Scale

Key = tuple[frozenset[int], tuple[tuple[int, int], ...]]  # a group's axes, and its multipliers


def nesting(program: Program) -> dict[int, tuple[int, ...]]:
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


class Naming:
    """Names for the axes and multipliers that groups share, after the groups."""

    def __init__(
        self,
        axes: AxisTable,
        scales: ScaleTable,
        groups: Mapping[Key, NeuronGroup],
        orders: Mapping[Key, tuple[int, ...]],
        within: Mapping[int, tuple[int, ...]],
    ) -> None:
        self._axes, self._scales, self._groups = axes, scales, groups
        self._orders, self._within = orders, within
        self._axis_users = Counter(axis for order in orders.values() for axis in order)
        self._scale_users = Counter(i for _, powers in groups for i, _ in powers)
        self._axis_names: dict[int, str] = {}
        self._scale_names: dict[int, str] = {}
        for key, group in groups.items():
            if not self._is_alone(key):
                self._name(key, group)

    def _is_alone(self, key: Key) -> bool:
        """Whether a group shares nothing, so that its symmetry says all."""
        order, powers = self._orders[key], key[1]
        if not powers and not any(map(self._axes.is_free, order)):
            return True
        own = {a for i, _ in powers for a in self._scales.axes(i)}
        return (
            len(order) <= 1
            and len(powers) <= 1
            and all(power == 1 and self._scale_users[i] == 1 for i, power in powers)
            and all(self._axis_users[axis] == 1 and not self._within.get(axis) for axis in order)
            and not any(self._scales.erased(i) for i, _ in powers)
            and own in (set(), set(order))
        )

    def _name(self, key: Key, group: NeuronGroup) -> None:
        order = self._orders[key]
        for i, axis in enumerate(order):
            name = group.name if len(order) == 1 else f"{group.name}.{i}"
            self._axis_names.setdefault(axis, name)
        for i, _ in key[1]:
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
        names, out = self._axis_names, []
        for axis, name in names.items():
            within = tuple(names[a] for a in self._within.get(axis, ()) if a in names)
            size, permutes = self._axes.facts(axis).size, self._axes.is_free(axis)
            out.append(Axis(name, size, permutes, within))
        return tuple(out)

    def scales(self) -> tuple[Scale, ...]:
        """All multipliers with a name."""
        out = []
        for i, name in self._scale_names.items():
            symmetry = self._scales.symmetry({i: 1}, permutes=False)
            axes = tuple(self._axis_names[a] for a in sorted(self._scales.axes(i)))
            erased = self._scales.erased(i)
            out.append(Scale(name, axes, symmetry.flips, symmetry.rescales, erased))
        return tuple(out)


def _unused(name: str, taken: Iterable[str]) -> str:
    known = set(taken)
    return next(n for i in range(len(known) + 1) if (n := f"{name}{'*' * i}") not in known)
