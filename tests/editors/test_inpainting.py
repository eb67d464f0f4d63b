"""Filling a region by a learned editor."""

import dataclasses

import pytest
import torch

from scalegmn_opt import random_transform
from scalegmn_opt.editors import (
    EDITS,
    Blend,
    EditRecipe,
    EditStep,
    InpaintingEditor,
    LearnedEditor,
    LearnedInpaint,
    Truth,
    measure,
    resolve,
    write_report,
)
from scalegmn_opt.editors.targets import harmonic, inpaint
from scalegmn_opt.inr import SirenSpec, fit_store, initial_parameters, render, siren_graph
from scalegmn_opt.pretrained import weights_kind

SPEC, SIDE = SirenSpec(hidden=(16, 14)), 8
SIZE = {
    "edits": {"inpaint": 1.0},
    "size": SIDE,
    "spec": SPEC,
    "picture_channels": 4,
    "probes": 3,
    "node_channels": 6,
    "edge_channels": 4,
    "hidden_channels": 8,
}
REGION = torch.zeros(SIDE, SIDE, dtype=torch.bool)
REGION[2:5, 3:6] = True
BOX = (3 / SIDE, 2 / SIDE, 6 / SIDE, 5 / SIDE)  # the same, as recipes say it


def params(count=3, dtype=torch.float32):
    drawn = initial_parameters(SPEC, count, torch.Generator().manual_seed(0))
    return {name: value.to(dtype) for name, value in drawn.items()}


@pytest.fixture
def editor():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = InpaintingEditor(**SIZE)
        with torch.no_grad():
            for p in made.parameters():
                p += 0.1 * torch.randn(p.shape)
    return made.requires_grad_(False)


@pytest.fixture
def weights(editor, tmp_path):
    editor.save_pretrained(tmp_path / "inpaint.safetensors")
    return tmp_path / "inpaint.safetensors"


def shares(value=1.0, count=3, region=REGION):
    return value * region.float().expand(count, -1, -1)


def test_the_rest_of_the_picture_is_to_stay(editor):
    before = render(params(), SPEC, SIDE, SIDE)
    after = editor.imagine(params(), SPEC, shares()).mT.reshape(before.shape)
    assert torch.equal(after[..., ~REGION], before[..., ~REGION])
    assert (after - before)[..., REGION].abs().min() > 0
    half = editor.imagine(params(), SPEC, shares(0.5)).mT.reshape(before.shape)
    torch.testing.assert_close(half, before.lerp(after, 0.5))


def test_what_the_region_holds_is_not_looked_at(editor):
    pictures = torch.rand(2, SIDE * SIDE, 1, generator=torch.Generator().manual_seed(0))
    damaged = torch.where(REGION.reshape(-1, 1), 7.0, pictures)
    guesses = [editor._imagine(x, shares(count=2)) for x in (pictures, damaged)]
    torch.testing.assert_close(*guesses, atol=1e-4, rtol=0)
    elsewhere = torch.where(REGION.reshape(-1, 1), pictures, 0.5)  # control
    assert not torch.allclose(guesses[0], editor._imagine(elsewhere, shares(count=2)), atol=1e-2)


def test_every_network_has_its_own_region(editor):
    maps = torch.stack([shares()[0], shares()[0].mT, 0 * shares()[0]])
    got = editor.imagine(params(), SPEC, maps)
    for i, one in enumerate(maps):
        some = {name: value[i : i + 1] for name, value in params().items()}
        torch.testing.assert_close(got[i : i + 1], editor.imagine(some, SPEC, one[None]))
    start = params()
    unchanged = editor(start, SPEC, 0 * maps)
    assert all(torch.equal(unchanged[name], start[name]) for name in start)


@pytest.mark.parametrize("seed", range(3))
def test_permutations_and_signs_pass_through(editor, seed):
    double, start = editor.double(), params(dtype=torch.float64)
    transform = random_transform(siren_graph(SPEC), torch.Generator().manual_seed(seed))
    given = shares().double()
    one = transform.apply(double(start, SPEC, given))
    other = double(transform.apply(start), SPEC, given)
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=1e-9)
    assert (one["layers.1.weight"] - start["layers.1.weight"]).abs().max() > 1e-3


def test_a_mask_of_every_picture_is_filled_like_one_of_all():
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    masks = torch.stack([REGION, REGION.mT])[:, None]
    got = harmonic(images, masks)
    for i in range(2):
        expected = inpaint(images[i : i + 1], 1.0, mask=masks[i, 0])
        torch.testing.assert_close(got[i : i + 1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("midpoints", [False, True])
def test_copies_reach_what_is_imagined(editor, weights, midpoints):
    edit = LearnedInpaint(REGION, weights, copies=2, midpoints=midpoints)
    edit.check(SPEC, (SIDE, SIDE))
    before = params()
    wide = edit.apply(before, SPEC, 1.0)
    spec = dataclasses.replace(SPEC, hidden=(32, 28))
    wanted = editor.imagine(before, SPEC, shares()).mT.reshape(3, 1, SIDE, SIDE)
    start = (render(before, SPEC, SIDE, SIDE) - wanted).square().mean()
    assert (render(wide, spec, SIDE, SIDE) - wanted).square().mean() < 0.7 * start
    assert all(torch.equal(before[name], value) for name, value in params().items())


def test_an_edit_is_the_editors(editor, weights):
    got = LearnedInpaint(REGION, weights).apply(params(), SPEC, 0.5)
    for name, value in editor(params(), SPEC, shares(0.5)).items():
        torch.testing.assert_close(got[name], value)


def test_what_cannot_be(weights):
    for region, message in (
        (REGION[:, :7], r"mask must have the images' size \(8, 8\), got \(8, 7\)"),
        (torch.ones_like(REGION), "mask must leave a pixel"),
    ):
        with pytest.raises(ValueError, match=message):
            LearnedInpaint(region, weights).check(SPEC, (SIDE, SIDE))
    with pytest.raises(TypeError, match="mask must be boolean"):
        LearnedInpaint(REGION.float(), weights).check(SPEC, (SIDE, SIDE))
    with pytest.raises(ValueError, match="spec must be that of an editor for inpaint"):
        LearnedInpaint(REGION).check(SPEC, (SIDE, SIDE))
    with pytest.raises(ValueError, match="strength of inpaint must not be negative"):
        LearnedInpaint(REGION, weights).apply(params(), SPEC, -0.5)
    with pytest.warns(UserWarning, match="strength of inpaint: trained up to 1, got 1.5"):
        LearnedInpaint(REGION, weights).apply(params(), SPEC, 1.5)
    with pytest.raises(ValueError, match="copies must be one of"):
        LearnedInpaint(REGION, weights, copies=3)
    assert weights_kind(weights) == "inpainting editor"
    with pytest.raises(ValueError, match=r"expected .*'editor'.*got .*'inpainting editor'"):
        LearnedEditor.from_pretrained(weights)


def test_what_belongs_in_the_region_is_not_known():
    images = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for scale in (1, 2):
        fine = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        known = torch.ones_like(fine[:1, :1], dtype=torch.bool)
        truth = Truth(fine, known, scale).after(LearnedInpaint(REGION), 1.0)
        open_region = REGION.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        assert torch.equal(truth.known[0, 0], ~open_region)
        assert torch.equal(truth.images[..., ~open_region], fine[..., ~open_region])
        assert not truth.differs(Truth(fine, known, scale))
        assert truth.differs(Truth(fine + 1, known, scale))


def test_a_blend_with_a_guess_is_not_known_there_either():
    images = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    truth, guess = Truth.of_images(images), LearnedInpaint(REGION)
    blends = [Blend(guess, EDITS["invert"], 1.0, 0.5), Blend(EDITS["invert"], guess, 1.0, 0.5)]
    for blend in blends:
        assert torch.equal(truth.after(blend, 1.0).known[0, 0], ~REGION)
    assert Blend(EDITS["invert"], EDITS["invert"], 1.0, 0.5).guessed is None
    assert torch.equal(
        Blend(guess, LearnedInpaint(REGION.mT), 1.0, 0.5).guessed, REGION | REGION.mT
    )


def step(**changes):
    return EditStep(edit="inpaint", strength=1.0, mask=BOX, **changes)


def route(which, spec=None, size=28):
    return resolve(which, EDITS, spec=spec or SirenSpec(), image_size=(size, size))


def test_recipes_ask_for_a_guess():
    found = route(step(mechanism="learned"))
    assert isinstance(found, LearnedInpaint)
    assert (found.name, found.unit, found.mechanism) == (
        "inpaint",
        EDITS["inpaint"].unit,
        "learned",
    )
    wide = route(step(copies=2, midpoints=True))
    assert (wide.copies, wide.midpoints) == (2, True)
    assert route(step()).mechanism == "refit"
    with pytest.raises(
        ValueError, match=r"inpaint must be one of \['learned', 'refit', 'learned r"
    ):
        route(step(mechanism="closed form"))
    with pytest.raises(ValueError, match="spec must be"):
        route(step(mechanism="learned"), SPEC, SIDE)


def test_a_report_has_errors_where_there_is_a_truth(weights, monkeypatch, tmp_path):
    monkeypatch.setattr("scalegmn_opt.editors.inpainting.INPAINTER", str(weights))
    images = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    store = fit_store(images, ("a", "b"), SPEC, generator=generator, steps=5, progress=False)
    recipe = EditRecipe(name="r", edits=[step(mechanism="learned")])
    report = measure(store, recipe, EDITS, images=images, curve=True)
    assert report.steps[0].as_dict()["guesses"]
    assert report.steps[0].curve is None
    write_report(report, tmp_path / "out", source="images")
    assert "nobody knows" in (tmp_path / "out" / "report.md").read_text()
    error = (report.edited - images)[..., ~REGION].square().mean().item()
    assert report.total.mse == pytest.approx(error, rel=1e-4)
    assert report.total.share_removed is None  # nothing was to change there
    assert torch.equal(report.difference[..., REGION], torch.zeros(2, 1, 9))
    inverted = EditRecipe(name="r", edits=[*recipe.edits, EditStep(edit="invert", strength=1.0)])
    report = measure(store, inverted, EDITS, images=images)
    assert report.total.share_removed is not None
    assert [s.guesses for s in report.steps] == [True, False]
