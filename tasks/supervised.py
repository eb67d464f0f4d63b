"""Tasks on any module and any data set, whose losses are computed for all networks at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, huber_loss, mse_loss, one_hot

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.meta import ModuleTask
from scalegmn_opt.symmetry import random_transform

from .data import Dataset

Batch = tuple[Tensor, Tensor]
_CHUNK = 2048  # samples evaluated at once


def _one_hot_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    wanted = one_hot(targets, outputs.shape[-1]).to(outputs)
    return (outputs - wanted).square().sum(-1).mean()


def _smooth_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, label_smoothing=0.1)


CLASS_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "label-smoothing": _smooth_cross_entropy,
    "one-hot-squares": _one_hot_squares,
}
NUMBER_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squares": mse_loss,
    "huber": huber_loss,
}
LOSSES = CLASS_LOSSES | NUMBER_LOSSES

INITIALISATIONS: dict[str, Callable[..., Tensor]] = {
    "kaiming": nn.init.kaiming_normal_,
    "orthogonal": nn.init.orthogonal_,
    "xavier": nn.init.xavier_uniform_,
}


@dataclass(frozen=True)
class Initialisation:
    """Where training starts.

    Args:
        scheme: of ``INITIALISATIONS``, for all tensors of two or more axes; the module's own if
            None.
        scale_spread: each tensor of two or more axes is multiplied by ``exp(u)``, ``u`` uniform
            within this of 0; another function, as by another initialisation.
        spread: deviation of ``log q`` of a random reparametrisation, which keeps the function.
    """

    scheme: str | None = None
    scale_spread: float = 0.0
    spread: float = 0.0


class SupervisedTask(ModuleTask):
    """A module on minibatches of a data set; the loss depends on the architecture alone.

    Args:
        dataset: the data; only its training part gives training batches, only its validation part
            validation batches.
        module: from inputs (samples, features) to outputs.
        loss: a name of ``LOSSES``.
        batch_size: samples a batch, drawn with replacement.
        projection: (features, dims), applied to the inputs; the identity if not given.
        initialisation: where training starts.
        loss_scale: factor of the loss.
        graph: the module's weight graph if it is known; traced at first use if not.

    Raises:
        ValueError: if an argument does not fit the data set.
    """

    def __init__(
        self,
        dataset: Dataset,
        module: nn.Module,
        *,
        loss: str,
        batch_size: int = 64,
        projection: Tensor | None = None,
        initialisation: Initialisation | None = None,
        loss_scale: float = 1.0,
        graph: WeightGraph | None = None,
    ) -> None:
        valid = NUMBER_LOSSES if dataset.classes is None else CLASS_LOSSES
        if loss not in valid:
            raise ValueError(f"loss of {dataset.name}: choose from {sorted(valid)}, got {loss!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected a size >= 1, got {batch_size}")
        self.dataset, self.batch_size, self.projection = dataset, batch_size, projection
        self.loss_name, self.loss_scale = loss, loss_scale
        self.initialisation = initialisation or Initialisation()
        super().__init__(module, (self._project(dataset.train_inputs[:256]),))
        if graph is not None:
            self.graph = graph

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters by name (*shape)."""
        start, params = self.initialisation, super().init(generator)
        for name, p in params.items():
            if p.ndim >= 2:
                if start.scheme is not None:
                    INITIALISATIONS[start.scheme](p, generator=generator)
                uniform = torch.rand((), generator=generator)
                params[name] = p * torch.exp(start.scale_spread * (2 * uniform - 1))
        if not start.spread:
            return params
        transform = random_transform(self.graph, generator, spread=start.spread)
        acted = transform.apply({name: p.unsqueeze(0) for name, p in params.items()})
        return {name: p.squeeze(0) for name, p in acted.items()}

    def batch(self, generator: torch.Generator) -> Batch:
        """Inputs (samples, dims) and targets of a random batch of the training part."""
        return self._draw("training", generator)

    def validation_batch(self, generator: torch.Generator) -> Batch:
        """The same of the validation part."""
        return self._draw("validation", generator)

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The loss () of one network on one batch."""
        inputs, targets = batch
        return self.loss_scale * self._loss(self.forward(params, inputs), targets)

    def losses(self, params: Mapping[str, Tensor], batches: Any) -> Tensor:
        """Losses (networks,) of stacked parameters on stacked batches."""
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel of the CPU has no rule for vmap
            return torch.func.vmap(self.loss)(dict(params), batches)

    @torch.no_grad()
    def evaluate(self, params: Mapping[str, Tensor], split: str) -> tuple[Tensor, Tensor | None]:
        """Mean loss () and accuracy () on a whole split; no accuracy where targets are numbers.

        Raises:
            ValueError: if ``split`` is not one of ``SPLITS``.
        """
        inputs, targets = self.dataset.part(split)
        total, right = inputs.new_zeros((), dtype=torch.float64), 0
        for x, y in zip(inputs.split(_CHUNK), targets.split(_CHUNK), strict=True):
            outputs = self.forward(params, self._project(x))
            total += self._loss(outputs, y) * (len(x) / len(inputs))
            if self.dataset.classes is not None:
                right += (outputs.argmax(-1) == y).sum()
        if self.dataset.classes is None:
            return total, None
        return total, right / targets.numel()

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.dataset.classes is not None:  # one row a position
            outputs, targets = outputs.flatten(0, -2), targets.flatten()
        return LOSSES[self.loss_name](outputs, targets)

    def _draw(self, split: str, generator: torch.Generator) -> Batch:
        inputs, targets = self.dataset.part(split)
        index = torch.randint(
            len(inputs), (self.batch_size,), generator=generator, device=generator.device
        ).to(inputs.device)
        return self._project(inputs[index]), targets[index]

    def _project(self, inputs: Tensor) -> Tensor:
        return inputs if self.projection is None else inputs @ self.projection.to(inputs)
