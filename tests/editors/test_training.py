"""Training an editor: the objective, its workers and its recipe."""

import pytest
import torch
from accelerate import Accelerator

from scalegmn_opt.editors import InpaintingEditor, LearnedEditor
from scalegmn_opt.editors.learned import MEANINGS
from scalegmn_opt.editors.picture import one_hot
from scalegmn_opt.editors.targets import harmonic
from scalegmn_opt.editors.training import EditingObjective, EditorRecipe, resize
from scalegmn_opt.inr import SirenSpec, evaluate, fit_store, pixel_grid
from scalegmn_opt.meta import MetaTrainer
from scalegmn_opt.recipe import RecipeError, load_recipe

RECIPE = """
kind: editor
name: tiny
edits: {dilate: 1.0, blur: 1.0}
images: [digits]
count: 6
size: 8
editor: {picture_channels: 4, probes: 3, node_channels: 4, edge_channels: 2, hidden_channels: 8}
batch_size: 12
trainer: {steps: 120, workers: 1, lr: 0.01, checkpoint_every: 120}
"""


@pytest.fixture(scope="module")
def images():
    return (torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.7).float()


@pytest.fixture(scope="module")
def store(images):
    generator, spec = torch.Generator().manual_seed(0), SirenSpec(hidden=(8, 8))
    names = tuple("abcdef")
    return fit_store(images, names, spec, generator=generator, steps=60, progress=False)


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "tiny.yaml", EditorRecipe)


def test_training_teaches_every_edit(recipe, store, images, tmp_path):
    objective = recipe.objective(store, images)
    options = recipe.trainer.model_dump()
    trainer = MetaTrainer(
        objective, tmp_path, accelerator=Accelerator(cpu=True), progress=False, **options
    )
    trainer.train()
    assert (tmp_path / "weights.safetensors").is_file()
    editor = objective.editor
    for name in recipe.edits:
        given = one_hot(list(recipe.edits), name, torch.ones(6))
        target = MEANINGS[name][0](images, 1.0).flatten(2).mT
        with torch.no_grad():
            imagined = editor.imagine(store.params, store.spec, given)
        nothing = evaluate(store.params, store.spec, pixel_grid(8, 8))
        assert (imagined - target).square().mean() < 0.6 * (nothing - target).square().mean()


def test_the_average_of_the_weights_is_saved(recipe, store, images, tmp_path):
    objective = recipe.objective(store, images)
    before = {name: value.clone() for name, value in objective.editor.state_dict().items()}
    worker = objective.new_worker(0)
    objective(worker)  # the average begins here
    with torch.no_grad():
        for p in objective.editor.parameters():
            p += 1
    objective(worker)
    objective.save(tmp_path / "w.safetensors")
    saved = LearnedEditor.from_pretrained(tmp_path / "w.safetensors").state_dict()
    for name, value in before.items():
        torch.testing.assert_close(saved[name], value + 0.01, atol=1e-6, rtol=0)
    trained = [name for name, p in objective.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("editor.") for name in trained)


def test_the_rounds_are_trained_in_some_batches(recipe, store, images):
    objective = recipe.objective(store, images)
    worker, batches = objective.new_worker(0), []
    for _ in range(12):
        objective.zero_grad()
        objective(worker)[0].backward()
        batches.append(objective.editor.step.length.grad is not None)
    assert 0 < sum(batches) < len(batches)


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


def test_training_can_begin_with_trained_weights(recipe, store, images, tmp_path):
    first = recipe.objective(store, images)
    with torch.no_grad():
        for p in first.editor.parameters():
            p += 1
    first.editor.save_pretrained(tmp_path / "first.safetensors")
    again = recipe.model_copy(update={"start": str(tmp_path / "first.safetensors")})
    second = again.objective(store, images).editor.state_dict()
    for name, value in first.editor.state_dict().items():
        assert torch.equal(second[name], value)
    for changes, message in (
        ({"edits": {"blur": 1.0, "dilate": 1.0}}, r"start: expected edits \['blur', 'dilate'\]"),
        ({"editor": recipe.editor.model_copy(update={"probes": 4})}, "start: expected probes 4"),
    ):
        with pytest.raises(ValueError, match=message):
            again.model_copy(update=changes).objective(store, images)
    with pytest.raises(FileNotFoundError, match="no weights 'nothing'"):
        recipe.model_copy(update={"start": "nothing"}).objective(store, images)


def test_a_gradient_is_one_more_input_of_trained_weights(recipe, store, images, tmp_path):
    first = recipe.objective(store, images)
    first.editor.save_pretrained(tmp_path / "first.safetensors")
    size = recipe.editor.model_copy(update={"gradient": True})
    changes = {"start": str(tmp_path / "first.safetensors"), "editor": size}
    second = recipe.model_copy(update=changes).objective(store, images).editor
    given = torch.zeros(6, 2)
    given[:, 0] = 1.0
    with torch.no_grad():
        expected = first.editor(store.params, store.spec, given)
        for name, value in second(store.params, store.spec, given).items():
            torch.testing.assert_close(value, expected[name])
        for p in second.step.backbone.parameters():
            p += 0.1
        changed = second(store.params, store.spec, given)
    assert any(not torch.allclose(changed[name], expected[name]) for name in expected)
    second.save_pretrained(tmp_path / "second.safetensors")
    assert LearnedEditor.from_pretrained(tmp_path / "second.safetensors").config["gradient"]
    back = recipe.model_copy(update={"start": str(tmp_path / "second.safetensors")})
    with pytest.raises(ValueError, match="start: expected no gradient"):
        back.objective(store, images)


def test_steps_alone_can_be_trained(recipe, store, images, tmp_path):
    objective = recipe.model_copy(update={"trained": "steps"}).objective(store, images)
    loss, _ = objective(objective.new_worker(0))
    loss.backward()
    moved = {name for name, p in objective.editor.named_parameters() if p.grad is not None}
    assert any(name.startswith("step.") for name in moved)
    assert not any(name.startswith("picture.") for name in moved)


def test_pictures_alone_can_be_trained(recipe, store, images):
    objective = recipe.model_copy(update={"trained": "pictures"}).objective(store, images)
    worker = objective.new_worker(0)
    for _ in range(8):  # some would take rounds
        objective(worker)[0].backward()
    moved = {name for name, p in objective.editor.named_parameters() if p.grad is not None}
    assert any(name.startswith("picture.") for name in moved)
    assert not any(name.startswith("step.") for name in moved)


@pytest.fixture
def inpainting(recipe):
    changes = {"edits": {"inpaint": 1.0}, "trained": "pictures"}
    return recipe.model_copy(update=changes)


@pytest.mark.slow
def test_training_teaches_to_fill(inpainting, tmp_path):
    stripes = torch.stack([(torch.arange(8) + i) // 2 % 2 for i in range(6)])
    images = stripes[:, None, None].expand(-1, 1, 8, -1).float()
    generator, spec = torch.Generator().manual_seed(0), SirenSpec(hidden=(12, 12))
    store = fit_store(images, tuple("abcdef"), spec, generator=generator, progress=False)
    objective = inpainting.objective(store, images)
    options = inpainting.trainer.model_dump()
    trainer = MetaTrainer(
        objective, tmp_path, accelerator=Accelerator(cpu=True), progress=False, **options
    )
    trainer.train()
    editor = InpaintingEditor.from_pretrained(tmp_path / "weights.safetensors")
    region = torch.zeros(6, 8, 8)
    region[:, 3:6, 2:5] = 1.0
    with torch.no_grad():
        filled = editor.imagine(store.params, store.spec, region).mT.reshape(images.shape)
    inside = region[:, None] > 0
    smooth = harmonic(images, inside)
    errors = [(x - images)[inside].square().mean() for x in (filled, smooth)]
    assert errors[0] < 0.8 * errors[1]


def test_regions_to_fill_are_boxes_and_ellipses_of_all_places(inpainting, store, images):
    objective = inpainting.model_copy(update={"batch_size": 4000}).objective(store, images)
    _, regions, targets = objective._draw(torch.Generator().manual_seed(0))
    assert regions.shape == (4000, 8, 8)
    assert targets.shape == (4000, 64, 1)
    assert set(regions.unique().tolist()) == {0.0, 1.0}
    count = regions.sum((1, 2))
    assert count.min() == 1
    assert 10 < count.max() <= 16  # sides of up to 0.45
    assert (regions.amax(0) == 1).all()
    rows, columns = regions.amax(2), regions.amax(1)
    boxes = (rows[:, :, None] * columns[:, None] == regions).all(2).all(1)
    assert 0.5 < boxes.float().mean() < 0.9  # so coarse pictures make boxes of small ellipses, too
    assert torch.equal(regions[0], regions[3])
    assert len(torch.unique(regions, dim=0)) > 80


def test_inpainting_can_begin_with_the_steps_of_any_editor(recipe, inpainting, store, tmp_path):
    images = torch.zeros(6, 1, 8, 8)
    recipe.objective(store, images).editor.save_pretrained(tmp_path / "edits.safetensors")
    begun = inpainting.model_copy(update={"start": str(tmp_path / "edits.safetensors")})
    first = begun.objective(store, images).editor
    expected = LearnedEditor.from_pretrained(tmp_path / "edits.safetensors")
    for name, value in expected.step.state_dict().items():
        assert torch.equal(first.step.state_dict()[name], value)
    first.save_pretrained(tmp_path / "fills.safetensors")
    again = inpainting.model_copy(update={"start": str(tmp_path / "fills.safetensors"), "seed": 1})
    second = again.objective(store, images).editor.state_dict()
    assert all(torch.equal(second[name], value) for name, value in first.state_dict().items())
    size = recipe.editor.model_copy(update={"probes": 4})
    with pytest.raises(ValueError, match="start: expected probes 4, got 3"):
        begun.model_copy(update={"editor": size}).objective(store, images)
    with pytest.raises(ValueError, match=r"expected .*'editor'.*got .*'inpainting editor'"):
        recipe.model_copy(update={"start": again.start}).objective(store, images)


def test_images_networks_and_editor_must_fit(recipe, store, images):
    editor = recipe.objective(store, images).editor
    with pytest.raises(ValueError, match="images: expected 6, one for each network, got 5"):
        EditingObjective(editor, store=store, images=images[:5])
    with pytest.raises(ValueError, match=r"images: expected 8 pixels a side, got \(9, 9\)"):
        EditingObjective(editor, store=store, images=resize(images, 9))
    with pytest.raises(ValueError, match="batch_size: expected at least 2, one for each edit"):
        EditingObjective(editor, store=store, images=images, batch_size=1)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ("{invert: 1.0}", "unknown edit 'invert'; choose from"),
        ("{blur: 0.0}", "largest strength of blur must be positive"),
        ("{}", "at least 1"),
        ("{inpaint: 1.0, blur: 1.0}", "an editor that inpaints learns nothing else, up to 1"),
        ("{inpaint: 0.5}", "an editor that inpaints learns nothing else, up to 1"),
    ],
)
def test_edits_that_cannot_be_trained(tmp_path, edits, message):
    text = RECIPE.replace("{dilate: 1.0, blur: 1.0}", edits)
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "x.yaml", EditorRecipe)


def test_resize():
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert resize(images, 8) is images
    large = resize(images, 28)
    assert large.shape == (2, 1, 28, 28)
    assert large.min() >= 0
    assert large.max() <= 1


@pytest.mark.parametrize("kind", ["recipe", "inpainting"])
@pytest.mark.parametrize("trained", ["all", "pictures", "steps"])
def test_editors_are_trained_where_they_are(kind, trained, store, images, request, monkeypatch):
    """On the meta device, which refuses to mix with the CPU; it has no numbers to look at."""
    for name, number in {"item": 0.5, "__int__": 1, "__bool__": False}.items():
        monkeypatch.setattr(torch.Tensor, name, lambda _, number=number: number)
    monkeypatch.setattr("scalegmn_opt.editors.training._SHARE", 1.0)
    recipe = request.getfixturevalue(kind).model_copy(update={"trained": trained})
    objective = recipe.objective(store, images).to("meta")
    loss, _ = objective(objective.new_worker(0))
    loss.backward()
    found = {p.grad.device.type for p in objective.editor.parameters() if p.grad is not None}
    assert {loss.device.type} == found == {"meta"}
