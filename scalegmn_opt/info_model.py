"""What a weight graph says of a model, as tables and lines: groups, blocks, and what is fixed."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from math import prod

from rich.table import Table

from scalegmn_opt.graph import CONSTANT, NeuronGroup, Role, Symmetry, WeightBlock, WeightGraph
from scalegmn_opt.info_symmetries import scale_name
from scalegmn_opt.names import common_prefix, fold_layers, ranges
from scalegmn_opt.tables import new_table, share, times

_GROUP_COLUMNS = ("#", "name", "size", "role", "reorders", "scale", "ties")
_BLOCK_COLUMNS = ("block", "shape", "target <- source", "kernel", "folds")


def group_parts(graph: WeightGraph) -> list[Table | str]:
    """Groups, what may be done to their neurons and why no more, and how they are tied.

    Rows that differ in the number of a layer only are shown as one; ties name rows by number.
    """
    folded = fold_layers([_group_row(graph, group) for group in graph.groups])
    numbers = {row[0]: f"#{i}" for i, row in enumerate(folded)}
    numbered = [(str(i), *_with_numbers(row[:-1], numbers)) for i, row in enumerate(folded)]
    table = _shown("neuron groups", _GROUP_COLUMNS, numbered, graph, len(graph.groups))
    reasons: dict[str, list[int]] = {}
    for i, (*_, reason) in enumerate(folded):
        reasons.setdefault(reason, []).append(i)
    found = [(reason, ranges(rows)) for reason, rows in reasons.items() if reason]
    return [table, *(f"order fixed in # {rows}: {reason}" for reason, rows in found)]


def _group_row(graph: WeightGraph, group: NeuronGroup) -> tuple[str, ...]:
    """Name, size, role, what may be done, ties with names in braces, reason."""
    return (
        group.name,
        str(group.size),
        group.role.value + (f", {group.activation.name}" if group.activation else ""),
        reorders(graph, group),
        scales(graph, group),
        ", ".join(
            f"{words} {{{other}}}" if other else words for words, other in ties(graph, group)
        ),
        group.reason,
    )


def _with_numbers(cells: Iterable[str], numbers: Mapping[str, str]) -> list[str]:
    """Cells with row numbers in place of names in braces; a name without a row remains."""
    return [re.sub(r"\{(.+?)\}", lambda m: numbers.get(m[1], m[1]), cell) for cell in cells]


def block_table(graph: WeightGraph) -> Table:
    """Blocks, the neurons that they connect, kernels and the number of folds of grouped ones."""
    rows = [
        (
            block.name,
            times(_shape(block)),
            f"{block.target} <- {block.source}",
            times(_kernel(block)) if _kernel(block) else "",
            str(block.folds) if block.folds > 1 else "",
        )
        for block in graph.blocks
    ]
    return _shown("weight blocks", _BLOCK_COLUMNS, fold_layers(rows), graph, len(rows))


def summary(graph: WeightGraph, parameters: int) -> list[str]:
    """How many parameters, neurons and weights there are, and what may be done to how many."""
    blocks = [(block_size(b), [g.symmetry for g in _ends(graph, b)]) for b in graph.blocks]
    neurons = [(g.size, [g.symmetry]) for g in graph.groups if g.role is not Role.CONSTANT]
    total, *of_weights = _moved(blocks)
    covered = "each in one block" if total == parameters else f"but {total} IN BLOCKS"
    every, *of_neurons = _moved(neurons)
    lines = [
        f"parameters: {parameters}, {covered}",
        f"neurons: {every}, of which {_parts(of_neurons, every)}",
        f"weights at such neurons: {_parts(of_weights, total)}",
    ]
    fixed = fixed_weights(graph)
    if fixed:
        why = "; ".join(f"{count} {reason}" for reason, count in fixed.most_common())
        lines.append(f"weights between fixed neurons: {fixed.total()} of {total}: {why}")
    return lines


def fixed_weights(graph: WeightGraph) -> Counter[str]:
    """Number of weights neither of whose ends may be changed, by reason."""
    found: Counter[str] = Counter()
    for block in graph.blocks:
        ends = _ends(graph, block)
        if all(_is_fixed(group) for group in ends):
            found[next(filter(None, map(_why, ends)), "not understood")] += block_size(block)
    return found


def _why(group: NeuronGroup) -> str:
    if group.role in (Role.INPUT, Role.OUTPUT):
        return f"at {group.role.value}s"
    return f"({group.reason})" if group.reason else ""


def _is_fixed(group: NeuronGroup) -> bool:
    return not group.symmetry.permutes and group.symmetry.scalar_free


def _ends(graph: WeightGraph, block: WeightBlock) -> list[NeuronGroup]:
    names = dict.fromkeys((block.target, block.source))
    return [graph.group[name] for name in names if name != CONSTANT]


def _parts(counts: Sequence[int], whole: int) -> str:
    return " and ".join(
        f"{count} ({share(count, whole)}) {what}"
        for count, what in zip(counts, ("may be reordered", "rescaled or negated"), strict=True)
    )


def _moved(sizes: Iterable[tuple[int, list[Symmetry]]]) -> tuple[int, int, int]:
    """Of how many things, of which each has symmetries, any is reordered; any has a scale."""
    total = reordered = scaled = 0
    for size, symmetries in sizes:
        total += size
        reordered += size * any(s.permutes for s in symmetries)
        scaled += size * any(not s.scalar_free for s in symmetries)
    return total, reordered, scaled


def block_size(block: WeightBlock) -> int:
    """Number of weights of a block."""
    return prod(block.shape) * block.folds


def _shape(block: WeightBlock) -> Sequence[int]:
    """Shape of the parameter, or of the part of it that the block is."""
    if block.window is None:
        return block.parameter_shape
    return [stop - start for start, stop in block.window.ranges]


def _kernel(block: WeightBlock) -> list[int]:
    return [size for name, size in block.sizes if name.startswith("k") and size > 1]


def reorders(graph: WeightGraph, group: NeuronGroup) -> str:
    """Whether neurons may be reordered; of a product of axes, how each is."""
    if not group.symmetry.permutes:
        return "no"
    axes = [graph.axis[name] for name in graph.group_axes(group)]
    if len(axes) == 1:
        return "yes"
    names = {axis.name for axis in axes}
    free = [axis for axis in axes if axis.permutes]
    inner = [axis for axis in free if names & set(axis.within)]
    outer = " x ".join(str(axis.size) for axis in free if axis not in inner)
    fixed = " x ".join(str(axis.size) for axis in axes if not axis.permutes)
    parts = [outer, *(f"{axis.size} in each" for axis in inner), f"{fixed} fixed" if fixed else ""]
    return ", ".join(filter(None, parts))


def scales(graph: WeightGraph, group: NeuronGroup) -> str:
    """Which multipliers the neurons have, and how many neurons share one."""
    name = scale_name(group.symmetry)
    if name == "none":
        return name
    carried = {a for s, _ in graph.group_scales(group) for a in graph.scale[s].axes}
    axes = [graph.axis[axis] for axis in graph.group_axes(group)]
    shared = prod(axis.size for axis in axes if axis.name not in carried)
    if shared == 1:
        return name
    return f"{name}, one for all" if shared == group.size else f"{name}, one for every {shared}"


def ties(graph: WeightGraph, group: NeuronGroup) -> list[tuple[str, str]]:
    """What the neurons have together with which group further up, or what erases their scale."""
    return [*_order_ties(graph, group), *_scale_ties(graph, group)]


def _order_ties(graph: WeightGraph, group: NeuronGroup) -> list[tuple[str, str]]:
    owners: dict[str, list[int]] = {}
    free = [axis for axis in graph.group_axes(group) if graph.axis[axis].permutes]
    for axis in free:
        owner = next(g.name for g in graph.groups if axis in graph.group_axes(g))
        if owner != group.name:
            owners.setdefault(owner, []).append(graph.axis[axis].size)
    return [
        ("order as" if len(sizes) == len(free) else f"order of {times(sizes)} as", owner)
        for owner, sizes in owners.items()
    ]


def _scale_ties(graph: WeightGraph, group: NeuronGroup) -> list[tuple[str, str]]:
    found = []
    for name, power in graph.group_scales(group):
        owner, of_owner = next(
            (g.name, powers[name])
            for g in graph.groups
            if name in (powers := dict(graph.group_scales(g)))
        )
        if owner != group.name:
            found.append((_power_words(power, of_owner), owner))
        elif graph.scale[name].erased:
            found.append(("normalised away", ""))
    return found


def _power_words(power: int, of_owner: int) -> str:
    words = {1: "scale as", -1: "inverse scale of"}
    exponent = Fraction(power, of_owner)
    return words.get(exponent, f"scale to the power {exponent} of")


def _shown(
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, ...]],
    graph: WeightGraph,
    count: int,
) -> Table:
    """Folded rows, originally ``count``, without the prefix that all names have in common."""
    names = [group.name for group in graph.groups if group.name != CONSTANT]
    prefix = common_prefix([*names, *graph.block])
    title = f"{title}: {count}"
    if len(rows) < count:
        title += f" in {len(rows)} rows; layers [a-b] are alike"
    if prefix:
        title += f"; names begin with {prefix}"
        rows = [tuple(cell.replace(prefix, "") for cell in row) for row in rows]
    return new_table(
        title, columns, rows, names=[columns.index("name")] if "name" in columns else ()
    )
