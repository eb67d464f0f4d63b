"""LearnedOptimizer: equivariant trajectories, and every habit of ``torch.optim``."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from scalegmn_opt import LearnedOptimizer, UpdateRule, random_transform, trace
from scalegmn_opt.testing import random_params

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (32,), generator=torch.Generator().manual_seed(1))
torch.manual_seed(0)
RULE = UpdateRule(channels=4, message_channels=3, hidden_channels=6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def trained_rule(size=0.05):
    torch.manual_seed(0)
    rule = UpdateRule(channels=4, message_channels=3, hidden_channels=8).double()
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
        return LearnedOptimizer.for_model(model, (x,), rule=rule, lr=0.1, weight_decay=1e-3)

    assert divergence(name, make) < 1e-7


@pytest.mark.parametrize("name", ["positive scale", "mixed", "cnn", "resnet", "transformer"])
def test_adam_depends_on_the_scales(name):
    assert divergence(name, lambda m, _: torch.optim.Adam(m.parameters(), lr=0.01)) > 1e-3


@pytest.mark.parametrize("name", ["positive scale", "mixed"])
def test_without_the_model_the_scales_matter(name):
    rule = trained_rule()

    def make(model, x):
        return LearnedOptimizer(model.parameters(), rule=rule, lr=0.1)

    assert divergence(name, make) > 1e-3


# Optimizing


def test_untrained_rule_trains_a_classifier():
    model = network()
    losses = train(model, optimizer(model, rule=UpdateRule()), steps=100, y=X[:, :3].argmax(1))
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


def test_closure():
    model = network()
    own, calls = optimizer(model), []

    def closure():
        own.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        calls.append(loss)
        return loss

    before = values(model)
    assert own.step(closure) is calls[0]
    assert len(calls) == 1
    assert not same(before, values(model))
    assert own.step() is None


def test_hooks_run_around_a_step_and_a_state_dict():
    model = network()
    own = optimizer(model)
    seen = []
    own.register_step_pre_hook(lambda *_: seen.append("before"))
    own.register_step_post_hook(lambda *_: seen.append("after"))
    own.register_state_dict_pre_hook(lambda _: seen.append("saving"))
    own.register_state_dict_post_hook(lambda _, state: seen.append(f"saved {len(state)}"))
    own.register_load_state_dict_pre_hook(lambda _, state: seen.append("loading"))
    own.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    train(model, own)
    own.load_state_dict(own.state_dict())
    assert seen == ["before", "after", "saving", "saved 2", "loading", "loaded"]


def test_step_pre_hook_may_clip():
    model, other = network(), network()
    own, plain = optimizer(model), optimizer(other)
    own.register_step_pre_hook(lambda *_: nn.utils.clip_grad_value_(model.parameters(), 0.0))
    train(model, own, 2)
    assert same(values(model), values(other))  # no gradient, no step
    train(other, plain, 2)
    assert not same(values(model), values(other))


def test_groups_have_their_own_lr_and_weight_decay():
    model, reference = network(), network()
    first, second = model[0].parameters(), [*model[2].parameters(), *model[4].parameters()]
    own = LearnedOptimizer(
        [{"params": first, "lr": 0.0}, {"params": second, "weight_decay": 0.5}],
        model=model,
        example_inputs=(X,),
        rule=RULE,
    )
    before = values(model)
    train(model, own)
    train(reference, optimizer(reference))
    assert same(values(model[0]), before[:2])
    for p, plain, old in zip(second, list(reference.parameters())[2:], before[2:], strict=True):
        torch.testing.assert_close(p, plain - 0.5 * old, rtol=1e-4, atol=1e-6)


def test_lr_zero_changes_nothing_but_the_state():
    model = network()
    own, before = optimizer(model, lr=0.0, weight_decay=0.1), values(model)
    train(model, own, 3)
    assert same(before, values(model))
    assert {int(s["step"]) for s in own.state.values()} == {3}


def test_lr_may_be_a_tensor():
    models = network(), network()
    for model, lr in zip(models, (0.5, torch.tensor(0.5)), strict=True):
        train(model, optimizer(model, lr=lr), 2)
    assert same(*map(values, models))


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda own: lr_scheduler.StepLR(own, 1, gamma=0.5),
        lambda own: lr_scheduler.LambdaLR(own, lambda step: 0.5**step),
        lambda own: lr_scheduler.ExponentialLR(own, 0.5),
        lambda own: lr_scheduler.LinearLR(own, 1.0, 0.25, total_iters=2),
        lambda own: lr_scheduler.CosineAnnealingLR(own, T_max=4),
        lambda own: lr_scheduler.OneCycleLR(own, 1.0, total_steps=4, cycle_momentum=False),
        lambda own: lr_scheduler.SequentialLR(
            own, [lr_scheduler.ConstantLR(own, 0.1), lr_scheduler.StepLR(own, 1)], [1]
        ),
    ],
)
def test_schedulers(scheduler):
    model = network()
    own = optimizer(model)
    schedule = scheduler(own)
    rates = []
    for _ in range(3):
        rates.append(own.param_groups[0]["lr"])
        train(model, own)
        schedule.step()
    assert len(set(rates)) > 1
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_reduce_on_plateau():
    model = network()
    own = optimizer(model)
    schedule = lr_scheduler.ReduceLROnPlateau(own, patience=0)
    for _ in range(3):
        schedule.step(1.0)
    assert own.param_groups[0]["lr"] < 1.0


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


def test_two_models_with_the_same_names():
    models, alone = ([network(seed=seed) for seed in (0, 1)] for _ in range(2))
    own = LearnedOptimizer([{"params": list(m.named_parameters())} for m in models], rule=RULE)
    single = [LearnedOptimizer(m.named_parameters(), rule=RULE) for m in alone]
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


def test_no_parameter_in_common_with_the_model():
    model, p = network(), nn.Parameter(torch.ones(3))
    own = LearnedOptimizer([p], model=model, example_inputs=(X,), rule=RULE)
    before = values(model)
    p.square().sum().backward()
    own.step()
    assert (p < 1).all()
    assert same(before, values(model))
    assert len(own.state) == 1


def test_add_param_group():
    model, extra = network(), nn.Parameter(torch.ones(4))
    own = optimizer(model)
    train(model, own)
    blocks = len(own.graph.blocks)
    own.add_param_group({"params": [("extra", extra)], "lr": 0.1})
    assert len(own.graph.blocks) == blocks + 1
    own.zero_grad()
    (F.cross_entropy(model(X + extra), Y)).backward()
    own.step()
    assert (extra != 1).all()
    assert own.state[extra]["step"] == 1
    assert own.state[model[0].weight]["step"] == 2


def test_refused_group_is_not_added():
    model = network()
    own = optimizer(model)
    for bad, error in (
        ({"lr": -1.0}, ValueError),
        ({"weight_decay": float("nan")}, ValueError),
        ({"params": [("z", nn.Parameter(torch.ones(2, dtype=torch.complex64)))]}, TypeError),
    ):
        with pytest.raises(error):
            own.add_param_group({"params": [("p", nn.Parameter(torch.ones(2)))]} | bad)
    assert len(own.param_groups) == 1
    train(model, own)


# Gradients


def test_parameter_without_a_gradient_is_untouched():
    model, before = network(), None
    own = optimizer(model)
    train(model, own)
    before, state = values(model), copy.deepcopy(own.state[model[0].weight])
    own.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    model[0].weight.grad = None
    own.step()
    assert torch.equal(model[0].weight, before[0])
    assert all(torch.equal(t, state[k]) for k, t in own.state[model[0].weight].items())
    assert not torch.equal(model[0].bias, before[1])
    own.zero_grad()
    assert own.step() is None


def test_frozen_parameters():
    model = network()
    model[2].weight.requires_grad_(False)
    own, before = optimizer(model), values(model)
    train(model, own, 2)
    assert torch.equal(model[2].weight, before[2])
    assert model[2].weight not in own.state
    assert len(own.state) == 5


def test_sparse_gradient():
    embedding = nn.Embedding(5, 3, sparse=True)
    own = LearnedOptimizer(embedding.named_parameters(), rule=RULE)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"gradient of 'weight' is torch\.sparse_coo"):
        own.step()


def test_complex_parameters():
    with pytest.raises(TypeError, match="expected real parameters, got complex 'phase'"):
        LearnedOptimizer([("phase", nn.Parameter(torch.ones(2).cfloat()))], rule=RULE)


@pytest.mark.parametrize("given", [{"model": network()}, {"example_inputs": (X,)}])
def test_model_and_inputs_belong_together(given):
    with pytest.raises(ValueError, match="model and example_inputs: expected both or neither"):
        LearnedOptimizer(network().parameters(), rule=RULE, **given)


@pytest.mark.parametrize("given", [{"lr": -0.1}, {"weight_decay": -1.0}, {"lr": float("nan")}])
def test_bad_numbers_are_named(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))}: expected a number of at least 0"):
        optimizer(network(), **given)


# Tensors of all kinds


def step_on(*parameters, **options):
    own = LearnedOptimizer(parameters, rule=RULE, **options)
    sum(p.float().square().sum() for p in parameters).backward()
    own.step()
    return own


def test_numbers_and_empty_parameters():
    number, empty, flat = (nn.Parameter(torch.ones(shape)) for shape in ((), (0,), (3, 0)))
    step_on(number, empty, flat)
    assert number < 1


def test_empty_parameter_in_a_model():
    model = network()
    model.register_parameter("nothing", nn.Parameter(torch.zeros(0, 4)))
    own = optimizer(model)
    train(model, own, 2)
    reference = network()
    train(reference, optimizer(reference), 2)
    assert same(values(model)[1:], values(reference))


def test_memory_layout_does_not_matter():
    data = torch.randn(6, 4, generator=seeded())
    dense = nn.Parameter(data.clone())
    strided = nn.Parameter(data.t().contiguous().t())
    step_on(dense)
    step_on(strided)
    assert not strided.is_contiguous()
    assert torch.equal(dense, strided)


def test_mixed_precision_in_any_order():
    for dtypes in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        parameters = [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
        step_on(*parameters)
        assert [p.dtype for p in parameters] == list(dtypes)
        assert all((p < 1).all() for p in parameters)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_state_in_float32(dtype):
    model, x = network().to(dtype), X.to(dtype)
    own = LearnedOptimizer.for_model(model, (x,), rule=RULE)
    train(model, own, 2, x=x)
    own.load_state_dict(own.state_dict())
    train(model, own, x=x)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {t.dtype for s in own.state.values() for t in s.values()} == {torch.float32}
    fast = own.state[model[0].weight]["fast"]
    assert not torch.equal(fast, fast.to(dtype).float())


def test_state_of_half_precision_is_loaded_bit_by_bit():
    model = network().bfloat16()
    own = LearnedOptimizer.for_model(model, (X.bfloat16(),), rule=RULE)
    train(model, own, 2, x=X.bfloat16())
    other = LearnedOptimizer.for_model(model, (X.bfloat16(),), rule=RULE)
    other.load_state_dict(own.state_dict())
    for p in model.parameters():
        assert all(torch.equal(t, other.state[p][key]) for key, t in own.state[p].items())


# Saving and copying


def saved(state, weights_only=True):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)


def test_resume_is_bit_exact_even_if_loaded_twice():
    model = network()
    own = optimizer(model, weight_decay=0.01)
    train(model, own, 3)
    weights, state = saved(model.state_dict()), saved(own.state_dict())
    expected = train(model, own, 3)
    resumed = network(seed=5)
    resumed.load_state_dict(weights)
    other = optimizer(resumed)
    other.load_state_dict(state)
    other.load_state_dict(state)
    assert other.param_groups[0]["weight_decay"] == 0.01
    assert train(resumed, other, 3) == expected
    assert same(values(resumed), values(model))


def test_loading_does_not_share_tensors():
    model = network()
    own = optimizer(model)
    train(model, own)
    state = own.state_dict()
    before = copy.deepcopy(state["state"])
    own = optimizer(model)
    own.load_state_dict(state)
    for tensors in own.state.values():
        for tensor in tensors.values():
            tensor.zero_()
    for index, tensors in state["state"].items():
        assert all(torch.equal(t, before[index][key]) for key, t in tensors.items())


def test_loading_the_state_of_other_parameters():
    small = LearnedOptimizer([nn.Parameter(torch.ones(2))], rule=RULE)
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer(network()).load_state_dict(small.state_dict())


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
