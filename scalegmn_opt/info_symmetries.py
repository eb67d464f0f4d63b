"""The table of symmetries, read from the rules of the tracer: for a terminal and for the docs.

``python -m scalegmn_opt.info_symmetries docs/symmetries.md`` brings the document up to date.
"""

import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from scalegmn_opt.graph.groups import ACTIVATIONS, Symmetry
from scalegmn_opt.graph.rules import RULES
from scalegmn_opt.tables import new_table

BEGIN, END = "<!-- begin: generated -->", "<!-- end: generated -->"
_ACTIVATION_COLUMNS = ("activation", "neurons may be", "operators")
_OPERATOR_COLUMNS = ("operators", "variant", "what the rule says")


def symmetry_tables() -> tuple[Table, ...]:
    """The two tables of :func:`symmetry_markdown` for a terminal."""
    return (
        new_table("activations", _ACTIVATION_COLUMNS, activation_rows()),
        new_table("operators", _OPERATOR_COLUMNS, operator_rows()),
    )


def symmetry_markdown() -> str:
    """The symmetries of every activation, and the rule of every operator, in Markdown."""
    return "\n\n".join(
        (
            "### Activations",
            _markdown(_ACTIVATION_COLUMNS, activation_rows(), code=(0, 2)),
            "### Operators",
            _markdown(_OPERATOR_COLUMNS, operator_rows(), code=(0,)),
        )
    )


def activation_rows() -> list[tuple[str, str, str]]:
    """Activation, its symmetry, operators: of the named ones, then of those without a name."""
    found: dict[str, list[str]] = {name: [] for name in ACTIVATIONS}
    unnamed: dict[Symmetry, list[str]] = {}
    for operator, rule in RULES.items():
        options = _options(rule)
        if _name(rule) == "activation":
            found[options["name"]].append(_operator_name(operator))
        elif _name(rule) == "unnamed":
            unnamed.setdefault(options["symmetry"], []).append(_operator_name(operator))
        elif (name := _operator_name(operator).rstrip("_")) in ACTIVATIONS:
            found[name].append(_operator_name(operator))
    named = [(name, says(ACTIVATIONS[name][0]), ", ".join(found[name])) for name in ACTIVATIONS]
    rest = [("", says(symmetry), ", ".join(names)) for symmetry, names in unnamed.items()]
    return named + rest


def operator_rows() -> list[tuple[str, str, str]]:
    """Operators, the variant of their rule and its statement; elementwise functions excepted."""
    operators: dict[tuple[str, str, str], list[str]] = {}
    for operator, rule in RULES.items():
        if _name(rule) not in ("activation", "unnamed"):
            key = (_name(rule), _variant(rule), statement(rule))
            operators.setdefault(key, []).append(_operator_name(operator))
    return [(", ".join(names), key[1], key[2]) for key, names in operators.items()]


def says(symmetry: Symmetry) -> str:
    """A symmetry of single neurons in words."""
    scale = scale_name(symmetry)
    words = {"none": "", "sign": "negated", "positive": "rescaled (q > 0)"}
    parts = ["reordered" if symmetry.permutes else "", words.get(scale, "rescaled (q ≠ 0)")]
    return ", ".join(filter(None, parts)) or "nothing"


def scale_name(symmetry: Symmetry) -> str:
    """Which multipliers ``q`` a neuron may have besides 1."""
    names = {
        (False, False): "none",
        (True, False): "sign",
        (False, True): "positive",
        (True, True): "any",
    }
    return names[symmetry.flips, symmetry.rescales]


def statement(rule: Callable[..., Any]) -> str:
    """What a rule, or the function that makes it, says of itself.

    Raises:
        ValueError: if it says nothing.
    """
    text = inspect.getdoc(rule) or inspect.getdoc(_factory(rule)) or ""
    if not text:
        raise ValueError(f"rule {rule.__qualname__!r}: expected a docstring")
    return " ".join(text.partition("\n\nArgs:")[0].split())


def _factory(rule: Callable[..., Any]) -> Callable[..., Any]:
    return getattr(sys.modules[rule.__module__], _name(rule))


def _name(rule: Callable[..., Any]) -> str:
    """Name of a rule, or of the function that makes it."""
    return rule.__qualname__.partition(".")[0]


def _options(rule: Callable[..., Any]) -> dict[str, Any]:
    """With which options a rule was made."""
    return dict(inspect.getclosurevars(rule).nonlocals)


def _variant(rule: Callable[..., Any]) -> str:
    """The options that rules of one function differ in; not the number of dimensions."""
    options = _options(rule).items()
    chosen = [
        (name, value) for name, value in options if name != "rank" and value not in (None, False)
    ]
    return ", ".join(name if value is True else f"{name} {value}" for name, value in chosen)


def _operator_name(operator: Any) -> str:
    return getattr(operator, "__name__", str(operator)).removeprefix("aten.")


def _markdown(columns: Iterable[str], rows: Iterable[Iterable[str]], *, code: Iterable[int]) -> str:
    lines = [list(columns), ["---"] * len(list(columns))]
    for row in rows:
        cells = [_code(cell) if i in code else cell for i, cell in enumerate(row)]
        lines.append([cell.replace("``", "`").replace("|", "\\|") for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(cell: str) -> str:
    return ", ".join(f"`{name}`" for name in cell.split(", ")) if cell else ""


def updated(document: str) -> str:
    """A document with the tables between its two marks as they are now."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{symmetry_markdown()}\n\n{END}{after}"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
