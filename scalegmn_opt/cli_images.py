"""The commands on images: `scalegmn-opt fit | edit`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalegmn_opt.recipe import load_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from scalegmn_opt.editors import EditRecipe
    from scalegmn_opt.inr import INRStore

HIDDEN = typer.Option(help="Widths of the hidden layers; by the images' size if not given.")
STEPS = typer.Option(help="Adam steps per image at most; 100 up to 32x32 pixels, else 300.")
TARGET = typer.Option(help="PSNR in dB at which a network is done.")
SIZE = typer.Option(min=2, help="Pixels a side of what the networks of a folder hold.")
W0 = typer.Option(help="Frequency of the sines.")


def fit(
    images: Annotated[list[Path], typer.Argument(help="png, jpg, npy or npz of one size.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Store, a .safetensors file.")],
    hidden: Annotated[str | None, HIDDEN] = None,
    w0: Annotated[float, W0] = 30.0,
    steps: Annotated[int | None, STEPS] = None,
    target_psnr: Annotated[float, TARGET] = math.inf,
    seed: Annotated[int, typer.Option(help="Of the initialisations.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Fit a SIREN to every image and store them all; an interrupted run goes on when repeated."""
    from scalegmn_opt.image_networks import fitted, quality
    from scalegmn_opt.inr import load_images

    # Known before, not after minutes of fitting.
    if output.suffix != ".safetensors" or output.is_dir():
        raise ValueError(f"--output must be a file that ends in .safetensors, got {output}")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"--output must lie in an existing folder, got {output}")
    pixels, names = load_images(images)
    options = {"hidden": hidden, "w0": w0, "steps": steps, "target_psnr": target_psnr}
    store = fitted(pixels, names, output, seed=seed, jobs=jobs, **options)
    typer.echo(f"{output}: {quality(store)}")


def edit(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="An image, a store, or a folder of state_dict files of SIRENs."
        ),
    ],
    *,
    recipe: Annotated[str, typer.Option(help="File, or name of a packaged recipe.")],
    out: Annotated[Path, typer.Option(help="Folder for networks, pictures and report.")],
    scale: Annotated[int, typer.Option(min=1, help="Resolution of the larger pictures.")] = 4,
    compare: Annotated[
        bool, typer.Option(help="Draw comparison.png, and refit in place of every edit.")
    ] = True,
    hidden: Annotated[str | None, HIDDEN] = None,
    w0: Annotated[float, W0] = 30.0,
    steps: Annotated[int | None, STEPS] = None,
    target_psnr: Annotated[float, TARGET] = math.inf,
    copies: Annotated[
        int | None,
        typer.Option(help="1, 2, 4 or 8 networks side by side; the last edit must be learned."),
    ] = None,
    size: Annotated[int, SIZE] = 28,
) -> None:
    """Edit images through the weights of the networks that hold them, and measure the result."""
    from scalegmn_opt.editors import (
        EDITS,
        EditRecipe,
        Unfinished,
        check_recipe,
        check_writable,
        measure,
        write_report,
    )

    loaded = load_recipe(recipe, EditRecipe)
    if copies is not None:
        loaded = loaded.with_copies(copies)
    fitting = {"hidden": hidden, "w0": w0, "steps": steps, "target_psnr": target_psnr}
    store, images = _networks(source, loaded, out, size=size, **fitting)
    check_recipe(loaded, EDITS, spec=store.spec, image_size=store.image_size)
    check_writable(out)
    unfinished = Unfinished(out / "unfinished", loaded, store)
    options = {"images": images, "scale": scale, "curve": compare, "progress": True}
    try:
        report = measure(store, loaded, EDITS, unfinished=unfinished, **options)
    except KeyboardInterrupt:
        kept = f"finished edits are in {unfinished.folder}; the same command goes on"
        typer.echo(f"interrupted: {kept}", err=True)
        raise SystemExit(130) from None
    write_report(report, out, source=str(source), compare=compare)
    unfinished.remove()
    typer.echo(
        f"{out}: {loaded.name}: MSE {report.total.mse:.3g} to the target, "
        f"{report.total.mse_do_nothing:.3g} without the edit, "
        f"{report.cpu_ms_per_inr:.3g} ms for each of {len(store)}"
    )


def _networks(
    source: Path,
    recipe: "EditRecipe",
    out: Path,
    *,
    size: int,
    hidden: str | None,
    w0: float,
    steps: int | None,
    target_psnr: float,
) -> "tuple[INRStore, Tensor | None]":
    """The networks of a store, a folder or an image, which is fitted and given, too."""
    from scalegmn_opt.editors import EDITS, check_recipe, check_writable
    from scalegmn_opt.image_networks import fitted_before, quality, spec_for
    from scalegmn_opt.inr import INRStore, load_images, load_state_dicts

    if source.is_dir():
        return load_state_dicts(source, image_size=(size, size), w0=w0), None
    if source.suffix == ".safetensors":
        return INRStore.load(source), None
    images, names = load_images([source])
    spec, image_size = spec_for(images, hidden, w0), (images.shape[2], images.shape[3])
    check_recipe(recipe, EDITS, spec=spec, image_size=image_size)  # before minutes of fitting
    check_writable(out)
    options = {"hidden": hidden, "w0": w0, "steps": steps, "target_psnr": target_psnr}
    store = fitted_before(images, names, out / "fitted.safetensors", **options)
    typer.echo(f"{source}: {quality(store)}")
    return store, images
