"""From a module to a graph of operators: export first, then ways for what cannot be exported."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Graph, symbolic_trace
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


@dataclass(frozen=True)
class Captured:
    """A graph of operators, and for each placeholder the parameter it is, or else what it is."""

    graph: Graph
    entries: Mapping[str, tuple[str, str]]
    opaque: tuple[str, ...] = ()  # parts that were called, not captured


class CaptureError(Exception):
    """A module whose program is not one graph, whatever the data."""


def capture(module: nn.Module, inputs: Sequence[Any]) -> Captured:
    """The operators of one forward call; the module is not changed, its randomness not drawn.

    ``torch.export`` comes first. What it refuses though no control flow depends on data (operators
    without a shape rule) goes through ``torch.fx``; parts whose control flow depends on data are
    left out, as one unknown operator each.

    Raises:
        ValueError: if the module cannot be called with ``inputs``.
        CaptureError: if its own control flow depends on data.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what export says of its own internals
        try:
            return _exported(module, inputs)
        except Exception as error:
            _require_callable(module, inputs)
            for other in (_lowered, _without_parts):
                with torch.random.fork_rng(devices=[]):
                    found = _attempt(other, copy.deepcopy(module), inputs)
                if found is not None:
                    return found
            reason = str(error).strip().split("\n")[0]
            raise CaptureError(f"{type(error).__name__}: {reason}") from error


def _attempt(way: Any, module: nn.Module, inputs: Sequence[Any]) -> Captured | None:
    try:
        return way(module, inputs)
    except Exception:
        return None


def _require_callable(module: nn.Module, inputs: Sequence[Any]) -> None:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(module)(*inputs)
    except Exception as error:
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in inputs]
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"example_inputs: expected the arguments of a forward call of {type(module).__name__}, "
            f"got {len(inputs)} of shapes {shapes}, with which it fails: {reason}"
        ) from error


def canonical_names(module: nn.Module) -> dict[str, str]:
    """From every name of a parameter, shared ones have several, to the one it is listed under."""
    first = {id(p): name for name, p in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every}


def _exported(module: nn.Module, inputs: Sequence[Any]) -> Captured:
    exported = torch.export.export(module, tuple(inputs), strict=False)
    names, entries = canonical_names(module), {}
    for spec in exported.graph_signature.input_specs:
        name = names[spec.target] if spec.kind is InputKind.PARAMETER else ""
        kind = "input" if spec.kind is InputKind.USER_INPUT else "buffer"
        entries[spec.arg.name] = (name, kind)
    return Captured(exported.graph, entries)


def _lowered(module: nn.Module, inputs: Sequence[Any]) -> Captured:
    """By ``torch.fx``, which fails on control flow that depends on data, down to operators."""
    straight = symbolic_trace(module)
    params = {name: p.detach() for name, p in module.named_parameters()}
    buffers = dict(module.named_buffers())
    leaves, spec = tree_flatten(tuple(inputs))
    names = [(name, "parameter") for name in params]
    names += [("", "buffer") for _ in buffers] + [("", "input") for _ in leaves]

    def call(*tensors: Any) -> Any:
        values = dict(zip((*params, *buffers), tensors, strict=False))
        arguments = tree_unflatten(tensors[len(values) :], spec)
        return torch.func.functional_call(straight, values, arguments)

    from torch.fx.experimental.proxy_tensor import make_fx

    made = make_fx(call, pre_dispatch=True)(*params.values(), *buffers.values(), *leaves)
    places = [node.name for node in made.graph.nodes if node.op == "placeholder"]
    return Captured(made.graph, dict(zip(places, names, strict=True)))


@torch.library.custom_op("scalegmn_opt::opaque", mutates_args=())
def _opaque(tensors: list[Tensor], shape: list[int]) -> Tensor:
    """A stand-in for a part of a module that is not understood."""
    return torch.zeros(shape)


@_opaque.register_fake
def _(tensors: list[Tensor], shape: list[int]) -> Tensor:
    return torch.empty(shape)


def _without_parts(module: nn.Module, inputs: Sequence[Any]) -> Captured:
    """Export with the smallest parts that cannot be exported left out."""
    calls = _calls(module, inputs)
    parts = [name for name in _unexportable(module, calls) if name]
    if not parts:
        raise CaptureError("the module's own control flow depends on data")
    for name in parts:
        _stub(module.get_submodule(name), calls[name][2])
    return replace(_exported(module, inputs), opaque=tuple(parts))


_Call = tuple[tuple[Any, ...], dict[str, Any], Any]


def _calls(module: nn.Module, inputs: Sequence[Any]) -> dict[str, _Call]:
    """Arguments and outputs of the first call of each part, by name."""
    calls: dict[str, _Call] = {}
    with _recording(module, calls), torch.no_grad():
        module(*inputs)
    return calls


@contextmanager
def _recording(module: nn.Module, calls: dict[str, _Call]) -> Any:
    def record(name: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.setdefault(name, (args, kwargs, output))

    parts = module.named_modules()
    handles = [
        part.register_forward_hook(partial(record, name), with_kwargs=True) for name, part in parts
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unexportable(module: nn.Module, calls: Mapping[str, _Call], name: str = "") -> list[str]:
    """Names of the smallest parts that cannot be exported; none if the module can."""
    part = module.get_submodule(name)
    if name not in calls:
        return []
    args, kwargs, _ = calls[name]
    try:
        torch.export.export(part, args, kwargs, strict=False)
    except Exception:
        children = [f"{name}.{child}".strip(".") for child, _ in part.named_children()]
        inner = [found for child in children for found in _unexportable(module, calls, child)]
        return inner or [name]
    return []


def _stub(part: nn.Module, output: Any) -> None:
    """Let a part return tensors of the shapes of ``output`` without any operator that is known."""
    leaves, spec = tree_flatten(output)
    shapes = [list(x.shape) if isinstance(x, Tensor) else None for x in leaves]

    def forward(*args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        pairs = zip(leaves, shapes, strict=True)
        return tree_unflatten([x if s is None else _opaque(tensors, s) for x, s in pairs], spec)

    part.forward = forward
