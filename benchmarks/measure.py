"""What the benchmarks share: CPU seconds, peak memory, a table and a JSON file."""

import ctypes
import json
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def cpu_seconds(function: Callable[[], Any], *, repeats: int) -> list[float]:
    """CPU seconds of each of ``repeats`` calls after one warm-up call."""
    function()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        seconds.append(time.process_time() - began)
    return seconds


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak_bytes() -> int:
    """Forget what was the largest resident size so far; returns the present one. Linux only."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def median(values: list[float]) -> float:
    """The middle value."""
    return sorted(values)[len(values) // 2]


def report(name: str, rows: list[dict[str, Any]]) -> None:
    """Print ``rows`` as a table and write them to ``results/NAME.json``."""
    table = Table(title=name)
    for key in rows[0]:
        table.add_column(key, justify="right")
    for row in rows:
        values = (row.get(key, "-") for key in rows[0])
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    Console(width=120).print(table)
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
