"""The recipes that come with the package."""

import pytest
import torch
from pydantic import BaseModel

from scalegmn_opt.editors import EDITS, EditRecipe, EditStep, LearnedEditor, apply_recipe
from scalegmn_opt.editors.training import EditorRecipe
from scalegmn_opt.inr import SirenSpec, initial_parameters, render
from scalegmn_opt.meta import EvolutionStrategies, PersistentES, TruncatedBackprop
from scalegmn_opt.meta.recipe import RuleRecipe, TrainerOptions
from scalegmn_opt.recipe import load_recipe, packaged_recipes
from scalegmn_opt.tasks import SuiteRecipe, resolve_suite

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


def test_dilation_at_full_strength():
    assert load_recipe("dilate", EditRecipe).edits == [EditStep(edit="dilate", strength=1.0)]


@pytest.mark.parametrize("name", ["general_rule", "demo_rule"])
def test_recipes_of_rules_make_an_objective(name):
    recipe = load_recipe(name, RuleRecipe)
    objective = recipe.build(resolve_suite(recipe.suite))
    loss, _ = objective(objective.new_worker(recipe.seed))
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("estimator", "kind"),
    [
        ("truncated-backprop", TruncatedBackprop),
        ("es", EvolutionStrategies),
        ("pes", PersistentES),
    ],
)
def test_a_recipe_names_its_estimator_and_objective(estimator, kind):
    recipe = RuleRecipe(
        kind="rule",
        name="mine",
        suite="quadratic",
        estimator=estimator,
        objective="mean",
        batches="validation",
        networks=3,
        trainer=TrainerOptions(steps=1),
    )
    objective = recipe.build(resolve_suite(recipe.suite))
    assert type(objective) is kind
    assert objective.aim == "mean"
    assert objective.options.validation
    assert objective.options.networks == 3


def test_the_recipe_of_the_editor():
    recipe = load_recipe("dilate_editor", EditorRecipe)
    assert recipe.edit == "dilate"
    assert LearnedEditor(**recipe.editor.model_dump()).config == recipe.editor.model_dump()


class _Kind(BaseModel):
    kind: str | None = None


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_recipe_satisfies_its_schema(name):
    schemas = {None: EditRecipe, "rule": RuleRecipe, "editor": EditorRecipe, "suite": SuiteRecipe}
    loaded = load_recipe(name, schemas[load_recipe(name, _Kind).kind])
    assert loaded.name.replace("-", "_") == name
    assert loaded.description


def test_names_with_and_without_suffix():
    assert load_recipe("invert.yaml", EditRecipe) == load_recipe("invert", EditRecipe)


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
