"""Recipes of edits, applied in order."""

import pytest
import torch
from pydantic import ValidationError

from scalegmn_opt.editors import EDITS, EditRecipe, EditStep, Shift, apply_recipe, resolve
from scalegmn_opt.inr import SirenSpec, initial_parameters

SPEC = SirenSpec(hidden=(6, 5))


def params():
    return initial_parameters(SPEC, 2, torch.Generator().manual_seed(0))


def recipe(*steps):
    return EditRecipe(name="test", edits=[EditStep(**step) for step in steps])


def test_edits_are_applied_in_order():
    start = params()
    kept = {name: value.clone() for name, value in start.items()}
    one = {"edit": "brightness", "strength": 0.2}
    two = {"edit": "contrast", "strength": 1.0}
    got = apply_recipe(start, SPEC, recipe(one, two), EDITS)
    expected = EDITS["contrast"].apply(EDITS["brightness"].apply(start, SPEC, 0.2), SPEC, 1.0)
    assert all(torch.equal(got[name], expected[name]) for name in got)
    swapped = apply_recipe(start, SPEC, recipe(two, one), EDITS)
    bias = f"layers.{SPEC.last_layer}.bias"
    torch.testing.assert_close(got[bias] - swapped[bias], torch.full_like(got[bias], 0.2))
    assert all(torch.equal(start[name], kept[name]) for name in start)


def test_an_angle_reaches_its_edit():
    steps = recipe({"edit": "shift", "strength": 0.3, "angle": 70})
    got = apply_recipe(params(), SPEC, steps, EDITS)
    expected = Shift(angle=70.0).apply(params(), SPEC, 0.3)
    assert all(torch.equal(got[name], expected[name]) for name in got)
    assert EDITS["shift"].angle == 0.0


def test_edits_come_from_the_mapping_given():
    steps = recipe({"edit": "brightness", "strength": 0.2})
    with pytest.raises(ValueError, match=r"unknown edit 'brightness'; choose from \['contrast'\]"):
        apply_recipe(params(), SPEC, steps, {"contrast": EDITS["contrast"]})
    step = EditStep(edit="shift", strength=0.2, angle=10.0)
    with pytest.raises(ValueError, match="angle must be left out for shift"):
        resolve(step, {"shift": EDITS["rotate"]})


@pytest.mark.parametrize(
    ("step", "match"),
    [
        ({"edit": "rotate", "strength": 1.0, "angle": 3.0}, "takes no angle.*shift"),
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
