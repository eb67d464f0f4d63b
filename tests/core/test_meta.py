"""Inner runs, truncated backpropagation, the trainer and its checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from scalegmn_opt import UpdateRule, WeightGraph
from scalegmn_opt.meta import InnerRun, MetaTrainer, RunOptions, TruncatedBackprop
from scalegmn_opt.meta.checkpoint import CheckpointWarning, latest
from scalegmn_opt.tasks import QuadraticTask
from scalegmn_opt.tasks.suites import DigitsTinySuite, QuadraticSuite


def make_rule() -> UpdateRule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UpdateRule(channels=4, message_channels=2, hidden_channels=4)


def make_objective(**options) -> TruncatedBackprop:
    options = {"networks": 2, "truncation": 3, "horizon": (4, 9)} | options
    return TruncatedBackprop(make_rule(), QuadraticSuite(), **options)


def make_run(suite, *, networks, horizon, seed) -> InnerRun:
    return InnerRun(make_rule(), suite, options=RunOptions(networks, horizon), seed=seed)


def make_trainer(output: Path, **options) -> MetaTrainer:
    options = {"steps": 6, "checkpoint_every": 2, "workers": 2} | options
    accelerator = Accelerator(cpu=True)
    return MetaTrainer(make_objective(), output, accelerator=accelerator, progress=False, **options)


def weights(trainer: MetaTrainer) -> dict[str, torch.Tensor]:
    return trainer.accelerator.unwrap_model(trainer.objective).state_dict()


def rule_of(trainer: MetaTrainer) -> nn.Module:
    return trainer.accelerator.unwrap_model(trainer.objective).rule


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_inner_run_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = make_run(QuadraticSuite(), networks=2, horizon=(5, 50), seed=3)
    torch.manual_seed(2)
    second = make_run(QuadraticSuite(), networks=2, horizon=(5, 50), seed=3)
    assert_same(first.params, second.params)
    assert first.remaining == second.remaining
    assert torch.equal(first.losses(first.params), second.losses(second.params))


def test_horizons_are_log_uniform():
    run = make_run(QuadraticSuite(), networks=1, horizon=(10, 1000), seed=0)
    lengths = []
    for _ in range(400):
        run.reset()
        lengths.append(run.remaining)
    assert min(lengths) >= 10
    assert max(lengths) <= 1000
    share = sum(length < 100 for length in lengths) / len(lengths)  # the geometric middle
    assert 0.4 < share < 0.6


def test_inner_run_continues_exactly_from_its_state(tmp_path: Path):
    objective = make_objective()
    run = objective.new_worker(0)
    objective(run)
    torch.save(run.state_dict(), tmp_path / "run.pt")
    copy = objective.new_worker(99)
    copy.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    for _ in range(5):  # across a reset
        assert torch.equal(objective(run)[0], objective(copy)[0])
    assert_same(run.params, copy.params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": 0}, "networks: expected at least 1, got 0"),
        ({"horizon": (5, 4)}, "horizon: expected 1 <= shortest <= longest, got"),
    ],
)
def test_inner_run_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        make_objective(**options).new_worker(0)


def test_truncation_must_be_positive():
    with pytest.raises(ValueError, match="truncation: expected at least 1, got 0"):
        make_objective(truncation=0)


def test_suite_must_keep_to_one_architecture():
    class Mixed:
        def sample(self, generator, count):
            return [QuadraticSuite().sample(generator, 1)[0] for _ in range(count)]

    with pytest.raises(ValueError, match="suite: expected 8 tasks of one architecture, got 8"):
        make_run(Mixed(), networks=8, horizon=(5, 5), seed=0)


def test_losses_at_once_are_those_of_each_task():
    run = make_run(DigitsTinySuite(), networks=3, horizon=(5, 5), seed=0)
    state = run.generator.get_state()
    together = run.losses(run.params)
    run.generator.set_state(state)
    for i, task in enumerate(run.tasks):
        params = {name: p[i] for name, p in run.params.items()}
        alone = task.loss(params, task.batch(run.generator))
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-6)


def test_tasks_whose_losses_differ_may_not_claim_to_share_one():
    class Shifted(QuadraticTask):
        def __init__(self, shift):
            super().__init__(torch.eye(2), {"vector": torch.ones(2)})
            self.shift = shift

        def loss(self, params, batch):
            return super().loss(params, batch) + self.shift

    class Suite:
        def sample(self, generator, count):
            return [Shifted(float(i)) for i in range(count)]

    with pytest.raises(ValueError, match="what differs between tasks belongs in their batches"):
        make_run(Suite(), networks=2, horizon=(5, 5), seed=0)


class Bowl:
    """``||W - 1||²`` in float64."""

    graph = WeightGraph.from_parameters({"w": (3, 2)})
    input_rms = 1.0

    def init(self, generator):
        return {"w": torch.randn(3, 2, generator=generator, dtype=torch.float64)}

    def batch(self, generator):
        return None

    def loss(self, params, batch):
        return (params["w"] - 1).square().sum()

    def sample(self, generator, count):
        return [self] * count


def test_meta_gradient_of_one_step_agrees_with_finite_differences():
    """One step from constant inputs has nothing to truncate."""
    objective = TruncatedBackprop(make_rule(), Bowl(), networks=2, truncation=1).double()
    start = objective.new_worker(0).state_dict()

    def loss() -> torch.Tensor:
        run = objective.new_worker(0)
        run.load_state_dict(start)
        return objective(run)[0]

    loss().backward()
    parameter, step = objective.rule.schedule, 1e-6
    around = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter[0] += sign * step
        around.append(loss().item())
        with torch.no_grad():
            parameter[0] -= sign * step
    assert abs(parameter.grad[0].item()) > 1e-3
    assert parameter.grad[0].item() == pytest.approx((around[0] - around[1]) / (2 * step), rel=1e-5)


def test_every_rule_parameter_learns():
    """Not only by the zero that each loss adds: on networks the gradients are not zero."""
    objective = TruncatedBackprop(make_rule(), DigitsTinySuite(), networks=2, truncation=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the zero-initialised heads hide the backbone at first
        for p in objective.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    objective(objective.new_worker(0))[0].backward()
    assert not [name for name, p in objective.named_parameters() if not p.grad.any()]


def test_diverging_window_counts_zero_and_starts_anew():
    objective = make_objective()
    run = objective.new_worker(0)
    with torch.no_grad():
        objective.rule.schedule.fill_(200.0)
    resets = run.resets
    loss, log = objective(run)
    assert loss.item() == 0.0
    assert log["diverged"] == 1.0
    assert run.resets == resets + 1
    loss.backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters())
    assert all(p.isfinite().all() for p in run.params.values())


def test_training_lowers_the_meta_loss(tmp_path: Path):
    trainer = make_trainer(tmp_path, steps=60, lr=0.02, checkpoint_every=60)
    trainer.train()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == list(range(1, 61))
    first, last = (sum(r["loss"] for r in part) / 20 for part in (log[:20], log[-20:]))
    assert last < first


def test_interrupted_run_resumes_exactly(tmp_path: Path):
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    first = make_trainer(tmp_path / "parts", steps=6)
    first._done = lambda: first.step >= 4  # stopped, with the schedule of the whole run
    first.train()
    second = make_trainer(tmp_path / "parts")
    second.train(resume=True)
    assert_same(weights(whole), weights(second))
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1]
    loaded = UpdateRule.from_pretrained(tmp_path / "parts" / "weights.safetensors")
    assert_same(loaded.state_dict(), rule_of(second).state_dict())


def test_finished_folder_is_not_overwritten(tmp_path: Path):
    make_trainer(tmp_path).train()
    with pytest.raises(FileExistsError, match="holds checkpoints"):
        make_trainer(tmp_path).train()


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str):
    whole = make_trainer(tmp_path)
    whole.train()
    expected = {name: value.clone() for name, value in weights(whole).items()}
    newest = latest(tmp_path / "checkpoints")
    assert newest.name == "step_00000006"
    file = newest / ("manifest.json" if damage == "manifest" else "model.safetensors")
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(CheckpointWarning, match="step_00000006"):
        assert latest(tmp_path / "checkpoints").name == "step_00000004"
    resumed = make_trainer(tmp_path)
    with pytest.warns(CheckpointWarning, match="looking for the one before"):
        resumed.train(resume=True)
    assert_same(weights(resumed), expected)


def test_only_the_last_two_checkpoints_stay(tmp_path: Path):
    make_trainer(tmp_path).train()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000004", "step_00000006"]


def test_time_limit_ends_a_run_with_a_checkpoint(tmp_path: Path):
    trainer = make_trainer(tmp_path, steps=10_000, seconds=0.5, checkpoint_every=10_000)
    trainer.train()
    assert 0 < trainer.step < 10_000
    assert latest(tmp_path / "checkpoints").name == f"step_{trainer.step:08d}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: expected a positive multiple of 1 processes, got 0"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"checkpoint_every": 0}, "checkpoint_every: expected at least 1, got 0"),
    ],
)
def test_trainer_rejects(tmp_path: Path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options)


SCRIPT = """
import os, sys, pathlib
sys.path.insert(0, {tests!r})
import test_meta
trainer = test_meta.make_trainer(pathlib.Path(sys.argv[1]))
assert trainer.accelerator.num_processes == 2
trainer.train()
trainer.accelerator.end_training()
os._exit(0)  # not by the teardown of torch, which aborts now and then after all is done
"""


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(tmp_path: Path):
    one = make_trainer(tmp_path / "one")
    one.train()
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, *command, str(script), str(tmp_path / "two")],
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )
    two = UpdateRule.from_pretrained(tmp_path / "two" / "weights.safetensors").state_dict()
    for name, value in rule_of(one).state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    lines = (tmp_path / "two" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 6
    resumed = make_trainer(tmp_path / "two")  # a run of two processes goes on in one
    resumed.train(resume=True)
    assert resumed.step == 6
