"""Names of groups and blocks, as a reader wants to see them."""

import re
from collections.abc import Iterable, Sequence


def common_prefix(names: Sequence[str]) -> str:
    """What all dotted names begin with, up to a dot that is not followed by a number."""
    first, last = min(names, default=""), max(names, default="")
    pairs = enumerate(zip(first, last, strict=False))
    length = next((i for i, (a, b) in pairs if a != b), 0)
    match = re.match(r"(?:[^.:]*[^.:\d][^.:]*\.)*", first[:length])
    found = match.group() if match else ""
    while found and any(re.match(r"\d", name[len(found) :]) for name in names):
        found = found[: found.rstrip(".").rfind(".") + 1]
    return found


def fold_layers(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows that are equal but for the number of a layer as one, with the numbers in brackets."""
    folded: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        match = re.match(r"(.*?\.)(\d+)\.", row[0])
        if match is None:
            folded[row] = []
            continue
        start, number = match[1], match[2]
        pattern = re.compile(rf"(?<![\w.]){re.escape(start)}{number}\.")
        key = tuple(pattern.sub(f"{start}\0.", cell) for cell in row)
        folded.setdefault(key, []).append(int(number))
    return [
        tuple(cell.replace("\0", _layers(found)) for cell in key) for key, found in folded.items()
    ]


def _layers(found: Sequence[int]) -> str:
    return f"[{ranges(found)}]" if len(found) > 1 else "".join(map(str, found))


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in order, e.g. ``0-4, 6``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
