"""Dilation of INRs by the packaged editor, on images it was not trained on, against refitting.

`python benchmarks/dilation.py [mnist.npz] [--weights FILE]`: scikit-learn's test digits enlarged to
28x28 and, where the file is given, MNIST's test part. Mean squared error against the dilation of
the source image; CPU time on one thread. Refitting is warm-start Adam, and knows the edited image.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import report
from torch import Tensor

from scalegmn_opt.editors import LearnedEdit, dilation
from scalegmn_opt.editors.training import resize
from scalegmn_opt.inr import SirenSpec, fit, refine, render
from scalegmn_opt.tasks.data import digits, mnist

COUNT = 256
Params = dict[str, Tensor]


def sources(path: Path | None) -> dict[str, Tensor]:
    """Test images (batch, 1, 28, 28) by the name of their data set."""
    images = {"digits": resize(digits().test_inputs.reshape(-1, 1, 8, 8), 28)}
    if path is not None:
        images["MNIST"] = mnist(path).test_inputs.reshape(-1, 1, 28, 28)
    return {name: values[:COUNT].float() for name, values in images.items()}


def measure(name: str, images: Tensor, edit: LearnedEdit) -> list[dict[str, Any]]:
    """One row for each way to dilate the networks fitted to ``images``."""
    spec, target = SirenSpec(), edit.target(images, 1.0)
    fitted = fit(images, spec, generator=torch.Generator().manual_seed(0)).params
    edit.apply({key: value[:1] for key, value in fitted.items()}, spec, 1.0)  # loads the weights

    def refit(steps: int) -> Callable[[], Params]:
        return lambda: refine(fitted, target, spec, steps=steps, progress=False).params

    ways: dict[str, Callable[[], Params]] = {
        "do nothing": lambda: fitted,
        "learned editor": lambda: edit.apply(fitted, spec, 1.0),
        **{f"refit, {steps} steps": refit(steps) for steps in (10, 50, 150)},
    }
    rows = []
    for way, run in ways.items():
        began = time.process_time()
        params = run()
        seconds = time.process_time() - began
        errors = (render(params, spec, 28, 28) - target).square().mean((1, 2, 3))
        rows.append(
            {
                "images": name,
                "way": way,
                "MSE x 100": 100 * float(errors.mean()),
                "standard error x 100": 100 * float(errors.std() / len(errors) ** 0.5),
                "CPU ms per INR": 1e3 * seconds / len(images),
            }
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mnist", type=Path, nargs="?")
    parser.add_argument("--weights", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    edit = dilation() if arguments.weights is None else dilation(arguments.weights)
    found = sources(arguments.mnist)
    report("dilation", [row for name in found for row in measure(name, found[name], edit)])
