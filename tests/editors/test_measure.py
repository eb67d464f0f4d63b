"""Measuring what a recipe did."""

import json
import math
import warnings

import pytest
import torch

from scalegmn_opt.editors import (
    EDITS,
    Edit,
    EditRecipe,
    EditStep,
    PixelEdit,
    check_recipe,
    measure,
)
from scalegmn_opt.editors.markdown import as_markdown
from scalegmn_opt.editors.measure import _break_even
from scalegmn_opt.editors.merge import merge
from scalegmn_opt.editors.targets import dilate
from scalegmn_opt.inr import SirenSpec, fit_store, refine, render

PIXELS = {**EDITS, "dilate": PixelEdit("dilate", "times", dilate)}


class Half(Edit):
    """Brightens half as much as it should, in networks of twice the width."""

    name, unit, mechanism = "brightness", "intensity added", "learned"

    def target(self, images, strength):
        return images + strength

    def apply(self, params, spec, strength):
        edited = EDITS["brightness"].apply(params, spec, 0.5 * strength)
        return merge([edited, edited], [0.5, 0.5])


def recipe(*steps, **options):
    edits = [EditStep(edit=name, strength=strength, **options) for name, strength in steps]
    return EditRecipe(name="mine", edits=edits)


def pictures(count=3, channels=1):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 3, 3, generator=generator)
    return torch.nn.functional.interpolate(coarse, (8, 6), mode="bilinear")


def fitted(images):
    names = tuple(f"p{i}" for i in range(len(images)))
    spec = SirenSpec(hidden=(8, 8), out_features=images.shape[1])
    generator = torch.Generator().manual_seed(0)
    return fit_store(images, names, spec, generator=generator, steps=12, progress=False)


def test_errors_are_those_of_the_renders():
    images = pictures()
    store = fitted(images)
    report = measure(store, recipe(("brightness", 0.25)), EDITS, images=images)
    before = render(store.params, store.spec, 8, 6)
    error = (before - images).square().mean().item()  # the same before and after the shift
    assert report.mse_of_input == pytest.approx(error, rel=1e-5)
    assert report.total.mse == pytest.approx(error, rel=1e-3)
    nothing = (before - (images + 0.25)).square().mean().item()
    assert report.total.mse_do_nothing == pytest.approx(nothing, rel=1e-5)
    assert report.total.psnr == pytest.approx(-10 * math.log10(report.total.mse), abs=1e-3)
    assert report.total.share_removed == pytest.approx(1 - error / nothing, abs=1e-4)
    assert report.steps[0].score == report.total
    assert report.steps[0].mse_alone < 1e-12  # the fit's error is not the edit's
    torch.testing.assert_close(report.edited, before + 0.25)
    torch.testing.assert_close(report.difference, report.edited - report.target)
    assert report.ground_truth == "source images"


def test_a_chain_goes_on_from_targets_and_renders():
    store = fitted(pictures())
    report = measure(store, recipe(("brightness", 0.25), ("contrast", 1.0)), EDITS)
    before = render(store.params, store.spec, 8, 6)
    first = before + 0.25
    torch.testing.assert_close(report.target, 2 * first - 0.5, rtol=0, atol=1e-5)
    torch.testing.assert_close(report.edited, report.target, rtol=0, atol=1e-5)
    one, two = (step.score for step in report.steps)
    assert one.mse_do_nothing == pytest.approx(0.25**2, rel=1e-4)
    expected = (first - (2 * first - 0.5)).square().mean().item()
    assert two.mse_do_nothing == pytest.approx(expected, rel=1e-4)
    total = (before - report.target).square().mean().item()
    assert report.total.mse_do_nothing == pytest.approx(total, rel=1e-4)
    assert report.cpu_ms_per_inr == sum(step.cpu_ms_per_inr for step in report.steps) > 0
    assert report.ground_truth == "renders of the networks"


def test_drift_adds_up_and_each_edit_has_its_own_part():
    store = fitted(pictures())
    edits = {**EDITS, "brightness": Half()}
    steps = recipe(("brightness", 0.2), ("brightness", 0.2), ("invert", 1.0))
    report = measure(store, steps, edits)
    points = report.as_dict()["drift"]
    assert [point["after"] for point in points] == ["input", "brightness", "brightness", "invert"]
    drift = [point["mse"] for point in points]
    assert drift == pytest.approx([0, 0.1**2, 0.2**2, 0.2**2], abs=1e-6)
    alone = [step.mse_alone for step in report.steps]
    assert alone == pytest.approx([0.1**2, 0.1**2, 0], abs=1e-6)
    assert [step.mechanism for step in report.steps] == ["learned", "learned", "closed form"]
    assert report.after.spec == SirenSpec(hidden=(32, 32))
    scaled = [step.scaled.mse for step in report.steps]
    assert scaled == pytest.approx(drift[1:], abs=1e-6)


@pytest.mark.parametrize("scale", [1, 3])
def test_the_finer_grid_is_held_to_the_networks_own_pictures(scale):
    images = pictures()
    store = fitted(images)
    report = measure(store, recipe(("rotate", 20.0)), EDITS, images=images, scale=scale)
    assert report.stages[-1].shape == (3, 1, 8 * scale, 6 * scale)
    assert report.scaled.mse < 1e-10  # in closed form
    assert report.total.mse > 1e-6  # the source has no values between its pixels
    expected = render(report.after.params, store.spec, 8 * scale, 6 * scale)
    assert torch.equal(report.stages[-1], expected)
    with pytest.raises(ValueError, match="scale"):
        measure(store, recipe(("rotate", 20.0)), EDITS, scale=0)


def test_pixels_without_a_truth_have_no_difference():
    images = pictures()
    report = measure(fitted(images), recipe(("shift", 0.5)), EDITS, images=images)
    assert (report.difference[..., :3] == 0).all()
    inside = (report.edited - report.target)[..., 3:]
    assert report.total.mse == pytest.approx(inside.square().mean().item(), rel=1e-4)


def test_refits_are_measured_beside_an_edit():
    images = pictures()
    store = fitted(images)
    edits = {**EDITS, "brightness": Half()}
    report = measure(store, recipe(("brightness", 0.2)), edits, images=images, curve=True)
    curve = report.steps[0].curve
    assert [point.steps for point in curve.points] == [10, 50, 150]
    for point in curve.points:
        refit = refine(store.params, images + 0.2, store.spec, steps=point.steps, progress=False)
        expected = (render(refit.params, store.spec, 8, 6) - images - 0.2).square().mean().item()
        assert point.mse == pytest.approx(expected, rel=1e-3)
        assert point.cpu_ms_per_inr > 0
    assert curve.mse == pytest.approx(report.total.mse, rel=1e-5)
    assert 0 < curve.break_even_steps < 10
    per_step = curve.points[-1].cpu_ms_per_inr / 150
    assert curve.break_even_cpu_ms_per_inr == pytest.approx(curve.break_even_steps * per_step)
    assert measure(store, recipe(("brightness", 0.2)), edits).steps[0].curve is None


def test_break_even():
    curve = [(0, 1.0), (10, 1e-2), (50, 1e-4)]
    assert _break_even(2.0, curve) == 0
    assert _break_even(1.0, curve) == 0
    assert _break_even(0.1, curve) == pytest.approx(5)
    assert _break_even(1e-3, curve) == pytest.approx(30)
    assert _break_even(1e-4, curve) == pytest.approx(50)
    assert _break_even(1e-5, curve) is None
    assert _break_even(1e-5, [(0, 1.0), (10, 0.0)]) == 10


def test_masks_and_refits_are_in_the_report():
    step = EditStep(edit="dilate", strength=1.0, mask=(0.0, 0.0, 0.5, 1.0))
    store = fitted(pictures())
    report = measure(store, EditRecipe(name="mine", edits=[step]), PIXELS)
    fields = json.loads(json.dumps(report.as_dict()))["edits"][0]
    assert fields["mask"] == [0.0, 0.0, 0.5, 1.0]
    assert (fields["mechanism"], fields["steps"]) == ("refit", 50)
    assert fields["share_removed"] > 0.9
    before = render(store.params, store.spec, 8, 6)
    assert torch.equal(report.target[..., 3:], before[..., 3:])


def test_the_store_stays_and_the_edited_one_says_how_good_it_is():
    store = fitted(pictures())
    kept = {name: value.clone() for name, value in store.params.items()}
    images = pictures()
    report = measure(store, recipe(("brightness", 0.3)), EDITS, images=images)
    assert all(torch.equal(store.params[name], kept[name]) for name in kept)
    assert report.after.names == store.names
    error = (report.edited - report.target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(report.after.psnr, -10 * error.log10(), rtol=1e-4, atol=1e-3)


def test_no_error_has_no_decibels():
    report = measure(fitted(pictures()), recipe(("brightness", 0.0)), EDITS)
    assert report.total.mse == 0.0
    assert report.total.psnr is None
    assert report.total.share_removed is None
    json.dumps(report.as_dict(), allow_nan=False)


def test_images_must_have_the_shape_of_the_renders():
    images = pictures()
    with pytest.raises(ValueError, match=r"images must have shape \(3, 1, 8, 6\), got \(2, 1"):
        measure(fitted(images), recipe(("invert", 1.0)), EDITS, images=images[:2])


@pytest.mark.parametrize("progress", [True, False])
def test_progress(capsys, progress):
    measure(fitted(pictures()), recipe(("invert", 1.0)), EDITS, progress=progress)
    assert ("edit" in capsys.readouterr().err) == progress


@pytest.mark.parametrize(
    ("step", "match"),
    [
        ({"edit": "crop", "strength": 2.0}, "crop must be within 0 and 1"),
        ({"edit": "dilate", "strength": -1.0}, "must not be negative"),
        ({"edit": "gain", "strength": 1.0, "channel": "red"}, "expected pictures of 3 channels"),
        ({"edit": "shift", "strength": 3.0}, "leaves some of the picture"),
        ({"edit": "inpaint", "strength": 1.0}, "mask of inpaint must be given"),
        ({"edit": "inpaint", "strength": 1.0, "mask": (0, 0, 1, 1)}, "leave a pixel"),
    ],
)
def test_a_recipe_is_checked_before_there_are_networks(step, match):
    wrong = EditRecipe(name="wrong", edits=[EditStep(edit="invert", strength=1), EditStep(**step)])
    options = {"spec": SirenSpec(), "image_size": (8, 6)}
    with pytest.raises(ValueError, match=match):
        check_recipe(wrong, PIXELS, **options)
    with pytest.raises(ValueError, match=match):
        measure(fitted(pictures()), wrong, PIXELS, images=pictures())
    check_recipe(recipe(("invert", 1.0), ("shift", 0.2)), PIXELS, **options)


def test_a_blend_and_a_learned_refit_are_measured():
    blend = {"edit": "invert", "strength": 0.5, "weight": 0.4}
    steps = [
        EditStep(edit="dilate", strength=1.0, mechanism="learned refit", steps=6),
        EditStep(edit="brightness", strength=0.2, blend=blend),
    ]
    report = measure(fitted(pictures()), EditRecipe(name="a", edits=steps), PIXELS, scale=2)
    refit, mixed = report.as_dict()["edits"]
    mechanisms = refit["mechanism"], mixed["mechanism"]
    assert mechanisms == ("learned refit", "closed form + closed form")
    assert (refit["steps"], mixed["blend"]) == (6, blend)
    assert report.steps[0].score.share_removed > 0.8
    assert report.steps[1].mse_alone < 1e-10
    assert report.steps[1].scaled.share_removed > 0.8
    assert report.after.spec.hidden == (16, 16)


class Careful(Half):
    """Warns of every network that it is given, and of what it does."""

    def apply(self, params, spec, strength):
        for _ in params["layers.0.bias"]:
            warnings.warn("one more", stacklevel=2)
        warnings.warn("half as much", RuntimeWarning, stacklevel=2)
        return super().apply(params, spec, strength)


def test_what_an_edit_warns_of_is_told_and_in_the_report():
    store = fitted(pictures())
    with pytest.warns(Warning) as told:  # noqa: PT030, below
        report = measure(store, recipe(("brightness", 0.1)), {**EDITS, "brightness": Careful()})
    assert sorted(str(warning.message) for warning in told) == ["half as much", "one more"]
    assert report.steps[0].as_dict()["warnings"] == ["one more", "half as much"]
    page = as_markdown(report, "here", [])
    assert "Warning: half as much." in page
    assert "Warning" not in as_markdown(
        measure(store, recipe(("brightness", 0.1)), EDITS), "here", []
    )
