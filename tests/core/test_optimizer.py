"""LearnedOptimizer: equivariant trajectories, and every habit of ``torch.optim``."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalegmn_opt import LearnedOptimizer, UpdateRule, random_transform, trace
from scalegmn_opt.testing import random_params

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (32,), generator=torch.Generator().manual_seed(1))
torch.manual_seed(0)
RULE = UpdateRule(channels=4, message_channels=3, hidden_channels=6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def trained_rule(size=0.05, **options):
    torch.manual_seed(0)
    rule = UpdateRule(channels=4, message_channels=3, hidden_channels=8, **options).double()
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(size * torch.randn(p.shape, generator=seeded(3), dtype=p.dtype))
        rule.schedule.mul_(0.1)  # ten of these make a factor of e
    return rule


def network(activation=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 8), activation(), nn.Linear(8, 6), activation(), nn.Linear(6, 3)
    )


def optimizer(model, **options):
    return LearnedOptimizer.for_model(model, (X,), **{"rule": RULE} | options)


def train(model, optimizer, steps=1, x=X, y=Y):
    """The losses before each step."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def values(model):
    return [p.detach().clone() for p in model.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Equivariance of a whole training


def mixed():
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6), nn.GELU(),
        nn.Linear(6, 4), nn.Linear(4, 3),
    )  # fmt: skip


def cnn():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 5, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Conv2d(5, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, eps=1e-300) for _ in range(2))

    def forward(self, x):
        inner = self.norms[0](self.first(x)).relu()
        return (x + self.norms[1](self.second(inner))).relu()


def resnet():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 6, 2, padding=1, bias=False),
        nn.BatchNorm2d(6, eps=1e-300), nn.ReLU(), Residual(6), Residual(6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


def normalised():
    return nn.Sequential(
        nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8, eps=1e-300), nn.ReLU(), nn.Linear(8, 6),
        nn.LayerNorm(6, eps=0), nn.GELU(), nn.Linear(6, 3),
    )  # fmt: skip


def grouped():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 6, 2, padding=1), nn.GroupNorm(3, 6, eps=0),
        nn.ReLU(), nn.Conv2d(6, 6, 2, groups=6), nn.Tanh(), nn.Conv2d(6, 8, 1, groups=2),
        nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip


def transformer():
    # Without a bias: the gradient of a key's bias is 0, and rounding errors are no direction.
    layer = nn.TransformerEncoderLayer(
        6, 2, 9, dropout=0.0, batch_first=True, norm_first=True, layer_norm_eps=0, bias=False
    )
    return nn.Sequential(
        nn.Unflatten(1, (4, 1)), nn.Linear(1, 6), layer, nn.LayerNorm(6, eps=0), nn.Flatten(),
        nn.Linear(24, 3),
    )  # fmt: skip


MODELS = {
    "normalised": normalised,
    "resnet": resnet,
    "grouped": grouped,
    "transformer": transformer,
    "positive scale": lambda: network(nn.ReLU),
    "sign": lambda: network(nn.Tanh),
    "permutation": lambda: network(nn.GELU),
    "mixed": mixed,
    "cnn": cnn,
}


def divergence(name, make_optimizer, steps=20):
    """Largest relative difference of the functions learned from ``θ`` and from ``g·θ``."""
    torch.manual_seed(1)
    model, x = MODELS[name]().double(), X.double()
    moved = copy.deepcopy(model)
    graph = trace(model, (x,))
    acted = random_transform(graph, seeded(2)).apply(
        {n: p.detach()[None] for n, p in model.named_parameters()}
    )
    moved.load_state_dict({n: p[0] for n, p in acted.items()}, strict=False)
    assert not same(values(moved), values(model))
    start = model(x).detach()
    optimizers = [make_optimizer(m, x) for m in (model, moved)]
    for each, own in zip((model, moved), optimizers, strict=True):
        train(each, own, steps, x=x)
    expected, found = model(x).detach(), moved(x).detach()
    assert (expected - start).abs().max() > 0.01  # something was learned
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", MODELS)
def test_training_from_transformed_parameters_gives_the_same_function(name):
    rule = trained_rule()

    def make(model, x):
        return LearnedOptimizer.for_model(model, (x,), rule=rule, weight_decay=1e-3)

    assert divergence(name, make) < 1e-7


@pytest.mark.parametrize("name", ["positive scale", "mixed", "cnn", "resnet", "transformer"])
def test_adam_depends_on_the_scales(name):
    assert divergence(name, lambda m, _: torch.optim.Adam(m.parameters(), lr=0.01)) > 1e-3


@pytest.mark.parametrize("name", ["positive scale", "mixed"])
def test_without_the_model_the_scales_matter(name):
    rule = trained_rule()
    assert divergence(name, lambda m, _: LearnedOptimizer(m.parameters(), rule=rule)) > 1e-3


def test_with_permutation_symmetry_the_scales_matter():
    rule = trained_rule(symmetry="permutation")

    def make(model, x):
        return LearnedOptimizer.for_model(model, (x,), rule=rule)

    assert divergence("permutation", make) < 1e-7
    assert divergence("positive scale", make) > 1e-3


# Optimizing


def test_untrained_rule_trains_a_classifier():
    model = network()
    losses = train(model, optimizer(model, rule=UpdateRule()), steps=100)
    assert losses[-1] < losses[0] / 2


def test_quadratic_without_a_model():
    p = nn.Parameter(torch.full((5, 3), 2.0))
    own = LearnedOptimizer([p], rule=RULE, lr=0.1)
    for _ in range(100):
        own.zero_grad()
        (p - 1).square().sum().backward()
        own.step()
    assert (p - 1).abs().max() < 0.2


def test_step_is_the_rule_times_lr():
    model, rule = network(), trained_rule()
    graph = trace(model, (X,))
    params = {n: p.detach()[None].clone() for n, p in model.named_parameters()}
    own = LearnedOptimizer.for_model(model, (X,), rule=rule, lr=0.5, weight_decay=0.1)
    train(model, own)
    grads = {n: p.grad[None] for n, p in model.named_parameters()}
    rms = X.square().mean().sqrt()
    rule = copy.deepcopy(rule).float()
    updates, state = rule(graph, params, grads, rule.init(graph, params, input_rms=rms))
    for name, p in model.named_parameters():
        expected = (1 - 0.5 * 0.1) * params[name][0] + 0.5 * updates[name][0]
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own.state[p]["fast"], state[name]["fast"][0])
        assert own.state[p]["step"] == 1


def test_averages_are_renewed_in_their_memory_but_for_those_at_rest():
    model = network()
    own = optimizer(model)
    train(model, own, 2)
    places = {p: s["fast"].data_ptr() for p, s in own.state.items()}
    resting = model[2].weight
    before = {key: value.clone() for key, value in own.state[resting].items()}
    F.cross_entropy(model(X), Y).backward()
    resting.grad = None
    own.step()
    assert places == {p: s["fast"].data_ptr() for p, s in own.state.items()}
    assert all(torch.equal(own.state[resting][key], value) for key, value in before.items())
    assert not own.rule.overwrites


def test_rule_is_copied_and_needs_no_gradient():
    rule, model = UpdateRule(), network()
    own = optimizer(model, rule=rule)
    train(model, own)
    assert all(p.requires_grad for p in rule.parameters())
    assert not any(t.requires_grad for s in own.state.values() for t in s.values())


def test_rule_by_path(tmp_path):
    rule = trained_rule().float()
    rule.save_pretrained(tmp_path / "rule.safetensors")
    models = network(), network()
    for model, source in zip(models, (rule, tmp_path / "rule.safetensors"), strict=True):
        train(model, optimizer(model, rule=source), 2)
    assert same(*map(values, models))
    train(models[0], optimizer(models[0], rule=str(tmp_path / "rule.safetensors")))


def test_unknown_rule_lists_the_packaged_ones():
    with pytest.raises(FileNotFoundError, match="no weights 'huge': expected a file, or one of"):
        optimizer(network(), rule="huge")


def test_named_parameters_and_order_do_not_matter():
    models = [network() for _ in range(3)]
    named, plain, backwards = models
    optimizers = [
        optimizer(named),
        LearnedOptimizer(plain.parameters(), model=plain, example_inputs=(X,), rule=RULE),
        LearnedOptimizer(
            list(backwards.parameters())[::-1], model=backwards, example_inputs=[X], rule=RULE
        ),
    ]
    for model, own in zip(models, optimizers, strict=True):
        train(model, own, 3)
    assert same(values(named), values(plain))
    assert same(values(named), values(backwards))


def test_the_rule_depends_on_whether_there_is_a_model():
    model = network()
    for own, name in (
        (LearnedOptimizer.for_model(model, (X,)), "general"),
        (LearnedOptimizer(model.parameters()), "no-graph"),
    ):
        expected = UpdateRule.from_pretrained(name).state_dict()
        assert all(torch.equal(own.rule.state_dict()[n], x) for n, x in expected.items())


def test_two_models_with_the_same_names():
    """They share the number of layers, here without effect."""
    rule = copy.deepcopy(RULE)
    with torch.no_grad():
        rule.kinds[-1] = 0.0
        rule.shallow.zero_()
    models, alone = ([network(seed=seed) for seed in (0, 1)] for _ in range(2))
    own = LearnedOptimizer([{"params": list(m.named_parameters())} for m in models], rule=rule)
    single = [LearnedOptimizer(m.named_parameters(), rule=rule) for m in alone]
    for _ in range(2):
        own.zero_grad()
        sum(F.cross_entropy(model(X), Y) for model in models).backward()
        own.step()
        for model, optimizer in zip(alone, single, strict=True):
            train(model, optimizer)
    assert len(own.graph.blocks) == 12
    for model, reference in zip(models, alone, strict=True):
        for p, expected in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_example_inputs_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="example_inputs: expected finite numbers, got a size of"):
        LearnedOptimizer.for_model(network(), (X * value,))


def test_example_inputs_without_a_sample_count_as_of_size_one():
    model = network()
    assert LearnedOptimizer.for_model(model, (X[:0],)).input_rms == 1.0


def test_no_parameter_in_common_with_the_model():
    model, p = network(), nn.Parameter(torch.ones(3))
    own = LearnedOptimizer([p], model=model, example_inputs=(X,), rule=RULE)
    before = values(model)
    p.square().sum().backward()
    own.step()
    assert (p < 1).all()
    assert same(before, values(model))
    assert len(own.state) == 1


# Tensors of all kinds


def step_on(*parameters, **options):
    own = LearnedOptimizer(parameters, rule=RULE, **options)
    sum(p.float().square().sum() for p in parameters).backward()
    own.step()
    return own


def test_empty_parameter_in_a_model():
    model = network()
    model.register_parameter("nothing", nn.Parameter(torch.zeros(0, 4)))
    own = optimizer(model)
    train(model, own, 2)
    reference = network()
    train(reference, optimizer(reference), 2)
    assert same(values(model)[1:], values(reference))


# Saving and copying


def saved(state, weights_only=True):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)


def duplicate_by_pickle(pair):
    return pickle.loads(pickle.dumps(pair))


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, duplicate_by_pickle, lambda pair: saved(pair, weights_only=False)],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_continue_identically(duplicate):
    model = network()
    own = optimizer(model, lr=0.7)
    train(model, own, 2)
    copied, other = duplicate((model, own))
    assert train(model, own, 3) == train(copied, other, 3)
    assert same(values(model), values(copied))
    assert other.graph == own.graph
    assert not same(values(model), values(network()))


def test_parameters_without_names_are_told_apart_by_their_place():
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    own = step_on(*parameters)
    assert [b.parameter for b in own.graph.blocks] == [f"param_groups[0].{i}" for i in range(3)]
    assert same(parameters[:1], parameters[1:2])


def test_random_params_of_the_kit_fit_a_traced_model():
    model = network()
    params = random_params(trace(model, (X,)), seeded(), batch=1)
    assert {n: p[0].shape for n, p in params.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }
