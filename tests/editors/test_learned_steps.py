"""Refits by learned Gauss-Newton steps."""

from itertools import pairwise

import pytest
import torch

from scalegmn_opt import random_transform
from scalegmn_opt.editors import EDITS, LearnedSteps, Refit, load_mask
from scalegmn_opt.editors.targets import blur
from scalegmn_opt.inr import SirenSpec, fit, initial_parameters, refine, render, siren_graph

SPEC, SIZE = SirenSpec(hidden=(16, 16)), (10, 12)


@pytest.fixture(scope="module")
def fitted():
    axis = torch.linspace(-1, 1, 12)
    images = torch.exp(-6 * (axis[None, :10, None] ** 2 + (axis + 0.2) ** 2))[:, None]
    images = torch.cat([images, 1 - images, images.flip(3)])
    generator = torch.Generator().manual_seed(0)
    return fit(images, SPEC, generator=generator, steps=60, progress=False).params


def error(params, target):
    return (render(params, SPEC, *SIZE) - target).square().mean((1, 2, 3))


def test_few_steps_do_what_adam_needs_many_for(fitted):
    kept = {name: value.clone() for name, value in fitted.items()}
    target = blur(render(fitted, SPEC, *SIZE), 1.5)
    learned = LearnedSteps().refine(fitted, target, SPEC, steps=8)
    adam = refine(fitted, target, SPEC, steps=8, progress=False).params
    assert (error(learned, target) < 0.1 * error(adam, target)).all()
    assert all(torch.equal(fitted[name], kept[name]) for name in kept)


def test_more_steps_are_never_worse(fitted):
    noise = torch.rand(3, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    errors = [error(fitted, noise)]
    errors += [
        error(LearnedSteps().refine(fitted, noise, SPEC, steps=n), noise) for n in (1, 3, 5, 7)
    ]
    for before, after in pairwise(errors):
        assert (after <= before * (1 + 1e-5)).all()


def test_chunks_give_the_same(fitted, monkeypatch):
    start = {name: value.double() for name, value in fitted.items()}
    target = blur(render(start, SPEC, *SIZE), 1.0)
    whole = LearnedSteps().refine(start, target, SPEC, steps=4)
    monkeypatch.setattr("scalegmn_opt.editors.learned_steps._ELEMENTS", 1)
    for name, value in LearnedSteps().refine(start, target, SPEC, steps=4).items():
        torch.testing.assert_close(value, whole[name], atol=1e-9, rtol=0)


@pytest.mark.parametrize("steps", [2, 5])
def test_permutations_and_signs_pass_through(steps):
    drawn = initial_parameters(SPEC, 3, torch.Generator().manual_seed(0))
    start = {name: value.double() for name, value in drawn.items()}
    transform = random_transform(siren_graph(SPEC), torch.Generator().manual_seed(1))
    made, target = LearnedSteps(), render(start, SPEC, *SIZE) + 0.01
    got = made.refine(transform.apply(start), target, SPEC, steps=steps)
    expected = transform.apply(made.refine(start, target, SPEC, steps=steps))
    for name, value in expected.items():
        assert (got[name] - value).abs().max() <= 1e-9 * value.abs().max()


def test_a_given_mask_is_inpainted(fitted):
    mask = load_mask((0.3, 0.3, 0.6, 0.6), SIZE)
    edit = Refit(EDITS["inpaint"].of(mask), SIZE, 8, optimizer=LearnedSteps())
    before = render(fitted, SPEC, *SIZE)
    target = edit.target(before, 1.0)
    assert torch.equal(target[..., mask < 0.5], before[..., mask < 0.5])
    assert (error(edit.apply(fitted, SPEC, 1.0), target) < 0.05 * error(fitted, target)).all()
    assert edit.mechanism == "learned refit"


def test_pictures_must_be_finite(fitted):
    target = render(fitted, SPEC, *SIZE)
    target[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="images must be finite"):
        LearnedSteps().refine(fitted, target, SPEC, steps=1)
