"""Tables for a terminal."""

from collections.abc import Iterable
from typing import Any

from rich.markup import escape
from rich.table import Table


def new_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A table; a column in which every cell is empty is left out, long cells are folded."""
    cells = [[escape(str(cell)) for cell in row] for row in rows]
    used = [(i, name) for i, name in enumerate(columns) if any(row[i] for row in cells)]
    table = Table(title=title, title_justify="left")
    for _, name in used:
        table.add_column(name, overflow="fold")
    for row in cells:
        table.add_row(*(row[i] for i, _ in used))
    return table


def times(sizes: Iterable[int]) -> str:
    """Sizes as a product."""
    return " x ".join(map(str, sizes)) or "scalar"


def share(part: int, whole: int) -> str:
    """A part in per cent of the whole."""
    return f"{part / whole:.0%}" if whole else "none"
