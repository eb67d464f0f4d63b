"""SIREN specifications, parameters and rendering."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegmn_opt.inr import (
    Siren,
    SirenSpec,
    check_parameters,
    evaluate,
    initial_parameters,
    pixel_grid,
    render,
    siren,
)

SPEC = SirenSpec(hidden=(7, 5), out_features=3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def double(params):
    return {name: value.double() for name, value in params.items()}


def slow_evaluate(params, spec, coords, network):
    """One network, one layer at a time, by the formula."""
    hidden = coords
    for i in range(spec.last_layer):
        weight, bias = params[f"layers.{i}.weight"][network], params[f"layers.{i}.bias"][network]
        hidden = torch.sin(spec.w0 * (hidden @ weight.T + bias))
    i = spec.last_layer
    return hidden @ params[f"layers.{i}.weight"][network].T + params[f"layers.{i}.bias"][network]


def test_parameter_shapes():
    assert SirenSpec(hidden=(4,)).parameter_shapes == {
        "layers.0.weight": (4, 2),
        "layers.0.bias": (4,),
        "layers.1.weight": (1, 4),
        "layers.1.bias": (1,),
    }


def test_spec_is_frozen_and_hashable():
    assert len({SirenSpec(), SirenSpec(), SPEC}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEC.w0 = 1.0


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"hidden": ()}, ValueError, "hidden"),
        ({"hidden": [32, 32]}, ValueError, "hidden"),
        ({"hidden": (32, 0)}, ValueError, "hidden must be at least 1, got 0"),
        ({"hidden": (3.5,)}, TypeError, "hidden"),
        ({"in_features": True}, TypeError, "in_features"),
        ({"out_features": -1}, ValueError, "out_features"),
        ({"w0": 0.0}, ValueError, "w0"),
        ({"w0": math.nan}, ValueError, "w0"),
        ({"w0": "30"}, TypeError, "w0"),
    ],
)
def test_spec_rejects(arguments, error, match):
    with pytest.raises(error, match=match):
        SirenSpec(**arguments)


@settings(deadline=None, max_examples=20)
@given(
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    channels=st.integers(1, 3),
    count=st.integers(1, 4),
)
def test_evaluate_is_the_formula(hidden, channels, count):
    spec = SirenSpec(hidden=hidden, out_features=channels, w0=11.0)
    params = double(initial_parameters(spec, count, generator()))
    coords = torch.rand(13, 2, dtype=torch.float64, generator=generator(1)) * 2 - 1
    got = evaluate(params, spec, coords)
    for network in range(count):
        expected = slow_evaluate(params, spec, coords, network)
        torch.testing.assert_close(got[network], expected, rtol=0, atol=1e-12)


def test_module_agrees_with_stacked_evaluation():
    module = Siren(SPEC, generator=generator(3)).double()
    params = {name: value[None] for name, value in module.state_dict().items()}
    assert {name: tuple(v.shape[1:]) for name, v in params.items()} == SPEC.parameter_shapes
    coords = pixel_grid(4, 5)
    torch.testing.assert_close(
        module(coords), evaluate(params, SPEC, coords)[0], rtol=0, atol=1e-12
    )
    assert "(2, 7, 5, 3)" in repr(module)


def test_initialisation_is_reproducible_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    first = Siren(SPEC, generator=generator(5)).state_dict()
    second = initial_parameters(SPEC, 1, generator(5))
    assert all(torch.equal(first[name], second[name][0]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_initialisation_is_drawn_network_by_network():
    together = initial_parameters(SPEC, 5, generator())
    source = generator()
    parts = [initial_parameters(SPEC, n, source) for n in (2, 3)]
    for name, value in together.items():
        assert torch.equal(value, torch.cat([part[name] for part in parts]))


def test_initialisation_has_the_ranges_of_siren():
    spec = SirenSpec(hidden=(64, 64), w0=30.0)
    params = initial_parameters(spec, 50, generator())
    bounds = {"layers.0.weight": 1 / 2, "layers.1.weight": math.sqrt(6 / 64) / 30}
    for name, bound in bounds.items():
        assert params[name].abs().max() <= bound
        assert params[name].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    with pytest.raises(ValueError, match="count"):
        initial_parameters(spec, 0, generator())


def test_pixel_grid_runs_right_then_down():
    expected = [[-2 / 3, -0.5], [0, -0.5], [2 / 3, -0.5], [-2 / 3, 0.5], [0, 0.5], [2 / 3, 0.5]]
    torch.testing.assert_close(pixel_grid(2, 3), torch.tensor(expected, dtype=torch.float64))
    with pytest.raises(ValueError, match="height"):
        pixel_grid(0, 3)


def test_other_resolutions_sample_the_same_picture():
    params = double(initial_parameters(SPEC, 2, generator()))
    fine, coarse = render(params, SPEC, 9, 15), render(params, SPEC, 3, 5)
    assert fine.shape == (2, 3, 9, 15)
    torch.testing.assert_close(fine[:, :, 1::3, 1::3], coarse, rtol=0, atol=1e-12)


def test_render_places_pixels():
    params = double(initial_parameters(SPEC, 1, generator()))
    x, y = -1 + 2 * 4.5 / 6, -1 + 2 * 1.5 / 3  # column 4 of 6, row 1 of 3
    value = slow_evaluate(params, SPEC, torch.tensor([[x, y]], dtype=torch.float64), 0)
    torch.testing.assert_close(render(params, SPEC, 3, 6)[0, :, 1, 4], value[0])


@pytest.mark.parametrize("elements", [7, 7 * 6, 7 * 24 * 2])
def test_render_in_chunks_is_the_same(monkeypatch, elements):
    params = double(initial_parameters(SPEC, 5, generator()))
    whole = render(params, SPEC, 4, 6)
    monkeypatch.setattr(siren, "_RENDER_ELEMENTS", elements)
    torch.testing.assert_close(render(params, SPEC, 4, 6), whole, rtol=0, atol=1e-12)


def test_render_is_differentiable_and_modifies_nothing():
    params = initial_parameters(SPEC, 2, generator())
    copies = {name: value.clone().requires_grad_() for name, value in params.items()}
    render(copies, SPEC, 3, 3).sum().backward()
    assert all(value.grad.isfinite().all() for value in copies.values())
    assert all(torch.equal(params[name], copies[name]) for name in params)


def test_parameters_are_checked():
    params = initial_parameters(SPEC, 2, generator())
    assert check_parameters(params, SPEC) == 2
    missing = {name: value for name, value in params.items() if name != "layers.1.bias"}
    with pytest.raises(ValueError, match="names"):
        check_parameters(missing, SPEC)
    with pytest.raises(ValueError, match=r"layers\.1\.bias.*shape"):
        check_parameters({**params, "layers.1.bias": torch.zeros(2, 6)}, SPEC)
    with pytest.raises(ValueError, match=r"layers\.1\.bias.*shape"):
        check_parameters({**params, "layers.1.bias": torch.zeros(3, 5)}, SPEC)
    with pytest.raises(ValueError, match="coords"):
        evaluate(params, SPEC, torch.zeros(4, 3))
    line = SirenSpec(in_features=1)
    with pytest.raises(ValueError, match="in_features"):
        render(initial_parameters(line, 1, generator()), line, 2, 2)
