"""Tables for a terminal."""

import re
from collections.abc import Collection, Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

_NAME_WIDTH, _WORD_WIDTH = 26, 10


def new_table(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[Any]],
    *,
    names: Collection[int] = (),
) -> Table:
    """A table; a column in which every cell is empty is left out, long cells are folded.

    Args:
        names: indices of columns of dotted names, which are folded between their parts.
    """
    cells = [
        [escape(_lines(str(cell)) if i in names else str(cell)) for i, cell in enumerate(row)]
        for row in rows
    ]
    used = [(i, name) for i, name in enumerate(columns) if any(row[i] for row in cells)]
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in used:
        short = all(len(row[i]) <= _WORD_WIDTH for row in cells)
        table.add_column(name, overflow="fold", no_wrap=i in names or short)
    for row in cells:
        table.add_row(*(row[i] for i, _ in used))
    return table


def _lines(name: str) -> str:
    """A dotted name in lines."""
    lines = [""]
    for part in re.findall(r"[^.:]*[.:]?", name):
        if len(lines[-1] + part) > _NAME_WIDTH:
            lines.append("")
        lines[-1] += part
    return "\n".join(filter(None, lines))


def times(sizes: Iterable[int]) -> str:
    """Sizes as a product."""
    return " x ".join(map(str, sizes)) or "scalar"


def share(part: int, whole: int) -> str:
    """A part in per cent of the whole, rounded down."""
    return f"{100 * part // whole}%" if whole else "none"
