"""Data sets for meta-training: tables, pictures, text and signals, none of which is downloaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .data import Dataset, digits
from .glyphs import drawn, glyphs, moved, signs
from .signals import signals
from .words import language

Kind = Literal["vectors", "pictures", "coordinates", "text"]
PATCH = 12  # pixels along a side
TEXT_WINDOW = 24  # characters
_PATCHES, _TEXT_STRIDE, _LEAVES = 4000, 7, 400


@dataclass(frozen=True)
class Source:
    """A data set by name: what its inputs are, and a function that makes or draws it.

    ``make`` takes a generator, which fixed data sets ignore, and a number of inputs, which all but
    random teachers, moved digits and glyphs ignore.
    """

    kind: Kind
    make: Callable[[torch.Generator, int], Dataset]


@lru_cache(maxsize=8)
def table(name: str) -> Dataset:
    """A table of scikit-learn: ``breast_cancer``, ``wine``, or ``diabetes`` (a regression).

    Features, and targets of a regression, are standardised with the training part's mean and
    deviation. Shuffled once and for all (seed 0); three fifths train, a fifth validates.
    """
    bunch = getattr(_sklearn(), f"load_{name}")()
    regression = name == "diabetes"
    inputs = torch.as_tensor(bunch.data, dtype=torch.float32)
    targets = torch.as_tensor(bunch.target, dtype=torch.float32 if regression else torch.int64)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs, targets = inputs[order], targets[order]
    cut = len(inputs) * 3 // 5
    inputs = _standardised(inputs, cut)
    if regression:
        targets = _standardised(targets[:, None], cut)
    classes = None if regression else len(bunch.target_names)
    return split(inputs, targets, classes=classes, name=name)


def teacher(generator: torch.Generator, dims: int, *, regression: bool) -> Dataset:
    """Labels, or numbers, that a random network of one hidden layer gives to random inputs.

    The inputs' covariance falls as a random power between 0 and 1 of its index. 1500 samples;
    10 classes, or ``1 + dims % 4`` outputs of deviation 1.
    """
    power = torch.rand((), generator=generator)
    spectrum = torch.arange(1, dims + 1) ** (-power / 2)
    inputs = torch.randn(1500, dims, generator=generator) * spectrum
    inputs = inputs / inputs.square().mean().sqrt()
    outputs = 1 + dims % 4 if regression else 10
    first, second = (
        torch.randn(*shape, generator=generator) / shape[0] ** 0.5
        for shape in ((dims, 16), (16, outputs))
    )
    scores = torch.tanh(2 * inputs @ first) @ second
    scores = (scores - scores.mean(0)) / scores.std(0)
    if regression:
        return split(inputs, scores, classes=None, name="teacher-regression")
    return split(inputs, scores.argmax(1), classes=10, name="teacher")


@lru_cache(maxsize=1)
def patches() -> Dataset:
    """Grey patches of scikit-learn's two photos: which photo, and by how many quarter turns.

    4000 patches of 12 × 12 pixels, at even rows of patches for training, at odd ones for
    validation and test; eight classes; standardised.
    """
    generator = torch.Generator().manual_seed(0)
    photo = torch.randint(2, (_PATCHES,), generator=generator)
    turns = torch.randint(4, (_PATCHES,), generator=generator)
    pictures = _photos().mean(1)
    rows, columns = pictures.shape[1] // PATCH, pictures.shape[2] - PATCH
    row = torch.randint(rows // 2, (_PATCHES,), generator=generator) * 2 * PATCH
    held_out = torch.arange(_PATCHES) >= _PATCHES * 3 // 5
    row = row + PATCH * held_out
    column = torch.randint(columns, (_PATCHES,), generator=generator)
    windows = pictures.unfold(1, PATCH, 1).unfold(2, PATCH, 1)
    found = windows[photo, row, column]
    turned = torch.stack([torch.rot90(x, int(k)) for x, k in zip(found, turns, strict=True)])
    inputs = turned.flatten(1)
    train = inputs[~held_out]
    inputs = (inputs - train.mean()) / train.std()
    return split(inputs, 4 * photo + turns, classes=8, name="patches", shape=(1, PATCH, PATCH))


def moved_digits(generator: torch.Generator, dims: int) -> Dataset:
    """Pictures of about ``dims`` pixels, of the digits turned, scaled and shifted at random.

    12,000 for training, drawn from the training part, and 1000 each of the two others', moved as
    by :func:`moved`.
    """
    side, parts = max(8, round(dims**0.5)), []
    for name, count in (("training", 12000), ("validation", 1000), ("test", 1000)):
        inputs, targets = digits().part(name)
        index = torch.randint(len(targets), (count,), generator=generator)
        pictures = inputs[index].reshape(-1, 1, 8, 8)
        parts += [moved(pictures, side, generator=generator), targets[index]]
    return Dataset(*parts, classes=10, name="moved-digits", shape=(1, side, side))


def picture(values: Tensor, *, name: str, generator: torch.Generator) -> Dataset:
    """One picture (channels, height, width) as a function of coordinates in [-1, 1].

    A random three fifths of the pixels train. Intensities are standardised.
    """
    height, width = values.shape[1:]
    rows, columns = (torch.linspace(-1, 1, n) for n in (height, width))
    coords = torch.cartesian_prod(rows, columns)
    pixels = values.flatten(1).T
    pixels = (pixels - pixels.mean()) / pixels.std()
    order = torch.randperm(len(coords), generator=generator)
    return split(coords[order], pixels[order], classes=None, name=name)


def digit_picture(generator: torch.Generator, dims: int) -> Dataset:
    """A random training picture of the digits, enlarged to 20 × 20 pixels, by coordinates."""
    pictures = digits().train_inputs.reshape(-1, 1, 8, 8)
    chosen = pictures[torch.randint(len(pictures), (1,), generator=generator)]
    large = interpolate(chosen, size=(20, 20), mode="bicubic", align_corners=True)[0]
    return picture(large, name="digit-picture", generator=generator)


def glyph_picture(generator: torch.Generator, dims: int) -> Dataset:
    """A random sign, as of :func:`glyphs`, of 20 × 20 pixels, by coordinates."""
    points = signs(1, generator=generator)
    return picture(drawn(points, 20)[0], name="glyph-picture", generator=generator)


def photo_picture(generator: torch.Generator, dims: int) -> Dataset:
    """A random 64 × 64 region of scikit-learn's photos, in colour at half size, by coordinates."""
    photos = _photos()
    which = int(torch.randint(2, (), generator=generator))
    top, left = (int(torch.randint(n - 64, (), generator=generator)) for n in photos.shape[2:])
    region = photos[which : which + 1, :, top : top + 64, left : left + 64]
    return picture(
        interpolate(region, scale_factor=0.5, mode="area")[0],
        name="photo-picture",
        generator=generator,
    )


def leaves_picture(generator: torch.Generator, dims: int) -> Dataset:
    """Discs of random colours on top of each other, 32 × 32 pixels, by coordinates.

    The "dead leaves" model, which has the edges and the spectrum of natural pictures: radii have a
    density falling with the third power, here from 1/10 to 1 of half a side (Lee, Mumford and
    Huang, "Occlusion models for natural images", 2001). Colours are mostly shades of grey.
    """
    rows, columns, radius, grey, *colour = torch.rand(7, _LEAVES, generator=generator)
    radius = (1 + radius * (10.0**2 - 1)).rsqrt()
    grid = torch.linspace(-1, 1, 32)
    down, right = grid[:, None, None] - 2.4 * rows + 1.2, grid[:, None] - 2.4 * columns + 1.2
    top = (down**2 + right**2 < radius**2).int().argmax(2)  # the first disc over a pixel, or of all
    values = 0.7 * grey[top] + 0.3 * torch.stack(colour)[:, top]
    return picture(values, name="leaves-picture", generator=generator)


@lru_cache(maxsize=2)
def text(*, late: bool) -> Dataset:
    """Windows of 24 characters of Python's own help texts; the target is each next character.

    Args:
        late: take the second half of the topics, by name, instead of the first.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    half = names[len(names) // 2 :] if late else names[: len(names) // 2]
    return characters("".join(topics[name] for name in half), "text-late" if late else "text")


def characters(string: str, name: str) -> Dataset:
    """Windows of 24 characters of ``string``; the target is each next character.

    One alphabet for all: printable ASCII and the line's end; anything else is a space.
    """
    codes = torch.tensor([ord(c) for c in string])
    tokens = torch.where((codes >= 32) & (codes < 127), codes - 31, 0 * codes + 1)
    tokens = torch.where(codes == 10, 0, tokens)
    windows = tokens.unfold(0, TEXT_WINDOW + 1, _TEXT_STRIDE)
    return split(windows[:, :-1], windows[:, 1:], classes=96, name=name)


def split(
    inputs: Tensor,
    targets: Tensor,
    *,
    classes: int | None,
    name: str,
    shape: tuple[int, ...] = (),
) -> Dataset:
    """The first three fifths for training, a fifth for validation, a fifth for test."""
    cuts = [len(inputs) * 3 // 5, len(inputs) * 4 // 5]
    (x0, x1, x2), (y0, y1, y2) = inputs.tensor_split(cuts), targets.tensor_split(cuts)
    return Dataset(x0, y0, x1, y1, x2, y2, classes=classes, name=name, shape=shape)


def reconstruction(dataset: Dataset) -> Dataset:
    """The same inputs as targets, both standardised by the training part's mean and deviation."""
    mean, deviation = dataset.train_inputs.mean(), dataset.train_inputs.std()
    x0, x1, x2 = (
        (x - mean) / deviation
        for x in (dataset.train_inputs, dataset.validation_inputs, dataset.test_inputs)
    )
    return Dataset(x0, x0, x1, x1, x2, x2, classes=None, name=dataset.name, shape=dataset.shape)


def noisy(dataset: Dataset, rate: float, *, generator: torch.Generator) -> Dataset:
    """A share ``rate`` of the training labels drawn anew; or noise of that deviation on numbers."""
    targets = dataset.train_targets
    if dataset.classes is None:
        wrong = targets + rate * torch.randn(targets.shape, generator=generator)
    else:
        drawn = torch.randint(dataset.classes, targets.shape, generator=generator)
        wrong = torch.where(torch.rand(targets.shape, generator=generator) < rate, drawn, targets)
    return replace(dataset, train_targets=wrong)


def with_classes(dataset: Dataset, labels: Tensor) -> Dataset:
    """The samples of some classes alone; class ``labels[i]`` becomes class ``i``."""
    position = torch.full((dataset.classes or 0,), -1)
    position[labels] = torch.arange(len(labels))
    parts = []
    for name in ("training", "validation", "test"):
        inputs, targets = dataset.part(name)
        found = position[targets]
        parts += [inputs[found >= 0], found[found >= 0]]
    x0, y0, x1, y1, x2, y2 = parts
    return replace(
        dataset,
        train_inputs=x0,
        train_targets=y0,
        validation_inputs=x1,
        validation_targets=y1,
        test_inputs=x2,
        test_targets=y2,
        classes=len(labels),
    )


def _standardised(values: Tensor, train: int) -> Tensor:
    known = values[:train]
    return (values - known.mean(0)) / known.std(0)


@lru_cache(maxsize=1)
def _photos() -> Tensor:
    """(2, 3, 427, 640), in [0, 1]."""
    images = _sklearn().load_sample_images().images
    return torch.stack([torch.tensor(x).permute(2, 0, 1) / 255 for x in images])


def _sklearn() -> Any:
    try:
        import sklearn.datasets
    except ImportError as error:
        raise ImportError(
            'these data sets need scikit-learn: pip install "scalegmn-opt[data]"'
        ) from error
    return sklearn.datasets


SOURCES: dict[str, Source] = {
    "breast-cancer": Source("vectors", lambda generator, dims: table("breast_cancer")),
    "diabetes": Source("vectors", lambda generator, dims: table("diabetes")),
    "digit-picture": Source("coordinates", digit_picture),
    "digits": Source("pictures", lambda generator, dims: digits()),
    "glyph-picture": Source("coordinates", glyph_picture),
    "glyphs": Source("pictures", glyphs),
    "leaves-picture": Source("coordinates", leaves_picture),
    "moved-digits": Source("pictures", moved_digits),
    "patches": Source("pictures", lambda generator, dims: patches()),
    "photo-picture": Source("coordinates", photo_picture),
    "signals": Source("pictures", lambda generator, dims: signals()),
    "teacher": Source("vectors", partial(teacher, regression=False)),
    "teacher-regression": Source("vectors", partial(teacher, regression=True)),
    "text": Source("text", lambda generator, dims: text(late=False)),
    "text-late": Source("text", lambda generator, dims: text(late=True)),
    "wine": Source("vectors", lambda generator, dims: table("wine")),
    "words": Source("text", lambda generator, dims: characters(language(generator), "words")),
}
