"""The folder that an edit leaves."""

import json
import re
import sys

import pytest
import torch
from PIL import Image

from scalegmn_opt.editors import (
    EDITS,
    EditRecipe,
    EditStep,
    check_writable,
    measure,
    write_report,
)
from scalegmn_opt.editors.pictures import contact_sheet, draw_comparison, draw_curves, draw_stages
from scalegmn_opt.inr import INRStore, SirenSpec, fit_store, render


def recipe(*steps):
    edits = [EditStep(edit=name, strength=strength) for name, strength in steps]
    return EditRecipe(name="mine", description="What it does.", edits=edits)


def pictures(count=3, channels=1):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 3, 3, generator=generator)
    return torch.nn.functional.interpolate(coarse, (8, 6), mode="bilinear")


def fitted(images):
    names = tuple(f"p{i}" for i in range(len(images)))
    spec = SirenSpec(hidden=(8, 8), out_features=images.shape[1])
    generator = torch.Generator().manual_seed(0)
    return fit_store(images, names, spec, generator=generator, steps=30, progress=False)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written(tmp_path, channels):
    store = fitted(pictures(channels=channels))
    report = measure(store, recipe(("invert", 1.0), ("gain", 0.2)), EDITS, scale=3, curve=True)
    out = tmp_path / "new" / "folder"
    write_report(report, out, source="here.png")
    sheets = [
        f"{n}{s}.png" for n in ("input", "edited", "target", "difference") for s in ("", "_x3")
    ]
    others = ["stages.png", "comparison.png", "refit.png"]
    others += ["edited.safetensors", "report.json", "report.md"]
    assert sorted(path.name for path in out.iterdir()) == sorted(sheets + others)
    for name in sheets:  # two by two with a gap of a pixel
        factor = 3 if "_x3" in name else 1
        with Image.open(out / name) as image:
            assert image.size == (13 * factor, 17 * factor)
            assert image.mode == ("L" if channels == 1 else "RGB")
    fields = json.loads((out / "report.json").read_text())
    assert fields["input"] == "here.png"
    assert fields["count"] == 3
    first, second = fields["edits"]
    assert (first["edit"], second["edit"]) == ("invert", "gain")
    assert {"edit", "strength", "mechanism"} < set(first)
    assert {"mse", "mse_do_nothing", "psnr", "share_removed", "mse_alone"} < set(first)
    assert {"ms_per_inr", "cpu_ms_per_inr", "scaled", "refit"} < set(first)
    assert set(first["scaled"]) == {"mse", "mse_do_nothing", "psnr", "share_removed"}
    assert [point["steps"] for point in first["refit"]["points"]] == [10, 50, 150]
    assert fields["total"]["mse_do_nothing"] > 100 * fields["total"]["mse"]
    loaded = INRStore.load(out / "edited.safetensors")
    got = render(loaded.params, loaded.spec, 8, 6)
    torch.testing.assert_close(got, report.edited)


def test_the_page_has_the_numbers_and_the_pictures(tmp_path):
    store = fitted(pictures())
    report = measure(store, recipe(("invert", 1.0), ("rotate", 5.0)), EDITS, curve=True)
    write_report(report, tmp_path, source="here.png")
    page = (tmp_path / "report.md").read_text()
    assert page.startswith("# mine\n\nWhat it does.\n")
    assert "`here.png`, held to the renders of the networks" in page
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    tables = [line for line in lines if line]
    assert len({len(line) for line in tables}) == 2  # scores, and refits
    (invert,) = [line for line in tables if line[:3] == ["invert", "1", "closed form"]]
    score = report.steps[0].score
    assert invert[3:6] == [f"{score.mse:.3g}", f"{score.mse_do_nothing:.3g}", "100.0%"]
    (total,) = [line for line in tables if line[0] == "**all**"]
    assert total[-1] == f"{report.cpu_ms_per_inr:.3g}"
    refit = [line for line in tables if line[0] == "invert"][1]
    assert refit[2] == f"{report.steps[0].curve.points[0].mse:.3g}"
    assert refit[-2] == "more than 150"  # a closed form is better
    for name in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (tmp_path / name).is_file()
    assert page.count("![") == 11


def test_one_edit_and_nothing_to_compare(tmp_path):
    report = measure(fitted(pictures()), recipe(("brightness", 0.0)), EDITS, scale=1)
    write_report(report, tmp_path, source="x", compare=False)
    page = (tmp_path / "report.md").read_text()
    assert "**all**" not in page
    assert "Adam" not in page
    assert "∞" in page
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"{name}.png" for name in ("input", "edited", "target", "difference")
    }


def test_scaled_pictures_are_rendered_not_enlarged(tmp_path):
    report = measure(fitted(pictures(count=1)), recipe(("invert", 1.0)), EDITS, scale=2)
    write_report(report, tmp_path, source="x", compare=False)
    assert not (tmp_path / "comparison.png").exists()
    with Image.open(tmp_path / "edited_x2.png") as image:
        levels = torch.tensor(list(image.tobytes())).reshape(image.size[::-1])
    expected = render(report.after.params, report.after.spec, 16, 12)[0, 0].clamp(0, 1)
    torch.testing.assert_close(levels / 255, expected, rtol=0, atol=0.5 / 255 + 1e-6)


def test_options_are_reported():
    step = EditStep(edit="shift", strength=0.1, angle=0.0)
    report = measure(fitted(pictures()), EditRecipe(name="mine", edits=[step]), EDITS)
    assert report.as_dict()["edits"][0]["angle"] == 0.0
    assert "channel" not in report.as_dict()["edits"][0]


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    report = measure(fitted(pictures()), recipe(("invert", 1.0)), EDITS)
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"out must be a folder that can be written, got .*file"):
            write_report(report, out, source="x")

    def refused(path, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refused)
    with pytest.raises(PermissionError, match=r"got .*: Permission denied"):
        check_writable(tmp_path)


def test_an_interrupted_write_leaves_the_old_report(tmp_path, monkeypatch):
    report = measure(fitted(pictures()), recipe(("invert", 1.0)), EDITS)
    write_report(report, tmp_path, source="first", compare=False)

    def broken(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_report(report, tmp_path, source="second", compare=False)
    assert json.loads((tmp_path / "report.json").read_text())["input"] == "first"
    assert not list(tmp_path.glob("*.tmp"))


def test_contact_sheets():
    images = torch.arange(3.0).reshape(3, 1, 1, 1).expand(-1, 1, 2, 2)
    sheet = contact_sheet(images, gap=1)
    expected = torch.full((1, 5, 5), 0.5)
    expected[0, :2, :2], expected[0, :2, 3:], expected[0, 3:, :2] = 0.0, 1.0, 2.0
    assert torch.equal(sheet, expected)
    assert torch.equal(contact_sheet(images[1:2]), images[1])


def test_the_comparison_shows_at_most_eight_networks_and_its_numbers():
    images = pictures(count=9)
    report = measure(fitted(images), recipe(("brightness", 0.1)), EDITS, images=images)
    figure = draw_comparison(report)
    grid = [ax for ax in figure.axes if ax.images]
    assert len(grid) == 4 * 8
    assert figure.get_suptitle().startswith(f"mine: MSE {report.total.mse:.2g} to the target")
    errors = (report.difference**2).mean((1, 2, 3))
    assert [ax.get_xlabel() for ax in grid[-8:]] == [f"MSE {error:.2g}" for error in errors[:8]]
    assert [grid[8 * row].get_ylabel() for row in range(3)] == ["input", "edited", "target"]
    torch.testing.assert_close(
        torch.as_tensor(grid[-1].images[0].get_array().data), report.difference[7, 0]
    )


def test_stages_are_renders_after_each_edit():
    report = measure(fitted(pictures(count=5)), recipe(("invert", 1.0), ("gain", 0.5)), EDITS)
    figure = draw_stages(report)
    shown = [ax.images[0].get_array().data for ax in figure.axes]
    assert len(shown) == 3 * 4  # three networks; input, two edits, target
    titles = [ax.get_title().split("\n") for ax in figure.axes[:4]]
    assert titles[1:3] == [["invert 1", "closed form"], ["gain 0.5", "closed form"]]
    middle = EDITS["invert"].apply(report.before.params, report.before.spec, 1.0)
    expected = render(middle, report.before.spec, 32, 24)[2, 0].clamp(0, 1)
    torch.testing.assert_close(torch.as_tensor(shown[2 * 4 + 1]), expected)


def test_the_curves_show_refits_and_the_edit():
    report = measure(fitted(pictures()), recipe(("invert", 1.0)), EDITS, curve=True)
    (ax,) = draw_curves(report.steps).axes
    refit, own = ax.lines
    assert list(refit.get_ydata()) == [point.mse for point in report.steps[0].curve.points]
    assert list(own.get_ydata()) == pytest.approx([report.steps[0].curve.mse])
    assert ax.get_title() == "invert 1"


def test_figures_without_matplotlib_name_the_line_to_install(monkeypatch):
    report = measure(fitted(pictures()), recipe(("invert", 1.0)), EDITS)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "scalegmn-opt\[images\]"'):
        draw_comparison(report)
