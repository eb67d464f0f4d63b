"""First order of SIRENs: derivatives, curvature, wanted changes, pairs."""

import pytest
import torch
from torch.func import functional_call, jacrev, vmap

from scalegmn_opt import random_transform
from scalegmn_opt.editors.edit import widened
from scalegmn_opt.editors.tangent import Tangent, join, split, tangent_copies
from scalegmn_opt.inr import (
    Siren,
    SirenSpec,
    evaluate,
    initial_parameters,
    pixel_grid,
    siren_graph,
)

SPECS = [SirenSpec(hidden=(7,), w0=5.0), SirenSpec(hidden=(6, 5), out_features=3)]
COORDS = pixel_grid(4, 5)


def params(spec, count=2):
    drawn = initial_parameters(spec, count, torch.Generator().manual_seed(0))
    return {name: value.double() for name, value in drawn.items()}


def normal(*shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def jacobian(spec, start):
    """By autograd, (batch, points * channels, parameters in the order of the matrices)."""
    module = Siren(spec, generator=torch.Generator()).double()

    def rendered(flat):
        return functional_call(module, flat, (COORDS,)).flatten()

    found = vmap(jacrev(rendered))(start)
    merged = {n: j.flatten(0, 1).reshape(-1, *j.shape[2:]) for n, j in found.items()}
    matrices = [m.flatten(1) for m in join(merged)]
    return torch.cat(matrices, 1).unflatten(0, (len(next(iter(start.values()))), -1))


def flatten(matrices):
    return torch.cat([m.flatten(1) for m in matrices], 1)


@pytest.mark.parametrize("spec", SPECS)
def test_both_products_are_those_of_the_jacobian(spec):
    start = params(spec)
    tangent, full = Tangent.of(start, spec, COORDS), jacobian(spec, start)
    torch.testing.assert_close(tangent.outputs, evaluate(start, spec, COORDS))
    delta = [normal(*m.shape) for m in join(start)]
    expected = (full @ flatten(delta).unsqueeze(2)).unflatten(1, (20, -1)).squeeze(3)
    torch.testing.assert_close(tangent.movements(delta)[-1], expected)
    values = normal(2, 20, spec.out_features)
    torch.testing.assert_close(
        flatten(tangent.pull(values)), (full.mT @ values.flatten(1).unsqueeze(2)).squeeze(2)
    )


def test_movements_are_those_of_every_layer():
    spec, step = SPECS[1], 1e-8
    start, delta = params(spec), [normal(*m.shape) for m in join(params(spec))]
    moved = split([m + step * d for m, d in zip(join(start), delta, strict=True)])
    tangent, other = (Tangent.of(p, spec, COORDS) for p in (start, moved))
    after = tangent.movements(delta)
    for inputs, changed, movement, slope in zip(
        tangent.inputs[1:], other.inputs[1:], after[:-1], tangent.slopes, strict=True
    ):
        difference = (changed - inputs)[..., :-1] / step
        torch.testing.assert_close(difference, slope * movement, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_conjugate_gradients_reach_a_change_that_is_possible(spec):
    start = params(spec)
    tangent = Tangent.of(start, spec, COORDS)
    wanted = tangent.movements([normal(*m.shape) for m in join(start)])[-1]
    stages, moved = tangent.stages(wanted, 60)
    for one, other in zip(moved, tangent.movements(stages[-1]), strict=True):
        torch.testing.assert_close(one, other)
    left = [
        (wanted - tangent.movements(delta)[-1]).square().sum((1, 2)) / wanted.square().sum((1, 2))
        for delta in stages
    ]
    assert (left[0] < 1).all()
    assert (torch.stack(left).diff(dim=0) <= 1e-9).all()  # never worse
    assert (left[-1] < 1e-4).all()
    torch.testing.assert_close(flatten(tangent.solve(wanted, 3)), flatten(stages[2]))


def test_curvature_makes_the_first_iterations_better():
    """Control: plain conjugate gradients, the factors being identities."""
    spec = SirenSpec(hidden=(16, 16))
    start = params(spec)
    tangent = Tangent.of(start, spec, pixel_grid(12, 12))
    wanted = tangent.movements([normal(*m.shape) for m in join(start)])[-1]

    class Plain(Tangent):
        def factors(self):
            pairs = super().factors()
            return [tuple(torch.eye(f.shape[-1]).to(f) for f in pair) for pair in pairs]

    plain = Plain(tangent.weights, tangent.inputs, tangent.slopes, tangent.outputs)
    errors = [
        (wanted - t.movements(t.solve(wanted, 3))[-1]).square().mean() for t in (tangent, plain)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_no_wanted_change_is_no_change():
    spec = SPECS[0]
    tangent = Tangent.of(params(spec), spec, COORDS)
    delta = tangent.solve(torch.zeros_like(tangent.outputs), 3)
    assert all(torch.equal(d, torch.zeros_like(d)) for d in delta)


def test_dead_networks_give_finite_numbers():
    spec = SPECS[0]
    start = {name: torch.zeros_like(value) for name, value in params(spec).items()}
    tangent = Tangent.of(start, spec, COORDS)
    delta = tangent.solve(torch.ones_like(tangent.outputs), 3)
    assert all(d.isfinite().all() for d in delta)


@pytest.mark.parametrize("copies", [2, 4, 8])
@pytest.mark.parametrize("spec", SPECS)
def test_copies_follow_the_tangent_where_one_network_does_not(spec, copies):
    start = params(spec)
    tangent = Tangent.of(start, spec, COORDS)
    delta = [0.02 * normal(*m.shape) for m in join(start)]
    change = tangent.movements(delta)[-1]
    several = tangent_copies(start, split(delta), copies)
    wide = widened(spec, several)
    assert wide.hidden == tuple(copies * width for width in spec.hidden)
    got = evaluate(several, wide, COORDS) - tangent.outputs
    single = split([m + d for m, d in zip(join(start), delta, strict=True)])
    alone = evaluate(single, spec, COORDS) - tangent.outputs
    scale = change.square().mean().sqrt()
    assert (got - change).square().mean().sqrt() < 2e-3 * scale
    assert (alone - change).square().mean().sqrt() > 0.05 * scale


@pytest.mark.parametrize("seed", range(3))
def test_permutations_and_signs_pass_through(seed):
    spec = SPECS[1]
    transform = random_transform(siren_graph(spec), torch.Generator().manual_seed(seed))
    wanted, start = normal(2, 20, 3), params(spec)

    def solved(given):
        tangent = Tangent.of(given, spec, COORDS)
        return split(tangent.solve(wanted - tangent.outputs, 4))

    got, expected = solved(transform.apply(start)), transform.apply(solved(start))
    for name, value in expected.items():
        assert (got[name] - value).abs().max() <= 1e-9 * value.abs().max()


def test_join_and_split_are_inverse():
    start = params(SPECS[1])
    assert all(torch.equal(value, start[name]) for name, value in split(join(start)).items())
