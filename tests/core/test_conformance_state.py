"""Saving, loading and copying every optimizer of the package, after torch's own tests."""

import copy
import pickle

import pytest
import torch
from optimizers import (
    CLASSES,
    X,
    assert_same_state,
    bare,
    make,
    network,
    same,
    saved,
    states,
    train,
    values,
)
from torch import nn

pytestmark = pytest.mark.parametrize("cls", CLASSES)


def trained(cls, steps=3, **options):
    model = network()
    own = make(cls, model, **options)
    train(model, own, steps)
    return model, own


def test_state_dict_is_of_tensors_by_index(cls):
    _, own = trained(cls)
    state = own.state_dict()
    assert set(state) == {"state", "param_groups"}
    assert list(state["state"]) == list(range(6))
    assert all(isinstance(t, torch.Tensor) for s in state["state"].values() for t in s.values())


def test_state_dict_deterministic(cls):
    """A resumed training is the same bit by bit, also if the state is loaded twice."""
    model, own = trained(cls, weight_decay=0.01, lr=0.5)
    weights, state = saved(model.state_dict()), saved(own.state_dict())
    expected = train(model, own, 3)
    resumed = network(seed=5)
    resumed.load_state_dict(weights)
    other = make(cls, resumed)
    for _ in range(2):
        other.load_state_dict(state)
    assert other.param_groups[0]["weight_decay"] == 0.01
    assert train(resumed, other, 3) == expected
    assert same(values(resumed), values(model))
    assert_same_state(own, other)


def test_save_load_equality_with_weights_only(cls):
    _, own = trained(cls, lr=torch.tensor(0.5))
    for weights_only in (True, False):
        other = make(cls, network())
        other.load_state_dict(saved(own.state_dict(), weights_only=weights_only))
        assert_same_state(own, other)
        assert torch.equal(other.param_groups[0]["lr"], torch.tensor(0.5))


@pytest.mark.parametrize(("named", "into_named"), [(True, False), (False, True), (True, True)])
def test_can_load_from_to_named_state_dict(cls, named, into_named):
    def either(model, with_names):
        given = model.named_parameters() if with_names else model.parameters()
        return bare(cls, given, model=model, example_inputs=(X,))

    model = network()
    own = either(model, named)
    train(model, own, 2)
    other_model = copy.deepcopy(model)
    other = either(other_model, into_named)
    for _ in range(2):
        other.load_state_dict(own.state_dict())
    assert ("param_names" in other.param_groups[0]) == (named or into_named)
    assert train(model, own, 2) == train(other_model, other, 2)


def test_loading_does_not_share_tensors(cls):
    _, own = trained(cls)
    state = own.state_dict()
    before = copy.deepcopy(state["state"])
    other = make(cls, network())
    other.load_state_dict(state)
    for entries in other.state.values():
        for tensor in entries.values():
            tensor.zero_()
    for index, entries in state["state"].items():
        assert all(torch.equal(t, before[index][key]) for key, t in entries.items())


def test_can_load_older_state_dict(cls):
    """State dicts of the first version had no options but ``lr`` and ``weight_decay``."""
    model, own = trained(cls)
    state = own.state_dict()
    for group in state["param_groups"]:
        for later in ("maximize", "differentiable", "max_change"):
            del group[later]
    again = copy.deepcopy(model)
    other = make(cls, again, maximize=True)
    other.load_state_dict(state)
    assert other.param_groups[0]["maximize"] is False
    assert train(model, own, 2) == train(again, other, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_state_with_numbers_that_are_not_finite_is_refused(cls, value):
    model, own = trained(cls)
    state = copy.deepcopy(own.state_dict())
    state["state"][0]["target"][1] = value
    with pytest.raises(ValueError, match=r"'0.weight': expected finite numbers in 'target'"):
        own.load_state_dict(state)
    assert train(model, own, 1)


def without(entries):
    entries.popitem()


def renamed(entries):
    entries["exp_avg"] = entries.pop("target")


def reshaped(entries):
    entries["target"] = entries["target"][:-1]


@pytest.mark.parametrize("spoil", [without, renamed, reshaped])
def test_state_of_another_version_is_refused_as_a_whole(cls, spoil):
    model, own = trained(cls)
    other = make(cls, model)
    train(model, other)
    before = copy.deepcopy(states(other))
    state = copy.deepcopy(own.state_dict())
    spoil(state["state"][5])
    with pytest.raises(ValueError, match=rf"{cls.__name__}: state of '4.bias': expected .* got"):
        other.load_state_dict(state)
    for index, entries in states(other).items():
        assert all(torch.equal(t, before[index][key]) for key, t in entries.items())
    train(model, other)


def test_state_of_adam_is_refused(cls):
    model = network()
    adam = torch.optim.Adam(model.parameters())
    train(model, adam)
    with pytest.raises(ValueError, match=rf"{cls.__name__}: state of '0.weight': .*exp_avg"):
        make(cls, model).load_state_dict(adam.state_dict())


def test_state_of_other_parameters(cls):
    small = bare(cls, [nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="doesn't match the size"):
        make(cls, network()).load_state_dict(small.state_dict())
    wide = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3))
    own = make(cls, wide)
    train(wide, own)
    with pytest.raises(ValueError, match=r"state of '0.weight': expected .*\(8,"):
        make(cls, network()).load_state_dict(own.state_dict())


def test_state_before_the_first_step(cls):
    model = network()
    own, other = make(cls, model), make(cls, model)
    other.load_state_dict(saved(own.state_dict()))
    assert not states(other)
    train(model, other)


# Hooks


def test_state_dict_pre_post_hook(cls):
    _, own = trained(cls)
    seen = []
    own.register_state_dict_pre_hook(lambda _: seen.append("saving"))
    own.register_state_dict_post_hook(lambda _, state: seen.append(f"saved {len(state)}"))
    own.register_load_state_dict_pre_hook(lambda *_: seen.append("loading"))
    own.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    for _ in range(2):
        own.load_state_dict(own.state_dict())
    assert seen == 2 * ["saving", "saved 2", "loading", "loaded"]


def test_load_state_dict_pre_hook_may_give_another(cls):
    model, own = trained(cls)
    other = make(cls, model)

    def doubled(_, state):
        state["state"] = {
            index: {key: 2 * value for key, value in entries.items()}
            for index, entries in state["state"].items()
        }
        return state

    other.register_load_state_dict_pre_hook(doubled)
    other.load_state_dict(own.state_dict())
    for index, entries in states(own).items():
        assert all(torch.equal(2 * t, states(other)[index][key]) for key, t in entries.items())


def test_load_state_dict_post_hook_sees_the_final_state(cls):
    model = network().bfloat16()
    own, other = (make(cls, model) for _ in range(2))
    train(model, own, x=X.bfloat16())
    seen = []
    other.register_load_state_dict_post_hook(
        lambda loaded: seen.extend(t.dtype for s in loaded.state.values() for t in s.values())
    )
    other.load_state_dict(own.state_dict())
    assert set(seen) == {torch.float32}


# Copies


def by_pickle(pair):
    return pickle.loads(pickle.dumps(pair))


def by_file(pair):
    return saved(pair, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_file])
def test_copies_continue_identically(cls, duplicate):
    model, own = trained(cls, lr=0.7)
    copied, other = duplicate((model, own))
    assert other.graph == own.graph
    assert train(model, own, 3) == train(copied, other, 3)
    assert same(values(model), values(copied))


def test_deepcopy_copies_all_public_attrs(cls):
    _, own = trained(cls)
    own.record = True
    other = copy.deepcopy(own)

    def public(optimizer):
        return {name for name in vars(optimizer) if not name.startswith("_")}

    assert public(other) == public(own)
    assert other.record
    assert other.health() == own.health()


# Distributed checkpoints (torch.distributed.checkpoint), also in one process


def test_distributed_checkpoint_state(cls):
    dcp = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    model, own = trained(cls)
    state = dcp.get_optimizer_state_dict(model, own)
    assert set(state["state"]) == {name for name, _ in model.named_parameters()}
    other = copy.deepcopy(model)
    again = make(cls, other)
    dcp.set_optimizer_state_dict(other, again, copy.deepcopy(state))
    assert_same_state(own, again)
    assert train(other, again, 3) == train(model, own, 3)
