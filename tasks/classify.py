"""Classification with multilayer perceptrons."""

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from scalegmn_opt.graph import WeightGraph, trace
from scalegmn_opt.meta import ModuleTask
from scalegmn_opt.symmetry import random_transform

from .data import Dataset
from .models import Activation, mlp

Batch = tuple[Tensor, Tensor]


@lru_cache(maxsize=64)
def _graph(sizes: tuple[int, ...], activation: Activation) -> WeightGraph:
    """One trace for all tasks of an architecture."""
    return trace(mlp(sizes, activation), (torch.zeros(2, sizes[0]),))


class MLPClassification(ModuleTask):
    """Cross-entropy of a perceptron on random minibatches of a data set's training part.

    Args:
        dataset: the data.
        hidden: widths of the hidden layers.
        activation: a module class (or any function of no argument that makes a module).
        batch_size: samples a minibatch, drawn with replacement.
        projection: (features, dims), applied to the inputs first; the identity if not given.
        labels: the classes that take part; output ``i`` stands for class ``labels[i]``. All
            classes in their order if not given.
        init_spread: standard deviation of ``log q`` of a random reparametrisation of the initial
            network, which leaves its function alone; 0 for none.

    Raises:
        ValueError: if an argument does not fit the data set.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        hidden: Sequence[int] = (32,),
        activation: Activation = nn.ReLU,
        batch_size: int = 64,
        projection: Tensor | None = None,
        labels: Sequence[int] | None = None,
        init_spread: float = 0.0,
    ) -> None:
        if dataset.classes is None:
            raise ValueError(f"dataset: expected classes, got the numbers of {dataset.name}")
        self.dataset, self.classes = dataset, dataset.classes
        self.activation = activation
        self.batch_size = _positive("batch_size", batch_size)
        self.init_spread = _spread(init_spread)
        self.projection = _checked_projection(projection, dataset.features)
        self.labels = _checked_labels(labels, self.classes)
        self._train_inputs, self._train_targets = self._part("training")
        example = self._project(self._train_inputs[:256])
        widths = [_positive("hidden", width) for width in hidden]
        self.sizes = (example.shape[1], *widths, len(self.labels))
        super().__init__(mlp(self.sizes, activation).to(example), (example,))

    @cached_property
    def graph(self) -> WeightGraph:
        """The weight graph, shared by all tasks of the same architecture."""
        return _graph(self.sizes, self.activation)

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        """PyTorch's initialisation, by name (*shape), reparametrised with ``init_spread``."""
        params = super().init(generator)
        if not self.init_spread:
            return params
        transform = random_transform(self.graph, generator, spread=self.init_spread)
        acted = transform.apply({name: p.unsqueeze(0) for name, p in params.items()})
        return {name: p.squeeze(0) for name, p in acted.items()}

    def batch(self, generator: torch.Generator) -> Batch:
        """Inputs (samples, dims) and targets (samples,) of a random minibatch."""
        high, size = len(self._train_targets), (self.batch_size,)
        index = torch.randint(high, size, generator=generator, device=generator.device)
        index = index.to(self._train_targets.device)
        return self._project(self._train_inputs[index]), self._train_targets[index]

    def validation_batch(self, generator: torch.Generator) -> Batch:
        """The same of the data set's validation part."""
        inputs, targets = self._part("validation")
        index = torch.randint(
            len(targets), (self.batch_size,), generator=generator, device=generator.device
        ).to(targets.device)
        return self._project(inputs[index]), targets[index]

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean cross-entropy () of the batch, in nats."""
        inputs, targets = batch
        return cross_entropy(self.forward(params, inputs), targets)

    def losses(self, params: Mapping[str, Tensor], batches: Batch) -> Tensor:
        """Losses (networks,) of stacked parameters on stacked batches."""
        return torch.func.vmap(self.loss)(dict(params), batches)

    @torch.no_grad()
    def evaluate(self, params: Mapping[str, Tensor], split: str) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy (), in nats, and accuracy () on a whole split.

        Raises:
            ValueError: if ``split`` is not "training", "validation" or "test".
        """
        inputs, targets = self._part(split)
        logits = self.forward(params, self._project(inputs))
        accuracy = (logits.argmax(-1) == targets).to(logits.dtype).mean()
        return cross_entropy(logits, targets), accuracy

    def _part(self, split: str) -> Batch:
        """The samples of the chosen classes, with targets as output indices."""
        inputs, targets = self.dataset.part(split)
        output = targets.new_full((self.classes,), -1)
        output[torch.tensor(self.labels)] = torch.arange(len(self.labels), device=output.device)
        outputs = output[targets]
        chosen = outputs >= 0
        if chosen.all():  # no copy of a whole data set for each task
            return inputs, outputs
        return inputs[chosen], outputs[chosen]

    def _project(self, inputs: Tensor) -> Tensor:
        return inputs if self.projection is None else inputs @ self.projection.to(inputs)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}: expected a size >= 1, got {value}")
    return value


def _spread(value: float) -> float:
    if not (isfinite(value) and value >= 0):
        raise ValueError(f"init_spread: expected a finite number >= 0, got {value}")
    return value


def _checked_projection(projection: Tensor | None, features: int) -> Tensor | None:
    if projection is not None and (projection.ndim != 2 or len(projection) != features):
        shape = tuple(projection.shape)
        raise ValueError(f"projection: expected shape ({features}, dims), got {shape}")
    return projection


def _checked_labels(labels: Sequence[int] | None, classes: int) -> tuple[int, ...]:
    chosen = tuple(range(classes)) if labels is None else tuple(labels)
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(classes)):
        raise ValueError(
            f"labels: expected at least two different classes of 0..{classes - 1}, got {chosen}"
        )
    return chosen
