"""Measuring and drawing what a recipe did."""

import json
import math
import sys

import pytest
import torch
from PIL import Image

from scalegmn_opt.editors import EDITS, EditRecipe, EditStep, measure, write_report
from scalegmn_opt.editors.pictures import contact_sheet, draw_comparison
from scalegmn_opt.inr import INRStore, SirenSpec, fit_store, render


def recipe(*steps):
    edits = [EditStep(edit=name, strength=strength) for name, strength in steps]
    return EditRecipe(name="mine", edits=edits)


def pictures(count=3, channels=1):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 3, 3, generator=generator)
    return torch.nn.functional.interpolate(coarse, (8, 6), mode="bilinear")


def fitted(images):
    names = tuple(f"p{i}" for i in range(len(images)))
    spec = SirenSpec(hidden=(8, 8), out_features=images.shape[1])
    generator = torch.Generator().manual_seed(0)
    return fit_store(images, names, spec, generator=generator, steps=30, progress=False)


def test_errors_are_those_of_the_renders():
    images = pictures()
    store = fitted(images)
    report = measure(store, recipe(("brightness", 0.25)), EDITS, images=images)
    before = render(store.params, store.spec, 8, 6)
    error = (before - images).square().mean().item()  # the same before and after the shift
    assert report.total.mse == pytest.approx(error, rel=1e-3)
    nothing = (before - (images + 0.25)).square().mean().item()
    assert report.total.mse_do_nothing == pytest.approx(nothing, rel=1e-5)
    assert report.total.psnr == pytest.approx(-10 * math.log10(report.total.mse), abs=1e-3)
    assert report.steps[0].score == report.total
    torch.testing.assert_close(report.edited, before + 0.25)
    assert report.ground_truth == "source images"


def test_a_chain_goes_on_from_targets_and_renders():
    store = fitted(pictures())
    report = measure(store, recipe(("brightness", 0.25), ("contrast", 1.0)), EDITS)
    before = render(store.params, store.spec, 8, 6)
    first = before + 0.25
    torch.testing.assert_close(report.target, 2 * first - 0.5)
    torch.testing.assert_close(report.edited, report.target, rtol=0, atol=1e-5)
    one, two = (step.score for step in report.steps)
    assert one.mse_do_nothing == pytest.approx(0.25**2, rel=1e-4)
    expected = (first - (2 * first - 0.5)).square().mean().item()
    assert two.mse_do_nothing == pytest.approx(expected, rel=1e-4)
    total = (before - report.target).square().mean().item()
    assert report.total.mse_do_nothing == pytest.approx(total, rel=1e-4)
    assert report.total.cpu_ms_per_inr == one.cpu_ms_per_inr + two.cpu_ms_per_inr
    assert report.ground_truth == "renders of the networks"


def test_the_store_stays_and_the_edited_one_says_how_good_it_is():
    store = fitted(pictures())
    kept = {name: value.clone() for name, value in store.params.items()}
    report = measure(store, recipe(("rotate", 20.0)), EDITS)
    assert all(torch.equal(store.params[name], kept[name]) for name in kept)
    assert report.after.names == store.names
    error = (report.edited - report.target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(report.after.psnr, -10 * error.log10())


def test_no_error_has_no_decibels():
    report = measure(fitted(pictures()), recipe(("brightness", 0.0)), EDITS)
    assert report.total.mse == 0.0
    assert report.total.psnr is None
    json.dumps(report.as_dict(), allow_nan=False)


def test_images_must_have_the_shape_of_the_renders():
    images = pictures()
    with pytest.raises(ValueError, match=r"images must have shape \(3, 1, 8, 6\), got \(2, 1"):
        measure(fitted(images), recipe(("invert", 1.0)), EDITS, images=images[:2])


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written(tmp_path, channels):
    store = fitted(pictures(channels=channels))
    report = measure(store, recipe(("invert", 1.0)), EDITS)
    out = tmp_path / "new" / "folder"
    write_report(report, out, source="here.png", scale=3)
    sheets = [
        f"{n}{s}.png" for n in ("input", "edited", "target", "difference") for s in ("", "_x3")
    ]
    others = ["comparison.png", "edited.safetensors", "report.json"]
    assert sorted(path.name for path in out.iterdir()) == sorted(sheets + others)
    for name in sheets:  # two by two with a gap of a pixel
        factor = 3 if "_x3" in name else 1
        with Image.open(out / name) as image:
            assert image.size == (13 * factor, 17 * factor)
            assert image.mode == ("L" if channels == 1 else "RGB")
    fields = json.loads((out / "report.json").read_text())
    assert fields["input"] == "here.png"
    assert fields["count"] == 3
    (step,) = fields["edits"]
    assert set(step) == {
        "edit",
        "strength",
        "mechanism",
        "mse",
        "mse_do_nothing",
        "psnr",
        "cpu_ms_per_inr",
    }
    assert fields["total"]["mse_do_nothing"] > 100 * fields["total"]["mse"]
    loaded = INRStore.load(out / "edited.safetensors")
    got = render(loaded.params, loaded.spec, 8, 6)
    torch.testing.assert_close(got, report.edited)


def test_scaled_pictures_are_rendered_not_enlarged(tmp_path):
    report = measure(fitted(pictures(count=1)), recipe(("invert", 1.0)), EDITS)
    write_report(report, tmp_path, source="x", scale=2, compare=False)
    assert not (tmp_path / "comparison.png").exists()

    def levels(name):
        with Image.open(tmp_path / name) as image:
            return torch.tensor(list(image.tobytes())).reshape(image.size[::-1])

    edited, target = levels("edited_x2.png"), levels("target_x2.png")
    assert torch.equal(target[::2, ::2], target[1::2, 1::2])
    assert not torch.equal(edited[::2, ::2], edited[1::2, 1::2])
    expected = render(report.after.params, report.after.spec, 16, 12)[0, 0].clamp(0, 1)
    torch.testing.assert_close(edited / 255, expected, rtol=0, atol=0.5 / 255 + 1e-6)


def test_an_angle_is_reported_and_scale_is_checked(tmp_path):
    step = EditStep(edit="shift", strength=0.1, angle=0.0)
    report = measure(fitted(pictures()), EditRecipe(name="mine", edits=[step]), EDITS)
    assert report.as_dict()["edits"][0]["angle"] == 0.0
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        write_report(report, tmp_path, source="x", scale=0)


def test_contact_sheets():
    images = torch.arange(3.0).reshape(3, 1, 1, 1).expand(-1, 1, 2, 2)
    sheet = contact_sheet(images, gap=1)
    expected = torch.full((1, 5, 5), 0.5)
    expected[0, :2, :2], expected[0, :2, 3:], expected[0, 3:, :2] = 0.0, 1.0, 2.0
    assert torch.equal(sheet, expected)
    assert torch.equal(contact_sheet(images[1:2]), images[1])


def test_the_comparison_shows_at_most_eight_networks_and_its_numbers():
    images = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    figure = draw_comparison(images, images + 0.1, images, title="a title")
    grid = [ax for ax in figure.axes if ax.images]
    assert len(grid) == 4 * 8
    assert figure.get_suptitle() == "a title"
    assert [ax.get_xlabel() for ax in grid[-8:]] == ["MSE 0.01"] * 8
    assert [grid[8 * row].get_ylabel() for row in range(3)] == ["input", "edited", "target"]
    torch.testing.assert_close(
        torch.as_tensor(grid[-1].images[0].get_array().data), torch.full((4, 4), 0.1)
    )


def test_figures_without_matplotlib_name_the_line_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    images = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ImportError, match=r'pip install "scalegmn-opt\[images\]"'):
        draw_comparison(images, images, images, title="")
