"""Fitting that can be interrupted: finished networks are kept, and the same call goes on."""

import hashlib
import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from .siren import SirenSpec
from .store import INRStore, fit_store, joined

# Networks x pixels x widest layer between two files: about ten seconds of work on one core.
_PART_ELEMENTS = 2**23
_REQUEST = "request.json"


def fit_resumable(
    images: Tensor,
    names: tuple[str, ...],
    spec: SirenSpec,
    path: Path,
    *,
    seed: int = 0,
    steps: int = 100,
    target_psnr: float = math.inf,
    progress: bool = True,
) -> INRStore:
    """Fit as `fit_store` does, and save the store to `path`; go on where an earlier call ended.

    Finished networks lie in the folder `PATH.partial` until all are there.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        FileExistsError: `PATH.partial` holds networks of other images or another fit.
        TypeError, ValueError: as `fit_store`.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing folder, got {path}")
    size = max(1, _PART_ELEMENTS // (images[0, 0].numel() * max(spec.hidden)))
    folder = partial_folder(path)
    request = {"spec": asdict(spec), "seed": seed, "steps": steps, "target_psnr": target_psnr}
    _claim(folder, {**request, "part": size, "images": _digest(images, names)})
    parts, few = [], len(images) <= size
    with tqdm(total=len(images), unit="INR", desc="fit", disable=few or not progress) as bar:
        for start in range(0, len(images), size):
            some = images[start : start + size]
            file = folder / f"{start:08d}.safetensors"
            if not file.exists():
                # One generator for each part, so that a part does not depend on those before it.
                try:
                    part = fit_store(
                        some,
                        names[start : start + size],
                        spec,
                        generator=Generator().manual_seed(seed + start),
                        steps=steps,
                        target_psnr=target_psnr,
                        progress=few and progress,
                    )
                except (TypeError, ValueError):
                    if not parts:
                        shutil.rmtree(folder)  # nothing is lost, and another request may come
                    raise
                part.save(file)
            parts.append(INRStore.load(file, spec))
            bar.update(len(some))
    store = joined(parts)
    store.save(path)
    shutil.rmtree(folder)
    return store


def partial_folder(path: Path) -> Path:
    """Where `fit_resumable` keeps what is finished of `path`."""
    return path.with_name(f"{path.name}.partial")


def _claim(folder: Path, request: dict[str, object]) -> None:
    """Make the folder, or accept one that was made for the same request."""
    text = json.dumps(request, sort_keys=True)
    if not folder.exists():
        folder.mkdir()
        (folder / _REQUEST).write_text(text)
    known = folder / _REQUEST
    if not known.is_file() or known.read_text() != text:
        raise FileExistsError(
            f"path: {folder} holds networks of other images or another fit; delete it to start anew"
        )


def _digest(images: Tensor, names: tuple[str, ...]) -> str:
    digest = hashlib.sha256(json.dumps([names, list(images.shape)]).encode())
    for image in images:
        digest.update(image.detach().cpu().to(torch.float32).numpy().tobytes())
    return digest.hexdigest()
