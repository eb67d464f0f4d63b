"""Optimizers of this package unrolled by ``higher``: meta-gradients equal to plain autograd's."""

import copy
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalegmn_opt import LearnedOptimizer, UpdateRule
from scalegmn_opt.optim import GaugeAdam, GaugeMuon, PathSGD
from scalegmn_opt.optim.adapters import register_with_higher

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).double()
Y = torch.randint(3, (16,), generator=torch.Generator().manual_seed(1))
STEPS = 3


def rule():
    torch.manual_seed(0)
    return UpdateRule(channels=4, message_channels=3, hidden_channels=6).double()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def make(cls, model, **options):
    options = {"rule": rule(), **options} if cls is LearnedOptimizer else options
    return cls.for_model(model, (X,), **options)


def by_autograd(own, model, lr):
    """Meta-gradients of the loss after some steps, by the rule itself."""
    params = {name: p[None] for name, p in model.named_parameters()}
    state = own.rule.init(own.graph, params, input_rms=own.input_rms)

    def loss(params):
        return F.cross_entropy(
            torch.func.functional_call(model, {n: p[0] for n, p in params.items()}, (X,)), Y
        )

    for _ in range(STEPS):
        grads = torch.autograd.grad(loss(params), list(params.values()), create_graph=True)
        grads = dict(zip(params, grads, strict=True))
        updates, state = own.rule(own.graph, params, grads, state)
        params = {name: p + lr * updates[name] for name, p in params.items()}
    return torch.autograd.grad(loss(params), [*model.parameters(), lr])


@pytest.mark.parametrize("cls", [LearnedOptimizer, GaugeAdam, GaugeMuon, PathSGD])
def test_meta_gradients_are_those_of_autograd(cls):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        higher = pytest.importorskip("higher")
        register_with_higher()
    model = network()
    own = make(cls, model)
    lr = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    expected = by_autograd(own, model, lr)
    before = [p.detach().clone() for p in model.parameters()]
    with higher.innerloop_ctx(model, own, override={"lr": [lr]}) as (fast, unrolled):
        for _ in range(STEPS):
            unrolled.step(F.cross_entropy(fast(X), Y))
        found = torch.autograd.grad(F.cross_entropy(fast(X), Y), [*fast.parameters(time=0), lr])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def train(model, own, x):
    own.zero_grad()
    F.cross_entropy(model(x).float(), Y).backward()
    own.step()


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "after a step"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cls", [LearnedOptimizer, GaugeAdam, GaugeMuon, PathSGD])
def test_unrolled_steps_are_the_optimizers_own(cls, dtype, trained):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        higher = pytest.importorskip("higher")
        register_with_higher()
    model, x = network().to(dtype), X.to(dtype)
    options = {"rule": rule().float()} if cls is LearnedOptimizer else {}
    own = cls.for_model(model, (x,), weight_decay=0.1, max_change=None, **options)
    if trained:
        train(model, own, x)
    before = copy.deepcopy(own.state_dict()["state"])
    with higher.innerloop_ctx(model, own) as (fast, unrolled):
        for _ in range(STEPS):
            unrolled.step(F.cross_entropy(fast(x).float(), Y))
        found = list(fast.parameters())
        grads = torch.autograd.grad(
            F.cross_entropy(fast(x).float(), Y), list(fast.parameters(time=0))
        )
    assert_same_states(before, own.state_dict()["state"])
    for _ in range(STEPS):
        train(model, own, x)
    for a, b, grad in zip(found, model.parameters(), grads, strict=True):
        assert a.dtype == grad.dtype == dtype
        assert torch.equal(a, b)
        assert grad.isfinite().all()
        assert grad.any()
    assert_same_states(unrolled.state[0], own.state_dict()["state"])


def assert_same_states(found, expected):
    assert found.keys() == expected.keys()
    for index, own in found.items():
        assert own.keys() == expected[index].keys()
        for key, value in own.items():
            assert value.dtype == expected[index][key].dtype
            assert torch.equal(value, expected[index][key])


def test_frozen_parameters_stay():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        higher = pytest.importorskip("higher")
        register_with_higher()
    model = network()
    model[0].bias.requires_grad_(False)
    own = make(GaugeAdam, model)
    with higher.innerloop_ctx(model, own) as (fast, unrolled):
        unrolled.step(F.cross_entropy(fast(X), Y))
        assert torch.equal(fast[0].bias, model[0].bias)
        assert not torch.equal(fast[0].weight, model[0].weight)


def test_without_higher_the_line_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "higher", None)
    with pytest.raises(ImportError, match=r"pip install 'scalegmn-opt\[higher\]'"):
        register_with_higher()
