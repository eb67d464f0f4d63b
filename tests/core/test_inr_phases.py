"""Canonical phases of SIRENs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegmn_opt import random_transform
from scalegmn_opt.inr import (
    SirenSpec,
    canonical_phases,
    evaluate,
    initial_parameters,
    pixel_grid,
    siren_graph,
)

COORDS = pixel_grid(5, 6)


def networks(spec, seed=0, dtype=torch.float64, spread=1.0):
    drawn = initial_parameters(spec, 3, torch.Generator().manual_seed(seed))
    return {
        name: (spread * value if name.endswith("bias") else value).to(dtype)
        for name, value in drawn.items()
    }


def gap(one, other, spec):
    return (evaluate(one, spec, COORDS) - evaluate(other, spec, COORDS)).abs().max()


@settings(max_examples=30, deadline=None)
@given(
    w0=st.floats(0.5, 60.0),
    hidden=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    spread=st.floats(0.0, 8.0),
    seed=st.integers(0, 1000),
)
def test_the_function_stays_and_biases_lie_in_a_quarter_turn(w0, hidden, spread, seed):
    spec = SirenSpec(hidden=tuple(hidden), out_features=2, w0=w0)
    start = networks(spec, seed, spread=spread)
    kept = {name: value.clone() for name, value in start.items()}
    canonical = canonical_phases(start, spec)
    assert gap(canonical, start, spec) <= 1e-9
    assert list(canonical) == list(start)
    for layer in range(spec.last_layer):
        bias = canonical[f"layers.{layer}.bias"]
        assert (bias >= 0).all()
        assert (bias <= math.pi / (2 * w0) * (1 + 1e-12)).all()
    for name, value in start.items():
        assert torch.equal(value, kept[name])
        assert canonical[name].data_ptr() != value.data_ptr()
    again = canonical_phases(canonical, spec)
    assert all((again[name] - canonical[name]).abs().max() < 1e-12 for name in again)


@pytest.mark.parametrize("w0", [7.5, 30.0])
def test_networks_that_differ_in_phases_alone_become_equal(w0):
    spec = SirenSpec(hidden=(6, 5), w0=w0)
    start, generator = networks(spec), torch.Generator().manual_seed(1)
    shifted = dict(start)
    for layer in (0, 1):
        name, following = f"layers.{layer}.bias", f"layers.{layer + 1}.weight"
        halves = torch.randint(-5, 6, start[name].shape, generator=generator)
        shifted[name] = shifted[name] + math.pi / w0 * halves.double()
        shifted[following] = shifted[following] * (1 - 2 * halves.remainder(2))[:, None]
    signs = torch.where(torch.rand(3, 6, generator=generator) < 0.5, -1.0, 1.0)
    # (w, b) -> (-w, π / w0 - b) changes no outgoing weight
    flipped = (math.pi / w0 - shifted["layers.0.bias"], shifted["layers.0.bias"])
    shifted["layers.0.bias"] = torch.where(signs < 0, *flipped)
    shifted["layers.0.weight"] = shifted["layers.0.weight"] * signs[..., None]
    assert gap(shifted, start, spec) <= 1e-9
    one, other = canonical_phases(start, spec), canonical_phases(shifted, spec)
    assert all((one[name] - other[name]).abs().max() < 1e-12 for name in one)
    assert any((start[name] - shifted[name]).abs().max() > 0.01 for name in start)


def test_flipped_neurons_become_equal_and_permuted_ones_are_permuted():
    spec = SirenSpec(hidden=(6, 5))
    start = networks(spec)
    transform = random_transform(siren_graph(spec), torch.Generator().manual_seed(2))
    one, other = (canonical_phases(p, spec) for p in (start, transform.apply(start)))
    for layer in (0, 1):
        name = f"layers.{layer}.bias"
        assert (one[name].sort(1).values - other[name].sort(1).values).abs().max() < 1e-12


def test_in_float32_it_stays_to_rounding():
    spec = SirenSpec()
    start = networks(spec, dtype=torch.float32)
    canonical = canonical_phases(start, spec)
    assert all(value.dtype == torch.float32 for value in canonical.values())
    exact = evaluate({n: v.double() for n, v in start.items()}, spec, COORDS)
    assert (evaluate(canonical, spec, COORDS) - exact).abs().max() <= 1e-6


def test_a_wrong_multiple_would_be_another_function():
    spec = SirenSpec(hidden=(6, 5))
    start = networks(spec)
    moved = {**start, "layers.0.bias": start["layers.0.bias"] + math.pi / spec.w0}
    assert gap(moved, start, spec) > 1e-3
    assert gap(canonical_phases(moved, spec), moved, spec) <= 1e-9


def test_networks_must_fit_their_spec():
    with pytest.raises(ValueError, match="params"):
        canonical_phases(networks(SirenSpec(hidden=(6, 5))), SirenSpec(hidden=(6, 6)))
