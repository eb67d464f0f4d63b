"""What the tests of the optimizers share: all classes, a small network, a training loop."""

import io

import torch
import torch.nn.functional as F
from torch import nn

from scalegmn_opt import LearnedOptimizer, UpdateRule
from scalegmn_opt.optim import GaugeAdam, GaugeMuon, PathSGD

CLASSES = [LearnedOptimizer, GaugeAdam, GaugeMuon, PathSGD]
X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > X[:, 1]).long() + (X[:, 2] > 1).long()


def options_of(cls, **options):
    """``options``, with a small untrained rule where the class takes one."""
    if cls is not LearnedOptimizer:
        return options
    torch.manual_seed(0)
    return {"rule": UpdateRule(channels=4, message_channels=3, hidden_channels=6)} | options


def make(cls, model, **options):
    """The optimizer of a model's parameters, each a block of its own: nothing is traced."""
    return bare(cls, model.named_parameters(), **options)


def traced(cls, model, x=X, **options):
    """The optimizer of a model whose graph it sees; slower to make."""
    return cls.for_model(model, (x,), **options_of(cls, **options))


def bare(cls, params, **options):
    """The optimizer of parameters, named or not."""
    return cls(params, **options_of(cls, **options))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def loss_of(model, x=X):
    return F.cross_entropy(model(x), Y)


def train(model, own, steps=1, x=X):
    """The losses before each step."""
    losses = []
    for _ in range(steps):
        own.zero_grad()
        loss = loss_of(model, x)
        loss.backward()
        own.step()
        losses.append(loss.item())
    return losses


def values(model):
    return [p.detach().clone() for p in model.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def states(own):
    """All numbers of the state, by parameter and key."""
    return own.state_dict()["state"]


def assert_same_state(first, second):
    assert states(first).keys() == states(second).keys()
    for index, entries in states(first).items():
        assert entries.keys() == states(second)[index].keys()
        assert all(torch.equal(t, states(second)[index][key]) for key, t in entries.items())


def saved(value, *, weights_only=True):
    """What a file gives back."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)
