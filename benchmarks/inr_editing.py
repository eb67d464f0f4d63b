"""Learned edits of INRs that training has not seen, against doing nothing and against refitting.

`python benchmarks/inr_editing.py mnist.npz [--count N] [--parts PART ...]`: MNIST's test digits at
28x28 pixels and 32x32 colour patches of photographs, fitted with random initialisations. Mean
squared error against the edit of the source image; CPU time on one thread. Rows of other parts
than those that are named stay as they are.

Rows of the learned editor know the weights alone. To inpaint, a box in the middle of the picture,
or a scratch, was painted over before the networks were fitted; its error is against the source
image, too. "Equivalent" are the first 300 digits by networks of the same function with other
weights; "beyond" the first 100 at strengths of 2 to 8. Enlarged digits are scikit-learn's 8x8 ones
at 28x28 pixels, with soft strokes. Rows that begin with "known" are given the edited picture: the
editor's Gauss-Newton steps with and without the ScaleGMN, pairs, and Adam as `inr.refine` has it.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import pi
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, report
from torch import Tensor
from torch.nn.functional import interpolate

from scalegmn_opt import random_transform
from scalegmn_opt.editors import (
    Edit,
    Inpaint,
    LearnedEdit,
    LearnedEditor,
    LearnedInpaint,
    LearnedSteps,
    Refit,
    load_mask,
)
from scalegmn_opt.editors.edit import widened
from scalegmn_opt.editors.tangent import Tangent, join, split, tangent_copies
from scalegmn_opt.editors.training import resize
from scalegmn_opt.inr import (
    SirenSpec,
    canonical_phases,
    fit,
    pixel_grid,
    refine,
    render,
    siren_graph,
)
from scalegmn_opt.tasks import digits as scikit_digits
from scalegmn_opt.tasks import mnist, photographs

CHUNK = 32
SOME, FEW = 300, 100  # networks for some rows, and for those that take long
BOX = (0.36, 0.36, 0.64, 0.64)  # painted over: 8x8 of 28x28 pixels
SCRATCH = (0.6, 0.1)  # half axes of an ellipse that is painted over, in halves of the picture
BEYOND = (2.0, 4.0, 8.0)  # strengths
EDITS = ("dilate", "erode", "denoise", "blur", "sharpen", "local_contrast")
LENGTHS = (0.6, 0.6, 0.8, 1.0)  # of steps without ScaleGMN, chosen on training digits
Params = dict[str, Tensor]
Way = Callable[[Params, Tensor], Params]


@dataclass(frozen=True)
class Case:
    """Fitted networks, what they hold, and the packaged editor for them."""

    name: str
    weights: str
    images: Tensor
    spec: SirenSpec
    params: Params

    @classmethod
    def of(cls, name: str, weights: str, images: Tensor) -> "Case":
        spec = SirenSpec(out_features=images.shape[1])
        params = fit(images, spec, generator=torch.Generator().manual_seed(0)).params
        return cls(name, weights, images, spec, params)

    def row(self, edit: str, target: Tensor, way: str, run: Way, count: int) -> dict[str, Any]:
        """Error and cost of one way on the first networks."""
        some = {name: value[:count] for name, value in self.params.items()}
        first = min(count, CHUNK)
        run({n: v[:first] for n, v in some.items()}, target[:first])  # loads weights, warms up
        began = time.process_time()
        edited = run(some, target[:count])
        seconds = time.process_time() - began
        spec, size = widened(self.spec, edited), target.shape[2:]
        errors = (render(edited, spec, *size) - target[:count]).square().mean((1, 2, 3))
        few = {name: value[:FEW] for name, value in edited.items()}
        fine = interpolate(target[: min(count, FEW)], scale_factor=4.0, mode="bicubic")
        between = render(few, spec, *fine.shape[2:]) - fine
        return {
            "images": self.name,
            "edit": edit,
            "way": way,
            "networks": count,
            "MSE x 100": 100 * errors.mean().item(),
            "standard error x 100": 100 * (errors.std() / count**0.5).item(),
            "MSE x 100 at 4x": 100 * between.square().mean().item(),
            "CPU ms per INR": 1e3 * seconds / count,
        }


def chunked(run: Way) -> Way:
    """The same in pieces that stay in cache."""

    def whole(params: Params, target: Tensor) -> Params:
        starts = range(0, len(target), CHUNK)
        pieces = [
            run({n: v[i : i + CHUNK] for n, v in params.items()}, target[i : i + CHUNK])
            for i in starts
        ]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in params}

    return whole


def given_the_picture(case: Case, editor: LearnedEditor) -> dict[str, Way]:
    """Ways that know the edited picture, by name."""
    spec, coords = case.spec, editor.coords
    reader = LearnedEditor.from_pretrained("mnist-known-target")

    def steps(rounds: int, by: LearnedEditor = editor) -> Way:
        def run(params: Params, target: Tensor) -> Params:
            *_, edited = by.approach(params, spec, target.flatten(2).mT, rounds=rounds)
            return edited

        return chunked(run)

    def plain(rounds: int) -> Way:
        def run(params: Params, target: Tensor) -> Params:
            for length in LENGTHS[:rounds]:
                tangent = Tangent.of(params, spec, coords)
                delta = tangent.solve(target.flatten(2).mT - tangent.outputs, 2)
                moved = zip(join(params), delta, strict=True)
                params = split([matrix + length * d for matrix, d in moved])
            return params

        return chunked(run)

    def pair(iterations: int) -> Way:
        def run(params: Params, target: Tensor) -> Params:
            tangent = Tangent.of(params, spec, coords)
            delta = tangent.solve(target.flatten(2).mT - tangent.outputs, iterations)
            return tangent_copies(params, split(delta), 2)

        return chunked(run)

    def refit(count: int) -> Way:
        by = LearnedSteps()
        return lambda params, target: by.refine(params, target, spec, steps=count)

    def adam(count: int) -> Way:
        return lambda params, target: (
            refine(params, target, spec, steps=count, progress=False).params
        )

    return {
        **{f"{n} learned Gauss-Newton steps": steps(n) for n in (1, 2, 3, 5, 8)},
        **{
            f"{n} learned Gauss-Newton steps that read the gradient": steps(n, reader)
            for n in (1, 2, 3, 5, 8)
        },
        **{f"learned refit, {n} steps": refit(n) for n in (5, 8)},
        **{f"{n} Gauss-Newton steps without ScaleGMN": plain(n) for n in (1, 2, 3, 4)},
        **{f"pair, {n} iterations": pair(n) for n in (4, 8, 16)},
        **{f"Adam, {n} steps": adam(n) for n in (10, 50, 150)},
    }


def measure(case: Case, *, edits: tuple[str, ...], refits: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows for all edits; those of `refits` also with the picture given."""
    rows, count = [], len(case.images)
    for name in edits:
        edit = LearnedEdit(name, case.weights)
        target = edit.target(case.images, 1.0)
        learned = {f"learned editor, k={k}": edit.of(k, False) for k in (1, 2, 8)}
        learned["learned editor, k=2, midpoints"] = edit.of(2, True)
        ways: dict[str, Way] = {"do nothing": lambda params, _: params}
        for way, one in learned.items():
            ways[way] = lambda params, _, one=one: one.apply(params, case.spec, 1.0)
        rows += [case.row(name, target, way, run, count) for way, run in ways.items()]
        if name in refits:
            known = given_the_picture(case, edit.editor_for(case.spec))
            few = min(count, FEW)
            rows += [case.row(name, target, f"known: {w}", run, few) for w, run in known.items()]
    return rows


def scratch(size: tuple[int, int]) -> Tensor:
    """A thin ellipse from the upper left to the lower right, (height, width)."""
    x, y = pixel_grid(*size).unbind(1)
    along, across = (x + y) / 2**0.5, (x - y) / 2**0.5
    return (along / SCRATCH[0]).hypot(across / SCRATCH[1]).reshape(size) <= 1


def measure_inpainting(
    name: str, weights: str, images: Tensor, edit_name: str, region: Tensor
) -> list[dict[str, Any]]:
    """Rows of pictures with a region painted over."""
    size = tuple(images.shape[2:])
    case = Case.of(name, weights, torch.where(region, 0.5, images))
    smooth = Inpaint(region)
    ways: dict[str, Edit] = {
        "smoothest filling, Adam, 50 steps": Refit(smooth, size),
        "smoothest filling, learned refit, 8 steps": Refit(
            smooth, size, 8, optimizer=LearnedSteps()
        ),
        **{f"learned editor, k={k}": LearnedInpaint(region, weights, copies=k) for k in (1, 2, 8)},
    }
    count = len(images)
    rows = [case.row(edit_name, images, "do nothing", lambda params, _: params, count)]
    for way, edit in ways.items():
        few = min(count, FEW) if "Adam" in way else count

        def run(params: Params, _: Tensor, edit: Edit = edit) -> Params:
            return edit.apply(params, case.spec, 1.0)

        rows.append(case.row(edit_name, images, way, run, few))
    return rows


def digits(mnist_file: Path, count: int) -> Tensor:
    """Test digits, (count, 1, 28, 28)."""
    return mnist(mnist_file).test_inputs[:count].reshape(-1, 1, 28, 28).float()


def soft_digits(count: int) -> Tensor:
    """Enlarged test digits of scikit-learn, (count, 1, 28, 28)."""
    return resize(scikit_digits().part("test")[0][:count].reshape(-1, 1, 8, 8).float(), 28)


def measure_digits(mnist_file: Path, count: int) -> list[dict[str, Any]]:
    """Rows of all learned edits of digits."""
    return measure(
        Case.of("MNIST", "mnist-morphology", digits(mnist_file, count)),
        edits=EDITS,
        refits=("dilate",),
    )


def measure_equivalent(mnist_file: Path, count: int) -> list[dict[str, Any]]:
    """Rows of the same functions with other weights: permuted and flipped, or of other phases."""
    generator = torch.Generator().manual_seed(1)
    case = Case.of("MNIST", "mnist-morphology", digits(mnist_file, min(count, SOME)))
    transform = random_transform(siren_graph(case.spec), generator)
    hidden = [f"layers.{i}.bias" for i in range(case.spec.last_layer)]
    turns = {n: torch.randint(-3, 4, case.params[n].shape, generator=generator) for n in hidden}
    moved = {n: case.params[n] + 2 * pi / case.spec.w0 * turn for n, turn in turns.items()}
    others = {
        "as fitted": case.params,
        "permuted and flipped": transform.apply(case.params),
        "phases moved by up to 3 turns": {**case.params, **moved},
        "canonical phases": canonical_phases(case.params, case.spec),
    }
    return [
        row
        for name, params in others.items()
        for row in measure(
            replace(case, name=f"MNIST, {name}", params=params), edits=EDITS, refits=()
        )
    ]


def measure_beyond(mnist_file: Path, count: int) -> list[dict[str, Any]]:
    """Rows of strengths beyond those of training, 1 to 1.5, on a few digits."""
    case = Case.of("MNIST", "mnist-morphology", digits(mnist_file, min(count, FEW)))
    rows = []
    for name, strength, copies in product(EDITS, BEYOND, (0, 1, 2)):
        edit = LearnedEdit(name, case.weights, copies=copies or 1)

        def run(params: Params, _: Tensor, edit: Edit = edit, by: float = strength) -> Params:
            return edit.apply(params, case.spec, by)

        def nothing(params: Params, _: Tensor) -> Params:
            return params

        target = edit.target(case.images, strength)
        way, made = (f"learned editor, k={copies}", run) if copies else ("do nothing", nothing)
        rows.append(case.row(f"{name} {strength:g}", target, way, made, len(case.images)))
    return rows


def measure_soft(_: Path, count: int) -> list[dict[str, Any]]:
    """Rows of all learned edits of soft digits."""
    case = Case.of("enlarged digits", "mnist-morphology", soft_digits(count))
    return measure(case, edits=EDITS, refits=())


def measure_patches(_: Path, count: int) -> list[dict[str, Any]]:
    """Rows of some learned edits of photographs."""
    return measure(
        Case.of("colour patches", "colour-patches", photographs(32).test[:count]),
        edits=("blur", "sharpen", "local_contrast"),
        refits=(),
    )


def measure_blots(mnist_file: Path, count: int) -> list[dict[str, Any]]:
    """Rows of inpainting."""
    sources = {"MNIST": digits(mnist_file, count), "enlarged digits": soft_digits(count)}
    regions = {"inpaint": load_mask(BOX, (28, 28)) > 0.5, "inpaint a scratch": scratch((28, 28))}
    return [
        row
        for edit, region in regions.items()
        for name, images in sources.items()
        for row in measure_inpainting(name, "mnist-inpainting", images, edit, region)
    ]


PARTS = {
    "digits": measure_digits,
    "equivalent": measure_equivalent,
    "beyond": measure_beyond,
    "soft": measure_soft,
    "patches": measure_patches,
    "inpainting": measure_blots,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    known = json.loads((RESULTS / "inr_editing.json").read_text())["rows"]
    found = [
        row for part in arguments.parts for row in PARTS[part](arguments.mnist, arguments.count)
    ]
    measured = {(row["images"], row["edit"]) for row in found}
    found += [row for row in known if (row["images"], row["edit"]) not in measured]
    report("inr_editing", found)
