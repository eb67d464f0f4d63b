"""LearnedOptimizer with compile=True: the same training, by a compiled program."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn

from scalegmn_opt import LearnedOptimizer, UpdateRule
from scalegmn_opt.optim.whitening import EXACT_RANK


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(24, 3, 6, 6, generator=seeded())
Y = torch.randint(4, (24,), generator=seeded(1))
WIDE = EXACT_RANK + 4  # whiteners that are kept, renewed in steps 1, 2, 4 and 5


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
            nn.Linear(96, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, 4),
        )  # fmt: skip


def train(model, optimizer, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def pair():
    """Model and optimizer, plain and compiled."""
    models = network(), network()
    return [
        (model, LearnedOptimizer.for_model(model, (X,), compile=flag))
        for model, flag in zip(models, (False, True), strict=True)
    ]


def assert_alike(first, second, rel=1e-3):
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert (p - q).norm() <= rel * p.norm()


def test_compiled_training_is_the_same_and_goes_through_all_that_a_plain_one_does():
    (model, plain), (twin, compiled) = pair()
    assert train(twin, compiled, 7) == pytest.approx(train(model, plain, 7), rel=1e-3)
    assert_alike(model, twin)
    programs = torch._dynamo.utils.counters["stats"]["unique_graphs"]

    # A parameter without a gradient, and a gradient with a NaN in it.
    for own, optimizer in ((model, plain), (twin, compiled)):
        own[1].bias.requires_grad_(False)
        own[1].bias.grad = None
        train(own, optimizer, 1)
        own[8].weight.grad[0, 0] = torch.nan
        with pytest.warns(RuntimeWarning, match="masked 1 of"):
            optimizer.step()
    assert_alike(model, twin)
    assert compiled.health() == plain.health()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == programs  # none is new

    # The state goes to a plain optimizer and back; copies are on their own.
    compiled.load_state_dict(deepcopy(plain.state_dict()))
    twin.load_state_dict(model.state_dict())
    plain.load_state_dict(compiled.state_dict())
    assert_alike(model, twin, rel=0.0)
    copy = pickle.loads(pickle.dumps(compiled))
    assert copy.compile
    assert train(twin, compiled, 2) == pytest.approx(train(model, plain, 2), rel=1e-3)


@pytest.mark.slow
def test_the_program_follows_a_new_parameter_group():
    p, q = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(5))
    optimizer = LearnedOptimizer([p], compile=True)
    for _ in range(2):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        before = p.detach().clone(), q.detach().clone()
        optimizer.step()
        assert (p < before[0]).all()
        if len(optimizer.param_groups) == 1:
            optimizer.add_param_group({"params": [q]})
    assert (q < before[1]).all()


def test_a_rule_with_a_graph_network_is_not_compiled():
    with pytest.raises(ValueError, match="compile: expected a rule with channels=0, got 16"):
        LearnedOptimizer([nn.Parameter(torch.ones(2))], rule=UpdateRule(), compile=True)


def test_compiled_steps_are_not_differentiable():
    with pytest.raises(ValueError, match="compile: expected False with differentiable=True"):
        LearnedOptimizer([nn.Parameter(torch.ones(2))], compile=True, differentiable=True)
