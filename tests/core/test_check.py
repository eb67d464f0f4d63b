"""check_task finds each defect, and none where there is none."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from scalegmn_opt import WeightGraph
from scalegmn_opt.meta import ModuleTask, TaskError, check_task
from scalegmn_opt.tasks import SUITES, MLPClassification, digits, resolve_suite


class Fine(ModuleTask):
    """A task without fault; each test below breaks one thing."""

    def __init__(self, module=None):
        super().__init__(
            module or nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), (torch.ones(4, 2),)
        )

    def batch(self, generator):
        return torch.randn(8, 2, generator=generator)

    def loss(self, params, batch):
        return mse_loss(self.forward(params, batch), batch.sum(1, keepdim=True))


class WrongValidation(Fine):
    def validation_batch(self, generator):
        return torch.randn(8, 3, generator=generator)


class NotFiniteValidation(Fine):
    def validation_batch(self, generator):
        return torch.full((8, 2), torch.inf)


class Negative(Fine):
    def loss(self, params, batch):
        return super().loss(params, batch) - 100.0


class NoDictionary(Fine):
    def init(self, generator):
        return [torch.zeros(2)]


class Integers(Fine):
    def init(self, generator):
        return {**super().init(generator), "0.bias": torch.zeros(3, dtype=torch.int64)}


class NotFiniteInit(Fine):
    def init(self, generator):
        return {**super().init(generator), "0.bias": torch.full((3,), torch.nan)}


class OneMore(Fine):
    def init(self, generator):
        return {**super().init(generator), "extra": torch.zeros(2)}

    def loss(self, params, batch):
        own = {name: p for name, p in params.items() if name != "extra"}
        return super().loss(own, batch) + params["extra"].sum()


class OneLess(Fine):
    graph = WeightGraph.from_parameters(
        {"0.weight": (3, 2), "0.bias": (3,), "1.weight": (1, 3), "1.bias": (1,), "ghost": (2,)}
    )


class WrongShape(Fine):
    graph = WeightGraph.from_parameters(
        {"0.weight": (2, 3), "0.bias": (3,), "1.weight": (1, 3), "1.bias": (1,)}
    )


class NoScale(Fine):
    input_rms = 0.0


class GlobalInit(Fine):
    def init(self, generator):
        return {name: torch.randn(p.shape) for name, p in super().init(generator).items()}


class ConstantInit(Fine):
    def init(self, generator):
        return super().init(torch.Generator().manual_seed(0))


class GlobalBatch(Fine):
    def batch(self, generator):
        return torch.randn(8, 2)


class GlobalValidation(Fine):
    def validation_batch(self, generator):
        return torch.randn(8, 2)


class ManyLosses(Fine):
    def loss(self, params, batch):
        return self.forward(params, batch).square()


class PlainNumber(Fine):
    def loss(self, params, batch):
        return float(super().loss(params, batch).detach())


class ChangesParams(Fine):
    def loss(self, params, batch):
        loss = super().loss(params, batch)
        with torch.no_grad():
            params["0.bias"].add_(1.0)
        return loss


class ChangesBatch(Fine):
    def loss(self, params, batch):
        loss = super().loss(params, batch.clone())
        batch.zero_()
        return loss


class NotFinite(Fine):
    def loss(self, params, batch):
        return super().loss(params, batch) * torch.inf


class Dropout(Fine):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.Linear(16, 1)))


class NoGradient(Fine):
    def loss(self, params, batch):
        return super().loss({name: p.detach() for name, p in params.items()}, batch)


class Unread(Fine):
    def loss(self, params, batch):
        fixed = {**params, "1.bias": torch.zeros(1)}
        return super().loss(fixed, batch)


class SteepGradient(Fine):
    def loss(self, params, batch):
        return super().loss(params, batch) + params["0.bias"].sub(params["0.bias"]).sqrt().sum()


class WrongStack(Fine):
    def losses(self, params, batches):
        return torch.func.vmap(self.loss)(params, batches) + 1.0


DEFECTS = {
    NoDictionary: ["init: expected a dictionary of tensors by name, got list"],
    Integers: ["init: expected a tensor of real numbers as '0.bias', got torch.int64"],
    NotFiniteInit: ["init: expected finite numbers in '0.bias'"],
    OneMore: ["graph: expected a block of parameter 'extra', which init gives, got none"],
    OneLess: ["graph: expected only parameters that init gives, got 'ghost'"],
    WrongShape: ["graph: expected the shape (3, 2) that init gives '0.weight', got (2, 3)"],
    NoScale: ["input_rms: expected a number above 0, got 0.0"],
    GlobalInit: ["init: expected the same from equal generators"],
    ConstantInit: ["init: expected other parameters from another generator"],
    GlobalBatch: [
        "batch: expected the same from equal generators",
        "validation_batch: expected the same from equal generators",
    ],
    GlobalValidation: ["validation_batch: expected the same from equal generators"],
    ManyLosses: ["loss: expected one real number, a tensor of shape (), got shape (8, 1)"],
    PlainNumber: ["loss: expected one real number, a tensor of shape (), got float"],
    ChangesParams: ["loss: expected parameters and batch to be left alone"],
    ChangesBatch: ["loss: expected parameters and batch to be left alone"],
    Dropout: ["loss: expected the same for the same arguments"],
    NoGradient: ["loss: expected gradients, but it does not depend on the parameters"],
    Unread: ["loss: expected a gradient for '1.bias', but the loss does not read it"],
    SteepGradient: ["loss: expected finite gradients, those of '0.bias' are not"],
    WrongStack: ["losses: expected "],
    WrongValidation: ["loss: expected to take what validation_batch gives, got "],
    NotFiniteValidation: ["loss: expected a finite number on what validation_batch gives"],
    Negative: ["loss: expected none below 0, got "],
}


@pytest.mark.parametrize("make", DEFECTS, ids=lambda make: make.__name__)
def test_each_defect_is_told_in_words_and_no_other(make):
    with pytest.raises(TaskError) as error:
        check_task(make())
    expected = DEFECTS[make]
    assert len(error.value.defects) == len(expected), error.value.defects
    for defect, start in zip(error.value.defects, expected, strict=True):
        assert defect.startswith(start)
        assert f"{make.__name__}.{defect}" in str(error.value)


def test_a_loss_that_is_not_finite_is_told_with_its_gradients():
    with pytest.raises(TaskError) as error:
        check_task(NotFinite())
    assert error.value.defects[0].startswith("loss: expected a finite number at the start, got inf")


def test_a_task_without_fault_passes_and_is_left_alone():
    task = Fine()
    state = torch.get_rng_state()
    before = {name: p.clone() for name, p in task.module.state_dict().items()}
    check_task(task)
    check_task(MLPClassification(digits(), hidden=(4,)), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], p) for name, p in task.module.state_dict().items())


@pytest.mark.parametrize("name", sorted(name for name in SUITES if "/" not in name))
def test_tasks_of_the_packaged_suites_pass(name):
    check_task(resolve_suite(name).sample(torch.Generator().manual_seed(1), 1)[0])


def test_what_is_no_task_is_told_what_it_lacks():
    class Half:
        def batch(self, generator):
            return None

    with pytest.raises(TypeError, match=r"Half lacks \['graph', 'input_rms', 'init', 'loss'\]"):
        check_task(Half())
