"""A traced program while its operators' rules are applied: what is known of every tensor."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from scalegmn_opt.graph.axes import POSITIONS, AxisTable, Dim, Dims
from scalegmn_opt.graph.groups import Activation, Symmetry
from scalegmn_opt.graph.scales import Powers, ScaleTable


@dataclass(frozen=True)
class Value:
    """A tensor: its axes, its multiplier, and the number it was multiplied by."""

    dims: Dims
    scale: Powers = field(default_factory=dict)
    gain: float = 1.0
    parameter: str = ""  # the parameter's name, if the tensor is one, or a part or view of one


@dataclass(frozen=True)
class Place:
    """Where a parameter lies: at ``target`` neurons and, if it is edges, from ``source`` ones."""

    target: Dim
    source: Dim | None = None
    source_scale: Powers = field(default_factory=dict)
    target_scale: Powers | None = None  # the product of the parameter's and the source's if None


class NoRuleError(Exception):
    """An operator, or this use of it, has no rule."""


Rule = Callable[["Program", Node], Any]  # to a Value, or a list of Values and None


@dataclass
class Program:
    """What the rules read and write while they walk through a program."""

    axes: AxisTable = field(default_factory=AxisTable)
    scales: ScaleTable = field(init=False)
    values: dict[Node, Any] = field(default_factory=dict)
    parameters: dict[str, Value] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)
    activations: list[tuple[Value, Activation]] = field(default_factory=list)
    hidden: list[Value] = field(default_factory=list)  # tensors inside operators

    def __post_init__(self) -> None:
        self.scales = ScaleTable(self.axes)

    def value(self, argument: Any) -> Value:
        """The value of a node, which must be a tensor."""
        found = self.values.get(argument) if isinstance(argument, Node) else None
        if not isinstance(found, Value):
            raise NoRuleError(f"expected a tensor, got {argument}")
        return found

    def inputs(self, node: Node) -> list[Value]:
        """All tensors that a node reads."""
        found = (self.values.get(argument) for argument in node.all_input_nodes)
        return [value for item in found for value in _flat(item)]

    def every_value(self) -> Iterator[Value]:
        """All tensors of the program, the parameters and those inside operators included."""
        for item in (*self.values.values(), [*self.hidden, *self.parameters.values()]):
            yield from _flat(item)

    def enter_parameter(self, name: str, shape: Sequence[int]) -> Value:
        """The value of a parameter; one that has two names is entered once."""
        if name not in self.parameters:
            dims = self.axes.new_dims(shape)
            scale = self.scales.new((a for dim in dims for a in dim), of_parameter=True)
            self.parameters[name] = Value(dims, scale, parameter=name)
        return self.parameters[name]

    def constant(self, shape: Sequence[int], reason: str) -> Value:
        """A tensor that no symmetry touches."""
        return Value(self.axes.new_dims(shape, fixed=reason))

    def give_up(self, values: Sequence[Value], reason: str) -> None:
        """Claim nothing of the axes and multipliers of ``values``."""
        for value in values:
            self.axes.fix(value.dims, reason)
            self.scales.forbid(value.scale)

    def hold(self, value: Value, dims: Sequence[Dim], reason: str = POSITIONS) -> None:
        """Keep the order and the multiplier along ``dims`` as they are."""
        self.axes.fix(dims, reason)
        self.scales.hold(value.scale, dims)

    def place(self, value: Value, place: Place) -> None:
        """Record where a parameter lies; of several places the first that fits is used."""
        if value.parameter:
            self.places.setdefault(value.parameter, []).append(place)

    def place_vector(self, value: Value) -> None:
        """Record a parameter that is numbers on neurons, not edges."""
        self.place(value, Place(tuple(axis for dim in value.dims for axis in dim)))

    def broadcast(self, values: Sequence[Value], shape: Sequence[int]) -> Dims:
        """The axes of an elementwise function of ``values``, which are the same neurons."""
        dims: list[Dim] = []
        for position in range(-len(shape), 0):
            found = [v.dims[position] for v in values if len(v.dims) >= -position]
            wide = [dim for dim in found if self.axes.size(dim) == shape[position]] or found
            for other in wide[1:]:
                if not self.axes.unite(wide[0], other):
                    self.give_up(values, "reshaped across neurons")
            dims.append(wide[0])
        return tuple(dims)

    def sum(self, values: Sequence[Value], shape: Sequence[int]) -> Value:
        """The sum, or any function that needs all its inputs on one scale."""
        dims = self.broadcast(values, shape)
        for value in values:
            self.scales.equate(values[0].scale, value.scale)
            self.place_vector(value)
        return Value(dims, self.scales.resolve(values[0].scale))

    def product(self, first: Value, second: Value, shape: Sequence[int]) -> Value:
        """The elementwise product; a factor that is a parameter is edges from neuron to neuron."""
        dims = self.broadcast([first, second], shape)
        for value, other in ((first, second), (second, first)):
            if not other.parameter:
                own = tuple(axis for dim in value.dims for axis in dim)
                self.place(value, Place(own, own, other.scale))
            else:
                self.place_vector(value)
        return Value(dims, self.scales.times(first.scale, second.scale))

    def reshape(self, value: Value, dims: Dims, shape: Sequence[int]) -> Dims:
        """``dims`` of ``value`` as those of a view of ``shape``; given up if that cuts neurons."""
        found = self.axes.reshape(dims, shape)
        if found is None:
            self.scales.forbid(value.scale)
            return self.axes.new_dims(shape, fixed="reshaped across neurons")
        return found

    def contract(
        self, values: Sequence[Value], labels: Sequence[Sequence[str]], output: Sequence[str]
    ) -> Value:
        """A sum of products, as by ``einsum``, with one label for each dimension.

        The last value that is a parameter is edges: its labels in the output are the target, the
        others the source neurons; labels that start with ``k`` are parallel edges, ``p`` positions.
        """
        dims: dict[str, Dim] = {}
        for value, names in zip(values, labels, strict=True):
            for name, dim in zip(names, value.dims, strict=True):
                known = dims.setdefault(name, dim)
                if self.axes.size(known) < self.axes.size(dim):
                    dims[name] = dim
                elif self.axes.size(dim) > 1 and not self.axes.unite(known, dim):
                    self.give_up(values, "reshaped across neurons")
        over = [dim for name, dim in dims.items() if name not in output]
        product = self.scales.times(*(value.scale for value in values))
        weight = max((i for i, value in enumerate(values) if value.parameter), default=None)
        for i, value in enumerate(values):
            if i != weight or len(values) == 1:
                self.place_vector(value)
        result = tuple(dims[name] for name in output)
        if weight is None or len(values) == 1:
            return Value(result, self.scales.summed(product, over))
        others = [v for i, v in enumerate(values) if i != weight]
        incoming = self.scales.times(*(other.scale for other in others))
        known = {n for i, names in enumerate(labels) if i != weight for n in names}
        own = dict(zip(labels[weight], values[weight].dims, strict=True))
        shared = [dim for name, dim in own.items() if name in output and name in known]
        target = [dim for name, dim in own.items() if name in output and name not in known]
        source = [dim for name, dim in own.items() if name not in output and name[0] != "k"]
        ends = [tuple(a for dim in (*shared, *end) for a in dim) for end in (target, source)]
        again = self._place_again(values[weight], ends, incoming)
        if again is not None:
            return Value(result, again)
        scale = self.scales.summed(product, over)
        self.axes.produce(target)
        self.place(values[weight], Place(*ends, incoming, scale))
        return Value(result, scale)

    def _place_again(self, value: Value, ends: Sequence[Dim], incoming: Powers) -> Powers | None:
        """The multiplier behind a square weight that is applied a second time to its own output.

        A product of multipliers does not say which index of an axis that is there twice each is
        for; the ends of its first use do, if they were the same dimensions of it.
        """
        places = self.places.get(value.parameter, [])
        if len(places) != 1 or [places[0].target, places[0].source] != ends:
            return None
        if places[0].target_scale is None or not self.repeated(value):
            return None
        self.scales.equate(places[0].source_scale, incoming)
        return self.scales.resolve(places[0].target_scale)

    def repeated(self, value: Value) -> list[Dim]:
        """The axes that a tensor has in two dimensions."""
        atoms = [a for dim in value.dims for a in self.axes.atoms([dim])]
        return [(axis,) for axis in sorted(set(atoms)) if atoms.count(axis) > 1]

    def activate(self, value: Value, activation: Activation) -> Value:
        """An elementwise activation, with the symmetry that it allows."""
        self.allow(value, activation.symmetry)
        self.activations.append((value, activation))
        self.place_vector(value)
        return Value(value.dims, self.scales.resolve(value.scale))

    def allow(self, value: Value, symmetry: Symmetry) -> None:
        """Restrict the multiplier to signs, to positive numbers or to 1."""
        self.scales.forbid(value.scale, flips=not symmetry.flips, rescales=not symmetry.rescales)


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of a node's tensor."""
    return tuple(int(size) for size in node.meta["val"].shape)


def argument(node: Node, name: str, default: Any = None) -> Any:
    """An argument of a call, or what the operator has for it, by its name in the schema.

    ``default`` is for overloads of the operator that have no such argument.
    """
    schema = node.target._schema.arguments
    own = {a.name: a.default_value for a in schema if a.has_default_value()}
    given = zip((a.name for a in schema), node.args, strict=False)
    return (own | dict(given) | node.kwargs).get(name, default)


def _flat(item: Any) -> list[Value]:
    if isinstance(item, Value):
        return [item]
    return [value for value in item if value is not None] if isinstance(item, list) else []
