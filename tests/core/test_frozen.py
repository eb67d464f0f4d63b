"""Parameters without gradients: they cost nothing, keep no state, and change nothing."""

import warnings

import pytest
import torch
from optimizers import CLASSES, X, loss_of, network, states, train, values
from test_stacks import Residual, seeded
from test_units import RULES
from torch import nn

from scalegmn_opt import LearnedOptimizer, UpdateRule, trace
from scalegmn_opt.optim import GaugeAdam, GaugeMuon, PathSGD
from scalegmn_opt.optim.units import measured_sizes

F64 = torch.float64
SOME = [name for name in sorted(RULES) if not RULES[name]().reads_all]


@pytest.fixture(scope="module")
def given():
    """Graph, parameters, gradients that are zero for some, and the names of the others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Residual().to(F64)
    graph = trace(module, (torch.randn(2, 5, 8, dtype=F64, generator=seeded()),))
    params = {n: p.detach()[None] for n, p in module.named_parameters()}
    names = [name for i, name in enumerate(graph.parameters) if i % 3]
    grads = {n: torch.randn(p.shape, generator=seeded(), dtype=F64) for n, p in params.items()}
    return graph, params, {n: g * (n in names) for n, g in grads.items()}, names


@pytest.mark.parametrize("name", SOME)
def test_a_rule_does_with_the_gradients_of_some_what_it_does_with_all(name, given):
    graph, params, grads, names = given
    rule = RULES[name]().to(F64)
    rule.measures = True
    state = rule.init(graph, params)
    some = rule.init(graph, params, names=names)
    assert some.keys() == set(names)
    for _ in range(3):
        with torch.no_grad():
            updates, state, sizes = rule.sized(graph, params, grads, state)
            own = {n: grads[n] for n in reversed(names)}
            found, some, own_sizes = rule.sized(graph, params, own, some)
        assert found.keys() == some.keys() == set(names)
        for n in names:
            torch.testing.assert_close(found[n], updates[n], rtol=1e-12, atol=0)
            torch.testing.assert_close(some[n], state[n], rtol=1e-12, atol=0)
        ordered = {n: found[n] for n in graph.parameters if n in names}
        torch.testing.assert_close(own_sizes, measured_sizes(ordered, graph, some))
        assert own_sizes.shape[1] < sizes.shape[1]
        plain = rule.plain_step(graph, some)
        whole = rule.plain_step(graph, state)
        assert plain.keys() == set(names)
        torch.testing.assert_close(plain, {n: whole[n] for n in plain}, rtol=1e-12, atol=0)


def head_alone(cls, **options):
    """With a rule that reads what it works on alone, unless another is given."""
    model = network()
    for p in model[:4].parameters():
        p.requires_grad_(False)
    return model, cls.for_model(model, (X,), **options)


@pytest.mark.parametrize("cls", [LearnedOptimizer, GaugeAdam, GaugeMuon])
def test_a_head_is_trained_without_work_for_the_rest(cls, monkeypatch):
    model, own = head_alone(cls)
    calls, given, kind = [], [], type(own.rule)
    init, sized = kind.init, kind.sized
    monkeypatch.setattr(
        kind, "init", lambda *a, **k: calls.append(set(k["names"])) or init(*a, **k)
    )
    monkeypatch.setattr(kind, "sized", lambda rule, *a: given.append(set(a[2])) or sized(rule, *a))
    before = values(model)
    losses = train(model, own, 4)
    assert losses[-1] < losses[0]
    head = {"4.weight", "4.bias"}
    assert calls == [head]
    assert given == [head] * 4
    assert len(states(own)) == 2
    assert all(torch.equal(p, q) for p, q in zip(before[:4], model.parameters(), strict=False))


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_trained_later_starts_as_if_new(cls):
    """With the gauge of the weights of that time, and the others as they were."""
    (model, own), (twin, other) = (head_alone(cls) for _ in range(2))
    train(model, own, 2)
    train(twin, other, 2)
    for p in (*model[:4].parameters(), *twin[:4].parameters()):
        p.requires_grad_(True)
    resumed = cls.for_model(twin, (X,))
    resumed.load_state_dict(other.state_dict())
    train(model, own, 3)
    train(twin, resumed, 3)
    assert all(torch.equal(p, q) for p, q in zip(values(model), values(twin), strict=True))
    assert len(states(own)) == 6


def test_rules_that_read_what_rests():
    """A graph network, and sums over paths: a frozen network's as those of one that is trained."""
    own = {"rule": UpdateRule(channels=4, message_channels=3, hidden_channels=6)}
    assert SOME == ["GaugeAdam", "GaugeMuon", "permutations", "plain rule"]
    for cls, options in ((LearnedOptimizer, own), (PathSGD, {})):
        (model, frozen), free = head_alone(cls, **options), network()
        train(model, frozen)
        train(free, cls.for_model(free, (X,), **options))
        if cls is PathSGD:
            assert torch.equal(model[4].weight, free[4].weight)
        assert not torch.equal(model[0].weight, free[0].weight)
        assert train(model, frozen, 3)[-1] < loss_of(network())
        assert len(states(frozen)) == 2


@pytest.mark.parametrize("cls", [LearnedOptimizer, GaugeAdam, GaugeMuon])
def test_what_rests_is_not_cast_at_each_step(cls, monkeypatch):
    model, own = head_alone(cls)
    model[:4].bfloat16()
    given, kind = [], type(own.rule)
    sized = kind.sized
    monkeypatch.setattr(kind, "sized", lambda rule, *a: given.append(a[1]) or sized(rule, *a))
    for _ in range(2):
        model[4].weight.grad, model[4].bias.grad = torch.ones(3, 6), torch.ones(3)
        own.step()
    for params in given:
        assert params["0.weight"].dtype == torch.bfloat16
        assert params["0.weight"].data_ptr() == model[0].weight.data_ptr()
        assert params["4.weight"].dtype == torch.float32
    assert (model[4].bias < 1).all()


class OfAll(UpdateRule):
    """A user's rule, which does not know that there may be gradients of some alone."""

    def forward(self, graph, params, grads, state):
        updates, state = super().forward(graph, params, grads, state)
        return {name: 0.5 * updates[name] + 0.0 * grads[name] for name in params}, state


def test_a_rule_of_a_user_is_given_all():
    assert OfAll(channels=0).reads_all
    model, own = head_alone(LearnedOptimizer, rule=OfAll(channels=0))
    losses = train(model, own, 4)
    assert losses[-1] < losses[0]
    assert len(states(own)) == 2


@pytest.mark.parametrize("cls", CLASSES)
def test_a_state_that_is_thrown_away_is_begun_anew_with_the_scales_of_then(cls):
    """And the guard knows them, so that what is beyond all numbers does not get into weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    own = cls.for_model(model, (X,))
    train(model, own)
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 2e-22, 0.0
        model[2].weight *= 1e18
    own.state.clear()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        own.step()
    fresh = cls.for_model(model, (X,))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        fresh.step()
    assert own._reach.keys() == fresh._reach.keys()
    assert max(own._reach.values()) > 1e9
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_parameter_at_the_place_of_one_that_was_taken_away_has_a_reach_of_its_own():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 100), nn.Linear(100, 3))
    own = GaugeAdam([{"params": [layer.weight]} for layer in model])
    train(model, own)
    before = dict(own._reach)
    own.param_groups.pop(0)
    train(model, own)
    assert own._reach == {
        "param_groups[0].0": before["param_groups[1].0"],
        "param_groups[1].0": before["param_groups[2].0"],
    }


@pytest.mark.parametrize("cls", CLASSES)
def test_a_group_that_is_taken_away_is_left_alone(cls):
    model = network()
    own = cls([{"params": model[0].parameters()}, {"params": model[4].parameters()}])
    train(model, own)
    gone, before = own.param_groups.pop(), values(model)
    train(model, own, 2)
    found = values(model)
    assert all(torch.equal(p, q) for p, q in zip(before[2:], found[2:], strict=True))
    assert not torch.equal(before[0], found[0])
    assert gone["params"][0] is model[4].weight


@pytest.mark.parametrize("cls", CLASSES)
def test_a_parameter_that_takes_the_place_of_another_is_named(cls):
    model = network()
    own = cls.for_model(model, (X,))
    train(model, own)
    new = model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    own.param_groups[0]["params"][0] = new
    loss_of(model).backward()
    with pytest.raises(ValueError, match=rf"{cls.__name__}: expected the parameters .* got also"):
        own.step()


@pytest.mark.parametrize("cls", CLASSES)
def test_frozen_weights_of_eight_bits_do_not_matter(cls):
    frozen = nn.Parameter(torch.ones(3).to(torch.float8_e4m3fn), requires_grad=False)
    p = nn.Parameter(torch.ones(3))
    own = cls([frozen, p])
    p.grad = torch.ones(3)
    own.step()
    assert (p < 1).all()
    assert all(t.dtype == torch.float32 for t in own.state[p].values())
