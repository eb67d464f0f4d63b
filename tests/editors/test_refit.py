"""Refits, masks, and update rules as optimizers."""

import math

import numpy as np
import pytest
import torch

from scalegmn_opt.editors import EDITS, Inpaint, PixelEdit, Refit, RuleOptimizer, load_mask
from scalegmn_opt.editors.targets import blur, inpaint
from scalegmn_opt.inr import Adam, SirenSpec, fit, refine, render, siren_graph
from scalegmn_opt.optim import UpdateRule
from scalegmn_opt.optim.state import Rule

SPEC, SIZE = SirenSpec(hidden=(16, 16)), (10, 12)
BLUR = PixelEdit("blur", "pixels", blur)


@pytest.fixture(scope="module")
def fitted():
    axis = torch.linspace(-1, 1, 12)
    images = torch.exp(-6 * (axis[None, :10, None] ** 2 + (axis + 0.2) ** 2))[:, None]
    images = torch.cat([images, 1 - images])
    generator = torch.Generator().manual_seed(0)
    return fit(images, SPEC, generator=generator, steps=60, progress=False).params


def left_half():
    mask = torch.zeros(SIZE)
    mask[:, :6] = 1.0
    return mask


def error(params, target):
    return (render(params, SPEC, *SIZE) - target).square().mean().item()


def test_a_refit_comes_close_to_its_target(fitted):
    kept = {name: value.clone() for name, value in fitted.items()}
    edit = Refit(BLUR, SIZE)
    before = render(fitted, SPEC, *SIZE)
    target = edit.target(before, 1.0)
    assert torch.equal(target, blur(before, 1.0))
    edited = edit.apply(fitted, SPEC, 1.0)
    assert error(edited, target) < 1e-2 * error(fitted, target)
    assert all(torch.equal(fitted[name], kept[name]) for name in kept)
    assert (edit.name, edit.unit, edit.mechanism) == ("blur", "pixels", "refit")
    one = Refit(BLUR, SIZE, steps=1).apply(fitted, SPEC, 1.0)
    assert error(one, target) > error(edited, target)


@pytest.mark.parametrize("meaning", [BLUR, EDITS["invert"], EDITS["rotate"]], ids=lambda m: m.name)
def test_a_mask_keeps_the_rest_of_the_picture(fitted, meaning):
    edit = Refit(meaning, SIZE, steps=150, mask=left_half())
    before = render(fitted, SPEC, *SIZE)
    target = edit.target(before, 1.0)
    assert torch.equal(target[..., 6:], before[..., 6:])
    assert torch.equal(target[..., :6], meaning.target(before, 1.0)[..., :6])
    edited = render(edit.apply(fitted, SPEC, 1.0), SPEC, *SIZE)
    torch.testing.assert_close(edited, target, rtol=0, atol=0.05)


def test_a_grey_mask_blends(fitted):
    edit = Refit(EDITS["brightness"], SIZE, mask=torch.full(SIZE, 0.25))
    before = render(fitted, SPEC, *SIZE)
    torch.testing.assert_close(edit.target(before, 0.4), before + 0.1)


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (torch.zeros(12, 10), r"pictures' size \(10, 12\), got \(12, 10\)"),
        (torch.full(SIZE, 1.5), "from 0 to 1"),
        (torch.full(SIZE, math.nan), "from 0 to 1"),
    ],
)
def test_bad_masks(mask, match):
    with pytest.raises(ValueError, match=match):
        Refit(BLUR, SIZE, mask=mask)


def test_strengths_are_checked(fitted):
    with pytest.raises(ValueError, match="strength of blur must be finite"):
        Refit(BLUR, SIZE).apply(fitted, SPEC, math.nan)
    with pytest.raises(ValueError, match="must not be negative"):
        Refit(BLUR, SIZE).apply(fitted, SPEC, -1.0)


@pytest.mark.parametrize("progress", [True, False])
def test_progress(fitted, capsys, progress):
    Refit(BLUR, SIZE, steps=2, progress=progress).apply(fitted, SPEC, 1.0)
    assert bool(capsys.readouterr().err) == progress


class Descent(Rule):
    """Plain gradient descent, with nothing to remember but the steps."""

    decays = {"fast": 0.9, "square": 0.99}  # noqa: RUF012

    def forward(self, graph, params, grads, state):
        state = {n: {**s, "step": s["step"] + 1} for n, s in state.items()}
        return {name: -grad for name, grad in grads.items()}, state


def test_an_update_rule_is_an_optimizer(fitted):
    before = render(fitted, SPEC, *SIZE)
    target = EDITS["brightness"].target(before, 0.1)
    optimizer = RuleOptimizer(Descent(), siren_graph(SPEC), learning_rate=1e-3)
    got = Refit(EDITS["brightness"], SIZE, steps=3, optimizer=optimizer).apply(fitted, SPEC, 0.1)
    params = {name: value.clone().requires_grad_() for name, value in fitted.items()}
    for step in range(3):
        loss = (render(params, SPEC, *SIZE) - target).square().mean((1, 2, 3)).sum()
        grads = torch.autograd.grad(loss, list(params.values()))
        rate = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / 3))
        params = {
            name: (value - rate * grad).detach().requires_grad_()
            for (name, value), grad in zip(params.items(), grads, strict=True)
        }
    for name, value in got.items():
        torch.testing.assert_close(value, params[name].detach(), rtol=0, atol=1e-6)


def test_the_learned_rule_runs_on_the_stack_and_networks_leave_it(fitted):
    target = EDITS["brightness"].target(render(fitted, SPEC, *SIZE), 0.05)
    target[0] = render(fitted, SPEC, *SIZE)[0]  # this one is there already
    optimizer = RuleOptimizer(UpdateRule(), siren_graph(SPEC), learning_rate=0.01)
    options = {"steps": 4, "optimizer": optimizer, "progress": False}
    result = refine(fitted, target, SPEC, target_psnr=90.0, **options)
    assert result.steps.tolist() == [0, 4]
    alone = refine({n: v[1:] for n, v in fitted.items()}, target[1:], SPEC, **options)
    for name, value in alone.params.items():
        torch.testing.assert_close(result.params[name][1:], value, rtol=0, atol=1e-5)


def test_adam_is_the_default(fitted):
    before = render(fitted, SPEC, *SIZE)
    edit = PixelEdit("paint", "intensity", lambda x, s: x + s * (torch.arange(12) < 6))
    for strength in (0.01, 0.1, 2.0):
        default = Refit(edit, SIZE, steps=3).apply(fitted, SPEC, strength)
        error = (edit.target(before, strength) - before).square().mean((1, 2, 3)).sqrt()
        for k in range(2):  # small steps for small changes
            one = {name: value[k : k + 1] for name, value in fitted.items()}
            optimizer = Adam(learning_rate=1e-2 * min(1.0, 2 * error[k].item()))
            adam = Refit(edit, SIZE, steps=3, optimizer=optimizer).apply(one, SPEC, strength)
            for name, value in adam.items():
                torch.testing.assert_close(default[name][k : k + 1], value, rtol=0, atol=1e-6)


def test_boxes():
    mask = load_mask((0.25, 0.0, 0.75, 0.5), (4, 8))
    expected = torch.zeros(4, 8)
    expected[:2, 2:6] = 1.0
    assert torch.equal(mask, expected)
    assert load_mask((0.0, 0.0, 1.0, 1.0), (3, 3)).all()
    with pytest.raises(ValueError, match="mask must be left, top, right, bottom"):
        load_mask((0.5, 0.0, 0.2, 1.0), (4, 4))


def test_a_mask_is_one_image(tmp_path):
    np.save(tmp_path / "m.npy", np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match=r"mask must be one image, got 2 in .*m\.npy"):
        load_mask(str(tmp_path / "m.npy"), (4, 4))
    colour = np.zeros((4, 4, 3))
    colour[..., 0] = 0.75
    np.save(tmp_path / "m.npy", colour)
    torch.testing.assert_close(load_mask(str(tmp_path / "m.npy"), (4, 4)), torch.full((4, 4), 0.25))


def test_inpainting_fills_the_lighter_half_of_a_mask():
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(8, 8)
    mask[2:4, 3:6] = 0.7
    mask[6, 6] = 0.3
    got = Inpaint().of(mask).target(images, 1.0)
    assert torch.equal(got, inpaint(images, 1.0, mask=mask > 0.5))
    assert torch.equal(got[..., 6, 6], images[..., 6, 6])
    with pytest.raises(ValueError, match="mask of inpaint must be given"):
        Inpaint().of(None)
    with pytest.raises(ValueError, match="strength of inpaint must be finite"):
        Inpaint().of(mask).target(images, math.inf)
