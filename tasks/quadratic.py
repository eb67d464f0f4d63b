"""Least squares with a known minimum: the smallest task there is."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from scalegmn_opt.graph import WeightGraph

Problem = tuple[Tensor, dict[str, Tensor]]


class QuadraticTask:
    """The loss ``½ Σ_p ||A p - t_p||²`` over parameters ``p``, a vector and perhaps a matrix.

    Args:
        matrix: ``A`` (rows, dims).
        targets: the ``t_p`` by parameter name, (rows,) or (rows, columns).

    Raises:
        ValueError: if ``targets`` is empty or a target does not have ``rows`` rows.
    """

    input_rms = 1.0  # no inputs

    def __init__(self, matrix: Tensor, targets: Mapping[str, Tensor]) -> None:
        if matrix.ndim != 2:
            raise ValueError(f"matrix: expected (rows, dims), got {tuple(matrix.shape)}")
        wrong = {
            n: tuple(t.shape)
            for n, t in targets.items()
            if t.ndim not in (1, 2) or len(t) != len(matrix)
        }
        if wrong or not targets:
            raise ValueError(
                f"targets: expected (rows,) or (rows, columns) of {len(matrix)} rows, got {wrong}"
            )
        self.matrix = matrix
        self.targets = dict(targets)

    @classmethod
    def random(
        cls, dims: int, *, condition: float, columns: int, generator: torch.Generator
    ) -> "QuadraticTask":
        """A random problem of ``dims`` unknowns, and a matrix one of ``columns`` columns if > 0.

        The singular values of ``A`` go geometrically from 1 down to ``1 / condition``.

        Raises:
            ValueError: if ``dims < 1``, ``columns < 0`` or ``condition < 1``.
        """
        if dims < 1 or columns < 0 or condition < 1:
            raise ValueError(
                "expected dims >= 1, columns >= 0 and condition >= 1, "
                f"got dims={dims}, columns={columns}, condition={condition}"
            )
        left, right = (
            torch.linalg.qr(torch.randn(dims, dims, generator=generator))[0] for _ in range(2)
        )
        values = torch.logspace(0, -1, dims, base=condition)
        matrix = left * values @ right
        targets = {"vector": torch.randn(dims, generator=generator)}
        if columns:
            targets["matrix"] = torch.randn(dims, columns, generator=generator)
        return cls(matrix, targets)

    @cached_property
    def graph(self) -> WeightGraph:
        """Isolated blocks: the unknowns have no symmetry."""
        return WeightGraph.from_parameters({n: t.shape for n, t in self.solution.items()})

    @cached_property
    def solution(self) -> dict[str, Tensor]:
        """Parameters of least norm that minimise the loss."""
        inverse = torch.linalg.pinv(self.matrix)
        return {name: inverse @ target for name, target in self.targets.items()}

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Standard normal unknowns, vector (dims,) and matrix (dims, columns)."""
        noise = {
            name: torch.randn(p.shape, generator=generator, device=generator.device)
            for name, p in self.solution.items()
        }
        return {name: x.to(self.matrix) for name, x in noise.items()}

    def batch(self, generator: torch.Generator) -> Problem:
        """The whole problem ``(A, targets)``; nothing about it is random."""
        return self.matrix, self.targets

    def loss(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The loss () on ``batch``, a problem as ``batch`` gives it."""
        matrix, targets = batch
        residuals = [matrix @ params[name] - target for name, target in targets.items()]
        return 0.5 * sum(residual.square().sum() for residual in residuals)

    def losses(self, params: Mapping[str, Tensor], batches: Any) -> Tensor:
        """Losses (networks,) of stacked parameters on stacked problems."""
        return torch.func.vmap(self.loss)(dict(params), batches)
