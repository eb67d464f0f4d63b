"""What a rule reads of weights: mixtures, coherence and sizes, against the plain formulas."""

import pytest
import torch

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.optim.edges import Edges


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def edges_of(shape, *, main=False, seed=0):
    """Random edges of two networks; those of ``main`` have a main direction of their own."""
    block = WeightGraph.from_parameters({f"w{seed}": shape}).blocks[0]
    generator = seeded(seed)

    def draw(*sizes):
        return torch.rand(2, *sizes, generator=generator, dtype=torch.float64) + 0.1

    tensors = [draw(*block.shape) - 0.5 for _ in range(3)] + [draw(*block.shape)]
    gains = [draw(1, 1, 1) for _ in range(4)]
    ends = draw(block.shape[0], 1, 1), torch.ones(2, 1, block.shape[1], 1, dtype=torch.float64)
    return Edges((block,), *tensors, draw(*block.shape) - 0.5 if main else None, *gains, *ends)


def below(parts):
    """Biases one below the other."""
    names = ("weight", "fast", "slow", "square", "fast_gain", "slow_gain", "length", "scale")
    counts = [part.weight.shape[1] for part in parts]
    tensors = {
        name: torch.cat(
            [getattr(p, name).expand(-1, n, -1, -1) for p, n in zip(parts, counts, strict=True)], 1
        )
        for name in (*names, "target")
    }
    return Edges(
        blocks=[part.blocks[0] for part in parts],
        main=None,
        source=parts[0].source,
        index=torch.arange(len(parts)).repeat_interleave(torch.tensor(counts)),
        **tensors,
    )


@pytest.mark.parametrize("main", [False, True])
@pytest.mark.parametrize("shape", [(5, 3), (7,), (400, 60)])  # the last in two chunks
def test_mixture_is_the_sum_of_the_directions(shape, main):
    edges, factors = edges_of(shape, main=main), torch.tensor([0.3, -0.7, 1.1]).double()
    found = torch.cat([edges.mixture(factors, rows) for rows in edges.chunks()], 1)
    directions = edges.directions(slice(0, shape[0]))
    expected = sum(beta * d for beta, d in zip(factors, directions, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 3), (7,), (400, 60)])
def test_coherence_is_half_the_log_of_mean_signal_over_noise(shape):
    edges = edges_of(shape)
    edges.square[:, 0] = edges.fast[:, 0] = edges.slow[:, 0] = 0.0  # never had a gradient
    fast, slow = (
        ((m * gain) ** 2 / edges.square)[:, 1:].mean((1, 2, 3)).log() / 2
        for m, gain in ((edges.fast, edges.fast_gain), (edges.slow, edges.slow_gain))
    )
    torch.testing.assert_close(edges.coherence(), torch.stack([fast, slow], 1)[:, None])


def test_coherence_without_any_gradient_is_that_of_equal_ones():
    edges = edges_of((5, 3))
    for x in (edges.square, edges.fast, edges.slow):
        x.zero_()
    assert not edges.coherence().any()


def test_biases_one_below_the_other_are_as_one_by_one():
    parts = [edges_of((n,), seed=n) for n in (3, 1, 6)]
    together = below(parts)
    expected = torch.cat([part.coherence() for part in parts], 1)
    torch.testing.assert_close(together.coherence(), expected)
    sizes = together.sizes(together.weight)
    assert sizes.shape == (2, 10, 1, 1)
    for part, own in zip(parts, together.by_name(sizes).values(), strict=True):
        torch.testing.assert_close(own, part.sizes(part.weight).expand_as(own))
    numbers = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert together.by_block(numbers)[:, :, 0, 0].tolist() == [
        [1.0] * 3 + [2.0] + [3.0] * 6,
        [4.0] * 3 + [5.0] + [6.0] * 6,
    ]
    assert parts[0].by_block(numbers[:, :1])[:, :, 0, 0].tolist() == [[1.0], [4.0]]
