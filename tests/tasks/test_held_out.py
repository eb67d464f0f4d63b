"""The tasks of the evaluation."""

import numpy as np
import pytest
import torch
from torch import nn

from scalegmn_opt.meta.evaluate import EvaluatedTask
from scalegmn_opt.meta.recipe import RuleRecipe
from scalegmn_opt.recipe import load_recipe
from scalegmn_opt.tasks import HELD_OUT, SuiteRecipe, held_out_task
from scalegmn_opt.tasks.sampling import draw_tasks


@pytest.fixture(scope="module")
def mnist_file(tmp_path_factory):
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "mnist.npz"
    np.savez(
        path,
        x_train=random.integers(0, 256, (60, 28, 28), dtype=np.uint8),
        y_train=np.arange(60, dtype=np.uint8) % 10,
        x_test=random.integers(0, 256, (12, 28, 28), dtype=np.uint8),
        y_test=np.arange(12, dtype=np.uint8) % 10,
    )
    return path


@pytest.mark.parametrize("name", sorted(HELD_OUT))
def test_every_held_out_task_can_be_trained_and_evaluated(name, mnist_file):
    held_out = held_out_task(name)
    task = held_out.make(mnist_file)
    assert isinstance(task, EvaluatedTask)
    generator = torch.Generator().manual_seed(0)
    params = task.init(generator)
    grads = torch.func.grad(task.loss)(params, task.batch(generator))
    assert all(grad.isfinite().all() and grad.any() for grad in grads.values())
    assert set(params) == set(task.graph.parameters)
    if name != "text-transformer":  # a large test part
        assert task.evaluate(params, "validation")[0].isfinite()
    assert held_out.steps == (5000 if name == "digits-long" else 500)


def shapes(name, mnist_file):
    task = held_out_task(name).make(mnist_file)
    return [tuple(p.shape) for p in task.module.parameters() if p.ndim >= 2]


def test_networks_are_those_announced(mnist_file):
    assert shapes("mnist-128-128", mnist_file) == [(128, 784), (128, 128), (10, 128)]
    assert shapes("mnist-256-tanh", mnist_file) == [(256, 784), (10, 256)]
    assert len(shapes("digits-5-layers", mnist_file)) == 6
    assert [s[0] for s in shapes("mnist-cnn", mnist_file)] == [8, 16, 32, 10]
    module = held_out_task("mnist-cnn-batchnorm").make(mnist_file).module
    assert sum(isinstance(m, nn.BatchNorm2d) for m in module) == 3
    assert shapes("mnist-autoencoder", mnist_file)[-1] == (784, 128)


def test_the_rescaled_start_is_the_same_function(mnist_file):
    plain, rescaled = (held_out_task(n).make(mnist_file) for n in ("mnist-64", "mnist-64-rescaled"))
    a, b = (task.init(torch.Generator().manual_seed(0)) for task in (plain, rescaled))
    spread = (b["0.weight"].norm(dim=1) / a["0.weight"].norm(dim=1).mean()).log().std()
    assert 0.6 < spread < 1.5
    x = plain.dataset.test_inputs
    torch.testing.assert_close(plain.forward(a, x), rescaled.forward(b, x), rtol=1e-3, atol=1e-4)


def test_data_may_be_the_folder_of_the_file(mnist_file):
    assert held_out_task("mnist-64").make(mnist_file.parent).dataset.name == "mnist"


def test_no_training_family_is_a_held_out_task():
    """Deeper, on photos as pictures, or on late text: none of these in a training split."""
    for name in ("tiny", "mlp", "vision", "mixed", "plain", "apart"):
        for family in load_recipe(f"{name}_suite", SuiteRecipe).training:
            assert family.data not in ("photo-picture", "text-late")
            assert not family.depth[0] <= 5 <= family.depth[1]
            if "cnn" in family.model:
                assert family.depth[1] <= 2
            if family.model == "transformer":
                assert family.depth[1] == 1


HELD_OUT_SIZES = {  # kind of network -> depths: hidden layers, stages or blocks
    "mlp": {1, 2, 5},
    "autoencoder": {1},  # hidden layers before the code
    "cnn": {3},
    "cnn-batchnorm": {3},
    "siren": {2},
    "transformer": {2},
}
WIDTHS = {8, 16, 32, 64, 128, 256}
NEVER = {"digits", "moved-digits", "digit-picture", "patches", "photo-picture", "text", "text-late"}


def test_held_out_widths_are_all_known(mnist_file):
    """Every hidden layer of the tasks has a width of ``WIDTHS``, but for attention's own."""
    for name in set(HELD_OUT) - {"text-transformer"}:
        outputs = [s[0] for s in shapes(name, mnist_file)]
        assert set(outputs[:-1]) <= WIDTHS, name
    assert held_out_task("text-transformer").make(mnist_file).module.logits.in_features in WIDTHS


@pytest.mark.parametrize("name", ["general_rule", "permutation_rule", "no_graph_rule"])
def test_packaged_rules_are_made_on_the_suite_apart(name):
    assert load_recipe(name, RuleRecipe).suite == "apart"


def drawn_widths(family):
    """Widths of hidden layers of networks of the family."""
    for seed in range(12):
        module = draw_tasks(family, 1, generator=torch.Generator().manual_seed(seed))[0].module
        if family.model == "transformer":
            yield module.logits.in_features
            continue
        weights = [p for p in module.parameters() if p.ndim >= 2]
        yield from (len(w) for w in weights[:-1])


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=f"{split}-{number}-{family.name}")
        for split in ("training", "validation", "test")
        for number, family in enumerate(getattr(load_recipe("apart_suite", SuiteRecipe), split))
    ],
)
def test_the_suite_apart_shares_no_data_set_width_or_depth_with_held_out_tasks(family):
    assert family.data not in NEVER
    assert not set(range(family.depth[0], family.depth[1] + 1)) & HELD_OUT_SIZES.get(
        family.model, set()
    )
    assert not set(drawn_widths(family)) & WIDTHS
