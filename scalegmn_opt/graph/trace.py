"""From any ``nn.Module`` to its weight graph, by following axes through the exported program."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from scalegmn_opt.graph.axes import Dim
from scalegmn_opt.graph.groups import NONZERO_SCALE, Activation
from scalegmn_opt.graph.rules import RULES, NoRuleError, Program, Value, shape_of
from scalegmn_opt.graph.weight_graph import (
    CONSTANT,
    NeuronGroup,
    Role,
    WeightBlock,
    WeightGraph,
    constant_group,
    isolated,
)


class TraceWarning(UserWarning):
    """A part of a module was not understood: its parameters get no symmetry."""


def trace(module: nn.Module, example_inputs: Sequence[Any]) -> WeightGraph:
    """The weight graph of ``module``: every parameter once, every claimed symmetry true.

    The module is exported, not changed; no tensor data is kept. An operator without a rule fixes
    the axes it touches, with one warning that names it; a module that cannot be exported gets
    isolated blocks, with one warning.

    Args:
        module: any module; its parameters may be on any device.
        example_inputs: the positional arguments of one forward call, as a tuple or list.

    Raises:
        TypeError: if ``example_inputs`` is not a tuple or list.
    """
    if not isinstance(example_inputs, tuple | list):
        raise TypeError(
            "example_inputs: expected a tuple or list of the forward call's arguments, got "
            f"{type(example_inputs).__name__}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what export says of its own internals
            exported = torch.export.export(module, tuple(example_inputs), strict=False)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        warnings.warn(
            f"{type(module).__name__} cannot be traced ({type(error).__name__}: {reason}); "
            "its parameters become isolated blocks without symmetry",
            TraceWarning,
            stacklevel=2,
        )
        return WeightGraph.from_parameters({n: p.shape for n, p in module.named_parameters()})
    program, unknown = _propagate(exported, _canonical_names(module))
    for operator, (line, reason) in unknown.items():
        warnings.warn(
            f"no rule for operator {operator} ({reason}) at {line!r}: the neurons it touches get "
            "no symmetry",
            TraceWarning,
            stacklevel=2,
        )
    return _Builder(program, module).graph()


def _canonical_names(module: nn.Module) -> dict[str, str]:
    """From every name of a parameter, shared ones have several, to the one it is listed under."""
    first = {id(p): name for name, p in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every}


def _propagate(
    exported: ExportedProgram, names: dict[str, str]
) -> tuple[Program, dict[str, tuple[str, str]]]:
    program, unknown = Program(), {}
    kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            _enter(program, node, kinds[node.name], names)
        elif node.op == "output":
            for value in _tensors(program, node):
                program.axes.fix(value.dims, "output")
        elif isinstance(node.meta.get("val"), Tensor):
            _apply(program, node, unknown)
        else:  # several outputs, or none: touch what it reads, read its parts by getitem
            _fix(program, node, "no rule", unknown)
    _fix_unplaced(program, unknown)
    return program, unknown


def _enter(program: Program, node: Node, spec: Any, names: dict[str, str]) -> None:
    if not isinstance(node.meta.get("val"), Tensor):
        return
    if spec.kind is InputKind.PARAMETER:
        name = names[spec.target]
        known = (value for value in program.values.values() if value.parameter == name)
        fresh = Value(program.axes.new_dims(shape_of(node)), parameter=name)
        program.values[node] = next(known, fresh)
    else:
        reason = "input" if spec.kind is InputKind.USER_INPUT else "buffer"
        program.values[node] = Value(program.axes.new_dims(shape_of(node), fixed=reason))


def _apply(program: Program, node: Node, unknown: dict[str, tuple[str, str]]) -> None:
    if not _tensors(program, node):  # a constant, or the part of an unknown operator's tuple
        program.values[node] = Value(program.axes.new_dims(shape_of(node), fixed="constant"))
        return
    rule = RULES.get(getattr(node.target, "overloadpacket", None))
    try:
        if rule is None:
            raise NoRuleError("unknown operator")
        program.values[node] = rule(program, node)
    except NoRuleError as error:
        _fix(program, node, str(error), unknown)
        program.values[node] = Value(program.axes.new_dims(shape_of(node), fixed=str(node.target)))


def _fix(program: Program, node: Node, reason: str, unknown: dict[str, tuple[str, str]]) -> None:
    values = _tensors(program, node)
    for value in values:
        program.axes.fix(value.dims, f"read by {node.target}")
    if any(value.parameter or _meets_neurons(program, value) for value in values):
        unknown.setdefault(str(node.target), (_source_line(node), reason))


def _fix_unplaced(program: Program, unknown: dict[str, tuple[str, str]]) -> None:
    """A parameter that was only read through other operators stays, and so its neurons must."""
    for node, value in program.values.items():
        if value.parameter and value.parameter not in program.targets:
            program.axes.fix(value.dims, "parameter without a place")
            if _meets_neurons(program, value):
                user = next(iter(node.users))
                reason = f"it changes parameter {value.parameter!r}"
                unknown.setdefault(str(user.target), (_source_line(user), reason))


def _meets_neurons(program: Program, value: Value) -> bool:
    axes = (axis for dim in value.dims for axis in program.axes.resolve(dim))
    return any(program.axes.facts(axis).produced for axis in axes)


def _tensors(program: Program, node: Node) -> list[Value]:
    return [program.values[n] for n in node.all_input_nodes if n in program.values]


def _source_line(node: Node) -> str:
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    return lines[-1] if lines else "an unknown line"


class _Builder:
    """Groups and blocks of a propagated program."""

    def __init__(self, program: Program, module: nn.Module) -> None:
        self._axes = program.axes
        self._program = program
        self._parameters = {name: tuple(p.shape) for name, p in module.named_parameters()}
        self._dims = {v.parameter: v.dims for v in program.values.values() if v.parameter}
        self._groups: dict[tuple[Any, ...], NeuronGroup] = {}
        self._blocks: list[WeightBlock] = []
        self._isolated: list[NeuronGroup] = []

    def graph(self) -> WeightGraph:
        self._keep_one_free_factor()
        for name, shape in self._parameters.items():
            if name in self._program.targets:
                self._blocks.append(self._block(name))
            else:
                groups, block = isolated(name, shape)
                self._isolated += groups
                self._blocks.append(block)
        groups = (constant_group(), *self._groups.values(), *self._isolated)
        return WeightGraph(groups, tuple(self._blocks))

    def _keep_one_free_factor(self) -> None:
        """A dimension that is a product of two groups is edges of the first; the rest is fixed."""
        dims = (*self._program.targets.values(), *self._program.sources.values())
        for dim in dims:
            free = [axis for axis in self._axes.resolve(dim) if self._axes.is_free(axis)]
            self._axes.fix([(axis,) for axis in free[1:]], "one of two groups in a product")

    def _block(self, name: str) -> WeightBlock:
        """The pattern names the factors of each dimension: ``out``, ``src`` or a kernel axis."""
        ends = {"out": self._program.targets[name], "src": self._program.sources.get(name)}
        groups = {end: self._group(dim, name) for end, dim in ends.items() if dim is not None}
        patterns, sizes = [], []
        for dim in self._dims[name]:
            factors = []
            end = next((end for end, other in ends.items() if other == dim), None)
            for part in self._factors(dim, whole=end is not None):
                is_group = end is not None and self._is_group(part, dim)
                factors.append(end if is_group else f"k{len(sizes)}")
                sizes.append((factors[-1], self._axes.size(part)))
            patterns.append(f"({' '.join(factors)})" if len(factors) > 1 else factors[0])
        source = groups["src"].name if "src" in groups else CONSTANT
        return WeightBlock(name, groups["out"].name, source, " ".join(patterns), tuple(sizes))

    def _factors(self, dim: Dim, *, whole: bool) -> list[Dim]:
        """The factors of a dimension; one, if none of them is a group of its own."""
        parts = self._axes.resolve(dim)
        if whole and any(map(self._axes.is_free, parts)):
            return [(axis,) for axis in parts]
        return [parts]

    def _is_group(self, part: Dim, dim: Dim) -> bool:
        return len(self._factors(dim, whole=True)) == 1 or self._axes.is_free(part[0])

    def _group(self, dim: Dim, parameter: str) -> NeuronGroup:
        parts = self._axes.resolve(dim)
        free = tuple(axis for axis in parts if self._axes.is_free(axis))
        key = free or parts
        if key not in self._groups:
            self._groups[key] = self._new_group(key, parameter, is_source=dim in self._sources)
        return self._groups[key]

    @property
    def _sources(self) -> set[Dim]:
        return set(self._program.sources.values())

    def _new_name(self, parameter: str, end: str) -> str:
        """After the module, or after the parameter in a module with several such groups."""
        name = f"{parameter.rpartition('.')[0] or parameter}:{end}"
        taken = any(group.name == name for group in self._groups.values())
        return f"{parameter}:{end}" if taken else name

    def _new_group(self, parts: Dim, parameter: str, *, is_source: bool) -> NeuronGroup:
        facts = [self._axes.facts(axis) for axis in parts]
        activations = facts[0].activations
        name = self._new_name(parameter, "in" if is_source else "out")
        size = self._axes.size(parts)
        activation = activations[0] if len(activations) == 1 else None
        if self._axes.is_free(parts[0]):
            symmetry = self._axes.symmetry(parts[0])
            if symmetry == NONZERO_SCALE and not activations:
                activation = Activation("identity")
            return NeuronGroup(name, size, Role.HIDDEN, symmetry, activation)
        reasons = {fact.fixed for fact in facts}
        role = next((role for role in (Role.OUTPUT, Role.INPUT) if role.value in reasons), None)
        return NeuronGroup(name, size, role or Role.FIXED)
