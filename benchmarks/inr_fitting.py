"""Fitting SIRENs to MNIST digits: many at once, and beside it a plain loop over networks.

Arguments: MNIST as a Keras npz. SIRENs 2-32-32-1 of the first test digits; if more networks than
digits are wanted, the digits come again with other initialisations. The plain loop is a module,
`torch.optim.Adam` and cosine decay, one network after the other: with the Adam of `fit`, and with
torch's default betas at the best of four learning rates and four schedules on training digits.
Seconds are of the clock, on one thread of each of so many processes, which share the machine with
whatever else runs on it; CPU time does not depend on that. The other numbers are means over the
networks. The last rows are of more digits by what the command `fit` calls, with the start of its
processes. `--count 10000 --processes 1 --only "fit, target 37 dB"` measures one way alone, for its
memory.
"""

import argparse
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import peak_bytes, report
from torch import Tensor

from scalegmn_opt.inr import (
    FitResult,
    Siren,
    SirenSpec,
    fit,
    fit_resumable,
    pixel_grid,
    psnr_from_mse,
)

SPEC = SirenSpec()
MANY = (1000, 10_000)
SHORT, USUAL = (0.7, 0.8), (0.9, 0.999)  # betas of Adam


def digits(path: Path, count: int) -> Tensor:
    """Test digits (count, 1, 28, 28), from the beginning again if there are fewer."""
    with np.load(path) as archive:
        found = archive["x_test"]
    return torch.from_numpy(found[np.arange(count) % len(found)]).float()[:, None] / 255


def plain_loop(
    images: Tensor, *, steps: int, rate: float, betas: tuple[float, float], target: float
) -> tuple[Tensor, Tensor]:
    """PSNR and steps of every network, fitted one after the other."""
    coords, psnr, taken = pixel_grid(28, 28).float(), [], []
    generator = torch.Generator().manual_seed(0)
    for image in images:
        siren, pixels = Siren(SPEC, generator=generator), image.flatten(1).mT
        adam = torch.optim.Adam(siren.parameters(), lr=rate, betas=betas)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=steps)
        for step in range(steps + 1):
            adam.zero_grad()
            error = (siren(coords) - pixels).square().mean()
            if step == steps or psnr_from_mse(error.detach()) >= target:
                break
            error.backward()
            adam.step()
            schedule.step()
        psnr.append(psnr_from_mse(error.detach()))
        taken.append(step)
    return torch.stack(psnr), torch.tensor(taken)


def at_once(images: Tensor, *, steps: int, target: float) -> tuple[Tensor, Tensor]:
    """The same by `fit`."""
    generator = torch.Generator().manual_seed(0)
    found: FitResult = fit(
        images, SPEC, generator=generator, steps=steps, target_psnr=target, progress=False
    )
    return found.psnr, found.steps


WAYS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "fit, 100 steps": partial(at_once, steps=100, target=math.inf),
    "fit, 40 steps": partial(at_once, steps=40, target=math.inf),
    "fit, target 40 dB": partial(at_once, steps=45, target=40.0),
    "fit, target 37 dB": partial(at_once, steps=40, target=37.0),
    "plain loop, same Adam": partial(plain_loop, steps=45, rate=1e-2, betas=SHORT, target=40.0),
    "plain loop, default betas": partial(plain_loop, steps=80, rate=1e-2, betas=USUAL, target=40.0),
}


def run(way: str, images: Tensor) -> tuple[Tensor, Tensor, float, int]:
    """PSNR and steps, CPU seconds, and peak memory of this process."""
    torch.set_num_threads(1)
    WAYS[way](images[:2])
    began = time.process_time()
    psnr, steps = WAYS[way](images)
    return psnr, steps, time.process_time() - began, peak_bytes()


def measure(way: str, images: Tensor, processes: int) -> dict[str, Any]:
    """One row."""
    parts = list(images.chunk(processes))
    # Fresh processes, so that each has the memory of its own way.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(len, parts)  # imported now
        began = time.perf_counter()
        found = pool.starmap(run, [(way, part) for part in parts], chunksize=1)
        seconds = time.perf_counter() - began
        pool.close()
        pool.join()
    psnr, steps = (torch.cat([part[i] for part in found]) for i in range(2))
    return {
        "way": way,
        "networks": len(psnr),
        "processes": processes,
        "networks per second": len(psnr) / seconds,
        "CPU ms per network": 1e3 * sum(part[2] for part in found) / len(psnr),
        "networks per CPU second": len(psnr) / sum(part[2] for part in found),
        "steps": float(steps.float().mean()),
        "PSNR mean, dB": float(psnr.mean()),
        "PSNR least, dB": float(psnr.min()),
        "share at 37 dB or more": float((psnr >= 37).float().mean()),
        "peak MB per process": max(part[3] for part in found) / 2**20,
    }


def measure_stored(images: Tensor, processes: int) -> dict[str, Any]:
    """The row of `fit --target-psnr 37 --steps 40 --jobs N`, with what starting takes."""
    names = tuple(map(str, range(len(images))))
    began, spent = time.perf_counter(), cpu_of_children()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.safetensors"
        store = fit_resumable(
            images, names, SPEC, path, steps=40, target_psnr=37.0, jobs=processes, progress=False
        )
    seconds, spent = time.perf_counter() - began, cpu_of_children() - spent
    return {
        "way": "fit, target 37 dB, as a command",
        "networks": len(store),
        "processes": processes,
        "networks per second": len(store) / seconds,
        "CPU ms per network": 1e3 * spent / len(store),
        "networks per CPU second": len(store) / spent,
        "PSNR mean, dB": float(store.psnr.mean()),
        "PSNR least, dB": float(store.psnr.min()),
        "share at 37 dB or more": float((store.psnr >= 37).float().mean()),
        "peak MB per process": largest_process() / 2**20,
    }


def largest_process() -> int:
    """Largest resident size of this process, and of those that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024


def cpu_of_children() -> float:
    """CPU seconds of processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=WAYS)
    arguments = parser.parse_args()
    images = digits(arguments.mnist, arguments.count)
    ways = WAYS if arguments.only is None else [arguments.only]
    name = "inr_fitting" if arguments.only is None else f"inr_fitting_{arguments.count}"
    rows = [measure(way, images, arguments.processes) for way in ways]
    if arguments.only is None:
        rows += [measure_stored(digits(arguments.mnist, n), arguments.processes) for n in MANY]
    report(name, rows)
