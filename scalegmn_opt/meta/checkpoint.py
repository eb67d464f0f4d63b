"""Checkpoints that are whole or not there: written aside, signed, then renamed."""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

MANIFEST = "manifest.json"
_KEPT = 2


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over."""


def directory(root: Path, step: int) -> Path:
    """The folder of the checkpoint of ``step``."""
    return root / f"step_{step:08d}"


def commit(temporary: Path, final: Path) -> None:
    """Sign the files in ``temporary``, rename it to ``final``, and drop all but the last two."""
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    digests = {path.relative_to(temporary).as_posix(): _digest(path) for path in files}
    (temporary / MANIFEST).write_text(json.dumps(digests, indent=1))
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    for old in _all(final.parent)[:-_KEPT]:
        shutil.rmtree(old)


def latest(root: Path) -> Path | None:
    """The newest intact checkpoint under ``root``, or None; a damaged one is named in a warning."""
    for folder in reversed(_all(root)):
        problem = _problem(folder)
        if problem is None:
            return folder
        warnings.warn(
            f"checkpoint {folder}: {problem}; looking for the one before it",
            CheckpointWarning,
            stacklevel=2,
        )
    return None


def _all(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step_*") if path.is_dir() and path.suffix == "")


def _problem(folder: Path) -> str | None:
    try:
        digests = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"no readable {MANIFEST} ({error})"
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != digest:
            return f"{name} is damaged or truncated"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
