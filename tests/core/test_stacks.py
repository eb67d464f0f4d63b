"""Small parameters of one shape are worked on together: the same steps as one by one."""

import pytest
import torch
from torch import nn

from scalegmn_opt import LearnedOptimizer, UpdateRule, trace
from scalegmn_opt.graph import stack_parameters
from scalegmn_opt.optim import together as stacking

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Residual(nn.Module):
    """Linear and grouped layers of equal shapes, packed projections, norms, biases or none."""

    def __init__(self):
        super().__init__()
        layer = {"nhead": 2, "dim_feedforward": 12, "dropout": 0.0, "batch_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, **layer) for _ in range(3))
        self.mix = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=1, groups=2) for _ in range(2))
        self.out = nn.Linear(8, 3, bias=False)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        for layer in self.mix:
            x = x + layer(x.mT).mT.relu()
        return self.out(x)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Residual().to(F64)
    return module, trace(module, (torch.randn(2, 5, 8, dtype=F64, generator=seeded()),))


@pytest.fixture
def one_by_one(monkeypatch):
    """A context in which nothing is stacked."""

    def enter():
        monkeypatch.setattr(stacking, "_STACKED", 1)
        stacking.together.cache_clear()

    yield enter
    stacking.together.cache_clear()


def two_networks(module):
    own = {n: p.detach() for n, p in module.named_parameters()}
    other = {
        n: p + 0.1 * torch.randn(p.shape, generator=seeded(1), dtype=F64) for n, p in own.items()
    }
    return stack_parameters([own, other])


def steps(rule, graph, params, state, count=3):
    found = []
    for number in range(count):
        generator = seeded(number)
        grads = {n: torch.randn(p.shape, generator=generator, dtype=F64) for n, p in params.items()}
        with torch.no_grad():
            updates, state = rule(graph, params, grads, state)
        found.append(updates)
    return found, state


def test_which_parameters_are_together(network):
    module, graph = network
    every = tuple(graph.parameters)
    stacks, biases = stacking.together(graph, every, alone=False)
    names = {n for n, _ in module.named_parameters()}
    assert sorted([*biases, *(n for stack in stacks for n in stack)]) == sorted(names)
    sizes = {stack[0].split(".", 2)[-1]: len(stack) for stack in stacks}
    assert sizes["self_attn.in_proj_weight"] == sizes["linear1.weight"] == 3
    assert {len(stack) for stack in stacks if stack[0].startswith("mix")} == {2}
    assert "out.weight" in {stack[0] for stack in stacks if len(stack) == 1}
    assert {len(stack) for stack in stacking.together(graph, every, alone=True)[0]} == {1}


@pytest.mark.parametrize("symmetry", ["scale", "permutation"])
@pytest.mark.parametrize("overwrites", [False, True])
def test_updates_and_states_are_those_of_one_by_one(network, one_by_one, overwrites, symmetry):
    module, graph = network
    rule = UpdateRule(channels=0, symmetry=symmetry).to(F64)
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(3), dtype=F64))
    rule.overwrites = overwrites
    params = two_networks(module)
    states = [rule.init(graph, params, input_rms=torch.tensor([1.0, 2.0], dtype=F64)) for _ in "ab"]
    for state in states:  # parameters came at different times
        state["blocks.1.linear1.weight"]["step"] += 3
        state["blocks.0.linear1.weight"]["step"] += 20
    first, own = steps(rule, graph, params, states[0])
    one_by_one()
    second, other = steps(rule, graph, params, states[1])
    for found, expected in zip(first, second, strict=True):
        for name, update in expected.items():
            torch.testing.assert_close(found[name], update, rtol=1e-9, atol=1e-12)
    for name, entry in other.items():
        for key, value in entry.items():
            torch.testing.assert_close(own[name][key], value, rtol=1e-12, atol=1e-12)


def test_the_state_stays_in_its_memory():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    optimizer = LearnedOptimizer.for_model(model, (torch.ones(2, 4),))

    def step():
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()

    step()
    before = {p: dict(entry) for p, entry in optimizer.state.items()}
    step()
    for p, entry in before.items():
        for key in ("fast", "slow", "square"):
            assert optimizer.state[p][key].data_ptr() == entry[key].data_ptr()
            assert optimizer.state[p][key].untyped_storage().nbytes() == entry[key].nbytes
