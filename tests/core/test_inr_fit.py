"""Fitting many SIRENs at once."""

import math
import sys

import pytest
import torch

from scalegmn_opt.inr import (
    Adam,
    SirenSpec,
    evaluate,
    fit,
    initial_parameters,
    pixel_grid,
    refine,
    render,
)

SPEC = SirenSpec(hidden=(16, 16))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count, channels=1, size=12):
    """Soft discs at different places."""
    axis = torch.linspace(-1, 1, size)
    centres = torch.linspace(-0.5, 0.5, count * channels).reshape(count, channels, 1, 1)
    distance = (axis[:, None] - centres) ** 2 + (axis[None, :] + centres) ** 2
    return torch.exp(-4 * distance)


def test_fit_reproduces_the_images():
    images = pictures(4)
    result = fit(images, SPEC, generator=generator(), progress=False)
    assert result.steps.tolist() == [100] * 4
    errors = (render(result.params, SPEC, 12, 12) - images).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(result.psnr, -10 * errors.log10(), rtol=0, atol=0.1)
    assert result.psnr.min() > 35
    assert not any(value.requires_grad for value in result.params.values())


def test_fit_in_colour_and_float64():
    spec = SirenSpec(hidden=(16, 16), out_features=3)
    result = fit(pictures(2, 3).double(), spec, generator=generator(), progress=False)
    assert {value.dtype for value in result.params.values()} == {torch.float64}
    assert result.psnr.min() > 30


def test_a_network_does_not_depend_on_its_neighbours(monkeypatch):
    images = pictures(5).double()
    others = images.clone()
    others[[0, 1, 3, 4]] = 1 - others[[0, 1, 3, 4]]
    options = {"steps": 20, "progress": False}
    first = fit(images, SPEC, generator=generator(), **options)
    second = fit(others, SPEC, generator=generator(), **options)
    # The module is reached through the function, whose name hides it in the package.
    monkeypatch.setattr(sys.modules[fit.__module__], "_CHUNK_ELEMENTS", 12 * 12 * 16 * 2)
    chunked = fit(images, SPEC, generator=generator(), **options)
    for name, value in first.params.items():
        torch.testing.assert_close(second.params[name][2], value[2], rtol=0, atol=1e-9)
        torch.testing.assert_close(chunked.params[name], value, rtol=0, atol=1e-9)
    assert not torch.equal(first.params["layers.0.weight"][0], second.params["layers.0.weight"][0])


def test_fit_is_reproducible_and_modifies_nothing():
    images = pictures(2)
    kept = images.clone()
    with torch.no_grad():  # fitting needs gradients whatever the caller's mode
        runs = [
            fit(images, SPEC, generator=generator(7), steps=5, progress=False) for _ in range(2)
        ]
    assert all(torch.equal(runs[0].params[name], runs[1].params[name]) for name in runs[0].params)
    assert torch.equal(images, kept)


def test_refine_starts_from_the_given_networks():
    images = pictures(2)
    start = initial_parameters(SPEC, 2, generator())
    kept = {name: value.clone() for name, value in start.items()}
    once = refine(start, images, SPEC, steps=60, progress=False)
    more = refine(
        once.params, images, SPEC, steps=60, optimizer=Adam(learning_rate=2e-3), progress=False
    )
    assert (more.psnr > once.psnr + 1).all()
    assert all(torch.equal(start[name], kept[name]) for name in start)
    with pytest.raises(ValueError, match=r"params must hold 1 networks.*got 2"):
        refine(start, images[:1], SPEC, steps=1, progress=False)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar_can_be_switched_off(capsys, progress):
    fit(pictures(1), SPEC, generator=generator(), steps=1, progress=progress)
    assert bool(capsys.readouterr().err) == progress


@pytest.mark.parametrize(
    ("images", "error", "match"),
    [
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(1, 4, 4), ValueError, "shape"),
        (torch.zeros(0, 1, 4, 4), ValueError, "empty"),
        (torch.zeros(1, 1, 0, 4), ValueError, "empty"),
        (torch.zeros(1, 3, 4, 4), ValueError, "channels"),
        (torch.full((1, 1, 4, 4), math.nan), ValueError, "finite"),
        (torch.full((1, 1, 4, 4), 255.0), ValueError, "255"),
        (torch.full((1, 1, 4, 4), -0.1), ValueError, r"\[0, 1\]"),
    ],
)
def test_bad_images(images, error, match):
    with pytest.raises(error, match=match):
        fit(images, SPEC, generator=generator(), progress=False)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"target_psnr": 0.0}, "target_psnr"),
        ({"target_psnr": math.nan}, "target_psnr"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
    ],
)
def test_bad_schedule(options, match):
    with pytest.raises(ValueError, match=match):
        fit(pictures(1), SPEC, generator=generator(), progress=False, **options)


def test_divergence_is_an_error():
    with pytest.raises(ValueError, match=r"2 of 2 networks became non-finite.*learning_rate"):
        fit(pictures(2), SPEC, generator=generator(), steps=3, learning_rate=1e38, progress=False)


def test_only_planes_can_be_fitted():
    with pytest.raises(ValueError, match="in_features"):
        fit(pictures(1), SirenSpec(in_features=3), generator=generator(), progress=False)


def test_networks_stop_where_they_are_good_enough():
    images = pictures(6).double()
    options = {"progress": False, "steps": 30}
    full = fit(images, SPEC, generator=generator(), **options)
    target = full.psnr.median().item() - 0.5
    stopped = fit(images, SPEC, generator=generator(), target_psnr=target, **options)
    early = stopped.steps < 30
    assert early.any()
    assert not early.all()
    assert (stopped.psnr[early] >= target).all()
    errors = (render(stopped.params, SPEC, 12, 12) - images).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(stopped.psnr, -10 * errors.log10(), rtol=0, atol=1e-6)
    for name, value in full.params.items():  # what goes on is not disturbed by what left
        torch.testing.assert_close(stopped.params[name][~early], value[~early], rtol=0, atol=1e-9)
        assert not torch.equal(stopped.params[name][early], value[early])


def test_networks_that_are_good_already_do_not_move():
    images = pictures(2)
    start = fit(images, SPEC, generator=generator(), progress=False)
    again = refine(start.params, images, SPEC, steps=5, target_psnr=20.0, progress=False)
    assert again.steps.tolist() == [0, 0]
    assert all(torch.equal(again.params[name], start.params[name]) for name in start.params)


def test_large_images_take_a_part_of_the_pixels_in_every_step(monkeypatch):
    module = sys.modules[fit.__module__]
    monkeypatch.setattr(module, "_PIXELS", 60)
    seen = []
    plain = module.evaluate

    def watched(params, spec, coords):
        seen.append(len(coords))
        return plain(params, spec, coords)

    monkeypatch.setattr(module, "evaluate", watched)
    result = fit(pictures(2), SPEC, generator=generator(), progress=False)
    assert max(seen) == 60
    assert result.psnr.min() > 30
    errors = (render(result.params, SPEC, 12, 12) - pictures(2)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(result.psnr, -10 * errors.log10(), rtol=0, atol=0.1)


@pytest.mark.parametrize("count", [2**14 + 1, 2**14 + 16, 200 * 200])
def test_every_pixel_has_its_turn(count):
    batches = sys.modules[fit.__module__]._batches(count)
    seen = torch.cat([next(batches) for _ in range(-(-count // 2**14))])
    assert seen.unique().numel() == count
    width = round(count**0.5)  # half of the rows do not wait for the second step
    rows = (next(sys.modules[fit.__module__]._batches(count)) // width).bincount().double()
    assert rows[:-1].std() < 0.05 * rows[:-1].mean()


def slow_adam(params, images, steps, optimizer):
    """torch's own Adam and schedule, one network at a time."""
    found = []
    for k in range(len(images)):
        one = {n: v[k : k + 1].clone().requires_grad_() for n, v in params.items()}
        adam = torch.optim.Adam(one.values(), lr=optimizer.learning_rate, betas=optimizer.betas)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=steps)
        for _ in range(steps):
            adam.zero_grad()
            output = evaluate(one, SPEC, pixel_grid(12, 12))
            (output - images[k].flatten(1).mT).square().mean().backward()
            adam.step()
            schedule.step()
        found.append({n: v.detach() for n, v in one.items()})
    return {n: torch.cat([one[n] for one in found]) for n in params}


@pytest.mark.parametrize("betas", [(0.7, 0.8), (0.9, 0.999)])
def test_adam_is_that_of_torch(betas):
    images, optimizer = pictures(3).double(), Adam(learning_rate=1e-2, betas=betas)
    start = {n: v.double() for n, v in initial_parameters(SPEC, 3, generator()).items()}
    got = refine(start, images, SPEC, steps=12, optimizer=optimizer, progress=False).params
    for name, value in slow_adam(start, images, 12, optimizer).items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-9)
