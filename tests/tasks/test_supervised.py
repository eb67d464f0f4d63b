"""Tasks on any module: losses, batches, initialisations, evaluation."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from scalegmn_opt.graph import stack_parameters
from scalegmn_opt.inr import SirenSpec
from scalegmn_opt.meta import HeldOutTask, StackedTask
from scalegmn_opt.meta.task import draw_batches, each_loss, stacked_losses
from scalegmn_opt.tasks import Initialisation, SupervisedTask, digits
from scalegmn_opt.tasks.models import CharTransformer, FreshSiren, conv_net, mlp, residual_mlp
from scalegmn_opt.tasks.sources import SOURCES, table, text
from scalegmn_opt.tasks.supervised import INITIALISATIONS, LOSSES


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def perceptron(**options):
    options = {"loss": "cross-entropy"} | options
    return SupervisedTask(digits(), mlp((64, 12, 10), nn.ReLU), **options)


def transformer_task():
    module = CharTransformer(96, 24, width=8, heads=2, depth=2)
    return SupervisedTask(text(late=False), module, loss="cross-entropy", batch_size=4)


TASKS = {
    "mlp": perceptron,
    "residual-mlp": lambda: SupervisedTask(
        table("diabetes"), residual_mlp(10, 8, 1, depth=2, activation=nn.Tanh), loss="huber"
    ),
    "cnn": lambda: SupervisedTask(
        digits(), conv_net((1, 8, 8), (4, 6), 10, activation=nn.GELU), loss="label-smoothing"
    ),
    "cnn-batchnorm": lambda: SupervisedTask(
        digits(),
        conv_net((1, 8, 8), (4, 6), 10, activation=nn.ReLU, norm=True),
        loss="one-hot-squares",
    ),
    "residual-cnn-1d": lambda: SupervisedTask(
        SOURCES["signals"].make(seeded(), 0),
        conv_net((1, 40), (4, 4), 10, activation=nn.ReLU, residual=True, norm=True),
        loss="cross-entropy",
    ),
    "transformer": transformer_task,
    "siren": lambda: SupervisedTask(
        SOURCES["photo-picture"].make(seeded(), 0),
        FreshSiren(SirenSpec(hidden=(8, 8), out_features=3)),
        loss="squares",
    ),
}


@pytest.fixture(params=sorted(TASKS))
def task(request):
    return TASKS[request.param]()


def test_all_networks_at_once_give_what_each_gives(task):
    assert isinstance(task, StackedTask)
    assert isinstance(task, HeldOutTask)
    generator, tasks = seeded(), [task] * 3
    params = stack_parameters([task.init(generator) for _ in tasks])
    params = {name: p.requires_grad_() for name, p in params.items()}
    batches = draw_batches(tasks, generator)
    together, alone = (f(tasks, params, batches) for f in (stacked_losses, each_loss))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    for a, b in zip(
        *(torch.autograd.grad(x.sum(), list(params.values())) for x in (together, alone)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_graph_knows_every_parameter(task):
    assert set(task.graph.parameters) == set(task.init(seeded()))


def test_gradient_descent_lowers_the_loss(task):
    generator = seeded()
    params = task.init(generator)
    first, _ = task.evaluate(params, "training")
    for _ in range(60):
        grads = torch.func.grad(task.loss)(params, task.batch(generator))
        norm = torch.stack([g.norm() for g in grads.values()]).norm()
        params = {name: p - 0.05 / (1 + norm) * grads[name] for name, p in params.items()}
    assert task.evaluate(params, "training")[0] < first


def test_batches_come_from_their_own_part():
    task, data = perceptron(batch_size=50), digits()
    for draw, split in ((task.batch, "training"), (task.validation_batch, "validation")):
        known = {tuple(x) for x in data.part(split)[0].tolist()}
        inputs, targets = draw(seeded())
        assert inputs.shape == (50, 64)
        assert targets.shape == (50,)
        assert {tuple(x) for x in inputs.tolist()} <= known


def test_losses_by_hand():
    outputs, targets = torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 0])
    assert LOSSES["one-hot-squares"](outputs, targets).item() == pytest.approx((1 + 0 + 0 + 9) / 2)
    smooth = -(0.95 * outputs.log_softmax(1)[:, 0] + 0.05 * outputs.log_softmax(1)[:, 1]).mean()
    assert LOSSES["label-smoothing"](outputs, targets).item() == pytest.approx(smooth.item())
    numbers = torch.tensor([[0.0, 3.0]])
    assert LOSSES["squares"](numbers, torch.zeros(1, 2)).item() == pytest.approx(4.5)
    assert LOSSES["huber"](numbers, torch.zeros(1, 2)).item() == pytest.approx(1.25)


def test_loss_scale_is_a_factor_of_training_alone():
    plain, scaled = perceptron(), perceptron(loss_scale=3.0)
    params, batch = plain.init(seeded()), plain.batch(seeded())
    assert scaled.loss(params, batch).item() == pytest.approx(3 * plain.loss(params, batch).item())
    assert scaled.evaluate(params, "test") == plain.evaluate(params, "test")


def test_evaluation_is_over_all_samples_and_positions():
    task = transformer_task()
    params = task.init(seeded())
    inputs, targets = (x[:200] for x in task.dataset.part("test"))
    object.__setattr__(task.dataset, "test_inputs", inputs)
    object.__setattr__(task.dataset, "test_targets", targets)
    loss, accuracy = task.evaluate(params, "test")
    logits = task.forward(params, inputs)
    assert loss.item() == pytest.approx(cross_entropy(logits.transpose(1, 2), targets).item(), 1e-5)
    assert accuracy.item() == pytest.approx((logits.argmax(-1) == targets).float().mean().item())


def test_no_accuracy_of_numbers():
    task = TASKS["residual-mlp"]()
    assert task.evaluate(task.init(seeded()), "validation")[1] is None


@pytest.mark.parametrize("scheme", sorted(INITIALISATIONS))
def test_schemes_draw_weights_again_from_the_generator(scheme):
    task = perceptron(initialisation=Initialisation(scheme=scheme))
    first, second, plain = task.init(seeded()), task.init(seeded()), perceptron().init(seeded())
    assert torch.equal(first["0.weight"], second["0.weight"])
    assert not torch.equal(first["0.weight"], plain["0.weight"])
    assert torch.equal(first["0.bias"], plain["0.bias"])
    if scheme == "orthogonal":
        gram = first["0.weight"] @ first["0.weight"].T
        torch.testing.assert_close(gram, torch.eye(12), atol=1e-5, rtol=0)


def test_scale_spread_scales_whole_tensors_and_spread_keeps_the_function():
    plain = perceptron().init(seeded())
    scaled = perceptron(initialisation=Initialisation(scale_spread=0.5)).init(seeded())
    ratio = scaled["0.weight"] / plain["0.weight"]
    assert ratio.std() < 1e-5
    assert 0.6 < ratio.mean() < 1.65
    assert ratio.mean() != pytest.approx(1.0, abs=1e-3)
    task = perceptron(initialisation=Initialisation(spread=1.0))
    moved = task.init(seeded())
    inputs = digits().test_inputs
    outputs = task.forward(moved, inputs)
    torch.testing.assert_close(outputs, task.forward(plain, inputs), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(moved["0.weight"].norm(dim=1), plain["0.weight"].norm(dim=1))


def test_a_transformer_does_not_look_ahead():
    module = CharTransformer(10, 6, width=8, heads=2, depth=2)
    tokens = torch.randint(10, (1, 6), generator=seeded())
    other = tokens.clone()
    other[0, 4:] = (other[0, 4:] + 1) % 10
    a, b = module(tokens), module(other)
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert not torch.allclose(a[:, 4:], b[:, 4:])


def test_a_siren_is_drawn_as_sirens_are():
    task = TASKS["siren"]()
    first, second = task.init(seeded(0)), task.init(seeded(1))
    assert not torch.equal(first["layers.1.weight"], second["layers.1.weight"])
    assert first["layers.1.weight"].abs().max() <= (6 / 8) ** 0.5 / 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "squares"}, r"loss of digits: choose from \['cross-entropy', 'label-smoothing'"),
        ({"batch_size": 0}, "batch_size: expected a size >= 1, got 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        perceptron(**options)


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="width: expected a multiple of 2 heads, got 9"):
        CharTransformer(10, 6, width=9, heads=2, depth=1)
