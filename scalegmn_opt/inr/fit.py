"""Fitting SIRENs to images, thousands in one call."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from .adam import Adam, StackedOptimizer
from .siren import SirenSpec, check_parameters, evaluate, initial_parameters, pixel_grid

# Networks x pixels x widest layer in work at once: 1 MB per activation in float32, so that a layer
# stays in cache. Measured on one core with SIRENs 2-32-32-1 of 28x28 pixels, CPU time of a step and
# network: 0.43 ms in chunks of 10, 0.45 in chunks of 8, 0.57 in chunks of 32, 0.83 alone.
_CHUNK_ELEMENTS = 2**18
# A root mean squared error of 1/2 is far from an image. Measured on seven edits of MNIST (width 32)
# and a photograph (width 64): after 10 and 50 steps about as good as the best of five rates
# for each edit (at worst twice its error), where the rate of `fit` is up to 40 times worse.
_FAR = 2.0
_PIXELS = 2**14  # of a larger image, every step takes as many


@dataclass(frozen=True, eq=False)
class FitResult:
    """Fitted networks, and how well each one renders its image.

    Shapes: params name -> `(batch, *shape)`; psnr `(batch,)`, in dB for a peak of 1; steps
    `(batch,)`, how many each one took.
    """

    params: dict[str, Tensor]
    psnr: Tensor
    steps: Tensor


def psnr_from_mse(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for a peak of 1: `-10 log10(mse)`; infinite for no error."""
    return -10 * mse.log10()


def fit(
    images: Tensor,
    spec: SirenSpec,
    *,
    generator: torch.Generator,
    steps: int = 100,
    target_psnr: float = math.inf,
    learning_rate: float | None = None,
    progress: bool = True,
) -> FitResult:
    """Fit one freshly initialised SIREN to every image.

    A network depends on its image, its position in the batch and the generator, never on the
    other images.

    Args:
        images: `(batch, channels, height, width)`, intensities in [0, 1].
        spec: architecture of the networks; `out_features` equals channels.
        generator: source of the initialisations.
        steps: Adam steps per image at most; larger images than 28x28 need more.
        target_psnr: dB at which a network is done.
        learning_rate: change of a parameter per step at the start; decays to 0 along a cosine. If
            None, 0.32 over the widest layer, at most 1e-2.
        progress: whether a progress bar is shown.

    Raises:
        TypeError: images that are not floating-point.
        ValueError: images of the wrong rank, channels or range, empty or non-finite ones, `steps`
            below 1, `target_psnr` or `learning_rate` not positive, or a fit that does not stay
            finite.
    """
    _check_images(images, spec)
    optimizer = adam_for(spec) if learning_rate is None else Adam(learning_rate=learning_rate)
    start = initial_parameters(spec, images.shape[0], generator)
    params = {name: value.to(images) for name, value in start.items()}
    return refine(
        params,
        images,
        spec,
        steps=steps,
        target_psnr=target_psnr,
        optimizer=optimizer,
        progress=progress,
    )


def adam_for(spec: SirenSpec) -> Adam:
    """Adam with the learning rate of `fit`, which falls with the width."""
    return Adam(learning_rate=min(1e-2, 0.32 / max(spec.hidden)))


def refine(
    params: Mapping[str, Tensor],
    images: Tensor,
    spec: SirenSpec,
    *,
    steps: int,
    target_psnr: float = math.inf,
    optimizer: StackedOptimizer | None = None,
    progress: bool = True,
) -> FitResult:
    """Fit one SIREN to every image, starting from given networks; these are not modified.

    Images are not restricted to [0, 1] here. Other arguments, shapes and errors as in `fit`.

    Args:
        optimizer: its updates are multiplied by a cosine that falls from 1 to 0; if None, the Adam
            of `fit`, with smaller steps for a network that is near its image already.

    Raises:
        ValueError: also where `params` and `images` do not fit together.
    """
    _check_shape(images, spec)
    _check_schedule(steps, target_psnr)
    count = check_parameters(params, spec)
    if count != images.shape[0]:
        raise ValueError(f"params must hold {images.shape[0]} networks (images), got {count}")
    near = optimizer is None
    optimizer = adam_for(spec) if optimizer is None else optimizer
    batch, channels, height, width = images.shape
    coords = pixel_grid(height, width).to(images)
    targets = images.reshape(batch, channels, height * width).mT  # (batch, pixels, channels)
    size = max(1, _CHUNK_ELEMENTS // (min(height * width, _PIXELS) * max(spec.hidden)))
    results = []
    with tqdm(total=batch * steps, unit="step", desc="fit", disable=not progress) as bar:
        for start in range(0, batch, size):
            part = slice(start, start + size)
            some = {name: value[part].detach().to(images) for name, value in params.items()}
            chunk = _Chunk(some, spec, optimizer, coords=coords, targets=targets[part])
            if near:
                chunk.shorten_steps()
            results.append(chunk.descend(steps, target_psnr, bar))
    return _joined(results)


class _Chunk:
    """Some networks on their way; one that is good enough leaves."""

    def __init__(
        self,
        params: dict[str, Tensor],
        spec: SirenSpec,
        optimizer: StackedOptimizer,
        *,
        coords: Tensor,
        targets: Tensor,
    ) -> None:
        self.params, self.targets = params, targets
        self.spec, self.optimizer, self.coords = spec, optimizer, coords
        self.state = optimizer.init(params)
        self.indices = torch.arange(len(targets), device=targets.device)
        self.lengths = targets.new_ones(len(targets))

    def shorten_steps(self) -> None:
        """Steps in proportion to the distance from the image, where that is small."""
        self.lengths = (_FAR * self._errors().sqrt()).clamp(max=1)

    def descend(self, steps: int, target_psnr: float, bar: tqdm) -> FitResult:
        good = 10 ** (-target_psnr / 10)
        result = {name: value.clone() for name, value in self.params.items()}
        taken = torch.full_like(self.indices, steps)
        psnr = self.targets.new_empty(len(taken))
        for step, pixels in zip(range(steps), _batches(len(self.coords)), strict=False):
            errors, grads = self._gradients(pixels.to(self.indices))
            if (errors <= good).any() and (done := self._errors() <= good).any():
                self._keep(done, result, psnr)
                taken[self.indices[done]] = step
                bar.update(int(done.sum()) * (steps - step))
                self._drop(done)
                grads = {name: grad[~done] for name, grad in grads.items()}
            if not len(self.indices):
                return FitResult(result, psnr, taken)
            self._move(grads, 0.5 * (1 + math.cos(math.pi * step / steps)))
            bar.update(len(self.indices))
        self._keep(torch.ones_like(self.indices, dtype=torch.bool), result, psnr)
        return FitResult(result, psnr, taken)

    def _gradients(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared errors `(batch,)` at some pixels, and their gradients."""
        whole = len(pixels) == len(self.coords)
        coords = self.coords if whole else self.coords[pixels]
        targets = self.targets if whole else self.targets[:, pixels]
        leaves = {name: value.requires_grad_() for name, value in self.params.items()}
        with torch.enable_grad():
            errors = (evaluate(leaves, self.spec, coords) - targets).square().mean((1, 2))
            # The sum over networks keeps every network's gradient its own.
            grads = torch.autograd.grad(errors.sum(), list(leaves.values()))
        return errors.detach(), dict(zip(leaves, grads, strict=True))

    def _errors(self) -> Tensor:
        """Mean squared errors `(batch,)` at all pixels."""
        pieces = zip(self.coords.split(_PIXELS), self.targets.split(_PIXELS, 1), strict=True)
        with torch.no_grad():
            sums = [
                (evaluate(self.params, self.spec, coords) - targets).square().sum((1, 2))
                for coords, targets in pieces
            ]
        return torch.stack(sums).sum(0) / self.targets[0].numel()

    def _keep(self, which: Tensor, result: dict[str, Tensor], psnr: Tensor) -> None:
        for name, value in self.params.items():
            result[name][self.indices[which]] = value.detach()[which]
        psnr[self.indices[which]] = psnr_from_mse(self._errors()[which])

    def _drop(self, which: Tensor) -> None:
        left = ~which
        self.indices, self.targets = self.indices[left], self.targets[left]
        self.lengths = self.lengths[left]
        self.params = {name: value.detach()[left] for name, value in self.params.items()}
        self.state = {
            name: {key: value[left] for key, value in entry.items()}
            for name, entry in self.state.items()
        }

    def _move(self, grads: dict[str, Tensor], share: float) -> None:
        with torch.no_grad():
            params = {name: value.detach() for name, value in self.params.items()}
            updates, self.state = self.optimizer.step(params, grads, self.state)
            lengths = share * self.lengths
            self.params = {
                name: value + lengths.reshape(-1, *[1] * (value.ndim - 1)) * updates[name]
                for name, value in params.items()
            }


def _batches(count: int) -> Iterator[Tensor]:
    """Indices of the pixels of every step: all, or a part of each row and column of the image.

    Multiples of the golden section are spread evenly; each pixel comes once in every round.
    """
    if count <= _PIXELS:
        yield from itertools.repeat(torch.arange(count))
    stride = round(count * (math.sqrt(5) - 1) / 2)
    while math.gcd(stride, count) > 1:
        stride += 1
    for start in itertools.count(0, _PIXELS):
        yield (torch.arange(start, start + _PIXELS) % count * stride) % count


def _joined(results: list[FitResult]) -> FitResult:
    params = {
        name: torch.cat([result.params[name] for result in results]) for name in results[0].params
    }
    psnr = torch.cat([result.psnr for result in results])
    diverged = int(psnr.isnan().sum())
    if diverged:
        raise ValueError(
            f"{diverged} of {psnr.shape[0]} networks became non-finite; "
            "learning_rate must be smaller"
        )
    return FitResult(params, psnr, torch.cat([result.steps for result in results]))


def _check_images(images: Tensor, spec: SirenSpec) -> None:
    _check_shape(images, spec)
    low, high = images.min().item(), images.max().item()
    if low < 0 or high > 1:
        raise ValueError(f"images must lie in [0, 1], got values from {low:g} to {high:g}")


def _check_shape(images: Tensor, spec: SirenSpec) -> None:
    if not images.is_floating_point():
        raise TypeError(f"images must be floating-point, got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(
            f"images must have shape (batch, channels, height, width), got {tuple(images.shape)}"
        )
    if images.numel() == 0:
        raise ValueError(f"images must not be empty, got shape {tuple(images.shape)}")
    if images.shape[1] != spec.out_features:
        raise ValueError(
            f"images must have {spec.out_features} channels (spec.out_features), "
            f"got {images.shape[1]}"
        )
    if spec.in_features != 2:
        raise ValueError(f"spec.in_features must be 2 to fit an image, got {spec.in_features}")
    if not images.isfinite().all():
        raise ValueError("images must be finite, got NaN or infinity")


def _check_schedule(steps: int, target_psnr: float) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
    if not target_psnr > 0:
        raise ValueError(f"target_psnr must be positive, got {target_psnr}")
