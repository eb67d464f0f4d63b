"""Recipes of edits, applied in order, each by its cheapest mechanism."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from scalegmn_opt.editors import (
    EDITS,
    Edit,
    EditRecipe,
    EditStep,
    PixelEdit,
    Refit,
    Shift,
    edit,
    resolve,
)
from scalegmn_opt.editors.closed_form import Crop, Gain
from scalegmn_opt.editors.merge import merge
from scalegmn_opt.editors.targets import blur
from scalegmn_opt.inr import Adam, SirenSpec, initial_parameters, render

SPEC, SIZE = SirenSpec(hidden=(6, 5)), (7, 8)
BLUR = {"edit": "blur", "strength": 1.0}


class Doubled(Edit):
    """Stands for a trained editor of one kind of network: it doubles the hidden width."""

    name, unit, mechanism = "blur", "standard deviation in pixels", "learned"

    def target(self, images, strength):
        return blur(images, strength)

    def apply(self, params, spec, strength):
        return merge([params, params], [0.5, 0.5 + strength])

    def check(self, spec, image_size):
        if spec != SPEC:
            raise ValueError(f"spec must be {SPEC}, got {spec}")


def params(spec=SPEC):
    return initial_parameters(spec, 2, torch.Generator().manual_seed(0))


def recipe(*steps):
    return EditRecipe(name="test", edits=[EditStep(**step) for step in steps])


def run(*steps):
    return edit(params(), recipe(*steps), spec=SPEC, image_size=SIZE)[0]


def route(step, edits=EDITS, spec=SPEC, **options):
    return resolve(EditStep(**step), edits, spec=spec, image_size=SIZE, **options)


def test_edits_are_applied_in_order():
    start = params()
    kept = {name: value.clone() for name, value in start.items()}
    one = {"edit": "brightness", "strength": 0.2}
    two = {"edit": "contrast", "strength": 1.0}
    got, spec = edit(start, recipe(one, two), spec=SPEC, image_size=SIZE)
    assert spec == SPEC
    expected = EDITS["contrast"].apply(EDITS["brightness"].apply(start, SPEC, 0.2), SPEC, 1.0)
    assert all(torch.equal(got[name], expected[name]) for name in got)
    swapped = run(two, one)
    bias = f"layers.{SPEC.last_layer}.bias"
    torch.testing.assert_close(got[bias] - swapped[bias], torch.full_like(got[bias], 0.2))
    assert all(torch.equal(start[name], kept[name]) for name in start)


def test_a_recipe_by_name_and_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nedits: [{edit: invert, strength: 1.0}]\n")
    expected = EDITS["invert"].apply(params(), SPEC, 1.0)
    for given in ("invert", path, str(path)):
        got, _ = edit(params(), given, spec=SPEC, image_size=SIZE)
        assert all(torch.equal(got[name], expected[name]) for name in got)


def test_options_reach_their_edit():
    got = run({"edit": "shift", "strength": 0.3, "angle": 70.0})
    expected = Shift(angle=70.0).apply(params(), SPEC, 0.3)
    assert all(torch.equal(got[name], expected[name]) for name in got)
    assert EDITS["shift"].angle == 0.0
    box = (0.1, 0.2, 0.6, 0.9)
    assert route({"edit": "crop", "strength": 1.0, "box": box}) == Crop(box=box)
    assert route({"edit": "gain", "strength": 1.0, "channel": "blue"}) == Gain(channel="blue")


def test_edits_come_from_the_mapping_given():
    with pytest.raises(ValueError, match=r"unknown edit 'brightness'; choose from \['contrast'\]"):
        route({"edit": "brightness", "strength": 0.2}, {"contrast": EDITS["contrast"]})


@pytest.mark.parametrize(
    ("step", "spec", "mechanism"),
    [
        ({"edit": "rotate", "strength": 5.0}, SPEC, "closed form"),
        ({"edit": "rotate", "strength": 5.0, "mechanism": "closed form"}, SPEC, "closed form"),
        ({"edit": "rotate", "strength": 5.0, "mechanism": "refit"}, SPEC, "refit"),
        ({"edit": "rotate", "strength": 5.0, "mask": (0, 0, 1, 0.5)}, SPEC, "refit"),
        ({"edit": "blur", "strength": 1.0}, SPEC, "learned"),
        ({"edit": "blur", "strength": 1.0}, SirenSpec(), "refit"),
        ({"edit": "blur", "strength": 1.0, "mechanism": "learned"}, SPEC, "learned"),
        ({"edit": "blur", "strength": 1.0, "mechanism": "refit"}, SPEC, "refit"),
        ({"edit": "blur", "strength": 1.0, "mask": (0, 0, 1, 0.5)}, SPEC, "refit"),
        ({"edit": "erode", "strength": 1.0}, SPEC, "refit"),
        ({"edit": "inpaint", "strength": 1.0, "mask": (0, 0, 1, 0.5)}, SPEC, "refit"),
        ({"edit": "blur", "strength": 1.0, "mechanism": "learned refit"}, SPEC, "learned refit"),
        (
            {
                "edit": "inpaint",
                "strength": 1.0,
                "mask": (0, 0, 1, 0.5),
                "mechanism": "learned refit",
            },
            SPEC,
            "learned refit",
        ),
    ],
)
def test_the_cheapest_mechanism_that_there_is(step, spec, mechanism):
    edits = {**EDITS, "blur": Doubled(), "erode": PixelEdit("erode", "x", blur)}
    found = route(step, edits, spec)
    assert found.mechanism == mechanism
    assert isinstance(found, Refit) == ("refit" in mechanism)
    assert found.name == step["edit"]


@pytest.mark.parametrize(
    ("step", "spec", "match"),
    [
        (
            {"edit": "rotate", "mechanism": "learned"},
            SPEC,
            r"\['closed form', 'refit', 'learned refit'\], got 'le",
        ),
        (
            {"edit": "blur", "mechanism": "closed form"},
            SPEC,
            r"\['learned', 'refit', .*\], got 'clos",
        ),
        ({"edit": "blur", "mechanism": "learned"}, SirenSpec(), "spec must be"),
        (
            {"edit": "erode", "mechanism": "learned"},
            SPEC,
            r"of erode must be one of \['refit', 'learned refit'\]",
        ),
        (
            {"edit": "rotate", "mechanism": "closed form", "mask": (0, 0, 1, 0.5)},
            SPEC,
            r"rotate with a mask must be one of \['refit', 'learned refit'\]",
        ),
        ({"edit": "inpaint"}, SPEC, "mask of inpaint must be given"),
    ],
)
def test_mechanisms_that_there_are_not(step, spec, match):
    edits = {**EDITS, "blur": Doubled(), "erode": PixelEdit("erode", "x", blur)}
    with pytest.raises(ValueError, match=match):
        route({"strength": 1.0, **step}, edits, spec)


def test_networks_that_become_wider_go_on(monkeypatch):
    monkeypatch.setitem(EDITS, "blur", Doubled())
    steps = recipe({"edit": "blur", "strength": 0.25}, {"edit": "invert", "strength": 1.0})
    got, spec = edit(params(), steps, spec=SPEC, image_size=SIZE)
    assert spec == SirenSpec(hidden=(12, 10))
    expected = 1 - 1.25 * render(params(), SPEC, *SIZE)
    torch.testing.assert_close(render(got, spec, *SIZE), expected, rtol=0, atol=1e-5)


def test_a_refit_has_the_steps_and_the_optimizer_given():
    optimizer = Adam(learning_rate=1e-3)
    step = {"edit": "invert", "strength": 1.0, "mechanism": "refit", "steps": 7}
    found = route(step, optimizer=optimizer)
    assert (found.steps, found.optimizer) == (7, optimizer)
    assert route({**step, "steps": None}).steps == 50


def test_a_mask_image_has_the_pictures_size(tmp_path):
    np.save(tmp_path / "mask.npy", np.eye(8)[:7])
    step = {"edit": "invert", "strength": 1.0, "mask": str(tmp_path / "mask.npy")}
    assert torch.equal(route(step).mask, torch.eye(8)[:7])
    np.save(tmp_path / "mask.npy", np.eye(8))
    with pytest.raises(ValueError, match=r"pictures' size \(7, 8\), got \(8, 8\) in .*mask\.npy"):
        route(step)
    with pytest.raises(FileNotFoundError, match="none"):
        route({**step, "mask": "none.png"})


@pytest.mark.parametrize(
    ("step", "match"),
    [
        ({"edit": "rotate", "strength": 1.0, "angle": 3.0}, "takes no angle.*flip, shear, shift"),
        ({"edit": "rotate", "strength": 1.0, "channel": "red"}, "takes no channel.*: gain"),
        ({"edit": "gain", "strength": 1.0, "channel": "rot"}, "unknown channel 'rot'"),
        ({"edit": "rotate", "strength": 1.0, "box": (0, 0, 1, 1)}, "takes no box.*: crop"),
        ({"edit": "crop", "strength": 1.0, "box": (0.5, 0, 0.5, 1)}, "box must be left, top"),
        ({"edit": "invert", "strength": 1.0, "mask": (0, 0, 1, 2)}, "mask must be left, top"),
        ({"edit": "invert", "strength": 1.0, "mask": (0, 0, 1)}, "mask"),
        ({"edit": "invert", "strength": 1.0, "mechanism": "magic"}, "unknown mechanism 'magic'"),
        ({"edit": "invert", "strength": 1.0, "steps": 3}, "add mechanism: refit"),
        ({"edit": "invert", "strength": 1.0, "mechanism": "refit", "steps": 0}, "greater"),
        ({"edit": "blur", "strength": 1.0, "copies": 3}, r"copies must be one of \(1, 2, 4, 8\)"),
        ({"edit": "rotate", "strength": 1.0, "midpoints": True}, "midpoints are those of a lea"),
        ({"edit": "rotate", "strength": 1.0, "copies": 2}, "those of a learned edit, one of"),
        ({"edit": "blur", "strength": 1.0, "copies": 2, "mask": (0, 0, 1, 1)}, "learned edit"),
        ({"edit": "blur", "strength": 1.0, "copies": 2, "mechanism": "refit"}, "learned edit"),
        ({**BLUR, "blend": {**BLUR, "weight": 1.5}}, "less than or equal to 1"),
        ({**BLUR, "blend": {**BLUR, "weight": -0.1}}, "greater than or equal to 0"),
        ({**BLUR, "blend": BLUR}, "weight"),
        ({**BLUR, "blend": {**BLUR, "weight": 0.5, "blend": {**BLUR, "weight": 0.5}}}, "of two"),
        ({"edit": "rotat", "strength": 1.0}, "did you mean 'rotate'"),
        ({"edit": "rotate", "strength": float("nan")}, "finite"),
        ({"edit": "rotate", "strength": "1"}, "valid number"),
        ({"edit": "rotate", "strength": True}, "valid number"),
        ({"edit": "rotate"}, "required"),
        ({"edit": "rotate", "strength": 1.0, "speed": 2}, "not permitted"),
        ({"edit": "shift", "strength": 1.0, "angle": float("inf")}, "finite"),
    ],
)
def test_steps_are_strict(step, match):
    with pytest.raises(ValidationError, match=match):
        EditStep(**step)


def test_a_recipe_has_a_name_and_edits():
    with pytest.raises(ValidationError, match="edits"):
        EditRecipe(name="empty", edits=[])
    with pytest.raises(ValidationError, match="name"):
        EditRecipe(name="", edits=[EditStep(edit="zoom", strength=1.0)])


def test_copies_of_a_learned_edit():
    spec = SirenSpec()
    for copies in (1, 2, 4, 8):
        options = {"spec": spec, "image_size": (28, 28)}
        step = EditStep(edit="dilate", strength=1.0, copies=copies)
        assert resolve(step, EDITS, **options).copies == copies
        same = EditRecipe(name="a", edits=[step.model_copy(update={"copies": None})])
        assert same.with_copies(copies).edits == [step]
    assert resolve(step.model_copy(update={"copies": None}), EDITS, **options).copies == 1
    for midpoints in (False, True):
        between = EditStep(edit="dilate", strength=1.0, midpoints=midpoints)
        assert resolve(between, EDITS, **options).midpoints == midpoints
    with pytest.raises(ValueError, match="spec must be that of an editor"):
        resolve(step, EDITS, spec=SPEC, image_size=(28, 28))


def test_copies_on_request_are_those_of_the_last_edit():
    first, last = EditStep(edit="rotate", strength=1.0), EditStep(edit="blur", strength=1.0)
    both = EditRecipe(name="a", edits=[first, last]).with_copies(4)
    assert both.edits == [first, EditStep(edit="blur", strength=1.0, copies=4)]
    with pytest.raises(ValueError, match=r"copies: .*learned edit"):
        EditRecipe(name="a", edits=[last, first]).with_copies(2)
    with pytest.raises(ValueError, match=r"copies: .*one of \(1, 2, 4, 8\), got 3"):
        EditRecipe(name="a", edits=[last]).with_copies(3)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_blend_of_two_edits_is_the_blend_of_their_pictures(weight):
    one = {"edit": "rotate", "strength": 40.0}
    other = {"edit": "invert", "strength": 0.8}
    edited, spec = edit(
        params(), recipe({**one, "blend": {**other, "weight": weight}}), spec=SPEC, image_size=SIZE
    )
    assert spec.hidden == (12, 10)
    expected = render(run(one), SPEC, *SIZE).lerp(render(run(other), SPEC, *SIZE), weight)
    torch.testing.assert_close(render(edited, spec, *SIZE), expected, atol=1e-5, rtol=0)


def test_a_blend_says_what_it_is():
    step = {**BLUR, "blend": {"edit": "invert", "strength": 0.5, "weight": 0.25}}
    assert EditStep(**step).title == "0.25 of invert 0.5 over blur"
    assert EditStep(**BLUR).title == "blur"
    found = route(step, {**EDITS, "blur": Doubled()})
    assert (found.name, found.unit) == ("blur, 0.25 of invert", Doubled.unit)
    assert found.mechanism == "learned + closed form"
    images = render(params(), SPEC, *SIZE)
    expected = 0.75 * blur(images, 1.0) + 0.25 * EDITS["invert"].target(images, 0.5)
    torch.testing.assert_close(found.target(images, 1.0), expected)
    with pytest.raises(ValueError, match="mechanism of invert"):
        route({**BLUR, "blend": {**step["blend"], "mechanism": "learned"}})


def test_a_learned_refit_has_eight_steps_or_those_given():
    assert route({**BLUR, "mechanism": "learned refit"}).steps == 8
    assert route({**BLUR, "mechanism": "learned refit", "steps": 3}).steps == 3
