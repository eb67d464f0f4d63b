"""Many fitted networks in one file."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Generator, Tensor

from .fit import fit
from .siren import SirenSpec, check_parameters

_METADATA_KEY = "scalegmn_opt.inr_store"
_FORMAT_VERSION = 1
_PSNR = "psnr"


@dataclass(frozen=True, eq=False)
class INRStore:
    """Fitted SIRENs of one architecture, with the name, quality and size of the images they hold.

    Shapes: params name -> `(batch, *shape)`; psnr `(batch,)`, in dB, NaN where the image is not
    known; image_size `(height, width)`.

    Raises:
        ValueError: parameters that do not fit `spec`, unequal counts, or an empty image size.
    """

    params: dict[str, Tensor]
    spec: SirenSpec
    names: tuple[str, ...]
    psnr: Tensor
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        count = check_parameters(self.params, self.spec)
        if len(self.names) != count:
            raise ValueError(f"names must hold {count} names, got {len(self.names)}")
        if self.psnr.shape != (count,):
            raise ValueError(f"psnr must have shape ({count},), got {tuple(self.psnr.shape)}")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(
                f"image_size must be a positive (height, width), got {self.image_size}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: slice) -> "INRStore":
        if not isinstance(index, slice):
            raise TypeError(f"index must be a slice, got {type(index).__name__}")
        params = {name: value[index] for name, value in self.params.items()}
        return INRStore(params, self.spec, self.names[index], self.psnr[index], self.image_size)

    def save(self, path: str | Path) -> None:
        """Write the store as one safetensors file.

        An interrupted write leaves the old file untouched.

        Raises:
            FileNotFoundError: the folder of `path` does not exist.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"path must lie in an existing folder, got {path}")
        tensors = {**self.params, _PSNR: self.psnr}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            # safetensors' own save_file makes a file that nobody else may read.
            temporary.write_bytes(save(tensors, metadata={_METADATA_KEY: self._metadata()}))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _metadata(self) -> str:
        return json.dumps(
            {
                "version": _FORMAT_VERSION,
                "spec": asdict(self.spec),
                "names": list(self.names),
                "image_size": list(self.image_size),
            }
        )

    @classmethod
    def load(cls, path: str | Path, spec: SirenSpec | None = None) -> "INRStore":
        """Read a store that `save` wrote; if `spec` is given, it must hold such networks.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a damaged or foreign file, another format version, or networks of another
                `spec`.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"path must be an INR store, got {path}: no such file")
        store = _parsed(path, *_read(path))
        if spec is not None and store.spec != spec:
            raise ValueError(f"spec must be that of {path}: expected {spec}, got {store.spec}")
        return store


def fit_store(
    images: Tensor,
    names: tuple[str, ...],
    spec: SirenSpec,
    *,
    generator: Generator,
    steps: int = 100,
    target_psnr: float = math.inf,
    progress: bool = True,
) -> INRStore:
    """Fit one network to every image, as `fit` does, and keep them under the images' names.

    Shapes: images `(batch, channels, height, width)`, intensities in [0, 1].

    Raises:
        TypeError, ValueError: as `fit` and `INRStore`.
    """
    result = fit(
        images,
        spec,
        generator=generator,
        steps=steps,
        target_psnr=target_psnr,
        progress=progress,
    )
    height, width = images.shape[2:]
    return INRStore(result.params, spec, names, result.psnr, (height, width))


def joined(stores: Sequence[INRStore]) -> INRStore:
    """One store of all networks, in order.

    Raises:
        ValueError: no store, or stores of unequal spec or image size.
    """
    kinds = {(store.spec, store.image_size) for store in stores}
    if len(kinds) != 1:
        raise ValueError(f"stores must have one spec and image_size, got {sorted(map(str, kinds))}")
    (spec, size), *_ = kinds
    params = {
        name: torch.cat([store.params[name] for store in stores]) for name in spec.parameter_shapes
    }
    names = tuple(name for store in stores for name in store.names)
    return INRStore(params, spec, names, torch.cat([store.psnr for store in stores]), size)


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"path must be an INR store, got {path}: {error}") from error
    if text is None:
        raise ValueError(f"path must be an INR store, got {path}: safetensors of other content")
    return text, tensors


def _parsed(path: Path, text: str, tensors: dict[str, Tensor]) -> INRStore:
    try:
        metadata = json.loads(text)
        if metadata["version"] != _FORMAT_VERSION:
            raise ValueError(f"version must be {_FORMAT_VERSION}, got {metadata['version']}")
        fields = metadata["spec"]
        spec = SirenSpec(**{**fields, "hidden": tuple(fields["hidden"])})
        height, width = metadata["image_size"]
        psnr = tensors.pop(_PSNR)
        return INRStore(tensors, spec, tuple(metadata["names"]), psnr, (height, width))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"path must be an INR store, got {path}: {error!r}") from error
