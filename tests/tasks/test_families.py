"""Families of tasks and the suites of them that recipes describe."""

import pytest
import torch

from scalegmn_opt.graph import stack_parameters
from scalegmn_opt.meta.task import draw_batches, each_loss, stacked_losses
from scalegmn_opt.recipe import RecipeError, load_recipe, packaged_recipes
from scalegmn_opt.tasks import Family, FamilySuite, SuiteRecipe, family_suite, resolve_suite
from scalegmn_opt.tasks.families import ACTIVATIONS, MODELS
from scalegmn_opt.tasks.sampling import draw_tasks
from scalegmn_opt.tasks.sources import SOURCES

NAMED = ("apart", "mixed", "mlp", "plain", "tiny", "vision")
EVERY = {
    family.name: family
    for name in NAMED
    for recipe in [load_recipe(f"{name}_suite", SuiteRecipe)]
    for families in (recipe.training, recipe.validation, recipe.test)
    for family in families
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_tasks_of_every_packaged_family_stack_and_are_finite(name):
    generator = seeded(1)
    tasks = draw_tasks(EVERY[name], 2, generator=generator)
    params = stack_parameters([task.init(generator) for task in tasks])
    assert set(params) == set(tasks[0].graph.parameters)
    for validation in (False, True):
        batches = draw_batches(tasks, generator, validation=validation)
        losses = stacked_losses(tasks, params, batches)
        assert losses.isfinite().all()
        torch.testing.assert_close(losses, each_loss(tasks, params, batches), rtol=1e-4, atol=1e-4)


def test_every_model_and_data_set_is_in_a_packaged_suite():
    assert {family.model for family in EVERY.values()} == set(MODELS)
    assert {family.data for family in EVERY.values()} == set(SOURCES)


def test_no_packaged_suite_reads_mnist():
    assert not [name for name in SOURCES if "mnist" in name]
    found = {name.removesuffix("_suite") for name in packaged_recipes() if name.endswith("_suite")}
    assert found == set(NAMED)


def test_perceptrons_vary_in_all_that_is_promised():
    family = Family(data="digits", model="mlp")
    tasks = [draw_tasks(family, 1, generator=seeded(seed))[0] for seed in range(24)]
    inputs = [task.example_inputs[0].shape[1] for task in tasks]
    assert 4 <= min(inputs) <= 64
    assert 400 < max(inputs) <= 841
    widths = [p.shape[0] for t in tasks for p in t.module.parameters() if p.ndim == 2]
    assert max(widths) > 90
    assert {t.loss_name for t in tasks} == {"cross-entropy", "label-smoothing", "one-hot-squares"}
    assert {t.initialisation.scheme for t in tasks} == {None, "kaiming", "orthogonal", "xavier"}
    used = {type(m) for t in tasks for m in t.module if "Linear" not in str(m)}
    assert used == set(ACTIVATIONS.values())
    scales = [t.loss_scale for t in tasks]
    assert min(scales) < 0.5 < 2 < max(scales)
    assert len({t.dataset.classes for t in tasks}) > 5
    assert min(t.batch_size for t in tasks) < 24
    assert max(t.batch_size for t in tasks) > 90


def test_without_augmentation_a_task_is_as_its_data_set():
    family = Family(data="digits", model="mlp", augment=False, activations=("tanh",))
    task = draw_tasks(family, 1, generator=seeded())[0]
    assert task.projection is None
    assert task.loss_scale == 1.0
    assert task.loss_name == "cross-entropy"
    assert task.dataset.classes == 10
    assert task.initialisation.spread == task.initialisation.scale_spread == 0
    assert task.initialisation.scheme is None
    assert torch.equal(task.dataset.train_inputs[:1], task.example_inputs[0][:1])


def test_weights_decide_how_often_a_family_is_drawn():
    often = Family(data="wine", model="mlp", weight=9.0, inputs=(13, 13), augment=False)
    suite = FamilySuite([often, Family(data="diabetes", model="mlp", augment=False)])
    names = [suite.sample(seeded(s), 1)[0].dataset.name for s in range(16)]
    assert 11 <= names.count("wine") <= 15


def test_splits_are_named_and_disjoint():
    names = [
        {family.name for family in resolve_suite(name).families}
        for name in ("mlp", "mlp/validation", "mlp/test")
    ]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not names[1] & names[2]
    with pytest.raises(ValueError, match=r"unknown split 'dev'; choose from \['training'"):
        family_suite("mlp_suite", "dev")


SUITE = """kind: suite
name: mine
training: [{data: digits, model: mlp}]
validation: [{data: wine, model: mlp}]
test: [{data: TEST, model: MODEL}]
"""


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ("digits", "mlp", "families of more than one split: .'digits mlp'"),
        ("wines", "mlp", "unknown data set 'wines'.*did you mean 'wine'"),
        ("wine", "cnn", "'wine' fits the models .'autoencoder', 'mlp', 'residual-mlp'., got 'cnn'"),
        ("wine", "mlp, width: [9, 8]", "width: expected 1 <= smallest <= largest, got .9, 8."),
        ("wine", "residual-mlp, activations: []", "activations: expected at least one"),
        ("wine", "residual-mlp, activations: [rely]", "did you mean 'relu'"),
        ("wine", "residual-mlp, weight: 0", "weight"),
    ],
)
def test_mistakes_in_a_users_suite(tmp_path, data, model, message):
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE.replace("TEST", data).replace("MODEL", model))
    with pytest.raises(RecipeError, match=message):
        family_suite(path)


def test_a_users_suite_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE.replace("TEST", "diabetes").replace("MODEL", "mlp"))
    assert family_suite(path, "test").sample(seeded(), 2)[0].dataset.name == "diabetes"


def test_a_suite_needs_a_family_and_a_task():
    with pytest.raises(ValueError, match="families: expected at least one"):
        FamilySuite([])
    with pytest.raises(ValueError, match="count: expected a number of tasks >= 1, got 0"):
        resolve_suite("tiny").sample(seeded(), 0)
