"""``differentiable=True``: autograd runs through a step, as torch promises it.

That is, from new parameters and states to old parameters, gradients, states and a tensor ``lr``.
"""

import pytest
import torch
from optimizers import CLASSES, X, bare, loss_of, network, options_of
from torch import nn
from torch.func import functional_call

pytestmark = pytest.mark.parametrize("cls", CLASSES)

STEPS, INPUTS, LABELS = 3, X.double(), (X[:, 0] > 0).long()


def model_and_optimizer(cls, **options):
    model = network().double()
    return model, cls.for_model(model, (INPUTS,), **options_of(cls, **options))


def loss(model, params):
    out = functional_call(model, params, (INPUTS,))
    return nn.functional.cross_entropy(out, LABELS)


def by_function(own, model, lr, decay, sign):
    """Meta-gradients of an unroll without any optimizer, by the rule itself."""
    own.rule.double()
    params = dict(model.named_parameters())
    batched = {name: p[None] for name, p in params.items()}
    state = own.rule.init(own.graph, batched, input_rms=own.input_rms)
    for _ in range(STEPS):
        grads = torch.autograd.grad(loss(model, params), list(params.values()), create_graph=True)
        grads = {name: sign * grad[None] for name, grad in zip(params, grads, strict=True)}
        batched = {name: p[None] for name, p in params.items()}
        updates, state = own.rule(own.graph, batched, grads, state)
        params = {n: (1 - lr * decay) * p + lr * updates[n][0] for n, p in params.items()}
    final = loss(model, params)
    return final, torch.autograd.grad(final, [*model.parameters(), lr])


@pytest.mark.parametrize("maximize", [False, True])
def test_meta_gradients_are_those_of_a_functional_unroll(cls, maximize):
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    model, reference = model_and_optimizer(cls)
    final, expected = by_function(reference, model, lr, 0.1, -1 if maximize else 1)
    params = {name: p.clone() for name, p in model.named_parameters()}
    own = bare(
        cls, params.items(), model=model, example_inputs=(INPUTS,), lr=lr, weight_decay=0.1,
        maximize=maximize, max_change=None, differentiable=True,
    )  # fmt: skip
    own._model_parameters = {}
    for _ in range(STEPS):
        inner = loss(model, {name: p.clone() for name, p in params.items()})
        grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
        for p, grad in zip(params.values(), grads, strict=True):
            p.grad = grad
        own.step()
    found = loss(model, params)
    torch.testing.assert_close(found, final, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(found, [*model.parameters(), lr])
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)
    assert all(b.abs().max() > 0 for b in expected)


def test_gradcheck_of_one_step(cls):
    """As torch's own test: a function of the parameter and its gradient, after one step."""
    torch.manual_seed(0)
    start, grad = torch.randn(3, 2).double(), torch.randn(3, 2).double() / 20

    def step(p, g):
        p = p.clone()
        p.grad = g
        own = bare(cls, [p], lr=0.3, max_change=None, differentiable=True)
        own.step()
        state = [t for t in own.state[p].values() if t.requires_grad]
        return (p, *state)

    assert torch.autograd.gradcheck(step, (start.requires_grad_(), grad.requires_grad_()))


def test_trust_region_and_masks_are_differentiable(cls):
    start = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    p = start.clone()
    p.grad = torch.tensor([[1.0, float("nan")], [2.0, 3.0], [4.0, 5.0]], dtype=torch.float64)
    own = bare(cls, [("p", p)], max_change=1e-3, differentiable=True)
    with pytest.warns(RuntimeWarning, match="masked 1 of 6"):
        own.step()
    assert own.health().limited == {"p": 1}
    (slope,) = torch.autograd.grad(p.sum(), start)
    assert torch.isfinite(slope).all()


def test_without_it_nothing_is_recorded(cls):
    model, own = model_and_optimizer(cls)
    loss_of(model, INPUTS).backward()
    own.step()
    assert not any(t.requires_grad for s in own.state.values() for t in s.values())
    with pytest.raises(ValueError, match="non-leaf"):
        bare(cls, [model[0].weight * 2])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_first_gradient_may_come_at_a_later_step(cls):
    """The gauge of then is of weights that the step changes, and autograd still needs them."""
    model = network().double()
    start = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    params = {n: p.clone() for n, p in start.items()}
    own = cls(params.items(), model=model, example_inputs=(INPUTS,), differentiable=True)
    own._model_parameters = {}
    for step in range(2):
        copies = {n: p.clone() for n, p in params.items()}  # steps change the parameters
        grads = torch.autograd.grad(loss(model, copies), list(copies.values()), create_graph=True)
        for (name, p), grad in zip(params.items(), grads, strict=True):
            p.grad = None if name == "0.weight" and step == 0 else grad
        own.step()
    found = torch.autograd.grad(loss(model, params), list(start.values()))
    assert all(torch.isfinite(grad).all() for grad in found)
    assert all(grad.abs().sum() > 0 for grad in found)


def test_a_state_dict_does_not_change_whether_steps_are_differentiable(cls):
    own, other = (bare(cls, [nn.Parameter(torch.ones(3))], differentiable=d) for d in (0, 1))
    own.load_state_dict(other.state_dict())
    assert own.param_groups[0]["differentiable"] == own.defaults["differentiable"] == 0


@pytest.mark.parametrize("whole", [True, False])
def test_a_group_is_as_differentiable_as_the_optimizer(cls, whole):
    p, q = (torch.ones(3, requires_grad=True) for _ in range(2))
    own = bare(cls, [p], differentiable=whole)
    with pytest.raises(ValueError, match=f"differentiable: expected {whole} in all groups"):
        own.add_param_group({"params": [q], "differentiable": not whole})
    assert len(own.param_groups) == 1
