"""Fitting that can be interrupted: finished networks are kept, and the same call goes on."""

import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from scalegmn_opt.processes import completed

from .siren import SirenSpec
from .store import INRStore, fit_store, joined

# Networks x pixels x widest layer between two files: some three seconds of work on one core.
_PART_ELEMENTS = 2**21
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
    jobs: int = 1,
    progress: bool = True,
) -> INRStore:
    """Fit as `fit_store` does, and save the store to `path`; go on where an earlier call ended.

    Finished networks lie in the folder `PATH.partial` until all are there.

    Args:
        jobs: processes of one thread each to fit in; the networks do not depend on it.

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
    few = len(images) <= size
    parts = [
        _Part(
            folder / f"{start:08d}.safetensors",
            images[start : start + size],
            names[start : start + size],
            spec,
            # One generator for each part, so that a part does not depend on those before it.
            seed=seed + start,
            steps=steps,
            target_psnr=target_psnr,
            progress=few and progress,
        )
        for start in range(0, len(images), size)
    ]
    left = [part for part in parts if not part.file.exists()]
    done = len(images) - sum(len(part.names) for part in left)
    options = {"total": len(images), "initial": done, "unit": "INR", "desc": "fit"}
    with tqdm(**options, disable=few or not progress) as bar:
        try:
            for part, _ in completed(_Part.fit, left, jobs=jobs):
                bar.update(len(part.names))
        except (TypeError, ValueError):
            if not any(part.file.exists() for part in parts):
                shutil.rmtree(folder)  # nothing is lost, and another request may come
            raise
    store = joined([INRStore.load(part.file, spec) for part in parts])
    store.save(path)
    shutil.rmtree(folder)
    return store


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the networks, and the file that they go to."""

    file: Path
    images: Tensor
    names: tuple[str, ...]
    spec: SirenSpec
    seed: int
    steps: int
    target_psnr: float
    progress: bool

    # Torch would share tensors with other processes, for which some systems have little room.
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "images": self.images.numpy(force=True)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "images": torch.from_numpy(state["images"])})

    def fit(self) -> None:
        fit_store(
            self.images,
            self.names,
            self.spec,
            generator=Generator().manual_seed(self.seed),
            steps=self.steps,
            target_psnr=self.target_psnr,
            progress=self.progress,
        ).save(self.file)


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
