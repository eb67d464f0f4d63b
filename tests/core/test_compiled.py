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
        optimizer.zero_grad()
        nn.functional.cross_entropy(own(X), Y).backward()
        own[1].bias.grad = None
        optimizer.step()
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


def small(activation=nn.Tanh, **options):
    """A perceptron and its compiled optimizer, by the graph unless ``options`` are given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), activation(), nn.Linear(4, 4))
    if options:
        return model, LearnedOptimizer(model.named_parameters(), **options)
    return model, LearnedOptimizer.for_model(model, (X,), compile=True)


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


@pytest.fixture
def uncompiled(monkeypatch):
    """Programs run as they are traced, which takes less time."""
    compiled = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda *args, **own: compiled(*args, backend="eager", **own)
    )


def test_networks_of_the_same_shapes_have_programs_of_their_own(uncompiled):
    """One without a graph, and two whose steps differ by what their neurons are."""
    for made in (lambda: small(compile=True), small, lambda: small(Sine)):
        (model, compiled), (twin, plain) = made(), made()
        plain.compile = False
        assert compiled.compile
        train(model, compiled, 3)
        train(twin, plain, 3)
        assert_alike(model, twin)


def test_there_may_be_many_programs(uncompiled):
    limit = torch._dynamo.config.recompile_limit
    for width in range(1, limit + 3):
        p = nn.Parameter(torch.ones(2, width))
        optimizer = LearnedOptimizer([p], compile=True)
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert (p < 1).all()


def test_memory_layout_does_not_matter(uncompiled):
    x = X.to(memory_format=torch.channels_last)
    convolutions = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=layout)
        optimizer = LearnedOptimizer(model.parameters(), compile=True)
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        convolutions.append(model)
    assert not convolutions[1].weight.is_contiguous()
    assert_alike(*convolutions)


def test_a_head_has_a_program_that_follows_what_is_trained_later(uncompiled):
    (model, compiled), (twin, plain) = small(), small()
    plain.compile = False
    for own, optimizer in ((model, compiled), (twin, plain)):
        for trained, count in ((False, 2), (True, 4), (False, 4)):
            own[1].requires_grad_(trained)
            train(own, optimizer, 2)
            assert len(optimizer.state) == count
    assert_alike(model, twin)
    assert compiled._compiled.names == {"3.weight", "3.bias"}


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
