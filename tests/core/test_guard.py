"""The guard of a step: what is not finite is masked and counted; a healthy step is untouched."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalegmn_opt import LearnedOptimizer, UpdateRule, optim
from scalegmn_opt.optim import GaugeAdam, GaugeMuon, PathSGD

NOT_FINITE = [float("nan"), float("inf"), -float("inf"), 1e30]  # the last: its square is not
CLASSES = [LearnedOptimizer, GaugeAdam, GaugeMuon, PathSGD]


def rule():
    torch.manual_seed(0)
    return UpdateRule(channels=4, message_channels=3, hidden_channels=6)


def prepared(cls=LearnedOptimizer, **options):
    """A model with gradients and its optimizer, after one step."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(8, 4)
    options = {"rule": rule(), **options} if cls is LearnedOptimizer else options
    own = cls.for_model(model, (x,), **options)
    F.cross_entropy(model(x), torch.arange(8) % 3).backward()
    own.step()
    return model, own


def tensors(model, own):
    state = own.state_dict()["state"]
    return [*model.parameters(), *(t for entry in state.values() for t in entry.values())]


def assert_same(first, second):
    for a, b in zip(tensors(*first), tensors(*second), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("value", NOT_FINITE)
def test_masked_entries_count_as_zero(cls, value):
    hurt, healthy = prepared(cls), prepared(cls)
    hurt[0][2].weight.grad[1, 2] = value
    healthy[0][2].weight.grad[1, 2] = 0.0
    with pytest.warns(RuntimeWarning, match=r"step 2: masked 1 of 18 numbers .* '2.weight'"):
        hurt[1].step()
    healthy[1].step()
    assert_same(hurt, healthy)
    assert all(torch.isfinite(t).all() for t in tensors(*hurt))
    assert hurt[1].health().masked == {"2.weight": 1}
    assert not hurt[1].health().ok
    assert healthy[1].health().ok
    assert healthy[1].health().steps == 2


def test_warning_points_at_the_line_of_the_user():
    model, own = prepared()
    model[0].bias.grad[0] = float("nan")
    schedule = torch.optim.lr_scheduler.StepLR(own, 1)  # wraps the step once more
    with pytest.warns(RuntimeWarning, match="masked") as caught:
        own.step()
    assert caught[0].filename == __file__
    schedule.step()
    with pytest.warns(RuntimeWarning, match="replaced") as caught:
        prepared(rule=Broken(1e6))
    assert caught[0].filename == __file__


def test_parameters_without_a_gradient_are_not_checked():
    model, own = prepared(rule=Broken(0.0))
    own.rule.value = float("nan")
    model[0].bias.grad = None
    own.step()
    assert own.health().ok


# The trust region


@pytest.mark.parametrize("cls", CLASSES)
def test_trust_region_leaves_small_steps_bit_by_bit(cls):
    pair = prepared(cls, max_change=None), prepared(cls, max_change=90.0)
    for _, own in pair:
        own.step()
    assert_same(*pair)
    assert not pair[1][1].health().limited


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("lr", [1.0, torch.tensor(3.0)])
def test_trust_region_scales_large_steps_down(cls, lr):
    free, held = (prepared(cls, lr=0.0, max_change=None) for _ in range(2))
    start = [p.detach().clone() for p in free[0].parameters()]
    for (_, own), largest in zip((free, held), (None, 1e-3), strict=True):
        own.record = True
        own.param_groups[0].update(lr=lr, max_change=largest)
        own.step()
    sizes = [own.explain().parameters for _, own in (free, held)]
    assert all(row.step_size == pytest.approx(1e-3) for row in sizes[1].values())
    for name, old, p, q in zip(
        sizes[0], start, free[0].parameters(), held[0].parameters(), strict=True
    ):
        torch.testing.assert_close(q - old, (p - old) * (1e-3 / sizes[0][name].step_size),
                                   rtol=1e-2, atol=1e-7)  # fmt: skip
    assert held[1].health().limited == dict.fromkeys(sizes[0], 1)
    assert held[1].health().ok


def test_trust_region_bounds_an_update_that_would_be_replaced():
    model, own = prepared(rule=Broken(1e6), max_change=0.5)
    assert own.health().limited["0.bias"] == 1
    assert not own.health().replaced
    assert all(torch.isfinite(t).all() for t in tensors(model, own))


def steps(own, count):
    for _ in range(count):
        own.step()


def test_gradient_of_nothing_but_nan():
    model, own = prepared()
    for p in model.parameters():
        p.grad.fill_(float("nan"))
    with pytest.warns(RuntimeWarning) as caught:
        steps(own, 2)
    assert len(caught) == 4  # one for each parameter, not for each step
    assert own.health().masked == {"0.weight": 48, "0.bias": 12, "2.weight": 36, "2.bias": 6}
    assert all(torch.isfinite(t).all() for t in tensors(model, own))


class Broken(UpdateRule):
    """Gives an update of one parameter that cannot be right."""

    def __init__(self, value):
        super().__init__(channels=4, message_channels=3, hidden_channels=6)
        self.value = value

    def forward(self, graph, params, grads, state):
        updates, state = super().forward(graph, params, grads, state)
        return {**updates, "0.bias": torch.full_like(updates["0.bias"], self.value)}, state


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_update_that_cannot_be_right_is_replaced_by_the_momentum_step(value):
    with pytest.warns(RuntimeWarning, match="step 1: replaced the update of '0.bias'"):
        model, own = prepared(rule=Broken(value))
    healthy, _ = prepared(rule=UpdateRule(channels=4, message_channels=3, hidden_channels=6))
    assert own.health().replaced == {"0.bias": 1}
    torch.manual_seed(0)
    bias = nn.Linear(4, 6).bias
    state = {n: {k: v[None] for k, v in own.state[p].items()} for n, p in model.named_parameters()}
    plain = own.rule.plain_step(own.graph, state)["0.bias"][0]
    torch.testing.assert_close(model[0].bias, bias + plain)
    for (name, found), expected in zip(model.named_parameters(), healthy.parameters(), strict=True):
        assert torch.equal(found, expected) == (name != "0.bias")


@pytest.mark.parametrize("cls", [LearnedOptimizer, GaugeMuon])
def test_momentum_beyond_the_largest_number_in_the_gauge_is_found(cls):
    """Where scales are far apart, although the largest step that is allowed would not be."""
    model, own = prepared(cls)
    state = own.state_dict()
    state["state"][0]["target"] *= 1e25
    own.load_state_dict(state)
    model[0].weight.grad.fill_(1e18)
    with pytest.warns(RuntimeWarning, match="replaced the update of '0.weight'"):
        own.step()
    assert own.health().replaced == {"0.weight": 1}
    assert all(torch.isfinite(t).all() for t in tensors(model, own))


def test_a_path_sgd_that_is_in_order_does_not_look_at_gradients_twice(monkeypatch):
    """What is not finite in them shows in how large its steps are, and it keeps nothing."""
    seen = []
    monkeypatch.setattr(
        "scalegmn_opt.optim.base.finite", lambda grads, _: seen.append(grads) or grads
    )
    model, own = prepared(PathSGD)
    assert not seen
    model[0].bias.grad[0] = float("inf")
    with pytest.warns(RuntimeWarning, match="replaced"):
        own.step()
    assert len(seen) == 1


def test_guard_does_not_touch_a_healthy_trajectory(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guarded = prepared()
        guarded[1].step()
    monkeypatch.setattr("scalegmn_opt.optim.base.finite", lambda grads, health: grads)
    monkeypatch.setattr(
        "scalegmn_opt.optim.base.guarded",
        lambda updates, *_, **__: (updates, dict.fromkeys(updates, 1.0)),
    )
    bare = prepared()
    bare[1].step()
    assert_same(guarded, bare)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]
)
def test_health_is_copied_with_the_optimizer(duplicate):
    model, own = prepared()
    model[0].bias.grad[0] = float("nan")
    with pytest.warns(RuntimeWarning):
        own.step()
    assert duplicate((model, own))[1].health() == own.health()


def test_health_is_a_snapshot():
    _, own = prepared()
    own.health().masked["0.bias"] = 3
    assert own.health().ok


def losses_with_an_outlier(size):
    """Losses of 60 steps, the eleventh of which is given noise of ``size`` times the gradient's."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), torch.randn(64, 8)
    own, losses = LearnedOptimizer.for_model(model, (x,)), []
    for step in range(60):
        own.zero_grad()
        losses.append(F.cross_entropy(model(x), x[:, :3].argmax(1)))
        losses[-1].backward()
        if step == 10:
            for p in model.parameters():
                p.grad = size * p.grad.square().mean().sqrt() * torch.randn(p.shape)
        own.step()
    return torch.stack(losses).detach()


def test_one_gradient_that_is_far_too_large_does_not_end_training(monkeypatch):
    """Its direction would otherwise be all that normalised momentum knows for dozens of steps."""
    found = losses_with_an_outlier(1e15)
    assert found[11:].max() < found[0]
    assert found[30:].max() < 0.1
    monkeypatch.setattr(optim.decline, "_MOST", float("inf"))
    assert losses_with_an_outlier(1e15)[30:].max() > 1.0
