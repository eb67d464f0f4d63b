"""How may tensors be multiplied unseen? Unknown multipliers, and the equations between them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from scalegmn_opt.graph.axes import AxisTable, Dim
from scalegmn_opt.graph.groups import Symmetry

Powers = dict[int, int]  # a product of multipliers: index -> power
_Range = tuple[int, int, int]  # an axis, and a range of it


@dataclass
class _Multiplier:
    """One unknown number for each index of some axes."""

    axes: Dim
    of_parameter: bool
    flips: bool = True
    rescales: bool = True
    erased: bool = False
    lost: list[int] = field(default_factory=list)  # axes it turned out not to depend on
    value: Powers | None = None  # what it is equal to, once that is known
    parts: dict[_Range, Powers] = field(default_factory=dict)


class ScaleTable:
    """The multiplier of each tensor is a product of powers of unknowns over some of its axes.

    Multiplying all parameters by theirs leaves the network's function as it is if each tensor is
    multiplied by its own and the outputs by 1. An operator's rule states what that asks for: an
    addition that both sides are equal, a matrix product that nothing depends on the summed axis, a
    ReLU that no multiplier is negative. What is still unknown in the end is the symmetry.
    """

    def __init__(self, axes: AxisTable) -> None:
        self._axes = axes
        self._all: list[_Multiplier] = []

    def new(self, dims: Iterable[int], *, of_parameter: bool = False) -> Powers:
        """An unknown multiplier for each index of the axes ``dims``."""
        self._all.append(_Multiplier(tuple(dims), of_parameter))
        return {len(self._all) - 1: 1}

    def resolve(self, powers: Mapping[int, int]) -> Powers:
        """``powers`` in terms of multipliers that are still unknown."""
        out: Powers = {}
        for index, power in powers.items():
            unknown = self._all[index]
            found = {index: 1} if unknown.value is None else self.resolve(unknown.value)
            for other, inner in found.items():
                out[other] = out.get(other, 0) + power * inner
        left = ((index, self._power(index, power)) for index, power in sorted(out.items()))
        return {index: power for index, power in left if power}

    def _power(self, index: int, power: int) -> int:
        """The power of a multiplier that may be a sign only, or 1."""
        unknown = self._all[index]
        return power if unknown.rescales else power % 2 if unknown.flips else 0

    def axes(self, index: int) -> set[int]:
        """The axes that a multiplier depends on."""
        unknown = self._all[index]
        return self._axes.atoms([unknown.axes]) - self._axes.atoms([tuple(unknown.lost)])

    def erased(self, index: int) -> bool:
        """Whether a normalisation divides the multiplier out."""
        return self._all[index].erased

    def symmetry(self, powers: Mapping[int, int], *, permutes: bool) -> Symmetry:
        """What neurons with this multiplier, and with an order or not, may undergo."""
        found = self.resolve(powers)
        flips = any(self._all[i].flips and power % 2 for i, power in found.items())
        rescales = any(self._all[i].rescales for i in found)
        common = (flips or rescales) and not any(map(self.axes, found))
        return Symmetry(permutes, flips, rescales, common)

    def times(self, *factors: Mapping[int, int]) -> Powers:
        """The product."""
        out: Powers = {}
        for factor in factors:
            for index, power in factor.items():
                out[index] = out.get(index, 0) + power
        return self.resolve(out)

    def power(self, powers: Mapping[int, int], exponent: int) -> Powers:
        """Raised to an integer."""
        return {index: power * exponent for index, power in powers.items()}

    def part(self, powers: Mapping[int, int], axis: int, start: int, stop: int) -> Powers:
        """The multiplier of a range along ``axis``, which :meth:`AxisTable.take` has cut."""
        found = self.resolve(powers)
        factors = [self._part(i, (axis, start, stop)) for i in found]
        exponents = zip(factors, found.values(), strict=True)
        return self.times(*(self.power(f, exponent) for f, exponent in exponents))

    def _part(self, index: int, wanted: _Range) -> Powers:
        axis, start, stop = self._axes.root(wanted[0]), *wanted[1:]
        if axis not in self.axes(index) or stop - start == self._axes.facts(axis).size:
            return {index: 1}
        unknown = self._all[index]
        for (other, low, high), powers in unknown.parts.items():
            if self._axes.root(other) != axis or high <= start or stop <= low:
                continue
            if (low, high) == (start, stop):
                return powers
            inner = self._axes.take((axis,), low, high)
            if low <= start and stop <= high and inner is not None and len(inner) == 1:
                return self.part(powers, inner[0], start - low, stop - low)
            self.forbid({index: 1})  # ranges that overlap are given up
            return {}
        taken = self._axes.take((axis,), start, stop)
        rest = self.axes(index) - {axis}
        part = self.new((*sorted(rest), *(taken or ())), of_parameter=unknown.of_parameter)
        (child,) = (self._all[i] for i in part)
        child.flips, child.rescales = unknown.flips, unknown.rescales
        child.erased = unknown.erased
        unknown.parts[axis, start, stop] = part
        return part

    def concatenated(self, axis: int, parts: Sequence[tuple[int, Mapping[int, int]]]) -> Powers:
        """The multiplier of a sum axis whose terms, by their sizes, have those of ``parts``."""
        found = [(size, self.resolve(powers)) for size, powers in parts]
        if not any(powers for _, powers in found):
            return {}
        others = {a for _, powers in found for i in powers for a in self.axes(i)}
        terms = self._axes.atoms([(t,) for t in self._axes.terms(axis)])
        whole = self.new((axis, *sorted(others - terms)))
        (unknown,) = (self._all[i] for i in whole)
        start = 0
        for size, powers in found:
            unknown.parts[axis, start, start + size] = powers
            start += size
        return whole

    def forbid(
        self, powers: Mapping[int, int], *, flips: bool = True, rescales: bool = True
    ) -> None:
        """Allow no negative multipliers, no other magnitudes than 1, or neither."""
        found = self.resolve(powers)  # of which the product must be 1
        if flips and rescales and len(found) > 1 and 1 in map(abs, found.values()):
            self.equate(found, {})
            return
        for index, power in found.items():
            unknown = self._all[index]
            before = unknown.flips, unknown.rescales
            unknown.flips &= not flips or power % 2 == 0
            unknown.rescales &= not rescales
            if (unknown.flips, unknown.rescales) != before:
                for part in list(unknown.parts.values()):
                    self.forbid(self.power(part, power), flips=flips, rescales=rescales)

    def erase(self, powers: Mapping[int, int]) -> None:
        """Record that a normalisation, but for its epsilon, divides the multipliers out.

        An inverse multiplier is given up: the larger it is, the more the epsilon counts.
        """
        for index, power in self.resolve(powers).items():
            if power < 0:
                self.forbid({index: 1}, flips=False)
            elif not self._all[index].erased:
                self._all[index].erased = True
                for part in list(self._all[index].parts.values()):
                    self.erase(self.power(part, power))

    def hold(self, powers: Mapping[int, int], dims: Sequence[Dim]) -> None:
        """Forbid the multiplier to depend on the index along ``dims``."""
        atoms = self._axes.atoms(dims)
        for index in self.resolve(powers):
            lost = atoms & self.axes(index)
            if not lost:
                continue
            unknown = self._all[index]
            unknown.lost += lost
            for key in [key for key in unknown.parts if self._axes.root(key[0]) in lost]:
                self.equate(unknown.parts.pop(key), {index: 1})

    def equate(self, first: Mapping[int, int], second: Mapping[int, int]) -> None:
        """Demand that two multipliers are equal: one unknown is expressed by the others."""
        quotient = self.times(first, self.power(second, -1))
        if not quotient:
            return
        unit = [i for i, power in quotient.items() if abs(power) == 1]
        if not unit or len(quotient) == 1:
            self.forbid(quotient)
            return
        best = max(unit, key=lambda i: (len(self.axes(i)), self._all[i].of_parameter, i))
        own = self.axes(best)
        for index in quotient:
            if index != best:
                self.hold({index: 1}, [(axis,) for axis in self.axes(index) - own])
        sign = -quotient.pop(best)
        if self.resolve({best: 1}) == {best: 1}:  # holding the others may have settled it
            self._substitute(best, self.power(quotient, sign))
        else:
            self.equate(first, second)

    def _substitute(self, index: int, powers: Powers) -> None:
        unknown, powers = self._all[index], self.resolve(powers)
        if index in powers:
            self.forbid({**powers, index: 1})
            return
        self.forbid(powers, flips=not unknown.flips, rescales=not unknown.rescales)
        if unknown.erased and len(powers) == 1:
            self.erase(powers)
        unknown.value = powers
        for (axis, start, stop), part in list(unknown.parts.items()):
            self.equate(part, self.part(powers, axis, start, stop))

    def summed(self, powers: Mapping[int, int], over: Sequence[Dim]) -> Powers:
        """The multiplier of a sum over ``over``, along which it must be the same."""
        found, atoms = self.resolve(powers), self._axes.atoms(over)
        touched = {a for i in found if self.axes(i) & atoms for a in self.axes(i)}
        if not touched:
            return found
        inside = {i: power for i, power in found.items() if self.axes(i) <= touched}
        total = self.new(sorted(touched - atoms))
        self.equate(inside, total)
        outside = {i: power for i, power in found.items() if i not in inside}
        return self.times(total, outside)
