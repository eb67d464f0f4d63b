"""Networks of the images that the command line is given."""

from pathlib import Path

import typer
from torch import Tensor

from scalegmn_opt.editors import psnr
from scalegmn_opt.inr import INRStore, SirenSpec, fit_resumable, partial_folder, render

_SMALL, _MIDDLE = 32**2, 128**2  # pixels
_SAME_PSNR = 0.01  # dB


def fitted(
    images: Tensor,
    names: tuple[str, ...],
    path: Path,
    *,
    hidden: str | None,
    w0: float,
    steps: int | None,
    target_psnr: float,
    seed: int = 0,
    jobs: int = 1,
) -> INRStore:
    """Networks fitted to the images and saved at ``path``; tells how to go on if interrupted."""
    spec = spec_for(images, hidden, w0)
    steps = (100 if images[0, 0].numel() <= _SMALL else 300) if steps is None else steps
    options = {"seed": seed, "steps": steps, "target_psnr": target_psnr, "jobs": jobs}
    try:
        return fit_resumable(images, names, spec, path, **options)
    except KeyboardInterrupt:
        kept = f"finished networks are in {partial_folder(path)}; the same command goes on"
        typer.echo(f"interrupted: {kept}", err=True)
        raise SystemExit(130) from None


def fitted_before(
    images: Tensor,
    names: tuple[str, ...],
    path: Path,
    *,
    hidden: str | None,
    w0: float,
    steps: int | None,
    target_psnr: float,
) -> INRStore:
    """Networks fitted to the images: those at ``path``, if they are as good as they say there."""
    if path.is_file():
        store, spec = INRStore.load(path), spec_for(images, hidden, w0)
        if (store.spec, store.names, store.image_size) == (spec, names, tuple(images.shape[2:])):
            found = psnr(render(store.params, spec, *store.image_size), images)
            if (found - store.psnr).abs().max() < _SAME_PSNR:
                return store
    options = {"hidden": hidden, "w0": w0, "steps": steps, "target_psnr": target_psnr}
    return fitted(images, names, path, **options)


def spec_for(images: Tensor, hidden: str | None, w0: float) -> SirenSpec:
    """Networks of the widths ``hidden``, or of some that suit the size of the images."""
    pixels = images[0, 0].numel()
    widths = (32, 32) if pixels <= _SMALL else (64,) * 3 if pixels <= _MIDDLE else (128,) * 3
    chosen = widths if hidden is None else _widths(hidden)
    return SirenSpec(hidden=chosen, out_features=images.shape[1], w0=w0)


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--hidden: expected widths such as 32,32, got {text!r}") from error


def quality(store: INRStore) -> str:
    """How well the networks of a store hold their images, in words."""
    count = f"{len(store)} networks" if len(store) > 1 else "1 network"
    return f"{count}, PSNR mean {store.psnr.mean():.1f} dB, min {store.psnr.min():.1f} dB"
