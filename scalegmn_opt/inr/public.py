"""Reading networks of the public INR data sets: folders with one `state_dict` file a network."""

import pickle
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .siren import SirenSpec
from .store import INRStore

_SUFFIXES = (".pth", ".pt")
_NAME = re.compile(r"(?:.*\.)?(\d+)\.(?:linear\.)?(weight|bias)$")
_OFFSET = 0.5  # which the public networks add to their last layer


def load_state_dicts(
    folder: str | Path,
    *,
    image_size: tuple[int, int] = (28, 28),
    w0: float = 30.0,
    progress: bool = True,
) -> INRStore:
    """Read all `state_dict` files below a folder, such as the public MNIST-INRs, as one store.

    Those networks have layers `seq.0.weight`, ..., coordinates from -1 to 1 *including* both ends,
    and give the intensity minus 0.5. Both are absorbed into the first and the last layer, so that
    `render` draws the same picture. The images are not known, so psnr is NaN. Files are read
    without running code that is in them.

    Args:
        image_size: height and width of the pictures that the networks were fitted to.
        w0: frequency of their sines.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no files in it, a file that holds no SIREN or numbers that are not finite, or
            networks of unequal size; an image size below two pixels.

    References:
        Navon et al., "Equivariant Architectures for Learning in Deep Weight Spaces",
        arXiv 2301.12780 (the data set).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder must hold state_dict files, got {folder}: no such folder")
    if min(image_size) < 2:
        raise ValueError(f"image_size must be at least 2 pixels a side, got {image_size}")
    files = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    if not files:
        raise ValueError(f"folder must hold files that end in {_SUFFIXES}, got none in {folder}")
    networks: list[dict[str, Tensor]] = []
    for file in tqdm(files, unit="INR", desc="read", disable=not progress):
        networks.append(_read(file))
        if _shapes(networks[-1]) != _shapes(networks[0]):
            raise ValueError(f"folder must hold networks of one size, got another in {file}")
    params = {name: torch.stack([network[name] for network in networks]) for name in networks[0]}
    names = tuple(str(file.relative_to(folder).with_suffix("")) for file in files)
    spec = _spec(networks[0], w0, files[0])
    params = _absorbed(params, spec, image_size)
    return INRStore(params, spec, names, torch.full((len(files),), torch.nan), image_size)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"folder must hold state_dict files, got {file}: {error}") from error
    named = _layers(loaded) if isinstance(loaded, Mapping) else {}
    if not named or not all(isinstance(value, Tensor) for value in named.values()):
        raise ValueError(f"folder must hold state_dict files of SIRENs, got {file}")
    if not all(value.isfinite().all() for value in named.values()):
        raise ValueError(f"folder must hold finite weights, got NaN or infinity in {file}")
    return {name: value.float() for name, value in named.items()}


def _layers(loaded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By our names, layers counted from 0; empty if a name is of another kind."""
    matches = {name: _NAME.match(str(name)) for name in loaded}
    if not all(matches.values()):
        return {}
    numbers = sorted({int(match[1]) for match in matches.values() if match})
    return {
        f"layers.{numbers.index(int(match[1]))}.{match[2]}": loaded[name]
        for name, match in matches.items()
        if match
    }


def _shapes(network: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.items()}


def _spec(network: Mapping[str, Tensor], w0: float, file: Path) -> SirenSpec:
    layers = [
        (network.get(f"layers.{i}.weight"), network.get(f"layers.{i}.bias"))
        for i in range(len(network) // 2)
    ]
    whole = len(network) == 2 * len(layers) > 2 and all(
        weight is not None
        and bias is not None
        and weight.ndim == 2
        and bias.shape == weight.shape[:1]
        for weight, bias in layers
    )
    weights = [weight for weight, _ in layers]
    if not whole or any(len(a) != b.shape[1] for a, b in pairwise(weights)):
        raise ValueError(f"folder must hold state_dict files of SIRENs, got {file}")
    widths = tuple(weight.shape[0] for weight in weights)
    return SirenSpec(weights[0].shape[1], widths[:-1], widths[-1], float(w0))


def _absorbed(
    params: dict[str, Tensor], spec: SirenSpec, image_size: tuple[int, int]
) -> dict[str, Tensor]:
    """Pixel centres instead of end points in the first layer, the offset in the last one."""
    height, width = image_size
    stretch = torch.tensor([width / (width - 1), height / (height - 1)])
    first, last = "layers.0.weight", f"layers.{spec.last_layer}.bias"
    return {**params, first: params[first] * stretch, last: params[last] + _OFFSET}
