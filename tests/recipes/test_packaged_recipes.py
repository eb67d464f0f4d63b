"""The recipes that come with the package."""

import pytest
import torch
from pydantic import BaseModel

from scalegmn_opt.editors import EDITS, EditRecipe, apply_recipe
from scalegmn_opt.inr import SirenSpec, initial_parameters, render
from scalegmn_opt.recipe import load_recipe, packaged_recipes

SINGLE = ["brightness", "contrast", "invert", "rotate", "shift", "zoom"]
SPEC = SirenSpec(hidden=(8, 8))


def params():
    return initial_parameters(SPEC, 2, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*SINGLE, "tilted_negative"])
def test_recipes_change_pictures(name):
    recipe = load_recipe(name, EditRecipe)
    assert recipe.name == name
    assert recipe.description
    edited = apply_recipe(params(), SPEC, recipe, EDITS)
    assert not torch.allclose(render(edited, SPEC, 6, 6), render(params(), SPEC, 6, 6), atol=1e-2)


@pytest.mark.parametrize("name", SINGLE)
def test_a_recipe_for_every_closed_form_edit(name):
    assert [step.edit for step in load_recipe(name, EditRecipe).edits] == [name]


class _Step(BaseModel):
    edit: str
    strength: float


class _AnyEdits(BaseModel):
    """An edit recipe whose edits need not be in this table."""

    name: str
    edits: list[_Step]


def test_dilation_at_full_strength():
    assert load_recipe("dilate", _AnyEdits).edits == [_Step(edit="dilate", strength=1.0)]


def test_names_with_and_without_suffix():
    assert load_recipe("invert.yaml", EditRecipe) == load_recipe("invert", EditRecipe)
    assert {*SINGLE, "dilate", "tilted_negative"} <= set(packaged_recipes())


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    (tmp_path / "invert").write_text("name: mine\nedits: [{edit: zoom, strength: 1}]\n")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("invert", EditRecipe).name == "mine"


def test_an_unknown_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'inverse'.*'zoom'\]; did you mean 'invert'\?"):
        load_recipe("inverse", EditRecipe)
    with pytest.raises(FileNotFoundError, match=r"none\.yaml|none"):
        load_recipe(tmp_path / "none.yaml", EditRecipe)
    with pytest.raises(FileNotFoundError, match="path_or_name"):
        load_recipe(tmp_path, EditRecipe)
