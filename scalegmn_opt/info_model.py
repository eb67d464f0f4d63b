"""What a weight graph says of a model, as tables and lines: groups, blocks, and what is fixed."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import prod

from rich.table import Table

from scalegmn_opt.graph import CONSTANT, NeuronGroup, Role, WeightBlock, WeightGraph
from scalegmn_opt.info_symmetries import scale_name
from scalegmn_opt.tables import new_table, share, times

_GROUP_COLUMNS = (
    *("name", "size", "role", "reorders", "scale", "ties", "activation", "why fixed"),
)
_BLOCK_COLUMNS = ("block", "shape", "target <- source", "kernel", "folds")


def group_table(graph: WeightGraph) -> Table:
    """Groups, what may be done to their neurons, and with which other groups they are tied.

    Rows that differ in the number of a layer only are shown as one.
    """
    rows = [
        (
            group.name,
            str(group.size),
            group.role.value,
            reorders(graph, group),
            scales(graph, group),
            "; ".join(ties(graph, group)),
            group.activation.name if group.activation else "",
            group.reason,
        )
        for group in graph.groups
    ]
    return _shown("neuron groups", _GROUP_COLUMNS, rows, graph)


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
    return _shown("weight blocks", _BLOCK_COLUMNS, rows, graph)


def summary(graph: WeightGraph, parameters: int) -> list[str]:
    """How many parameters, neurons and weights there are, and what may be done to how many."""
    total = sum(map(block_size, graph.blocks))
    covered = "each in one block" if total == parameters else f"but {total} IN BLOCKS"
    neurons = [group for group in graph.groups if group.role is not Role.CONSTANT]
    lines = [
        f"parameters: {parameters}, {covered}",
        f"neurons: {_counts(neurons, lambda g: g.size, lambda g: g)}",
        f"weights: {_block_counts(graph)}",
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


def _counts(items: Iterable[NeuronGroup], size: Callable, group: Callable) -> str:
    every = [(size(item), group(item).symmetry) for item in items]
    total = sum(n for n, _ in every)
    reordered = sum(n for n, symmetry in every if symmetry.permutes)
    scaled = sum(n for n, symmetry in every if not symmetry.scalar_free)
    return _line(total, reordered, scaled)


def _line(total: int, reordered: int, scaled: int) -> str:
    return (
        f"{total}, of which {reordered} ({share(reordered, total)}) may be reordered and "
        f"{scaled} ({share(scaled, total)}) rescaled or negated"
    )


def _block_counts(graph: WeightGraph) -> str:
    """Weights at least one of whose ends may be changed."""
    total = reordered = scaled = 0
    for block in graph.blocks:
        size, symmetries = block_size(block), [g.symmetry for g in _ends(graph, block)]
        total += size
        reordered += size * any(s.permutes for s in symmetries)
        scaled += size * any(not s.scalar_free for s in symmetries)
    return _line(total, reordered, scaled)


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


def ties(graph: WeightGraph, group: NeuronGroup) -> list[str]:
    """What the neurons have together with those of groups further up, and what erases it."""
    return [*_order_ties(graph, group), *_scale_ties(graph, group)]


def _order_ties(graph: WeightGraph, group: NeuronGroup) -> list[str]:
    owners: dict[str, list[int]] = {}
    free = [axis for axis in graph.group_axes(group) if graph.axis[axis].permutes]
    for axis in free:
        owner = next(g.name for g in graph.groups if axis in graph.group_axes(g))
        if owner != group.name:
            owners.setdefault(owner, []).append(graph.axis[axis].size)
    return [
        f"order as {owner}" if len(sizes) == len(free) else f"order of {times(sizes)} as {owner}"
        for owner, sizes in owners.items()
    ]


def _scale_ties(graph: WeightGraph, group: NeuronGroup) -> list[str]:
    found = []
    for name, power in graph.group_scales(group):
        owner, of_owner = next(
            (g.name, dict(graph.group_scales(g))[name])
            for g in graph.groups
            if name in dict(graph.group_scales(g))
        )
        if owner != group.name:
            found.append(_power_of(owner, power, of_owner))
        elif graph.scale[name].erased:
            found.append("erased by a normalisation")
    return found


def _power_of(owner: str, power: int, of_owner: int) -> str:
    words = {1: "scale as", -1: "inverse scale of"}
    own, rest = divmod(power, of_owner)
    if rest:
        return f"scale {power}/{of_owner} powers of {owner}"
    return f"{words.get(own, f'scale to the power {own} of')} {owner}"


def _shown(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]], graph: WeightGraph
) -> Table:
    """Rows with layers folded, and without the prefix that all names have in common."""
    names = [group.name for group in graph.groups if group.name != CONSTANT]
    prefix = common_prefix([*names, *graph.block])
    folded = fold_layers(rows)
    title = f"{title}: {len(rows)}"
    if len(folded) < len(rows):
        title += f", in {len(folded)} rows: [a-b] are layers that are alike"
    if prefix:
        title += f"; names begin with {prefix}"
        folded = [tuple(cell.replace(prefix, "") for cell in row) for row in folded]
    return new_table(title, columns, folded)


def common_prefix(names: Sequence[str]) -> str:
    """What all dotted names begin with, up to a dot that is not followed by a number."""
    first, last = min(names, default=""), max(names, default="")
    length = next((i for i, pair in enumerate(zip(first, last)) if len(set(pair)) > 1), 0)  # noqa: B905
    prefix = re.match(r"(?:[^.:]*[^.:\d][^.:]*\.)*", first[:length])
    found = prefix.group() if prefix else ""
    while found and any(re.match(r"\d", name[len(found) :]) for name in names):
        found = found[: found.rstrip(".").rfind(".") + 1]
    return found


def fold_layers(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows that are equal but for the number of a layer as one, with the numbers in brackets."""
    folded: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        match = re.match(r"(.*?\.)(\d+)\.", row[0])
        if match is None:
            folded[row] = []
            continue
        start, number = re.escape(match[1]), match[2]
        key = tuple(re.sub(rf"\b{start}{number}\.", f"{match[1]}\0.", cell) for cell in row)
        folded.setdefault(key, []).append(number)
    return [tuple(cell.replace("\0", _numbers(found)) for cell in key) for key, found in folded.items()]


def _numbers(found: Sequence[str]) -> str:
    """One number as it is; several as ranges in brackets, e.g. ``[0-4,6]``."""
    if len(found) < 2:
        return "".join(found)
    runs: list[list[int]] = []
    for number in sorted(map(int, found)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return f"[{','.join(_run(run) for run in runs)}]"


def _run(run: Sequence[int]) -> str:
    return f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0])
