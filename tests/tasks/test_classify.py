"""Classification with perceptrons."""

import pytest
import torch
from torch import nn

from scalegmn_opt.meta import Task
from scalegmn_opt.symmetry import verify
from scalegmn_opt.tasks import Dataset, MLPClassification, digits


@pytest.fixture(scope="module")
def data():
    return digits()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_training_lowers_loss_and_raises_accuracy(data):
    task, generator = MLPClassification(data), seeded()
    params = task.init(generator)
    loss, accuracy = task.evaluate(params, "validation")
    assert 1.5 < loss < 3
    assert accuracy < 0.4
    for _ in range(300):
        grads = torch.func.grad(task.loss)(params, task.batch(generator))
        params = {name: p - 0.5 * grads[name] for name, p in params.items()}
    loss, accuracy = task.evaluate(params, "validation")
    assert loss < 0.5
    assert accuracy > 0.9
    assert task.evaluate(params, "training")[1] > task.evaluate(params, "test")[1]


def test_it_is_a_task_whose_symmetries_hold(data):
    task = MLPClassification(data, hidden=(6, 5))
    assert isinstance(task, Task)
    assert verify(task.module, task.graph, task.example_inputs).ok
    assert any(group.symmetry.rescales for group in task.graph.groups)


def test_tasks_of_one_architecture_share_a_graph(data):
    first, second = (MLPClassification(data, hidden=(7,)) for _ in range(2))
    assert first.graph is second.graph
    assert first.graph != MLPClassification(data, hidden=(8,)).graph
    assert first.graph != MLPClassification(data, hidden=(7,), activation=nn.GELU).graph


def test_batches_come_from_the_training_part_only(data):
    task = MLPClassification(data, batch_size=64)
    known = {
        tuple(x): int(y)
        for x, y in zip(data.train_inputs.tolist(), data.train_targets, strict=True)
    }
    generator = seeded()
    for _ in range(5):
        inputs, targets = task.batch(generator)
        assert inputs.shape == (64, 64)
        assert [known[tuple(x)] for x in inputs.tolist()] == targets.tolist()
    assert not torch.equal(inputs, task.batch(generator)[0])
    assert torch.equal(task.batch(seeded(5))[0], task.batch(seeded(5))[0])


def test_labels_choose_and_order_the_classes(data):
    task = MLPClassification(data, labels=(7, 2, 5))
    assert task.init(seeded())["2.bias"].shape == (3,)
    inputs, targets = task.batch(seeded())
    known = {
        tuple(x): int(y)
        for x, y in zip(data.train_inputs.tolist(), data.train_targets, strict=True)
    }
    originals = [known[tuple(x)] for x in inputs.tolist()]
    assert originals == [(7, 2, 5)[t] for t in targets]
    assert set(originals) == {7, 2, 5}


def test_evaluate_counts_only_the_chosen_classes(data):
    task = MLPClassification(data, labels=(0, 1), hidden=())
    params = {"0.weight": torch.zeros(2, 64), "0.bias": torch.tensor([9.0, 0.0])}
    share = float((data.test_targets == 0).sum() / (data.test_targets <= 1).sum())
    loss, accuracy = task.evaluate(params, "test")
    assert accuracy.item() == pytest.approx(share)
    assert loss.item() == pytest.approx((1 - share) * 9, abs=1e-3)


def test_projection_changes_dimension_and_input_rms(data):
    projection = torch.randn(64, 20, generator=seeded())
    task = MLPClassification(data, projection=projection)
    assert task.init(seeded())["0.weight"].shape == (32, 20)
    expected = (data.train_inputs[:256] @ projection).square().mean().sqrt()
    assert task.input_rms == pytest.approx(float(expected), rel=1e-5)
    whole = (data.train_inputs @ projection).square().mean().sqrt()
    assert task.input_rms == pytest.approx(float(whole), rel=0.05)


def test_reparametrised_initialisation_is_the_same_function(data):
    plain = MLPClassification(data, hidden=(16, 16))
    spread = MLPClassification(data, hidden=(16, 16), init_spread=0.5)
    a, b = plain.init(seeded()), spread.init(seeded())
    inputs = data.test_inputs
    torch.testing.assert_close(
        spread.forward(b, inputs).sort().values,
        plain.forward(a, inputs).sort().values,
        rtol=1e-4,
        atol=1e-5,
    )
    norms_a, norms_b = (p["0.weight"].norm(dim=1).log() for p in (a, b))
    assert norms_a.std() < 0.2
    assert 0.25 < norms_b.std() < 0.9


def test_building_a_task_leaves_the_global_random_state_alone(data):
    state = torch.get_rng_state()
    task = MLPClassification(data, hidden=(9,))
    task.init(seeded())
    assert task.graph.blocks
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"hidden": (4, 0)}, "hidden"),
        ({"projection": torch.zeros(63, 4)}, r"projection.*\(64, dims\).*\(63, 4\)"),
        ({"labels": (3,)}, "labels"),
        ({"labels": (3, 3)}, "labels"),
        ({"labels": (3, 10)}, r"0\.\.9"),
        ({"init_spread": -1.0}, "init_spread"),
        ({"init_spread": float("nan")}, "init_spread"),
    ],
)
def test_wrong_options(data, options, message):
    with pytest.raises(ValueError, match=message):
        MLPClassification(data, **options)


def test_wrong_split(data):
    task = MLPClassification(data)
    with pytest.raises(ValueError, match="unknown split 'train'"):
        task.evaluate(task.init(seeded()), "train")


def test_inputs_of_double_precision():
    x, y = torch.randn(8, 3, generator=seeded()).double(), torch.arange(8) % 2
    data = Dataset(x, y, x, y, x, y, classes=2, name="double")
    task = MLPClassification(data, projection=torch.randn(3, 2, generator=seeded()))
    assert task.batch(seeded())[0].dtype == torch.float64
    loss = task.loss(task.init(seeded()), task.batch(seeded()))
    assert loss.dtype == torch.float64
