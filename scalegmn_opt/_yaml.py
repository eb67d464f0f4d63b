"""YAML as plain data with line numbers: no aliases, tags, duplicate keys or dates."""

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Location = tuple[int | str, ...]
_TAG = "tag:yaml.org,2002:"
_SCALARS = {f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null")}


class YamlError(ValueError):
    """A text that cannot be read; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Safe loader that leaves dates as text and reads `1e-3` as a number, as YAML 1.2 does."""

    def compose_node(self, parent: Node | None, index: object) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1
            raise YamlError("aliases (*name) are not allowed", line)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_mapping(content: bytes) -> tuple[dict[str, Any], dict[Location, int]]:
    """Read a YAML mapping, with the line (from 1) of every key and list item by its location.

    Raises:
        YamlError: the text is no YAML, empty, no mapping, or uses what recipes leave out.
    """
    try:
        loader = _Loader(content)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(f"no valid YAML: {error.problem}", mark.line + 1 if mark else 1) from error
    except yaml.reader.ReaderError as error:
        position = error.position
        line = content[:position].count(b"\n") + 1
        raise YamlError(f"no readable text: {error.reason}", line) from error
    if root is None:
        raise YamlError("the file is empty, expected a mapping", 1)
    if not isinstance(root, MappingNode):
        raise YamlError(f"expected a mapping, got a {root.id}", _line(root))
    lines: dict[Location, int] = {(): _line(root)}
    return _mapping(root, loader, (), lines), lines


def _line(node: Node) -> int:
    return node.start_mark.line + 1


def _value(node: Node, loader: _Loader, loc: Location, lines: dict[Location, int]) -> Any:
    if isinstance(node, MappingNode):
        return _mapping(node, loader, loc, lines)
    if isinstance(node, SequenceNode):
        return _sequence(node, loader, loc, lines)
    return _scalar(node, loader)


def _mapping(
    node: MappingNode, loader: _Loader, loc: Location, lines: dict[Location, int]
) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        if not isinstance(key_node, ScalarNode) or key_node.tag != f"{_TAG}str":
            raise YamlError(f"keys must be text, got {key!r}", _line(key_node))
        if key in mapping:
            first = lines[(*loc, key)]
            raise YamlError(f"key {key!r} is given twice, first in line {first}", _line(key_node))
        lines[(*loc, key)] = _line(key_node)
        mapping[key] = _value(value_node, loader, (*loc, key), lines)
    return mapping


def _sequence(
    node: SequenceNode, loader: _Loader, loc: Location, lines: dict[Location, int]
) -> list[Any]:
    items = []
    for index, item in enumerate(node.value):
        lines[(*loc, index)] = _line(item)
        items.append(_value(item, loader, (*loc, index), lines))
    return items


def _scalar(node: ScalarNode, loader: _Loader) -> str | int | float | bool | None:
    if node.tag not in _SCALARS:
        raise YamlError(f"the tag {node.tag!r} is not allowed", _line(node))
    try:
        return loader.construct_object(node)
    except ValueError as error:
        raise YamlError(f"no valid value: {node.value!r} ({error})", _line(node)) from error
