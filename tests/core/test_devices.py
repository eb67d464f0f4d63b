"""Meta-training where the rule is: on the meta device, which refuses to mix with the CPU."""

import pytest
import torch

from scalegmn_opt import UpdateRule
from scalegmn_opt.meta import RunOptions
from scalegmn_opt.meta.evolution import EvolutionStrategies, PopulationRun, population_step
from scalegmn_opt.meta.unroll import InnerRun, unroll
from scalegmn_opt.recipe import load_recipe
from scalegmn_opt.tasks import FamilySuite
from scalegmn_opt.tasks.families import SuiteRecipe

ELSEWHERE = torch.device("meta")
PLAIN, AUGMENTED = (
    {family.model: family for family in load_recipe(f"{name}_suite", SuiteRecipe).training}
    for name in ("plain", "mixed")
)
SUITE = FamilySuite([PLAIN["mlp"]])
OPTIONS = RunOptions(networks=2, horizon=(4, 4), batches="both", referenced=True)


@pytest.fixture(autouse=True)
def numbers_are_not_looked_at(monkeypatch):
    """There are none on the meta device: what is refused in what was drawn is tested elsewhere."""
    monkeypatch.setattr("scalegmn_opt.meta.unroll._check_stacking", lambda *_: None)


def places(tree):
    return {x.device.type for values in tree.values() for x in values.values()}


@pytest.mark.parametrize("model", PLAIN)
@pytest.mark.parametrize(("families", "channels"), [(PLAIN, 0), (AUGMENTED, 4)])
def test_every_kind_of_network_trains_where_the_rule_is(model, families, channels):
    rule = UpdateRule(channels=channels).to(ELSEWHERE)
    run = InnerRun(rule, FamilySuite([families[model]]), options=OPTIONS, seed=0)
    params, state, losses = unroll(rule, run, run.params, run.state, steps=3, differentiable=True)
    losses.mean().backward()
    assert {p.device.type for p in params.values()} == places(state) == {"meta"}
    assert run.reference.device == rule.mixture.grad.device == ELSEWHERE


def test_populations_train_where_the_rule_is():
    rule = UpdateRule(channels=0).to(ELSEWHERE)
    run = PopulationRun(rule, SUITE, pairs=2, options=OPTIONS, seed=0)
    objective = EvolutionStrategies(rule, SUITE, pairs=2)
    weights = {name: p.detach().expand(4, *p.shape) for name, p in rule.named_parameters()}
    _, state, losses = unroll(
        population_step(rule, weights), run, run.params, run.state, steps=2, differentiable=False
    )
    assert places(state) == {losses.device.type} == {"meta"}
    noise = objective._noise(rule.schedule, torch.Generator().manual_seed(0))
    assert noise.device == ELSEWHERE


def test_a_stored_run_goes_on_where_the_rule_is():
    run = InnerRun(UpdateRule(channels=0), SUITE, options=OPTIONS, seed=0)
    stored = run.state_dict()
    other = InnerRun(UpdateRule(channels=0).to(ELSEWHERE), SUITE, options=OPTIONS, seed=1)
    other.load_state_dict(stored)
    assert {p.device.type for p in other.params.values()} == places(other.state) == {"meta"}
    assert torch.equal(other.generator.get_state(), run.generator.get_state())
    assert other.tasks[0].graph == run.tasks[0].graph


def test_mixing_is_refused_here():
    """The control: a network on the CPU and a rule elsewhere cannot train."""
    run = InnerRun(UpdateRule(channels=0), SUITE, options=OPTIONS, seed=0)
    rule = UpdateRule(channels=0).to(ELSEWHERE)
    with pytest.raises(RuntimeError, match="device"):
        unroll(rule, run, run.params, run.state, steps=1, differentiable=True)
