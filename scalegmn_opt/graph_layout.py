"""Where to draw neuron groups: from the input on the left to the output on the right.

A group that is written and read again and again, as the residual stream of a transformer, is a bar
above its branches. Any other group is a box in a column.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import mean

from scalegmn_opt.graph import CONSTANT, WeightGraph

_WIDTH, _GAP, _SIDE = 1.0, 0.34, 0.28  # of a box; between columns; beside the branches of a bar
_BELOW = 1.3  # from a bar to its branches, in heights of a row
_LINE, _FEW = 22.0, 7.0  # widths at which a drawing, or a row of unconnected parts, goes on below
_Edges = set[tuple[str, str]]
_Stacks = Mapping[str, Sequence[str]]  # groups on top of one another, by the first of them


@dataclass(frozen=True)
class Bar:
    """The place of a group, or of a part of it if the drawing has several rows; y goes down."""

    group: str
    left: float
    right: float
    y: float


@dataclass(frozen=True)
class Layout:
    """Places of all groups, and pairs of groups with a common order that are drawn together.

    Those are the groups before and after a normalisation, and groups side by side as queries, keys
    and values.
    """

    bars: tuple[Bar, ...]
    order: tuple[tuple[str, str], ...]
    width: float
    height: float


@dataclass
class _Box:
    """Bars in a rectangle whose upper left corner is at 0."""

    width: float = 0.0
    height: float = 0.0
    bars: list[Bar] = field(default_factory=list)

    def put(self, box: "_Box", x: float, y: float) -> None:
        """Add the bars of another box, moved."""
        self.bars += [
            replace(bar, left=bar.left + x, right=bar.right + x, y=bar.y + y) for bar in box.bars
        ]
        self.width = max(self.width, x + box.width)
        self.height = max(self.height, y + box.height)


def lay_out(graph: WeightGraph) -> Layout:
    """Places for all groups of a graph but the constant neuron."""
    names = [group.name for group in graph.groups if group.name != CONSTANT]
    edges = {(b.source, b.target) for b in graph.blocks if not b.is_vector}
    links = _links(graph, names, edges)
    stacks = _stacks(graph, names, edges, links)
    links |= _last_links(graph, names, edges, links, stacks)
    first = {name: top for top, members in stacks.items() for name in members}
    joined = {(first.get(a, a), first.get(b, b)) for a, b in edges | links}
    units = [name for name in names if first.get(name, name) == name]
    box = _packed([_place(part, joined, stacks) for part in _components(units, joined)])
    beside = {pair for s in stacks.values() for pair in pairwise(s)}
    return Layout(tuple(box.bars), tuple(sorted(links | beside)), box.width, box.height)


def _links(graph: WeightGraph, names: Sequence[str], edges: _Edges) -> _Edges:
    """Pairs of groups without weights in between, of which one is the other's normalised form.

    A graph does not have them; they are guessed from common orders, for pictures only.
    """
    alike: dict[frozenset[str], list[str]] = {}
    for name in names:
        alike.setdefault(_free_axes(graph, name), []).append(name)
    found = {(owner, name) for name, owners in graph.derived.items() for owner, _ in owners}
    for axes, members in alike.items():
        if axes:
            found |= _links_of([m for m in members if m not in graph.derived], graph, edges)
    return {(a, b) for a, b in found if a != b}


def _links_of(members: Sequence[str], graph: WeightGraph, edges: _Edges) -> _Edges:
    written, read = {b for _, b in edges}, {a for a, _ in edges}
    readers = [m for m in members if m not in written]
    writers = [m for m in members if m in written and m not in read]
    trunk = [m for m in members if m in written and m in read] or writers[:1]
    erased = [m for m in writers if _is_erased(graph, m)]
    if len(readers) == 1 and trunk == writers[:1]:
        return {(m, readers[0]) for m in erased}
    place = {m: i for i, m in enumerate(members)}
    found = {(a, b) for a, b in pairwise(trunk) if _is_erased(graph, a)}
    for reader in readers if trunk else ():
        before = [m for m in trunk if place[m] < place[reader]]
        found.add((before[-1] if before else trunk[0], reader))
    return found | {(m, trunk[0]) for m in erased if m not in trunk}


def _free_axes(graph: WeightGraph, name: str) -> frozenset[str]:
    axes = graph.group_axes(graph.group[name])
    return frozenset(axis for axis in axes if graph.axis[axis].permutes)


def _long_axes(graph: WeightGraph, name: str) -> set[str]:
    return {a for a in graph.group_axes(graph.group[name]) if graph.axis[a].size > 1}


def _last_links(
    graph: WeightGraph, names: Sequence[str], edges: _Edges, links: _Edges, stacks: _Stacks
) -> _Edges:
    """From groups that lead nowhere to one with the same order, as queries to keys of elsewhere."""
    read, written = {a for a, _ in edges | links}, {b for _, b in edges}
    stacked = {name for members in stacks.values() for name in members}
    found = set()
    for name in names:
        if name in written and name not in read | stacked:
            axes = _free_axes(graph, name)
            others = [o for o in names if o != name and o in (read | stacked) & written]
            found |= {(name, o) for o in others if axes and _free_axes(graph, o) == axes}
    return found


def _is_erased(graph: WeightGraph, name: str) -> bool:
    return any(graph.scale[s].erased for s, _ in graph.group_scales(graph.group[name]))


def _stacks(
    graph: WeightGraph, names: Sequence[str], edges: _Edges, links: _Edges
) -> dict[str, list[str]]:
    """Groups that lead nowhere, with a group of the same sources that shares an order with them.

    Queries and keys with values, a gate with what it is multiplied by.
    """
    sources = {name: {a for a, b in edges if b == name} for name in names}
    read = {a for a, _ in edges | links}
    top: dict[str, str] = {}
    for name in names:
        axes = _long_axes(graph, name)
        beside = [o for o in names if sources[o] & sources[name] and _long_axes(graph, o) & axes]
        others = [other for other in beside if other in read]
        if name not in read and others:
            place = names.index(name)
            other = min(others, key=lambda o: abs(names.index(o) - place))
            top[name] = top[other] = top.get(other) or min(name, other, key=names.index)
    stacks: dict[str, list[str]] = {}
    for name in names:
        if name in top:
            stacks.setdefault(top[name], []).append(name)
    return {members[0]: members for members in stacks.values()}


def _components(units: Sequence[str], edges: _Edges) -> list[list[str]]:
    """Units that are connected in any way, together."""
    both = edges | {(b, a) for a, b in edges}
    reach = _reach(units, both)
    seen: set[str] = set()
    found = []
    for unit in units:
        if unit not in seen:
            found.append([u for u in units if u == unit or u in reach[unit]])
            seen.update(found[-1])
    return found


def _reach(units: Sequence[str], edges: _Edges) -> dict[str, set[str]]:
    """Which units each leads to, over units only."""
    after: dict[str, set[str]] = {unit: set() for unit in units}
    for a, b in edges:
        if a in after and b in after and a != b:
            after[a].add(b)
    found = {}
    for unit in units:
        reached, front = set(), [unit]
        while front:
            new = after[front.pop()] - reached
            reached |= new
            front += new
        found[unit] = reached
    return found


def _place(units: Sequence[str], edges: _Edges, stacks: _Stacks) -> _Box:
    """Connected units in columns; those on a common cycle become one box with a bar."""
    reach = _reach(units, edges)
    cycle = {
        u: next(v for v in units if v == u or (v in reach[u] and u in reach[v])) for u in units
    }
    members: dict[str, list[str]] = {}
    for unit in units:
        members.setdefault(cycle[unit], []).append(unit)
    before: dict[str, set[str]] = {c: set() for c in members}
    for a, b in edges:
        if a in cycle and b in cycle and cycle[a] != cycle[b]:
            before[cycle[b]].add(cycle[a])
    boxes = {c: _cycle_box(m, edges, stacks) for c, m in members.items()}
    return _in_columns(boxes, before)


def _in_columns(boxes: Mapping[str, _Box], before: Mapping[str, set[str]]) -> _Box:
    column = _columns(before)
    whole, y, x, line = _Box(), {}, 0.0, 0.0
    for place in range(max(column.values()) + 1):
        members = [c for c in boxes if column[c] == place]
        width = max(boxes[c].width for c in members)
        if x > _LINE / 8 and x + width > _LINE:
            x, line = 0.0, whole.height + _BELOW / 2
        wanted = {c: mean([y[b] for b in before[c]] or [line]) for c in members}
        low = line
        for c in sorted(members, key=wanted.__getitem__):
            y[c] = max(low, wanted[c])
            whole.put(boxes[c], x, y[c])
            low = y[c] + boxes[c].height
        x += width + _GAP
    return whole


def _columns(before: Mapping[str, set[str]]) -> dict[str, int]:
    """The column of each: behind all before it, and inputs right in front of what reads them."""
    column: dict[str, int] = {}
    while len(column) < len(before):
        for name, others in before.items():
            if name not in column and others <= column.keys():
                column[name] = 1 + max((column[other] for other in others), default=-1)
    for name, others in before.items():
        after = [column[other] for other, earlier in before.items() if name in earlier]
        if not others and after:
            column[name] = min(after) - 1
    return column


def _cycle_box(units: Sequence[str], edges: _Edges, stacks: _Stacks) -> _Box:
    if len(units) == 1:
        members = stacks.get(units[0], units)
        bars = [Bar(name, 0.0, _WIDTH, float(i)) for i, name in enumerate(members)]
        return _Box(_WIDTH, float(len(members)), bars)
    uses = {unit: sum(unit in edge for edge in edges) for unit in units}
    stream = max(units, key=uses.__getitem__)
    names = stacks.get(stream, [stream])
    rest = [unit for unit in units if unit != stream]
    branches = [_place(part, edges, stacks) for part in _components(rest, edges)]
    whole, y = _Box(), 0.0
    for line in _lines(branches):
        part, x = _Box(), _SIDE
        for box in line:
            part.put(box, x, len(names) - 1 + _BELOW)
            x += box.width + 2 * _SIDE
        for i, name in enumerate(names):
            part.bars.append(Bar(name, 0.0, x - _SIDE, float(i)))
        part.width = x - _SIDE
        whole.put(part, 0.0, y)
        y = whole.height + _BELOW / 2
    return whole


def _packed(boxes: Sequence[_Box]) -> _Box:
    """Boxes in lines as long as the widest, or a few columns."""
    whole, x, y = _Box(), 0.0, 0.0
    line = max(_FEW, *(box.width for box in boxes), 0.0)
    for box in boxes:
        if x + box.width > line:
            x, y = 0.0, whole.height
        whole.put(box, x, y)
        x += box.width + 2 * _GAP
    return whole


def _lines(boxes: Iterable[_Box]) -> list[list[_Box]]:
    """Boxes in lines that are not much longer than a row."""
    lines: list[list[_Box]] = [[]]
    for box in boxes:
        width = sum(b.width + 2 * _SIDE for b in lines[-1])
        if lines[-1] and width + box.width > _LINE:
            lines.append([])
        lines[-1].append(box)
    return lines
