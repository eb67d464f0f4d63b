"""From any ``nn.Module`` to its weight graph, by following axes through the exported program."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node

from scalegmn_opt.graph.build import build
from scalegmn_opt.graph.program import NoRuleError, Program, Value, shape_of
from scalegmn_opt.graph.rules import RULES
from scalegmn_opt.graph.weight_graph import WeightGraph


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
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
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
        return WeightGraph.from_parameters(shapes)
    names = _canonical_names(module)
    kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    entries = {
        name: (names[spec.target] if spec.kind is InputKind.PARAMETER else "",
               "input" if spec.kind is InputKind.USER_INPUT else "buffer")
        for name, spec in kinds.items()
    }
    propagation = _Propagation(exported.graph, entries)
    for operator, (line, reason) in propagation.unknown.items():
        warnings.warn(
            f"no rule for operator {operator} ({reason}) at {line!r}: the neurons it touches get "
            "no symmetry",
            TraceWarning,
            stacklevel=2,
        )
    return build(propagation.program, shapes)


def _canonical_names(module: nn.Module) -> dict[str, str]:
    """From every name of a parameter, shared ones have several, to the one it is listed under."""
    first = {id(p): name for name, p in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every}


class _Propagation:
    """Applies the rules to the nodes of a graph, in order.

    Args:
        entries: for each placeholder the parameter it is, or "", and else what it is.
    """

    def __init__(self, graph: Graph, entries: Mapping[str, tuple[str, str]]) -> None:
        self.program = Program()
        self.unknown: dict[str, tuple[str, str]] = {}  # operator -> source line and reason
        for node in graph.nodes:
            if node.op == "placeholder":
                self._enter(node, *entries[node.name])
            elif node.op == "output":
                self.program.give_up(self.program.inputs(node), "output")
            elif node.op == "call_function":
                self._call(node)
        self._hold_unplaced()
        self._hold_repeated()

    def _enter(self, node: Node, parameter: str, kind: str) -> None:
        if not isinstance(node.meta.get("val"), Tensor):
            return
        shape = shape_of(node)
        enter = self.program.enter_parameter
        value = enter(parameter, shape) if parameter else self.program.constant(shape, kind)
        self.program.values[node] = value

    def _call(self, node: Node) -> None:
        program = self.program
        outputs = _output_shapes(node)
        if not outputs:  # an assertion, a size
            return
        inputs = program.inputs(node)
        rule = RULES.get(getattr(node.target, "overloadpacket", node.target))
        if not inputs:
            program.values[node] = _constants(program, outputs, "constant")
            return
        try:
            if rule is None:
                raise NoRuleError("unknown operator")
            result = rule(program, node)
        except NoRuleError as error:
            self._warn(node, str(error), inputs)
            program.give_up(inputs, f"read by {node.target}")
            result = _constants(program, outputs, f"{node.target}")
        self._write(node, result)

    def _write(self, node: Node, result: Any) -> None:
        """An operator in place leaves its first input on the scale that it had."""
        program = self.program
        program.values[node] = result
        name = str(getattr(node.target, "overloadpacket", ""))
        first = program.values.get(node.args[0]) if node.args and isinstance(node.args[0], Node) else None
        if name.endswith("_") and not name.endswith("__") and isinstance(first, Value):
            if isinstance(result, Value):
                program.scales.equate(first.scale, result.scale)
                program.values[node] = result
                program.values[node.args[0]] = result

    def _warn(self, node: Node, reason: str, inputs: Sequence[Value]) -> None:
        facts = self.program.axes.facts
        axes = (a for value in inputs for dim in value.dims for a in self.program.axes.resolve(dim))
        if any(value.parameter for value in inputs) or any(facts(axis).produced for axis in axes):
            self.unknown.setdefault(str(node.target), (_source_line(node), reason))

    def _hold_repeated(self) -> None:
        """Multipliers must not depend on an axis that a tensor has twice.

        A product of multipliers does not say which index each is for. A parameter may have an axis
        twice if it is edges, whose ends say that; but not if it is read in two ways.
        """
        program = self.program
        for value in program.every_value():
            places = program.places.get(value.parameter, [])
            if value.parameter and len(places) < 2:
                continue
            atoms = [a for dim in value.dims for a in program.axes.atoms([dim])]
            twice = [(axis,) for axis in set(atoms) if atoms.count(axis) > 1]
            if twice:
                for scale in (value.scale, *(place.source_scale for place in places)):
                    program.scales.hold(scale, twice)

    def _hold_unplaced(self) -> None:
        """A parameter that was only read by unknown operators stays as it is."""
        for name, value in self.program.parameters.items():
            if name not in self.program.places:
                self.program.give_up([value], "parameter without a place")


def _output_shapes(node: Node) -> list[tuple[int, ...] | None]:
    found = node.meta.get("val")
    parts = list(found) if isinstance(found, list | tuple) else [found]
    shapes = [tuple(map(int, p.shape)) if isinstance(p, Tensor) else None for p in parts]
    return shapes if any(shape is not None for shape in shapes) else []


def _constants(program: Program, shapes: Sequence[tuple[int, ...] | None], reason: str) -> Any:
    values = [None if s is None else program.constant(s, reason) for s in shapes]
    return values[0] if len(values) == 1 else values


def _source_line(node: Node) -> str:
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    return lines[-1] if lines else "an unknown line"
