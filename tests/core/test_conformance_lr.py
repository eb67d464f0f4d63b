"""Learning rates of every optimizer of the package: tensors, and every scheduler of torch."""

import inspect

import pytest
import torch
from optimizers import CLASSES, make, network, same, train, values
from torch.optim import lr_scheduler

pytestmark = pytest.mark.parametrize("cls", CLASSES)

STEPS = 4
# one way to make each public scheduler; "test_every_scheduler_is_here" finds those that are new
SCHEDULERS = {
    "ChainedScheduler": lambda own: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(own, 0.1), lr_scheduler.ExponentialLR(own, 0.9)]
    ),
    "ConstantLR": lambda own: lr_scheduler.ConstantLR(own, 0.5, total_iters=2),
    "CosineAnnealingLR": lambda own: lr_scheduler.CosineAnnealingLR(own, STEPS),
    "CosineAnnealingWarmRestarts": lambda own: lr_scheduler.CosineAnnealingWarmRestarts(own, 2),
    "CyclicLR": lambda own: lr_scheduler.CyclicLR(own, 0.1, 1.0, 2, cycle_momentum=False),
    "ExponentialLR": lambda own: lr_scheduler.ExponentialLR(own, 0.5),
    "LambdaLR": lambda own: lr_scheduler.LambdaLR(own, lambda step: 0.5**step),
    "LinearLR": lambda own: lr_scheduler.LinearLR(own, 1.0, 0.25, total_iters=2),
    "MultiStepLR": lambda own: lr_scheduler.MultiStepLR(own, [1, 2]),
    "MultiplicativeLR": lambda own: lr_scheduler.MultiplicativeLR(own, lambda _: 0.5),
    "OneCycleLR": lambda own: lr_scheduler.OneCycleLR(
        own, 1.0, total_steps=STEPS + 1, cycle_momentum=False
    ),
    "PolynomialLR": lambda own: lr_scheduler.PolynomialLR(own, STEPS),
    "ReduceLROnPlateau": lambda own: lr_scheduler.ReduceLROnPlateau(own, patience=0),
    "SequentialLR": lambda own: lr_scheduler.SequentialLR(
        own, [lr_scheduler.ConstantLR(own, 0.1), lr_scheduler.StepLR(own, 1)], [1]
    ),
    "StepLR": lambda own: lr_scheduler.StepLR(own, 1, gamma=0.5),
}


def rates(model, own, schedule):
    """Learning rates of some steps under a scheduler."""
    found = []
    for _ in range(STEPS):
        found.append(float(own.param_groups[0]["lr"]))
        train(model, own)
        plateau = isinstance(schedule, lr_scheduler.ReduceLROnPlateau)
        schedule.step(*([1.0] if plateau else []))
    return found


def test_every_scheduler_is_here(cls):
    public = {
        name
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value) and name in lr_scheduler.__all__ and name != "LRScheduler"
    }
    assert public == set(SCHEDULERS)


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_param_group_with_lrscheduler(cls, name, tensor):
    """The rates are those that SGD gets, and each step takes its own."""
    lr = torch.tensor(1.0) if tensor else 1.0
    model, other, steady = network(), network(), network()
    own, sgd = make(cls, model, lr=lr), torch.optim.SGD(other.parameters(), lr=1.0)
    found = rates(model, own, SCHEDULERS[name](own))
    assert found == pytest.approx(rates(other, sgd, SCHEDULERS[name](sgd)))
    assert len(set(found)) > 1
    train(steady, make(cls, steady), STEPS)
    assert not same(values(model), values(steady))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_tensor_lr(cls):
    models = network(), network()
    for model, lr in zip(models, (0.5, torch.tensor(0.5)), strict=True):
        train(model, make(cls, model, lr=lr, weight_decay=0.1), 3)
    assert same(*map(values, models))


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1, 1)])
def test_tensor_lr_of_one_element_may_change_in_place(cls, shape):
    models, lr = (network(), network()), torch.full(shape, 0.5)
    first, second = (
        make(cls, m, lr=r, weight_decay=0.1) for m, r in zip(models, (lr, 0.5), strict=True)
    )
    train(models[0], first)
    train(models[1], second)
    first.param_groups[0]["lr"].fill_(0.125)
    second.param_groups[0]["lr"] = 0.125
    train(models[0], first)
    train(models[1], second)
    assert same(*map(values, models))
