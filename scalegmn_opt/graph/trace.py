"""From any ``nn.Module`` to its weight graph, by following axes through the exported program."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.fx import GraphModule, Node

from scalegmn_opt.graph.build import build
from scalegmn_opt.graph.capture import Captured, CaptureError, capture
from scalegmn_opt.graph.program import NoRuleError, Program, Value, shape_of
from scalegmn_opt.graph.rules import RULES
from scalegmn_opt.graph.rules_shape import uniform
from scalegmn_opt.graph.weight_graph import WeightGraph


class TraceWarning(UserWarning):
    """A part of a module was not understood: its parameters get no symmetry."""


def trace(module: nn.Module, example_inputs: Sequence[Any]) -> WeightGraph:
    """The weight graph of ``module``: every parameter once, every claimed symmetry true.

    The module is exported, not changed; no tensor data is kept. An operator without a rule fixes
    the axes it touches, with one warning that names it; so does a part whose control flow depends
    on data. A module that cannot be captured at all gets isolated blocks, with one warning.

    Args:
        module: any module; its parameters may be on any device.
        example_inputs: the positional arguments of one forward call, as a tuple or list.

    Raises:
        TypeError: if ``example_inputs`` is not a tuple or list.
        ValueError: if the module cannot be called with ``example_inputs``.
    """
    if not isinstance(example_inputs, tuple | list):
        raise TypeError(
            "example_inputs: expected a tuple or list of the forward call's arguments, got "
            f"{type(example_inputs).__name__}"
        )
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    try:
        captured = capture(module, example_inputs)
    except CaptureError as error:
        _warn(
            f"{type(module).__name__} cannot be traced ({error}); its parameters become isolated "
            "blocks without symmetry"
        )
        return WeightGraph.from_parameters(shapes)
    for name in captured.opaque:
        _warn(f"{name} cannot be traced; its parameters become isolated blocks without symmetry")
    propagation = _Propagation(captured)
    for operator, (line, reason) in propagation.unknown.items():
        _warn(
            f"no rule for operator {operator} ({reason}) at {line!r}: the neurons it touches get "
            "no symmetry"
        )
    return build(propagation.program, shapes)


def _warn(message: str) -> None:
    warnings.warn(message, TraceWarning, stacklevel=3)


class _Propagation:
    """Applies the rules to the nodes of a graph, in order."""

    def __init__(self, captured: Captured) -> None:
        self.program = Program()
        self.unknown: dict[str, tuple[str, str]] = {}  # operator -> source line and reason
        for node in captured.graph.nodes:
            if node.op == "placeholder":
                self._enter(node, *captured.entries[node.name])
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
        inputs = program.inputs(node)
        if isinstance(node.target, HigherOrderOperator) and self._inline(node):
            return
        outputs = _output_shapes(node)
        if not outputs:  # an assertion, a size
            return
        rule = RULES.get(getattr(node.target, "overloadpacket", node.target))
        if not inputs and rule is not uniform:
            program.values[node] = _constants(program, outputs, "constant")
            return
        try:
            if rule is None:
                raise NoRuleError("unknown operator")
            if _has_unknown_size(node):
                raise NoRuleError("the size of its output depends on data")
            result = rule(program, node)
        except NoRuleError as error:
            self._note(node, str(error), inputs)
            program.give_up(inputs, f"read by {node.target}")
            result = _constants(program, outputs, f"{node.target}")
        self._write(node, result)

    def _write(self, node: Node, result: Any) -> None:
        """An operator in place leaves its first input on the scale that it had."""
        program = self.program
        program.values[node] = result
        first = node.args[0] if node.args else None
        before = program.values.get(first) if isinstance(first, Node) else None
        if _is_in_place(node) and isinstance(before, Value) and isinstance(result, Value):
            program.scales.equate(before.scale, result.scale)
            program.values[first] = result

    def _inline(self, node: Node) -> bool:
        """Apply the rules inside a region such as ``with torch.no_grad():``."""
        places = [i for i, a in enumerate(node.args) if _is_region(a)]
        if len(places) != 1:
            return False
        region = getattr(node.graph.owning_module, node.args[places[0]].target).graph
        arguments = iter(node.args[places[0] + 1 :])
        for inner in region.nodes:
            if inner.op == "placeholder":
                outer = next(arguments)
                if outer in self.program.values:
                    self.program.values[inner] = self.program.values[outer]
            elif inner.op == "call_function":
                self._call(inner)
            elif inner.op == "output":
                results = inner.args[0]
                self.program.values[node] = [self.program.values.get(r) for r in results]
        return True

    def _note(self, node: Node, reason: str, inputs: Sequence[Value]) -> None:
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
            if twice := program.repeated(value):
                for scale in (value.scale, *(place.source_scale for place in places)):
                    program.scales.hold(scale, twice)

    def _hold_unplaced(self) -> None:
        """A parameter that was only read by unknown operators stays as it is."""
        for name, value in self.program.parameters.items():
            if name not in self.program.places:
                self.program.give_up([value], "parameter without a place")


def _is_in_place(node: Node) -> bool:
    name = str(getattr(node.target, "overloadpacket", ""))
    return name.endswith("_") and not name.endswith("__")


def _is_region(argument: Any) -> bool:
    """Whether an argument of a node is a graph of its own."""
    is_attribute = isinstance(argument, Node) and argument.op == "get_attr"
    owner = argument.graph.owning_module if is_attribute else None
    return isinstance(getattr(owner, str(argument.target), None), GraphModule) if owner else False


def _outputs(node: Node) -> list[Any]:
    found = node.meta.get("val")
    return list(found) if isinstance(found, list | tuple) else [found]


def _output_shapes(node: Node) -> list[tuple[int, ...] | None]:
    """Shapes of a node's tensors, with 1 for a size that depends on data; none if it has none."""
    shapes = [
        tuple(1 if _is_unknown(size) else int(size) for size in p.shape)
        if isinstance(p, Tensor)
        else None
        for p in _outputs(node)
    ]
    return shapes if any(shape is not None for shape in shapes) else []


def _is_unknown(size: Any) -> bool:
    if not isinstance(size, torch.SymInt):
        return False
    from torch.fx.experimental.symbolic_shapes import has_free_unbacked_symbols

    return has_free_unbacked_symbols(size)


def _has_unknown_size(node: Node) -> bool:
    tensors = (p for p in _outputs(node) if isinstance(p, Tensor))
    return any(_is_unknown(size) for p in tensors for size in p.shape)


def _constants(program: Program, shapes: Sequence[tuple[int, ...] | None], reason: str) -> Any:
    values = [None if s is None else program.constant(s, reason) for s in shapes]
    return values[0] if len(values) == 1 else values


def _source_line(node: Node) -> str:
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    return lines[-1] if lines else "an unknown line"
