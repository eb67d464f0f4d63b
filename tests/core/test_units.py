"""How large updates are, measured and as rules know it."""

import pytest
import torch
from test_stacks import Residual, seeded
from torch import nn

from scalegmn_opt import UpdateRule, trace
from scalegmn_opt.graph import stack_parameters
from scalegmn_opt.optim.controls import GaugeAdam, GaugeMuon, PathSGD
from scalegmn_opt.optim.units import measured_sizes, reaches, step_scale

F64 = torch.float64


class Doubled(UpdateRule):
    """Changes what it inherits, and says nothing of sizes."""

    def forward(self, graph, params, grads, state):
        updates, state = super().forward(graph, params, grads, state)
        return {name: 2 * update for name, update in updates.items()}, state


RULES = {
    "plain rule": lambda: UpdateRule(channels=0),
    "graph network": lambda: UpdateRule(channels=4, message_channels=3, hidden_channels=6),
    "permutations": lambda: UpdateRule(channels=0, symmetry="permutation"),
    "subclass": lambda: Doubled(channels=0),
    "GaugeAdam": GaugeAdam._rule,
    "GaugeMuon": GaugeMuon._rule,
    "PathSGD": lambda: PathSGD([nn.Parameter(torch.zeros(2))]).rule,
}


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Residual().to(F64)
    return module, trace(module, (torch.randn(2, 5, 8, dtype=F64, generator=seeded()),))


def run(rule, network, count=3, scale=1.0):
    """The last of some steps of two networks."""
    module, graph = network
    own = {n: p.detach() for n, p in module.named_parameters()}
    other = {n: 1.1 * p + 0.01 for n, p in own.items()}
    params = stack_parameters([own, other])
    rule.measures = True
    state = rule.init(graph, params)
    for number in range(count):
        grads = {
            n: scale * torch.randn(p.shape, generator=seeded(number), dtype=F64)
            for n, p in params.items()
        }
        with torch.no_grad():
            updates, state, sizes = rule.sized(graph, params, grads, state)
    return graph, updates, state, sizes


@pytest.mark.parametrize("name", sorted(RULES))
def test_sizes_that_a_rule_knows_are_those_that_are_measured(name, network):
    rule = RULES[name]().to(F64)
    graph, updates, state, sizes = run(rule, network)
    ordered = {name: updates[name] for name in graph.parameters}
    assert sizes.shape == (2, len(graph.blocks))
    assert sizes.min() > 0
    torch.testing.assert_close(sizes, measured_sizes(ordered, graph, state), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_step_is_the_same_with_its_sizes_and_without(name, network):
    rule = RULES[name]().to(F64)
    module, graph = network
    params = {n: p.detach()[None] for n, p in module.named_parameters()}
    grads = {n: torch.randn(p.shape, generator=seeded(), dtype=F64) for n, p in params.items()}
    with torch.no_grad():
        plain = rule(graph, params, grads, rule.init(graph, params))
        sized = rule.sized(graph, params, grads, rule.init(graph, params))
    torch.testing.assert_close(plain, sized[:2], rtol=0, atol=0)


@pytest.mark.parametrize("make", [GaugeAdam._rule, GaugeMuon._rule])
def test_bounds_of_a_control_that_does_not_measure(make, network):
    """Of all blocks, above the sizes that they have."""
    _, _, _, sizes = run(make().to(F64), network)
    rule = make().to(F64)
    module, graph = network
    params = {n: p.detach()[None] for n, p in module.named_parameters()}
    grads = {n: torch.randn(p.shape, generator=seeded(), dtype=F64) for n, p in params.items()}
    with torch.no_grad():
        found = rule.sized(graph, params, grads, rule.init(graph, params))[2]
    assert found.shape == (1, len(graph.blocks))
    assert (found == 10 * rule.size).all()
    assert (sizes < 10 * rule.size).all()


@pytest.mark.parametrize("rule", [GaugeAdam._rule(), GaugeMuon._rule()])
def test_no_gradients_make_a_plain_direction_longer_than_its_bound(rule):
    """The worst are those of equality in Cauchy's and Schwarz's: growing by ``square / fast``."""
    layer = nn.Linear(1, 1, bias=False).to(F64)
    graph = trace(layer, (torch.ones(2, 1, dtype=F64),))
    (block,) = graph.blocks
    largest = []
    for growth in (1.0, 1.05, rule.decays["square"] / rule.decays["fast"], 1.2, 2.0):
        state, found = rule.init(graph, {"weight": layer.weight.detach()[None]})["weight"], []
        for number in range(300):
            state = rule.advanced(state, torch.full((1, 1, 1), growth ** (number - 200), dtype=F64))
            found.append(float(rule.direction(block, state).abs()))
        largest.append(max(found))
    assert max(largest) == largest[2]
    assert 2 < max(largest) < 10


def test_sizes_are_by_the_formula_on_a_single_layer():
    layer = nn.Linear(5, 3).to(F64)
    graph = trace(layer, (torch.ones(2, 5, dtype=F64),))
    target, source = torch.rand(1, 3, dtype=F64) + 1, torch.rand(1, 5, dtype=F64) + 1
    updates = {"weight": torch.randn(1, 3, 5, dtype=F64), "bias": torch.randn(1, 3, dtype=F64)}
    state = {
        "weight": {"target": target, "source": source},
        "bias": {"target": target, "source": torch.ones(1, 1, dtype=F64)},
    }
    weight = 5 * updates["weight"] * source[:, None] / target[:, :, None]
    bias = 5**0.5 * updates["bias"] / target
    expected = torch.stack([x.square().mean().sqrt() for x in (weight, bias)])[None]
    assert [step_scale(graph, b) for b in graph.blocks] == [1 / 5, 5**-0.5]
    torch.testing.assert_close(measured_sizes(updates, graph, state), expected)


def test_no_update_of_size_one_has_an_entry_beyond_its_reach(network):
    """And one with all of it in the weight of the largest ratio has it."""
    module, graph = network
    params = {n: p.detach()[None] for n, p in module.named_parameters()}
    state = UpdateRule(channels=0).init(graph, params)
    for own in state.values():
        own["target"] *= 1 + torch.rand(own["target"].shape, generator=seeded(), dtype=F64)
        own["source"] *= 1 + torch.rand(own["source"].shape, generator=seeded(1), dtype=F64)
    found = reaches(graph, state)
    assert found.keys() == params.keys()
    updates = {name: torch.zeros_like(p) for name, p in params.items()}
    name = "out.weight"
    row, column = int(state[name]["target"].argmax()), int(state[name]["source"].argmin())
    updates[name][0, row, column] = found[name]
    sizes = measured_sizes({name: updates[name]}, graph, state)
    torch.testing.assert_close(sizes, torch.ones(1, 1, dtype=F64))
    for name, p in params.items():
        update = torch.randn(p.shape, generator=seeded(2), dtype=F64)
        size = measured_sizes({name: update}, graph, state).max()
        assert update.abs().max() <= size * found[name] * (1 + 1e-12)
