"""Several networks as one."""

import pytest
import torch

from scalegmn_opt.editors.edit import widened
from scalegmn_opt.editors.merge import merge
from scalegmn_opt.inr import SirenSpec, evaluate, initial_parameters, pixel_grid


def networks(spec, seed):
    drawn = initial_parameters(spec, 2, torch.Generator().manual_seed(seed))
    return {name: value.double() for name, value in drawn.items()}


@pytest.mark.parametrize("hidden", [(4,), (5, 3), (4, 6, 3)])
def test_functions_add_up(hidden):
    specs = [SirenSpec(hidden=hidden, out_features=3)] * 2
    specs.append(
        SirenSpec(hidden=tuple(h + 1 for h in hidden), out_features=3)
    )  # widths may differ
    some = [networks(spec, seed) for seed, spec in enumerate(specs)]
    coefficients, coords = [0.5, -2.0, 3.0], pixel_grid(5, 4)
    merged = merge(some, coefficients)
    assert list(merged) == list(some[0])
    expected = sum(
        c * evaluate(p, s, coords) for c, p, s in zip(coefficients, some, specs, strict=True)
    )
    got = evaluate(merged, widened(specs[0], merged), coords)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_an_average_of_one_is_that_one():
    some = networks(SirenSpec(hidden=(4, 4)), 0)
    assert all(torch.equal(value, some[name]) for name, value in merge([some], [1.0]).items())


def test_networks_that_do_not_go_together():
    shallow, deep = networks(SirenSpec(hidden=(4,)), 0), networks(SirenSpec(hidden=(4, 4)), 0)
    with pytest.raises(ValueError, match="coefficients must be as many as networks"):
        merge([shallow], [1.0, 2.0])
    with pytest.raises(ValueError, match="coefficients must be as many as networks"):
        merge([], [])
    with pytest.raises(ValueError, match=r"networks must all have the names .*at \[1\]"):
        merge([shallow, deep], [1.0, 2.0])
