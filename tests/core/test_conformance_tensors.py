"""Parameters and gradients of every kind, in every optimizer of the package."""

import warnings

import pytest
import torch
from optimizers import (
    CLASSES,
    X,
    assert_same_state,
    bare,
    loss_of,
    make,
    network,
    same,
    states,
    train,
    values,
)
from torch import nn

pytestmark = pytest.mark.parametrize("cls", CLASSES)


def step_on(cls, *parameters, **options):
    own = bare(cls, parameters, **options)
    sum(p.float().square().sum() for p in parameters).backward()
    own.step()
    return own


def test_numbers_and_empty_parameters(cls):
    number, empty, flat = (nn.Parameter(torch.ones(shape)) for shape in ((), (0,), (3, 0)))
    own = step_on(cls, number, empty, flat)
    assert number != 1
    assert own.health().ok


def test_state_of_nothing_but_empty_parameters(cls):
    own = step_on(cls, nn.Parameter(torch.ones(0)), nn.Parameter(torch.ones(3, 0)))
    own.load_state_dict(own.state_dict())
    state = own.state_dict()
    assert state["state"] == {}
    state["state"][1] = {"step": torch.ones(())}
    with pytest.raises(ValueError, match=r"state of .*1'?: expected {}, got {'step': \(\)}"):
        own.load_state_dict(state)
    assert not own.state


def test_empty_grad(cls):
    model, reference = network(), network()
    model.register_parameter("nothing", nn.Parameter(torch.zeros(0, 4)))
    own = make(cls, model)
    model.nothing.grad = torch.zeros(0, 4)
    train(model, own, 2)
    train(reference, make(cls, reference), 2)
    assert same(values(model)[1:], values(reference))
    assert model.nothing.shape == (0, 4)


def test_memory_layout_does_not_matter(cls):
    data = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    dense, strided = nn.Parameter(data.clone()), nn.Parameter(data.t().contiguous().t())
    step_on(cls, dense)
    step_on(cls, strided)
    assert not strided.is_contiguous()
    assert torch.equal(dense, strided)


def test_gradient_of_another_layout(cls):
    models = network(), network()
    for model in models:
        loss_of(model).backward()
    for p in models[0].parameters():
        p.grad = p.grad.t().contiguous().t() if p.ndim == 2 else p.grad
    for model in models:
        make(cls, model).step()
    for p, expected in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, expected)


def test_channels_last_is_kept(cls):
    model = nn.Conv2d(2, 3, 3).double().to(memory_format=torch.channels_last)
    reference = nn.Conv2d(2, 3, 3).double()
    reference.load_state_dict(model.state_dict())
    for each in (model, reference):
        own = bare(cls, each.parameters())
        each(torch.ones(1, 2, 5, 5, dtype=torch.float64)).square().sum().backward()
        own.step()
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    for p, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("first", [torch.float32, torch.float64])
def test_mixed_dtypes(cls, first):
    other = {torch.float32: torch.float64, torch.float64: torch.float32}[first]
    parameters = [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (first, other)]
    step_on(cls, *parameters)
    assert [p.dtype for p in parameters] == [first, other]
    assert all((p != 1).all() for p in parameters)


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@HALVES
def test_half_precision_keeps_its_state_in_float32(cls, dtype):
    model, x = network().to(dtype), X.to(dtype)
    own = make(cls, model)
    train(model, own, 2, x=x)
    own.load_state_dict(own.state_dict())
    train(model, own, x=x)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {t.dtype for entries in states(own).values() for t in entries.values()} == {
        torch.float32
    }
    assert all(torch.isfinite(p).all() for p in model.parameters())


@HALVES
def test_state_of_half_precision_is_loaded_bit_by_bit(cls, dtype):
    model, x = network().to(dtype), X.to(dtype)
    own, other = make(cls, model), make(cls, model)
    train(model, own, 2, x=x)
    other.load_state_dict(own.state_dict())
    assert_same_state(own, other)
    longest = max((t for s in states(own).values() for t in s.values()), key=torch.numel)
    assert not torch.equal(longest, longest.to(dtype).float())  # rounding would be seen


@HALVES
def test_half_precision_descends(cls, dtype):
    model, x = network().to(dtype), X.to(dtype)
    losses = train(model, make(cls, model), 60, x=x)
    assert losses[-1] < 0.8 * losses[0]


# Refused, with the name of the class


def test_sparse_gradient(cls):
    embedding = nn.Embedding(5, 3, sparse=True)
    own = bare(cls, embedding.named_parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(
        TypeError, match=rf"{cls.__name__}: gradient of 'weight' is torch\.sparse_coo, expected"
    ):
        own.step()


def test_complex_parameters(cls):
    phase = nn.Parameter(torch.ones(2).cfloat())
    with pytest.raises(
        TypeError, match=f"{cls.__name__}: expected real parameters, got complex 'phase'"
    ):
        bare(cls, [("phase", phase)])


def test_parameters_on_several_devices(cls):
    parameters = {
        "here": nn.Parameter(torch.ones(2)),
        "there": nn.Parameter(torch.ones(2, device="meta")),
    }
    own = bare(cls, parameters.items())
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    with pytest.raises(
        ValueError,
        match=f"{cls.__name__}: expected all parameters on one device, got 'here' on cpu and "
        "'there' on meta",
    ):
        own.step()
    assert torch.equal(parameters["here"].detach(), torch.ones(2))


def test_refused_gradients_change_nothing(cls):
    model = network()
    own, before = make(cls, model), values(model)
    loss_of(model).backward()
    model[4].bias.grad = model[4].bias.grad.to_sparse()
    with pytest.raises(TypeError):
        own.step()
    assert same(before, values(model))
    assert not states(own)


def test_a_healthy_step_does_not_warn(cls):
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, make(cls, model, lr=torch.tensor(0.5)), 2)


def test_a_step_inside_autocast_is_as_precise_as_outside(cls):
    model, reference = network(), network()
    own, plain = (cls.for_model(m, (X,)) for m in (model, reference))
    for inside, m, optimizer in ((True, model, own), (False, reference, plain)):
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(m).backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                optimizer.step()
    assert same(values(model), values(reference))
    assert all(t.dtype == torch.float32 for entry in states(own).values() for t in entry.values())


def test_a_low_default_precision_does_not_round_the_rule(cls):
    model, reference = network(), network()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        train(model, cls.for_model(model, (X,)), 3)
    finally:
        torch.set_default_dtype(before)
    train(reference, cls.for_model(reference, (X,)), 3)
    assert same(values(model), values(reference))
