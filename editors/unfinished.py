"""What an interrupted run of edits has finished: the same run goes on from there."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scalegmn_opt.inr import INRStore

from .chain import EditRecipe

_REQUEST = "request.json"


class Unfinished:
    """A folder with the networks after each edit, part by part, and with numbers about them.

    Args:
        folder: made if it does not exist; its parent must.
        recipe, store: the run.

    Raises:
        FileExistsError: the folder holds what is finished of another run.
    """

    def __init__(self, folder: Path, recipe: EditRecipe, store: INRStore) -> None:
        self.folder = folder
        request = {
            "recipe": recipe.model_dump(mode="json"),
            "masks": [_digest_of_file(step.mask) for step in recipe.edits],
            "networks": _digest(store),
        }
        known = folder / _REQUEST
        if not folder.exists():
            folder.mkdir()
            _write(known, request)
        if not known.is_file() or json.loads(known.read_text()) != request:
            raise FileExistsError(
                f"out: {folder} holds finished edits of another recipe or of other networks; "
                "delete it to start anew"
            )

    def networks(
        self, name: str, make: Callable[[], tuple[INRStore, dict[str, float]]]
    ) -> tuple[INRStore, dict[str, float]]:
        """Networks and numbers of that name; they are made, and kept, if there are none."""
        path, numbers = self.folder / f"{name}.safetensors", self.folder / f"{name}.json"
        if not path.exists():
            store, found = make()
            _write(numbers, found)
            store.save(path)  # comes last: it says that both are there
        return INRStore.load(path), json.loads(numbers.read_text())

    def numbers(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Numbers of that name; they are made, and kept, if there are none."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            _write(path, make())
        return json.loads(path.read_text())

    def remove(self) -> None:
        """Delete the folder: the run is complete."""
        shutil.rmtree(self.folder)


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _digest_of_file(mask: object) -> str | None:
    """Of a mask's file, which may have changed; None for one that is in the recipe itself."""
    if not isinstance(mask, str | Path):
        return None
    return hashlib.sha256(Path(mask).read_bytes()).hexdigest()


def _digest(store: INRStore) -> str:
    about = [asdict(store.spec), store.names, store.image_size]
    digest = hashlib.sha256(json.dumps(about).encode())
    for value in store.params.values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
