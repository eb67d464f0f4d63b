"""Draws tasks of a family: what tasks of one architecture share, and what each has of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from scalegmn_opt.graph import trace
from scalegmn_opt.inr import SirenSpec

from .data import Dataset
from .families import ACTIVATIONS, Family
from .models import CharTransformer, FreshSiren, conv_net, mlp, residual_mlp
from .randomness import checked_count, choice, integer, log_integer, log_number, number
from .sources import SOURCES, noisy, reconstruction, with_classes
from .supervised import CLASS_LOSSES, INITIALISATIONS, NUMBER_LOSSES, Initialisation, SupervisedTask

_FLAT = ("autoencoder", "mlp", "residual-mlp")
_HEADS = 2
_MANY = 20


class FamilySuite:
    """Tasks of a random family; one call of ``sample`` fixes family, architecture and loss.

    Raises:
        ValueError: if there is no family.
        ImportError: if a data set needs scikit-learn and it is not installed.
    """

    def __init__(self, families: Sequence[Family]) -> None:
        if not families:
            raise ValueError("families: expected at least one")
        self.families = tuple(families)
        for family in self.families:  # read now, so that what is missing is known at once
            SOURCES[family.data].make(torch.Generator().manual_seed(0), 16)

    def sample(self, generator: torch.Generator, count: int) -> list[SupervisedTask]:
        """``count`` tasks of one architecture; each has data, scales and noise of its own."""
        weights = torch.tensor([family.weight for family in self.families])
        index = int(torch.multinomial(weights, 1, generator=generator))
        return draw_tasks(self.families[index], checked_count(count), generator=generator)


def draw_tasks(family: Family, count: int, *, generator: torch.Generator) -> list[SupervisedTask]:
    """``count`` tasks of one random architecture of ``family``."""
    dims = log_integer(*family.inputs, generator=generator)
    datasets = _datasets(family, count, dims, generator=generator)
    projections = _projections(family, datasets[0], dims, count, generator=generator)
    example = datasets[0].train_inputs[:2]
    example = example if projections[0] is None else example @ projections[0]
    module = _module(family, datasets[0], example.shape[1], generator=generator)
    losses = _losses(datasets[0]) if family.augment else [_plain_loss(datasets[0])]
    loss = choice(losses, generator=generator)
    batch_size = log_integer(*family.batch_size, generator=generator)
    initialisation = _initialisation(family, generator=generator)
    loss_scale = log_number(0.3, 3.0, generator=generator) if family.augment else 1.0
    graph = trace(module, (example,))
    return [
        SupervisedTask(
            dataset,
            module,
            loss=loss,
            batch_size=batch_size,
            projection=projection,
            initialisation=initialisation,
            loss_scale=loss_scale,
            graph=graph,
        )
        for dataset, projection in zip(datasets, projections, strict=True)
    ]


def _datasets(
    family: Family, count: int, dims: int, *, generator: torch.Generator
) -> list[Dataset]:
    """A data set a task, all of one shape, with classes and noise of its own."""
    source = SOURCES[family.data]
    seed = integer(0, 2**61, generator=generator)
    makers = [torch.Generator().manual_seed(seed + i) for i in range(count)]
    found = [source.make(maker, dims) for maker in makers]
    if source.kind == "text":
        return found
    if family.model == "autoencoder":
        return [reconstruction(dataset) for dataset in found]
    if found[0].classes is not None and family.augment:
        labels = integer(2, found[0].classes, generator=generator)
        orders = [torch.randperm(d.classes or 0, generator=generator) for d in found]
        found = [with_classes(d, o[:labels]) for d, o in zip(found, orders, strict=True)]
    rate = number(-0.2, 0.2, generator=generator) if family.augment else 0.0
    # Half of all draws have no noise at all.
    return [noisy(d, rate, generator=generator) if rate > 0 else d for d in found]


def _projections(
    family: Family, dataset: Dataset, dims: int, count: int, *, generator: torch.Generator
) -> list[Tensor | None]:
    """A linear map of the inputs a task: enlarged, mixed at random, or scaled; none for text."""
    kind = SOURCES[family.data].kind
    if kind in ("text", "coordinates") or not family.augment:
        return [None] * count
    maps = _maps(family, dataset, dims, count, generator=generator)
    scales = [log_number(0.5, 2.0, generator=generator) for _ in range(count)]
    return [scale * matrix for scale, matrix in zip(scales, maps, strict=True)]


def _maps(
    family: Family, dataset: Dataset, dims: int, count: int, *, generator: torch.Generator
) -> list[Tensor]:
    features = dataset.features
    ways = ["as they are"]
    if family.model in _FLAT:
        ways.append("mixed")
        if dataset.shape:
            ways.append("enlarged")
    way = choice(ways, generator=generator)
    if way == "mixed":
        noise = torch.randn(count, features, dims, generator=generator)
        return list(noise / features**0.5)
    if way == "enlarged":
        return [_enlarged(dataset.shape, dims)] * count
    return [torch.eye(features)] * count


def _enlarged(shape: tuple[int, ...], dims: int) -> Tensor:
    """(features, about ``dims``): linear interpolation of a picture or signal to another size."""
    extents = len(shape) - 1
    size = max(2, round((dims / shape[0]) ** (1 / extents)))
    pixels = torch.eye(torch.Size(shape).numel()).unflatten(1, shape)
    mode = "bilinear" if extents == 2 else "linear"
    return interpolate(pixels, size=[size] * extents, mode=mode, align_corners=False).flatten(1)


def _losses(dataset: Dataset) -> list[str]:
    if dataset.classes is None:
        return sorted(NUMBER_LOSSES)
    many = dataset.classes > _MANY  # squares are of the order of the classes
    return sorted(name for name in CLASS_LOSSES if not (many and name == "one-hot-squares"))


def _plain_loss(dataset: Dataset) -> str:
    return "squares" if dataset.classes is None else "cross-entropy"


def _initialisation(family: Family, *, generator: torch.Generator) -> Initialisation:
    if not family.augment:
        return Initialisation()
    # Sines and attention do not start from the schemes for perceptrons.
    schemes = (
        [None] if family.model in ("siren", "transformer") else [None, *sorted(INITIALISATIONS)]
    )
    return Initialisation(
        scheme=choice(schemes, generator=generator),
        scale_spread=number(0.0, 0.4, generator=generator),
        spread=max(0.0, number(-0.5, 1.0, generator=generator)),
    )


def _module(
    family: Family, dataset: Dataset, inputs: int, *, generator: torch.Generator
) -> nn.Module:
    """A random network of the family, for ``inputs`` features."""
    depth = integer(*family.depth, generator=generator)
    widths = [log_integer(*family.width, generator=generator) for _ in range(depth)]
    activation = ACTIVATIONS[choice(family.activations, generator=generator)]
    train = dataset.train_targets
    outputs = train.shape[1] if dataset.classes is None else dataset.classes
    match family.model:
        case "mlp":
            return mlp((inputs, *widths, outputs), activation)
        case "autoencoder":
            code = max(2, min(widths) // 4)
            return mlp((inputs, *widths, code, *reversed(widths), outputs), activation)
        case "residual-mlp":
            return residual_mlp(inputs, widths[0], outputs, depth=depth, activation=activation)
        case "siren":
            w0 = log_number(10.0, 30.0, generator=generator)
            spec = SirenSpec(in_features=2, hidden=tuple(widths), out_features=outputs, w0=w0)
            return FreshSiren(spec)
        case "transformer":
            width = max(1, widths[0] // _HEADS) * _HEADS
            return CharTransformer(outputs, inputs, width=width, heads=_HEADS, depth=depth)
    return conv_net(
        dataset.shape,
        widths,
        outputs,
        activation=activation,
        norm=family.model == "cnn-batchnorm",
        residual=family.model == "residual-cnn",
    )
