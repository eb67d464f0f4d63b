"""The habits of ``torch.optim`` in a step, of every optimizer of the package.

Names follow the tests of torch's own optimizers (``test/test_optim.py``).
"""

import copy
import socket

import pytest
import torch
from optimizers import (
    CLASSES,
    X,
    bare,
    loss_of,
    make,
    network,
    options_of,
    same,
    states,
    traced,
    train,
    values,
)
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from scalegmn_opt.optim import LearnedOptimizer, PathSGD

pytestmark = pytest.mark.parametrize("cls", CLASSES)


def test_forloop_goes_right_direction(cls):
    model = network()
    losses = train(model, make(cls, model), 60)
    assert losses[-1] < 0.7 * losses[0]


def test_maximize_climbs_what_minimizing_descends(cls):
    models = network(), network()
    optimizers = make(cls, models[0]), make(cls, models[1], maximize=True)
    for sign, model, own in zip((1, -1), models, optimizers, strict=True):
        for _ in range(3):
            own.zero_grad()
            (sign * loss_of(model)).backward()
            own.step()
    assert same(*map(values, models))
    assert not same(values(models[0]), values(network()))


def test_maximize_is_an_option_of_a_group(cls):
    model, reference = network(), network()
    groups = [
        {"params": model[0].parameters(), "maximize": True},
        {"params": [*model[2].parameters(), *model[4].parameters()]},
    ]
    own = bare(cls, groups)
    train(model, own)
    plain = bare(cls, reference.parameters())
    loss_of(reference).backward()
    for p in reference[0].parameters():
        p.grad.neg_()
    plain.step()
    assert same(values(model), values(reference))


@pytest.mark.parametrize("by_keyword", [False, True])
def test_closure(cls, by_keyword):
    model, reference = network(), network()
    own, calls = make(cls, model), []

    def closure():
        own.zero_grad()
        loss = loss_of(model)
        loss.backward()
        calls.append(loss)
        return loss

    found = own.step(closure=closure) if by_keyword else own.step(closure)
    assert found is calls[0]
    assert len(calls) == 1
    assert own.step() is None
    plain = make(cls, reference)
    train(reference, plain)
    plain.step()
    assert same(values(model), values(reference))


def test_closure_has_gradients_inside_no_grad(cls):
    model = network()
    own, before = make(cls, model), values(model)

    def closure():
        assert torch.is_grad_enabled()
        loss = loss_of(model)
        loss.backward()
        return loss

    with torch.no_grad():
        own.step(closure)
    assert not same(before, values(model))


def test_step_leaves_the_gradient_mode_as_it_was(cls):
    model = network()
    train(model, make(cls, model))
    assert torch.is_grad_enabled()
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())


def test_step_is_noop_when_params_have_no_grad(cls):
    model = network()
    own, before = make(cls, model, weight_decay=0.5), values(model)
    assert own.step() is None
    assert same(before, values(model))
    assert not states(own)
    assert own.health().steps == 0


def test_step_is_noop_for_zero_grads(cls):
    model = network()
    own, before = make(cls, model), values(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    own.step()
    assert same(before, values(model))
    assert own.health().ok


@pytest.mark.parametrize("set_to_none", [False, True])
def test_zero_grad(cls, set_to_none):
    model = network()
    own = make(cls, model)
    train(model, own)
    own.zero_grad(set_to_none=set_to_none)
    for p in model.parameters():
        assert p.grad is None if set_to_none else not p.grad.any()


def test_nothing_is_downloaded(cls, monkeypatch):
    """Construction with all defaults, the packaged rule among them, opens no connection."""

    def connect(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    model = network()
    train(model, cls(model.parameters()))


def test_gradients_are_not_modified(cls):
    model = network()
    own = make(cls, model, maximize=True)
    loss_of(model).backward()
    before = [p.grad.clone() for p in model.parameters()]
    own.step()
    assert same(before, [p.grad for p in model.parameters()])


def test_step_all_hooks(cls):
    model = network()
    own, seen = make(cls, model), []
    own.register_step_pre_hook(lambda *_: seen.append("before"))
    own.register_step_post_hook(lambda *_: seen.append("after"))
    before = register_optimizer_step_pre_hook(lambda *_: seen.append("all"))
    try:
        train(model, own)
    finally:
        before.remove()
    assert seen == ["all", "before", "after"]


def test_step_pre_hook_may_clip(cls):
    model = network()
    own, before = make(cls, model), values(model)
    own.register_step_pre_hook(lambda *_: nn.utils.clip_grad_value_(model.parameters(), 0.0))
    train(model, own, 2)
    assert same(before, values(model))


def test_optimizer_can_be_printed(cls):
    text = repr(make(cls, network(), lr=0.25, weight_decay=0.125))
    for word in (cls.__name__, "Parameter Group 0", "lr: 0.25", "weight_decay: 0.125", "maximize"):
        assert word in text


# Groups


def test_param_groups_lr(cls):
    model, reference = network(), network()
    first, second = list(model.parameters())[:2], list(model.parameters())[2:]
    own = bare(cls, [{"params": first, "lr": 0.0}, {"params": second}])
    before = values(model)
    train(model, own)
    train(reference, make(cls, reference))
    assert same(values(model)[:2], before[:2])
    assert same(values(model)[2:], values(reference)[2:])


def test_param_groups_weight_decay(cls):
    model, reference = network(), network()
    first, second = list(model.parameters())[:2], list(model.parameters())[2:]
    own = bare(cls, [{"params": first, "weight_decay": 0.5}, {"params": second}])
    before = values(model)
    train(model, own)
    train(reference, make(cls, reference))
    for p, plain, old in zip(first, list(reference.parameters())[:2], before[:2], strict=True):
        torch.testing.assert_close(p, plain - 0.5 * old, rtol=1e-4, atol=1e-6)
    assert same(values(model)[2:], values(reference)[2:])


def test_lr_zero_changes_nothing_but_the_state(cls):
    model = network()
    own, before = make(cls, model, lr=0.0, weight_decay=0.1), values(model)
    train(model, own, 3)
    assert same(before, values(model))
    assert own.health().steps == 3


def test_add_param_group(cls):
    model, extra = network(), nn.Parameter(torch.ones(4))
    own = make(cls, model)
    train(model, own)
    blocks = len(own.graph.blocks)
    own.add_param_group({"params": [("extra", extra)], "lr": 0.1})
    assert len(own.graph.blocks) == blocks + 1
    own.zero_grad()
    loss_of(model, X + extra).backward()
    before = values(model)
    own.step()
    assert (extra != 1).any()
    assert not same(before, values(model))
    assert len(states(own)) == 7


@pytest.mark.parametrize("shape", [(3, 7), (8, 4)], ids=["another shape", "the module's shape"])
def test_a_new_parameter_called_as_a_module_is_not_of_it(cls, shape):
    found = []
    for name in ("0", "other"):  # nn.ParameterList calls its first one "0"
        model, extra = network(), nn.Parameter(torch.ones(shape))
        own = traced(cls, model)
        own.add_param_group({"params": [(name, extra)]})
        ends = own.graph.parameters[name][0]
        assert {ends.target, ends.source}.isdisjoint(traced(cls, model).graph.group)
        for _ in range(2):
            own.zero_grad()
            (loss_of(model) + extra.square().mean()).backward()
            own.step()
        assert own.health().ok
        found.append([*values(model), extra.detach()])
    assert same(*found)
    assert (found[0][-1] != 1).any()


def test_refused_group_is_not_added(cls):
    model = network()
    own = make(cls, model)
    for bad, error in (
        ({"lr": -1.0}, ValueError),
        ({"weight_decay": float("nan")}, ValueError),
        ({"max_change": 0.0}, ValueError),
        ({"params": [("z", nn.Parameter(torch.ones(2, dtype=torch.complex64)))]}, TypeError),
    ):
        with pytest.raises(error):
            own.add_param_group({"params": [("p", nn.Parameter(torch.ones(2)))]} | bad)
    assert len(own.param_groups) == 1
    train(model, own)


ERRORS = {
    "invalid param type": (lambda p, _: p, TypeError, "iterable of Tensors or dicts"),
    "duplicate parameters": (lambda p, _: [p, p], UserWarning, "duplicate parameters"),
    "duplicate in groups": (
        lambda p, _: [{"params": p}, {"params": p}],
        ValueError,
        "appear in more than one parameter group",
    ),
    "some without names": (lambda p, q: [("weight", p), q], ValueError, "with/without names"),
    "groups without names": (
        lambda p, q: [{"params": [p]}, {"params": [("weight", q)]}],
        ValueError,
        "with/without names",
    ),
    "a set": (lambda p, q: [{"params": {p, q}}], TypeError, "ordered collections"),
    "no tensor": (lambda p, _: [p, "weight"], TypeError, "can only optimize Tensors"),
    "non-leaf": (lambda p, _: [2 * p], ValueError, "can't optimize a non-leaf Tensor"),
    "none": (lambda *_: [], ValueError, "empty parameter list"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(cls, name):
    given, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        bare(cls, given(*(nn.Parameter(torch.randn(2, 2)) for _ in range(2))))


BAD = [
    ({"lr": -0.1}, "lr: expected a finite number of at least 0.0, got -0.1"),
    ({"lr": float("nan")}, "lr: expected a finite number"),
    ({"lr": float("inf")}, "lr: expected a finite number"),
    ({"lr": "fast"}, "lr: expected a finite number of at least 0.0, got 'fast'"),
    ({"lr": None}, "lr: expected a finite number"),
    ({"lr": torch.tensor([0.1, 0.1])}, "Tensor lr must be 1-element"),
    ({"weight_decay": -1.0}, "weight_decay: expected a finite number of at least 0"),
    ({"max_change": -1.0}, "max_change: expected None or a number above 0"),
    ({"max_change": "1"}, "max_change: expected None or a number above 0.0, got '1'"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_bad_numbers_are_named(cls, given, message):
    with pytest.raises(ValueError, match=message):
        make(cls, network(), **given)


@pytest.mark.parametrize("given", [{"model": network()}, {"example_inputs": (X,)}])
def test_model_and_inputs_belong_together(cls, given):
    with pytest.raises(ValueError, match="model and example_inputs: expected both or neither"):
        bare(cls, network().parameters(), **given)


def test_a_parameter_of_another_shape_than_at_first_is_named(cls):
    model = network()
    own = make(cls, model)
    train(model, own, 2)
    model[0].weight.data = torch.zeros(3, 2)
    model[0].weight.grad = torch.ones(3, 2)
    before = values(model)
    with pytest.raises(ValueError, match=r"'0.weight' of shape .*, got \(3, 2\); a network that"):
        own.step()
    assert all(torch.equal(a, b) for a, b in zip(values(model), before, strict=True))


# Parameters that are not there


def test_parameter_without_a_gradient_is_untouched(cls):
    model = network()
    own = make(cls, model, weight_decay=0.1)
    train(model, own)
    weight, before = model[0].weight, values(model)
    state = copy.deepcopy(own.state[weight])
    own.zero_grad()
    loss_of(model).backward()
    weight.grad = None
    own.step()
    assert torch.equal(weight, before[0])
    assert all(torch.equal(t, state[key]) for key, t in own.state[weight].items())
    assert not torch.equal(model[0].bias, before[1])


def test_frozen_parameters(cls):
    model = network()
    model[2].weight.requires_grad_(False)
    own, before = make(cls, model), values(model)
    train(model, own, 2)
    assert torch.equal(model[2].weight, before[2])
    assert model[2].weight not in own.state
    assert len(states(own)) == 5


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = network(), nn.Linear(5, 7)

    def forward(self, x):
        return self.used(x)


def test_unused_parameters(cls):
    model, reference = Unused(), network()
    reference.load_state_dict(model.used.state_dict())
    used, every = (sum(p.numel() for p in m.parameters()) for m in (reference, model))
    lr = 0.1
    if cls is PathSGD:  # its unit counts the weights, used or not
        lr = 0.1 * every / used
    options = options_of(cls, max_change=None)
    if cls is LearnedOptimizer:  # and this one's the matrices: four, of which three are used
        options["rule"].requires_grad_(False).shallow.zero_()
        lr = 0.1 * (4 / 3) ** -options["rule"].kinds[-1].item()
    before = values(model.unused)
    train(model, make(cls, model, lr=lr, **options), 3)
    train(reference, make(cls, reference, lr=0.1, **options), 3)
    assert same(before, values(model.unused))
    for p, expected in zip(model.used.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-3, atol=1e-5)
