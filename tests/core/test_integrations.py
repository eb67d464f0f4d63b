"""The optimizers inside what people train with: short real trainings."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from scalegmn_opt import LearnedOptimizer, UpdateRule
from scalegmn_opt.optim import GaugeAdam, GaugeMuon, PathSGD

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > X[:, 1]).long()


def rule():
    torch.manual_seed(0)
    return UpdateRule(channels=4, message_channels=3, hidden_channels=6)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))


KINDS = {
    "general": LearnedOptimizer.for_model,
    "graph network": lambda *given: LearnedOptimizer.for_model(*given, rule=rule()),
    "GaugeAdam": GaugeAdam.for_model,
    "GaugeMuon": GaugeMuon.for_model,
    "PathSGD": PathSGD.for_model,
}


@pytest.fixture(params=KINDS)
def optimizer(request):
    """Makes an optimizer of a model on X."""
    return lambda model: KINDS[request.param](model, (X,))


@pytest.fixture
def expected(optimizer):
    """The losses of a training of the plain network."""
    model = network()
    return train(model, optimizer(model))


def train(model, own, steps=20, x=X):
    losses = []
    for _ in range(steps):
        own.zero_grad()
        loss = F.cross_entropy(model(x), Y)
        loss.backward()
        own.step()
        losses.append(loss.item())
    return losses


def test_grad_scaler_skips_a_step_that_overflows(optimizer, expected):
    model = network()
    own = optimizer(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    losses = []
    for _ in range(20):
        own.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        scaler.scale(loss).backward()
        scaler.step(own)
        scaler.update()
        losses.append(loss.item())
    assert own.health().steps == 20
    assert losses == pytest.approx(expected, rel=1e-5)  # a power of two changes no digit
    assert losses[-1] < 0.7 * losses[0]
    before = [p.detach().clone() for p in model.parameters()]
    model[0].weight.grad[0, 0] = float("inf")
    scaler.scale(torch.ones(()))
    scaler.step(own)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert scaler.get_scale() < 2.0**10
    assert own.health().ok


class Checkpointed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


def test_gradient_checkpointing(optimizer, expected):
    model = Checkpointed(network())
    own = optimizer(model)
    assert sum(group.symmetry.permutes for group in own.graph.groups) == 2
    assert train(model, own) == expected


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_model(optimizer, expected, backend):
    compiled = torch.compile(network(), backend=backend)
    own = optimizer(compiled)
    assert sum(group.symmetry.permutes for group in own.graph.groups) == 2
    losses = train(compiled, own)
    assert losses[:5] == pytest.approx(expected[:5], rel=1e-3)
    if backend == "eager":  # what inductor makes rounds otherwise, which shows later
        assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < 0.7 * losses[0]


def test_averaged_models(optimizer):
    model = network()
    own = optimizer(model)
    mean = AveragedModel(model)
    moving = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    schedule = SWALR(own, swa_lr=0.1, anneal_epochs=5)
    for _ in range(120):
        train(model, own, 1)
        mean.update_parameters(model)
        moving.update_parameters(model)
        schedule.step()
    start = F.cross_entropy(network()(X), Y)
    assert own.param_groups[0]["lr"] == pytest.approx(0.1)
    for averaged in (mean, moving):
        assert F.cross_entropy(averaged(X), Y) < 0.7 * start


def test_accelerate_with_accumulation(optimizer, tmp_path):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    plain = network()
    model, own = accelerator.prepare(plain, optimizer(plain))
    loader = accelerator.prepare(DataLoader(TensorDataset(X, Y), batch_size=16))

    def epoch():
        losses = []
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(x), y)
                accelerator.backward(loss)
                own.step()
                own.zero_grad()
            losses.append(loss.item())
        return losses

    first = epoch()
    assert own.optimizer.health().steps == 2  # four batches, two of them a step
    accelerator.save_state(tmp_path)
    after = [epoch() for _ in range(3)]
    accelerator.load_state(tmp_path)
    assert [epoch() for _ in range(3)] == after
    assert sum(after[-1]) < sum(first)


class Pairs(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"x": X[i], "labels": Y[i]}


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels=None):
        out = self.net(x)
        return out if labels is None else (F.cross_entropy(out, labels), out)


def test_trainer_of_transformers_makes_the_optimizer(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = Classifier()
    start = F.cross_entropy(model(X), Y).item()
    arguments = TrainingArguments(
        tmp_path, max_steps=20, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    factory = (lambda: LearnedOptimizer.for_model), {"example_inputs": (X,), "rule": rule()}
    trainer = Trainer(model, arguments, train_dataset=Pairs(), optimizer_cls_and_kwargs=factory)
    trainer.train()
    own = trainer.optimizer.optimizer  # within accelerate's
    assert isinstance(own, LearnedOptimizer)
    assert own.health().steps == 20
    assert own.graph.parameters.keys() == dict(model.named_parameters()).keys()
    assert F.cross_entropy(model(X), Y) < 0.9 * start


def test_trainer_of_transformers(optimizer, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = Classifier()
    start = F.cross_entropy(model(X), Y).item()
    own = optimizer(model)
    arguments = TrainingArguments(
        tmp_path,
        max_steps=20,
        per_device_train_batch_size=64,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        lr_scheduler_type="constant",
        save_steps=10,
    )
    Trainer(model, arguments, train_dataset=Pairs(), optimizers=(own, None)).train()
    assert own.health().steps == 20
    assert F.cross_entropy(model(X), Y) < 0.7 * start
    # resuming from the checkpoint in the middle ends at the same place
    again = Classifier()
    other = optimizer(again)
    Trainer(again, arguments, train_dataset=Pairs(), optimizers=(other, None)).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-10")
    )
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b)
