"""Distributions of tasks and their names."""

import sys

import pytest
import torch

from scalegmn_opt.meta import Task, TaskSuite
from scalegmn_opt.tasks import SUITES, FamilySuite, digits, resolve_suite


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=sorted(name for name in SUITES if "/" not in name))
def suite(request):
    return resolve_suite(request.param)


def test_every_suite_samples_stackable_tasks_of_one_graph(suite):
    assert isinstance(suite, TaskSuite)
    for seed in range(4):
        generator = seeded(seed)
        tasks = suite.sample(generator, 3)
        assert len(tasks) == 3
        assert all(isinstance(task, Task) for task in tasks)
        assert len({task.graph for task in tasks}) == 1
        params = [task.init(generator) for task in tasks]
        batches = [task.batch(generator) for task in tasks]
        alone = [t.loss(p, b) for t, p, b in zip(tasks, params, batches, strict=True)]
        assert all(torch.isfinite(loss) for loss in alone)
        stacked = torch.utils._pytree.tree_map(lambda *x: torch.stack(x), *params)
        batch = torch.utils._pytree.tree_map(lambda *x: torch.stack(x), *batches)
        together = tasks[0].losses(stacked, batch)
        torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_every_suite_is_reproducible_and_varied(suite):
    def draw(seed):
        generator = seeded(seed)
        task = suite.sample(generator, 1)[0]
        return task.graph, float(task.loss(task.init(generator), task.batch(generator)))

    assert draw(4) == draw(4)
    assert len({draw(seed)[0] for seed in range(8)}) > 4


def test_tasks_of_one_sample_differ_in_their_data(suite):
    """But for those without augmentation on a fixed data set: other starts and batches alone."""
    generator = seeded()
    first, second = suite.sample(generator, 2)
    a, b = (torch.utils._pytree.tree_leaves(t.batch(seeded(1))) for t in (first, second))
    drawn = {
        *("moved-digits", "glyphs", "teacher", "teacher-regression", "words"),
        *("digit-picture", "glyph-picture", "leaves-picture"),
    }
    plain = isinstance(suite, FamilySuite) and not any(f.augment for f in suite.families)
    fixed = plain and first.dataset.name not in drawn
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) == fixed


@pytest.mark.parametrize("count", [0, -1])
def test_wrong_count(suite, count):
    with pytest.raises(ValueError, match="count"):
        suite.sample(seeded(), count)


def test_digits_suite_covers_its_ranges_and_never_sees_held_out_images():
    suite, data = resolve_suite("digits-mlp"), digits()
    sizes, activations, batch_sizes, scales = [], set(), [], []
    for seed in range(60):
        task = suite.sample(seeded(seed), 1)[0]
        sizes.append(task.sizes)
        activations.add(task.activation.__name__)
        batch_sizes.append(task.batch_size)
        scales.append(task.input_rms / float(data.train_inputs.square().mean().sqrt()))
        rows = {tuple(x) for x in task._train_inputs.tolist()}
        assert rows <= {tuple(x) for x in data.train_inputs.tolist()}
    assert all(16 <= s[0] <= 400 and 2 <= s[-1] <= 10 for s in sizes)
    assert {len(s) for s in sizes} == {3, 4, 5}
    assert all(8 <= width <= 64 for s in sizes for width in s[1:-1])
    assert min(s[0] for s in sizes) < 24
    assert max(s[0] for s in sizes) > 250
    assert activations == {"ReLU", "Tanh", "GELU", "LeakyReLU"}
    assert 16 <= min(batch_sizes) < 32 < 96 < max(batch_sizes) <= 128
    assert 0.3 < min(scales) < 0.8
    assert 1.3 < max(scales) < 3


def test_unknown_suite_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"unknown suite 'x'; choose from \['apart', 'apart/te"):
        resolve_suite("x")


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "user_suites.py").write_text(
        "class Fine:\n    def sample(self, generator, count):\n        return []\n"
        "class Wrong:\n    pass\n"
        "def make():\n    return Fine()\n"
        "def draw(generator, count):\n    return [generator.initial_seed()] * count\n"
    )
    (tmp_path / "broken_suites.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("user_suites", "broken_suites"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("user_module")
def test_a_users_suite_by_its_import_path():
    assert type(resolve_suite("user_suites:Fine")).__name__ == "Fine"
    assert type(resolve_suite("user_suites:make")).__name__ == "Fine"
    assert resolve_suite("user_suites:draw").sample(seeded(5), 2) == [5, 5]
    with pytest.raises(TypeError, match="got Wrong"):
        resolve_suite("user_suites:Wrong")
    with pytest.raises(
        ValueError, match=r"no 'Fein'; choose from \['Fine', 'Wrong', 'draw', 'make'\]"
    ):
        resolve_suite("user_suites:Fein")
    with pytest.raises(ValueError, match="no module 'no_such_suites'"):
        resolve_suite("no_such_suites:Fine")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        resolve_suite("broken_suites:Fine")


def test_a_users_suite_by_its_recipes_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "kind: suite\nname: mine\ntraining: [{data: wine, model: mlp}]\n"
        "validation: [{data: diabetes, model: mlp}]\ntest: [{data: digits, model: mlp}]\n"
    )
    assert [f.data for f in resolve_suite(str(path)).families] == ["wine"]
    assert [f.data for f in resolve_suite(f"{path}/validation").families] == ["diabetes"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        resolve_suite("nowhere.yaml")


@pytest.mark.parametrize("name", ["", ":Fine", "module:"])
def test_malformed_names(name):
    with pytest.raises(ValueError, match=r"package\.module:NAME"):
        resolve_suite(name)
