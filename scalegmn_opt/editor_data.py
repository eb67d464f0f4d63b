"""Images and networks that `meta-train` trains an editor on."""

from pathlib import Path

from torch import Generator, Tensor, cat

from scalegmn_opt.editors.training import EditorRecipe, resize
from scalegmn_opt.inr import INRStore, SirenSpec, fit_store, load_images
from scalegmn_opt.tasks import digits, photographs


def training_images(recipe: EditorRecipe, data: Path | None) -> tuple[Tensor, tuple[str, ...]]:
    """The first images of every source, (batch, channels, size, size), and their names."""
    images: list[Tensor] = []
    names: list[str] = []
    for source in recipe.images:
        if source == "digits":
            found = digits().train_inputs.reshape(-1, 1, 8, 8)
            labels = tuple(f"digits[{i}]" for i in range(len(found)))
        elif source == "photographs":
            found = photographs(recipe.size).train
            labels = tuple(f"patches[{i}]" for i in range(len(found)))
        else:
            found, labels = load_images([_data_file(source, data)])
        images.append(resize(found[: recipe.count], recipe.size))
        names += labels[: recipe.count]
    channels = {name: len(some[0]) for name, some in zip(recipe.images, images, strict=True)}
    if len(set(channels.values())) > 1:
        raise ValueError(f"images: expected one number of channels in all sources, got {channels}")
    return cat(images), tuple(names)


def _data_file(source: str, data: Path | None) -> Path:
    if data is None or not (data / source).is_file():
        place = "it was not given" if data is None else f"there is no such file in {data}"
        raise FileNotFoundError(f"--data: expected the folder that holds {source!r}, but {place}")
    return data / source


def training_networks(
    recipe: EditorRecipe, images: Tensor, names: tuple[str, ...], *, out: Path, fresh: bool
) -> INRStore:
    """Networks of the images: those in `out`, unless there are none or `fresh` ones are wanted."""
    path, spec = out / "inrs.safetensors", SirenSpec(out_features=images.shape[1])
    if fresh or not path.exists():
        generator = Generator().manual_seed(recipe.seed)
        fit_store(images, names, spec, generator=generator).save(path)
    store = INRStore.load(path, spec)
    if store.names != names:
        raise ValueError(f"--resume: {path} holds networks of other images than the recipe's")
    return store
