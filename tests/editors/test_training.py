"""Training an editor: the objective, its workers and its recipe."""

import json

import pytest
import torch
from accelerate import Accelerator

from scalegmn_opt.editors import LearnedEditor, dilation
from scalegmn_opt.editors.training import EditingObjective, EditorRecipe, resize
from scalegmn_opt.inr import SirenSpec, evaluate, fit_store, pixel_grid
from scalegmn_opt.meta import MetaTrainer
from scalegmn_opt.recipe import RecipeError, load_recipe

RECIPE = """
kind: editor
name: tiny
edit: dilate
images: [digits]
count: 6
size: 8
editor: {probes: 4, node_channels: 6, edge_channels: 4, hidden_channels: 8, num_layers: 2}
batch_size: 12
trainer: {steps: 120, workers: 1, lr: 0.01, checkpoint_every: 120}
"""


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return resize(torch.rand(6, 1, 3, 3, generator=generator), 8)


@pytest.fixture(scope="module")
def store(images):
    generator, spec = torch.Generator().manual_seed(0), SirenSpec(hidden=(8, 8))
    names = tuple("abcdef")
    return fit_store(images, names, spec, generator=generator, steps=60, progress=False)


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "tiny.yaml", EditorRecipe)


def test_training_lowers_the_loss(recipe, store, images, tmp_path):
    objective = recipe.objective(store, images)
    options = recipe.trainer.model_dump()
    trainer = MetaTrainer(
        objective, tmp_path, accelerator=Accelerator(cpu=True), progress=False, **options
    )
    trainer.train()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    trained = LearnedEditor.from_pretrained(tmp_path / "weights.safetensors")
    strength = torch.ones(6)
    render = evaluate(trained(store.params, store.spec, strength), store.spec, pixel_grid(8, 8))
    target = dilation().target(images, 1.0).flatten(2).mT
    nothing = evaluate(store.params, store.spec, pixel_grid(8, 8))
    assert (render - target).square().mean() < 0.7 * (nothing - target).square().mean()


def test_a_worker_continues_exactly_from_its_state(recipe, store, images):
    objective = recipe.objective(store, images)
    worker, copy = objective.new_worker(3), objective.new_worker(4)
    assert not torch.equal(objective(worker)[0], objective(copy)[0])
    copy.load_state_dict(worker.state_dict())
    for _ in range(3):
        assert torch.equal(objective(worker)[0], objective(copy)[0])


def test_the_initial_editor_depends_on_the_seed_alone(recipe, store, images):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = recipe.objective(store, images).editor.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = recipe.objective(store, images).editor.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_images_and_networks_must_be_as_many(store, images):
    with pytest.raises(ValueError, match="images: expected 6, one for each network, got 5"):
        EditingObjective(LearnedEditor(), dilation(), store=store, images=images[:5])


def test_only_learned_edits_can_be_trained(tmp_path):
    (tmp_path / "x.yaml").write_text(RECIPE.replace("edit: dilate", "edit: invert"))
    with pytest.raises(RecipeError, match=r"unknown edit 'invert'; choose from \['dilate'\]"):
        load_recipe(tmp_path / "x.yaml", EditorRecipe)


def test_resize():
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert resize(images, 8) is images
    large = resize(images, 28)
    assert large.shape == (2, 1, 28, 28)
    assert large.min() >= 0
    assert large.max() <= 1
