"""Reading images and arrays as tensors, and writing PNG files."""

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PICTURES = (".png", ".jpg", ".jpeg")
_ARRAYS = (".npy", ".npz")
_NARROW = 16  # pixels: pictures four wide and higher than that are colours with transparency
_KERAS_KEY = "x_train"


def load_images(paths: Iterable[str | Path]) -> tuple[Tensor, tuple[str, ...]]:
    """Read png, jpg, npy and npz files of equal size as intensities in [0, 1].

    Pictures keep grey or colour; transparency is laid over white. Arrays are `(height, width)`,
    `(height, width, 1 or 3)`, `(count, height, width)` or `(count, height, width, 1 or 3)`, either
    uint8 or floating-point in [0, 1]; of an npz file the key `x_train` is read, or else its first
    array.

    Shapes: images `(batch, channels, height, width)` in float32; one name per image, the file's,
    with its folders if another file has that name.

    Raises:
        TypeError: a single path instead of several.
        ValueError: no path, a file that is empty, unreadable or no image, or images of unequal
            size.
        FileNotFoundError: no such file.
        ImportError: a picture is read and Pillow is missing.
    """
    if isinstance(paths, str | Path):
        raise TypeError(f"paths must be several paths, got one: {str(paths)!r}")
    images: list[Tensor] = []
    names: list[str] = []
    stems: dict[str, Path] = {}
    for path in map(Path, paths):
        loaded = _load(path)
        if images and loaded.shape[1:] != images[0].shape[1:]:
            expected, got = tuple(images[0].shape[1:]), tuple(loaded.shape[1:])
            raise ValueError(
                f"paths must hold images of one (channels, height, width): "
                f"expected {expected}, got {got} in {path}"
            )
        images.append(loaded)
        count = loaded.shape[0]
        first = stems.setdefault(path.stem, path)
        name = path.stem if path == first else str(path.with_suffix(""))
        names += [name] if count == 1 else [f"{name}[{i}]" for i in range(count)]
    if not images:
        raise ValueError("paths must hold at least one path, got none")
    return torch.cat(images), tuple(names)


def save_png(path: str | Path, image: Tensor, scale: int = 1) -> None:
    """Write one image `(1 or 3, height, width)`; intensities beyond [0, 1] are clipped.

    Every pixel becomes a square of `scale` x `scale` pixels.

    Raises:
        ValueError: another shape, non-finite intensities, or `scale` below 1.
        FileNotFoundError: the folder of `path` does not exist.
        ImportError: Pillow is missing.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise ValueError(f"image must have shape (1 or 3, height, width), got {tuple(image.shape)}")
    if not image.isfinite().all():
        raise ValueError("image must be finite, got NaN or infinity")
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale must be an integer of at least 1, got {scale!r}")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing folder, got {path}")
    levels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    levels = levels.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    array = levels.permute(1, 2, 0).numpy()  # (height, width, channels)
    if image.shape[0] == 1:
        array = array[..., 0]
    _pillow().fromarray(array).save(path, format="PNG")


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('pictures need Pillow: pip install "scalegmn-opt[images]"') from error
    return Image


def _load(path: Path) -> Tensor:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"paths must hold image files, got {path}: no such file")
    if suffix not in _PICTURES + _ARRAYS:
        raise ValueError(f"paths must end in {', '.join(_PICTURES + _ARRAYS)}, got {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"paths must hold images, got {path}: an empty file")
    array = _read_picture(path) if suffix in _PICTURES else _read_array(path)
    if array.size == 0:
        raise ValueError(f"paths must hold images, got {path}: zero-sized, shape {array.shape}")
    return torch.from_numpy(_intensities(_with_channels(array, path), path)).permute(0, 3, 1, 2)


def _read_picture(path: Path) -> np.ndarray:
    image_module = _pillow()
    from PIL import ImageOps

    try:
        with image_module.open(path) as image:
            # Photographs are stored unrotated, with a note which way is up.
            return np.asarray(_grey_or_colour(ImageOps.exif_transpose(image), image_module))
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise ValueError(f"paths must hold images, got {path}: {error}") from error


def _grey_or_colour(image: Any, image_module: ModuleType) -> Any:
    if image.mode.startswith("I"):  # 16 bits per pixel
        return (np.asarray(image) / np.float32(65535)).astype(np.float32)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = image_module.new("RGBA", layer.size, "white")
        grey = image.mode == "LA"
        return image_module.alpha_composite(paper, layer).convert("L" if grey else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _read_array(path: Path) -> np.ndarray:
    try:
        # Opened here, because numpy leaves a damaged archive open.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else _first_array(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"paths must hold images, got {path}: {error}") from error


def _first_array(archive: np.lib.npyio.NpzFile) -> np.ndarray:
    if not archive.files:
        raise ValueError("no arrays in it")
    return archive[_KERAS_KEY if _KERAS_KEY in archive.files else archive.files[0]]


def _with_channels(array: np.ndarray, path: Path) -> np.ndarray:
    """View as (count, height, width, channels)."""
    if array.ndim == 2:
        return array[None, :, :, None]
    if array.ndim == 3 and array.shape[-1] == 4 and array.shape[1] > _NARROW:
        raise ValueError(
            f"paths must hold grey or colour images, got {path}: an array of shape {array.shape}, "
            "with transparency"
        )
    if array.ndim == 3:
        return array[None] if array.shape[-1] in (1, 3) else array[..., None]
    if array.ndim == 4 and array.shape[-1] in (1, 3):
        return array
    raise ValueError(f"paths must hold images, got {path}: an array of shape {array.shape}")


def _intensities(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"paths must hold uint8 or floating-point images, got {array.dtype} in {path}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"paths must hold finite images, got NaN or infinity in {path}")
    if array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"paths must hold intensities in [0, 1], "
            f"got values from {array.min():g} to {array.max():g} in {path}"
        )
    return array.astype(np.float32)
