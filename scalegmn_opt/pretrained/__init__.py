"""Small weights that come with the package, each with a card, and their file format.

One safetensors file holds the tensors; its metadata the format version, the kind of model and the
keyword arguments that build it.
"""

import json
import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

FORMAT = "scalegmn-opt 1"
Module = TypeVar("Module", bound=nn.Module)


def available() -> list[str]:
    """Names of the weights in the package."""
    files = resources.files(__name__).iterdir()
    return sorted(
        f.name.removesuffix(".safetensors") for f in files if f.name.endswith(".safetensors")
    )


def save_weights(
    path: str | os.PathLike[str], module: nn.Module, *, kind: str, config: Mapping[str, Any]
) -> None:
    """Write ``module``'s tensors and its ``config``, atomically."""
    metadata = {"format": FORMAT, "kind": kind, "config": json.dumps(dict(config))}
    tensors = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(save(tensors, metadata))
    os.replace(temporary, path)


def weights_kind(name_or_path: str | os.PathLike[str]) -> str | None:
    """The kind of the weights, None for a file of something else; errors as of `load_weights`."""
    return _read(name_or_path)[1].get("kind")


def load_weights(
    name_or_path: str | os.PathLike[str], *, kind: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and tensors of weights of ``kind``, by a packaged name or a file's path.

    Raises:
        FileNotFoundError: if there is neither such a file nor such packaged weights.
        ValueError: if the file is no intact weights file of this kind.
    """
    path, metadata, tensors = _read(name_or_path)
    found = (metadata.get("format"), metadata.get("kind"))
    if found != (FORMAT, kind):
        raise ValueError(f"{path}: expected {(FORMAT, kind)} (format, kind), got {found}")
    return json.loads(metadata["config"]), tensors


def _read(name_or_path: str | os.PathLike[str]) -> tuple[Path, dict[str, str], dict[str, Tensor]]:
    path = _resolve(name_or_path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return path, file.metadata() or {}, tensors
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected a safetensors file, got a damaged one ({error})"
        ) from error


def restore(
    build: Callable[..., Module], name_or_path: str | os.PathLike[str], *, kind: str
) -> Module:
    """The module that ``build`` makes of a file's config, with the file's tensors.

    The global random state stays as it is; errors as in :func:`load_weights`, and a ValueError for
    tensors that are not those of the module.
    """
    config, tensors = load_weights(name_or_path, kind=kind)
    with torch.random.fork_rng(devices=[]):
        module = build(**config)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{name_or_path}: expected weights of this version of {type(module).__name__}: {error}"
        ) from error
    return module


def _resolve(name_or_path: str | os.PathLike[str]) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    with resources.as_file(resources.files(__name__) / f"{name_or_path}.safetensors") as packaged:
        if packaged.is_file():
            return packaged
    raise FileNotFoundError(
        f"no weights {str(name_or_path)!r}: expected a file, or one of {available()}"
    )
