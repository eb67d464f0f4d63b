"""A picture of a weight graph: groups by what may be done to their neurons, and the weights."""

import re
from collections.abc import Iterable, Iterator, Sequence
from math import comb, log10, prod
from typing import TYPE_CHECKING, Any

from scalegmn_opt.figures import new_figure
from scalegmn_opt.graph import CONSTANT, NeuronGroup, Role, WeightGraph
from scalegmn_opt.graph_layout import Bar, Layout, lay_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCH = (1.2, 0.68)  # of a unit of the layout
_HEIGHT = 0.64  # of a box, in units
_LETTERS = 17  # in a line of a box
# what -> colour; light, so that letters can be read, and told apart by the colour-blind, too
_COLOURS = {
    "reordered": "#A9D6F5",
    "reordered, sign": "#F7EE8B",
    "reordered, positive scale": "#F5C26B",
    "reordered, any scale": "#7FCDB0",
    "reordered, one scale for all": "#E3B2CF",
    "scale only": "#E0986A",
    "input or output": "#FFFFFF",
    "fixed": "#DDDDDD",
}
_MOVE, _LINE, _CUBIC = 1, 2, 4  # codes of matplotlib.path.Path
_Point = tuple[float, float]
_Curve = list[tuple[_Point, int]]
_WEIGHT, _ORDER, _INVERSE = "0.35", "0.55", "#D55E00"


def draw_graph(graph: WeightGraph, *, title: str = "") -> "Figure":
    """Groups from the input on the left to the output on the right, and blocks as arrows.

    The wider an arrow, the more weights; biases and other vectors are only counted, after a plus.

    Raises:
        ImportError: matplotlib is missing.
    """
    layout = lay_out(graph)
    half = max(layout.width, 5.0) / 2 + 0.2
    figure = new_figure(2 * half * _INCH[0], (layout.height + 1.3) * _INCH[1] + 0.4)
    ax = figure.subplots()
    middle = layout.width / 2
    ax.set(xlim=(middle - half, middle + half), ylim=(layout.height - 0.4, -0.9))
    ax.set_title(title, fontsize=10)
    ax.set_axis_off()
    bars = _Bars(layout)
    for pair in layout.order:
        _draw_tie(ax, graph, bars, *pair)
    for (source, target), size in _arrows(graph).items():
        _draw_arrow(ax, bars, source, target, size)
    label = _Labels(graph)
    for bar in layout.bars:
        _draw_group(ax, bar, graph.group[bar.group], label(bar))
    _add_legend(figure, graph, layout.order)
    return figure


def kind(group: NeuronGroup) -> str:
    """What may be done to the neurons of a group, as a key of the legend."""
    symmetry = group.symmetry
    if not symmetry.permutes:
        if not symmetry.scalar_free:
            return "scale only"
        return "input or output" if group.role in (Role.INPUT, Role.OUTPUT) else "fixed"
    if symmetry.common:
        return "reordered, one scale for all"
    if symmetry.scalar_free:
        return "reordered"
    if not symmetry.rescales:
        return "reordered, sign"
    return f"reordered, {'any' if symmetry.flips else 'positive'} scale"


def _arrows(graph: WeightGraph) -> dict[tuple[str, str], int]:
    """Number of weights from group to group."""
    sizes: dict[tuple[str, str], int] = {}
    for block in graph.blocks:
        if not block.is_vector:
            ends = (block.source, block.target)
            sizes[ends] = sizes.get(ends, 0) + prod(block.shape) * block.folds
    return sizes


class _Bars:
    """The places of groups, of which one may have several."""

    def __init__(self, layout: Layout) -> None:
        self._bars: dict[str, list[Bar]] = {}
        for bar in layout.bars:
            self._bars.setdefault(bar.group, []).append(bar)
        self._all = layout.bars

    def nearest(self, first: str, second: str) -> tuple[Bar, Bar]:
        """The places of two groups that are closest to each other."""
        pairs = [(a, b) for a in self._bars[first] for b in self._bars[second]]
        return min(pairs, key=lambda pair: _distance(*pair))

    def free(self, curves: Iterable[_Curve], ends: tuple[Bar, Bar]) -> _Curve:
        """The first of the curves that runs through the fewest other boxes."""
        others = [bar for bar in self._all if bar not in ends]
        return min(curves, key=lambda curve: sum(_hits(curve, bar) for bar in others))


def _distance(a: Bar, b: Bar) -> float:
    across, down = max(a.left - b.right, b.left - a.right, 0.0), abs(a.y - b.y)
    return 0.01 * down if _is_over(a, b) or _is_over(b, a) else 3 * down + across


def _is_over(a: Bar, b: Bar) -> bool:
    """Whether ``a`` is the bar above a branch with ``b``."""
    return a.left < b.left and b.right < a.right and a.y < b.y


def _hits(curve: _Curve, bar: Bar) -> bool:
    half = _HEIGHT / 2
    return any(bar.left < x < bar.right and abs(y - bar.y) < half for x, y in _samples(curve))


def _samples(curve: _Curve) -> Iterator[tuple[float, float]]:
    """Points on a curve of straight and cubic parts."""
    last, rest = curve[0][0], curve[1:]
    while rest:
        count = 3 if rest[0][1] == _CUBIC else 1
        xy = [last, *(point for point, _ in rest[:count])]
        for t in (i / 24 for i in range(25)):
            weights = _bernstein(count, t)
            x, y = (sum(w * p[axis] for w, p in zip(weights, xy, strict=True)) for axis in (0, 1))
            yield x, y
        last, rest = xy[-1], rest[count:]


def _bernstein(degree: int, t: float) -> list[float]:
    return [comb(degree, i) * t**i * (1 - t) ** (degree - i) for i in range(degree + 1)]


def _curve(bars: _Bars, start: Bar, end: Bar) -> _Curve:
    """From one box to another, around the others if there is a way."""
    half = _HEIGHT / 2
    if start == end:
        x, y = (start.left + start.right) / 2, start.y - half
        return _cubic((x + 0.2, y), (x + 0.35, y - 0.55), (x - 0.35, y - 0.55), (x - 0.2, y))
    if _is_over(start, end):
        x = end.left - 0.17
        return _elbow((x, start.y + half), (x, end.y), (end.left, end.y))
    if _is_over(end, start):
        x = start.right + 0.17
        return _elbow((start.right, start.y), (x, start.y), (x, end.y + half))
    a, b = (start.right, start.y), (end.left, end.y)
    if b[0] >= a[0]:
        return bars.free(_ways(a, b), (start, end))
    low = b[1] - half - 0.25  # above the row in which the drawing goes on
    turns = [(a[0] + 0.17, a[1]), (a[0] + 0.17, low), (b[0] - 0.17, low), (b[0] - 0.17, b[1])]
    return _lines(a, *turns, b)


def _ways(a: _Point, b: _Point) -> list[_Curve]:
    """From left to right: at once, changing the row first or last, above or below other boxes."""
    reach = max(0.15, min(0.5 * (b[0] - a[0]), 1.2))
    first, last = (a[0] + 0.34, b[1]), (b[0] - 0.34, a[1])
    ways = [_cubic(a, (a[0] + reach, a[1]), (b[0] - reach, b[1]), b)]
    ways.append([*_cubic(a, (a[0] + 0.17, a[1]), (a[0] + 0.17, b[1]), first), (b, _LINE)])
    late = _cubic(last, (b[0] - 0.17, a[1]), (b[0] - 0.17, b[1]), b)
    ways.append([(a, _MOVE), (last, _LINE), *late[1:]])
    for side in (-1, 1):
        start, end = (
            (x, y + side * _HEIGHT / 2) for x, y in ((a[0] - 0.12, a[1]), (b[0] + 0.12, b[1]))
        )
        bow = side * 0.75
        ways.append(_cubic(start, (start[0], start[1] + bow), (end[0], end[1] + bow), end))
    return ways


def _cubic(a: _Point, b: _Point, c: _Point, d: _Point) -> _Curve:
    return [(a, _MOVE), (b, _CUBIC), (c, _CUBIC), (d, _CUBIC)]


def _elbow(a: _Point, corner: _Point, b: _Point) -> _Curve:
    """A rounded corner: a quadratic curve as a cubic one."""
    one, two = (tuple((x + 2 * y) / 3 for x, y in zip(p, corner, strict=True)) for p in (a, b))
    return _cubic(a, (one[0], one[1]), (two[0], two[1]), b)


def _lines(*points: _Point) -> _Curve:
    return [(point, _LINE if i else _MOVE) for i, point in enumerate(points)]


def _draw_arrow(ax: "Axes", bars: _Bars, source: str, target: str, size: int) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    path = Path(*zip(*_curve(bars, *bars.nearest(source, target)), strict=True))
    width = 0.5 + 0.45 * log10(max(size, 1))
    ax.add_patch(
        FancyArrowPatch(
            path=path, arrowstyle="-|>", mutation_scale=5 + 2 * width, linewidth=width,
            color=_WEIGHT, shrinkA=0, shrinkB=0, zorder=2, joinstyle="miter", capstyle="butt",
        )
    )  # fmt: skip


def _draw_tie(ax: "Axes", graph: WeightGraph, bars: _Bars, first: str, second: str) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    start, end = bars.nearest(first, second)
    inverse = _are_inverse(graph, first, second)
    if start.left == end.left and start.right == end.right:
        x = (start.left + start.right) / 2
        curve = _lines((x, start.y), (x, end.y))
    else:
        curve = _curve(bars, start, end)
    ax.add_patch(
        PathPatch(
            Path(*zip(*curve, strict=True)), fill=False, zorder=1,
            linewidth=1.5 if inverse else 1.1,
            linestyle=(0, (3, 1.2)) if inverse else (0, (1, 1.2)),
            edgecolor=_INVERSE if inverse else _ORDER,
        )
    )  # fmt: skip


def _are_inverse(graph: WeightGraph, first: str, second: str) -> bool:
    """Whether one group's multipliers are the other's inverse ones."""
    a, b = (dict(graph.group_scales(graph.group[name])) for name in (first, second))
    return any(a[name] * b[name] < 0 for name in a.keys() & b.keys())


def _draw_group(ax: "Axes", bar: Bar, group: NeuronGroup, label: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    found = kind(group)
    ax.add_patch(
        FancyBboxPatch(
            (bar.left, bar.y - _HEIGHT / 2), bar.right - bar.left, _HEIGHT, zorder=3,
            boxstyle="round,pad=0,rounding_size=0.07", facecolor=_COLOURS[found],
            edgecolor="0.25", linewidth=0.8, **_hatch(found),
        )
    )  # fmt: skip
    x = (bar.left + bar.right) / 2
    ax.text(x, bar.y, label, ha="center", va="center", fontsize=7.5, linespacing=1.05, zorder=4)


def _hatch(found: str) -> dict[str, Any]:
    return {"hatch": "////", "hatch_linewidth": 0.4} if found == "fixed" else {}


class _Labels:
    """Short names, sizes and the number of vectors."""

    def __init__(self, graph: WeightGraph) -> None:
        from scalegmn_opt.names import common_prefix

        self._graph = graph
        names = [group.name for group in graph.groups if group.name != CONSTANT]
        self._prefix = common_prefix(names)
        self._vectors = {name: 0 for name in graph.group}
        for block in graph.node_vectors:
            self._vectors[block.target] += 1

    def __call__(self, bar: Bar) -> str:
        group, graph = self._graph.group[bar.group], self._graph
        sizes = [graph.axis[axis].size for axis in graph.group_axes(group)]
        size = " × ".join(map(str, sizes))
        vectors = self._vectors[bar.group]
        size += f"  +{vectors}" if vectors else ""
        name = bar.group.removeprefix(self._prefix).removesuffix(":out")
        if bar.right - bar.left > 2:
            return f"{name}    {size}"
        return "\n".join([*_two_lines(name), size])


def _two_lines(name: str) -> list[str]:
    """A dotted name in at most two lines; what does not fit is left out before the last parts."""
    parts = re.findall(r"[^.:]+[.:]?|[.:]", name)
    last = _taken(parts) or _end(parts.pop())
    if not parts:
        return [last]
    first = _taken(parts, room=1) or _end(parts.pop())
    return [f"…{first}" if parts and first[0] != "…" else first, last]


def _end(part: str) -> str:
    return f"…{part[1 - _LETTERS :]}"


def _taken(parts: list[str], *, room: int = 0) -> str:
    """The last parts that fit into a line, which are taken from ``parts``."""
    line = ""
    while parts and len(parts[-1] + line) <= _LETTERS - room:
        line = parts.pop() + line
    return line


def _add_legend(figure: "Figure", graph: WeightGraph, order: Sequence[tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = {kind(group) for group in graph.groups if group.role is not Role.CONSTANT}
    handles: list[Any] = [
        Patch(facecolor=colour, edgecolor="0.25", linewidth=0.8, label=name, **_hatch(name))
        for name, colour in _COLOURS.items()
        if name in kinds
    ]
    inverse = {_are_inverse(graph, *pair) for pair in order}
    lines: dict[str, dict[str, Any]] = {
        "weights (wider: more)": {"color": _WEIGHT, "linewidth": 1.8}
    }
    if False in inverse:
        lines["common order, no weights"] = {"color": _ORDER, "linestyle": (0, (1, 1.2))}
    if True in inverse:
        lines["and inverse scales"] = {"color": _INVERSE, "linestyle": (0, (3, 1.2))}
    handles += [Line2D([], [], label=name, **style) for name, style in lines.items()]
    if graph.node_vectors:
        handles.append(
            Line2D(
                [],
                [],
                label="biases and other vectors",
                linestyle="",
                marker="$+n$",
                markersize=14,
                markeredgewidth=0,
                color="black",
            )
        )
    columns = max(2, min(len(handles), int(figure.get_figwidth() // 2)))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=7.5, frameon=False
    )
