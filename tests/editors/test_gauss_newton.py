"""Learned Gauss–Newton steps."""

import pytest
import torch

from scalegmn_opt import random_transform
from scalegmn_opt.editors.gauss_newton import LearnedGaussNewton
from scalegmn_opt.editors.tangent import Tangent, join, split
from scalegmn_opt.inr import SirenSpec, evaluate, initial_parameters, pixel_grid, siren_graph

SPEC, COORDS = SirenSpec(hidden=(7, 5), out_features=2), pixel_grid(6, 5)
SIZE = {"probes": 3, "node_channels": 6, "edge_channels": 4, "hidden_channels": 8}


def step(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LearnedGaussNewton(**{**SIZE, **changes}).double()


def start(spec=SPEC):
    drawn = initial_parameters(spec, 3, torch.Generator().manual_seed(0))
    return {name: value.double() for name, value in drawn.items()}


def targets(params, size=0.01):
    noise = torch.randn(3, 30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return evaluate(params, SPEC, COORDS) + size * noise


def taken(made, params, wanted):
    return made(params, SPEC, Tangent.of(params, SPEC, COORDS), wanted)


def test_without_correction_it_is_a_step_of_gauss_newton():
    made, params = step(iterations=3), start()
    with torch.no_grad():
        made.head.scale.zero_()
    wanted = targets(params)
    tangent = Tangent.of(params, SPEC, COORDS)
    delta = tangent.solve(wanted - tangent.outputs, 3)
    expected = split([m + made.length * d for m, d in zip(join(params), delta, strict=True)])
    for name, value in taken(made, params, wanted).items():
        torch.testing.assert_close(value, expected[name])


def test_a_step_comes_closer():
    params = start()
    wanted = targets(params)
    errors = [
        (evaluate(p, SPEC, COORDS) - wanted).square().mean()
        for p in (params, taken(step(), params, wanted))
    ]
    assert errors[1] < 0.7 * errors[0]


def test_where_nothing_is_wanted_nothing_changes():
    params = start()
    wanted = Tangent.of(params, SPEC, COORDS).outputs
    assert all(torch.equal(v, params[n]) for n, v in taken(step(), params, wanted).items())


@pytest.mark.parametrize(("num_layers", "gradient"), [(1, False), (2, False), (1, True)])
def test_permutations_and_signs_pass_through(num_layers, gradient):
    made, params = step(num_layers=num_layers, gradient=gradient), start()
    wanted = targets(params)
    transform = random_transform(siren_graph(SPEC), torch.Generator().manual_seed(2))
    got = taken(made, transform.apply(params), wanted)
    for name, value in transform.apply(taken(made, params, wanted)).items():
        assert (got[name] - value).abs().max() <= 1e-9 * value.abs().max()


def test_gradients_reach_every_parameter():
    made, params = step(), start()
    wanted = targets(params)
    (evaluate(taken(made, params, wanted), SPEC, COORDS) - wanted).square().mean().backward()
    idle = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    # In the last layer neurons matter to edges only; no group here rescales.
    assert all(".nodes." in name or "messages" in name or "norm" in name for name in idle), idle


def test_the_gradient_is_read_contravariantly_where_it_is_wanted():
    params = start()
    wanted = targets(params)
    made = step(gradient=True)
    features, _ = made._features(params, SPEC, Tangent.of(params, SPEC, COORDS), wanted)
    assert all(other.shape[1] == 1 for _, other in features.edges.values())
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    loss = 0.5 * (evaluate(leaves, SPEC, COORDS) - wanted).square().sum()
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    for block in features.graph.blocks:
        expected, read = -block.pack(gradients[block.parameter]), features.edges[block.name][1]
        expected, read = expected.flatten(1), read.flatten(1)  # each is divided by its own size
        alike = torch.cosine_similarity(expected, read)
        torch.testing.assert_close(alike, torch.ones_like(alike))
    plain, _ = step()._features(params, SPEC, Tangent.of(params, SPEC, COORDS), wanted)
    assert all(other.shape[1] == 0 for _, other in plain.edges.values())
