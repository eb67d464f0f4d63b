"""Clipping, averages, validation, trackers and recovery of the meta-trainer."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from scalegmn_opt import UpdateRule
from scalegmn_opt.figures import draw_losses
from scalegmn_opt.meta import MetaTrainer, RuleValidation, TruncatedBackprop
from scalegmn_opt.meta.checkpoint import latest
from scalegmn_opt.meta.tracking import tracked_accelerator
from scalegmn_opt.meta.trainer import read_log
from scalegmn_opt.tasks.suites import QuadraticSuite, resolve_suite


def stored(path):
    return load_file(path)["weight"]


class Worker:
    """Counts how often it was asked."""

    def __init__(self):
        self.calls = 0

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class Slopes(nn.Module):
    """One weight; the loss of call ``i`` has the slope ``slopes[i]``."""

    def __init__(self, slopes):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.slopes = slopes

    def new_worker(self, seed):
        return Worker()

    def forward(self, worker):
        slope = self.slopes[worker.calls % len(self.slopes)]
        worker.calls += 1
        return slope * self.weight, {"diverged": 0.0}

    def save(self, path):
        save_file({"weight": self.weight.detach()}, path)


class Distance:
    """A validation loss: how far the weight is from ``goal``."""

    every, runs = 2, 3

    def __init__(self, goal):
        self.goal = goal

    def loss(self, objective, number):
        return abs(float(objective.weight.detach()) - self.goal) + number


def make(output, slopes=(1.0,), **options):
    options = {"steps": 12, "workers": 1, "lr": 0.1, "checkpoint_every": 3} | options
    options = {"accelerator": Accelerator(cpu=True)} | options
    return MetaTrainer(Slopes(slopes), output, progress=False, **options)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_clipping_by_quantile_is_of_the_norms_before(tmp_path, monkeypatch):
    trainer = make(tmp_path, slopes=(1.0,) * 10 + (50.0, 2.0), clip=30.0, clip_quantile=0.9)
    limits, original = [], trainer.accelerator.clip_grad_norm_
    monkeypatch.setattr(
        trainer.accelerator,
        "clip_grad_norm_",
        lambda parameters, limit: limits.append(limit) or original(parameters, limit),
    )
    trainer.train()
    assert limits[:10] == [30.0] * 10  # too few to have a quantile
    assert limits[10] == 1.0
    assert limits[11] == 1.0  # of ten ones and a fifty
    assert [record["grad_norm"] for record in log_of(tmp_path)[9:]] == [1.0, 50.0, 2.0]


def test_gradients_that_are_not_finite_are_skipped_and_counted(tmp_path):
    trainer = make(tmp_path, slopes=(1.0, float("nan"), float("inf")), steps=6)
    trainer.train()
    assert trainer.skipped == 4
    assert log_of(tmp_path)[-1]["skipped_steps"] == 4
    assert trainer.trained.weight.isfinite()
    assert trainer.trained.weight != 0


class Below(Slopes):
    """A loss that is not finite, with a gradient that is, as the log of a negative number."""

    def forward(self, worker):
        return (self.weight - 1.0).log(), {}


def test_a_loss_that_is_not_finite_is_skipped_and_the_log_stays_json(tmp_path):
    accelerator = Accelerator(cpu=True)
    trainer = MetaTrainer(
        Below(()), tmp_path, steps=3, workers=1, accelerator=accelerator, progress=False
    )
    trainer.train()
    assert trainer.skipped == 3
    assert trainer.trained.weight == 0
    assert [record["loss"] for record in log_of(tmp_path)] == [None] * 3
    assert all(map(math.isnan, read_log(tmp_path, "loss").values()))


def test_validation_knows_whether_there_is_a_graph():
    validation = RuleValidation(resolve_suite("tiny/validation"), runs=1, steps=5)
    losses = {
        validation.loss(TruncatedBackprop(small_rule(), resolve_suite("tiny"), graph=graph), 0)
        for graph in (True, False)
    }
    assert len(losses) == 2


def test_the_last_step_is_validated(tmp_path):
    trainer = make(tmp_path, validation=Distance(-0.3), steps=5)
    trainer.train()
    assert list(read_log(tmp_path, "validation")) == [2, 4, 5]


def test_the_average_is_what_is_written(tmp_path):
    trainer, values = make(tmp_path, average=0.5, steps=5), []
    update = trainer._update

    def record(norm, loss):
        update(norm, loss)
        values.append(float(trainer.accelerator.unwrap_model(trainer.objective).weight.detach()))

    trainer._update = record
    trainer.train()
    expected = values[0]
    for value in values[1:]:
        expected = 0.5 * expected + 0.5 * value
    assert float(trainer.trained.weight.detach()) == pytest.approx(expected)
    assert float(stored(tmp_path / "weights.safetensors")) == pytest.approx(expected)
    assert expected != pytest.approx(values[-1])


def test_weights_between_the_first_and_the_last_are_written(tmp_path):
    make(tmp_path / "far", average=0.5, steps=5).train()
    trainer = make(tmp_path / "near", average=0.5, interpolation=0.25, steps=5)
    start = float(trainer.objective.weight.detach())
    trainer.train()
    far, near = (float(stored(tmp_path / f / "weights.safetensors")) for f in ("far", "near"))
    assert near == pytest.approx(start + 0.25 * (far - start))
    assert float(trainer.trained.weight.detach()) == near != pytest.approx(far)
    assert float(trainer.objective.weight.detach()) != pytest.approx(near)


def test_the_first_weights_are_those_of_before_an_interruption(tmp_path):
    options = {"interpolation": 0.5, "steps": 8}
    make(tmp_path / "whole", **options).train()
    first = make(tmp_path / "parts", **options)
    first._done = lambda: first.step >= 4
    first.train()
    second = make(tmp_path / "parts", **options)
    second._start["weight"] += 1.0  # as if an unseeded one had begun elsewhere
    second.train(resume=True)
    whole, parts = (stored(tmp_path / f / "weights.safetensors") for f in ("whole", "parts"))
    assert torch.equal(whole, parts)


def test_the_best_weights_by_validation_stay(tmp_path):
    """The weight falls from 0 through -0.3 and on: best near the goal, written at the end."""
    trainer = make(tmp_path, validation=Distance(-0.3), steps=20)
    trainer.train()
    losses = read_log(tmp_path, "validation")
    assert list(losses) == list(range(2, 21, 2))
    assert trainer.best == min(losses.values())
    best = float(stored(tmp_path / "best.safetensors"))
    assert abs(best + 0.3) + 1 == pytest.approx(trainer.best)  # the mean of 0, 1, 2 is added
    assert float(stored(tmp_path / "weights.safetensors")) < best - 0.2


def test_everything_goes_on_exactly(tmp_path):
    options = {
        "slopes": (1.0, 3.0, -2.0, float("nan"), 0.5),
        "average": 0.7,
        "clip_quantile": 0.5,
        "validation": Distance(-0.1),
        "steps": 24,
    }
    whole = make(tmp_path / "whole", **options)
    whole.train()
    first = make(tmp_path / "parts", **options)
    first._done = lambda: first.step >= 15
    first.train()
    second = make(tmp_path / "parts", **options)
    second.train(resume=True)
    for name in ("weights", "best"):
        a, b = (stored(tmp_path / f / f"{name}.safetensors") for f in ("whole", "parts"))
        assert torch.equal(a, b)
    assert (second.best, second.skipped) == (whole.best, whole.skipped)
    assert second._norms == whole._norms
    for a, b in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "parts"), strict=True):
        a.pop("seconds"), b.pop("seconds")
        assert str(a) == str(b)  # a norm may be NaN


def test_weights_that_a_kill_left_behind_are_written_on_resuming(tmp_path):
    make(tmp_path).train()
    expected = stored(tmp_path / "weights.safetensors")
    (tmp_path / "weights.safetensors").unlink()
    make(tmp_path).train(resume=True)
    assert torch.equal(stored(tmp_path / "weights.safetensors"), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_quantile": 0.0}, r"clip_quantile: expected in \(0, 1\], got 0.0"),
        ({"average": 1.0}, r"average: expected in \[0, 1\), got 1.0"),
        ({"interpolation": 0.0}, r"interpolation: expected in \(0, 1\], got 0.0"),
        ({"interpolation": 1.5}, r"interpolation: expected in \(0, 1\], got 1.5"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)


def small_rule():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UpdateRule(channels=4, message_channels=2, hidden_channels=4)


def test_validation_of_a_rule_depends_on_the_rule_and_the_number_alone():
    validation = RuleValidation(resolve_suite("tiny/validation"), runs=2, steps=5)
    objective = TruncatedBackprop(small_rule(), resolve_suite("tiny"))
    first = [validation.loss(objective, number) for number in (0, 1, 0)]
    assert first[0] == first[2] != first[1]
    with torch.no_grad():
        objective.rule.schedule[0] += 0.05
    assert validation.loss(objective, 0) != first[0]
    with torch.no_grad():
        objective.rule.schedule.fill_(30.0)
    assert validation.loss(objective, 0) == pytest.approx(10.0, abs=3)


def test_validation_rejects():
    with pytest.raises(ValueError, match="runs: expected at least 1, got 0"):
        RuleValidation(QuadraticSuite(), runs=0)


def test_a_device_that_is_not_here_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--device: expected cpu, .* is here, got 'cuda'"):
        tracked_accelerator(None, tmp_path, project="test", device="cuda")


class Moving(nn.Module):
    """An objective that tells where it is when it is asked for a worker."""

    def __init__(self, events):
        super().__init__()
        self.weight, self.events = nn.Parameter(torch.zeros(())), events

    def to(self, device):
        self.events.append(("moved", torch.device(device)))
        return super().to(device)

    def new_worker(self, seed):
        self.events.append(("worker", self.weight.device))
        return Worker()


def test_workers_are_made_where_the_objective_is_trained(tmp_path):
    events, accelerator = [], Accelerator(cpu=True)
    MetaTrainer(Moving(events), tmp_path, steps=1, accelerator=accelerator, progress=False)
    assert events[:2] == [("moved", accelerator.device), ("worker", accelerator.device)]


class Listener:
    """A tracker that only listens."""

    name = "listener"

    def __init__(self):
        self.heard = []

    def log(self, values, step=None, **options):
        self.heard.append((step, values["loss"]))


def test_every_step_is_logged_to_the_accelerators_trackers(tmp_path):
    trainer = make(tmp_path, steps=4)
    listener = Listener()
    trainer.accelerator.trackers = [listener]
    trainer.train()
    assert [step for step, _ in listener.heard] == [1, 2, 3, 4]
    assert dict(listener.heard) == read_log(tmp_path, "loss")


def test_tensorboard_has_every_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = tracked_accelerator("tensorboard", tmp_path, project="test")
    trainer = make(tmp_path / "run", steps=4, accelerator=accelerator)
    trainer.train()
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "test")).Reload()
    found = {event.step: event.value for event in events.Scalars("loss")}
    assert found == pytest.approx(read_log(tmp_path / "run", "loss"))
    assert {"grad_norm", "lr", "seconds"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_missing_is_named(tmp_path, monkeypatch, tracker):
    monkeypatch.setattr("scalegmn_opt.meta.tracking.get_available_trackers", lambda: [])
    with pytest.raises(ImportError, match=f"--tracker: {tracker} is not installed: pip install"):
        tracked_accelerator(tracker, tmp_path, project="test")
    assert tracked_accelerator(None, tmp_path, project="test").trackers == []


def test_wandb_is_told_to_write_into_the_folder_of_the_run(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *_, **options: given.update(options))
    tracked_accelerator("tensorboard", tmp_path, project="test")
    assert given["init_kwargs"]["wandb"] == {"dir": str(tmp_path)}


def test_validation_losses_are_drawn():
    figure = draw_losses([3.0, 2.0, 1.0], label="meta-loss", validation={2: 1.5})
    assert [ax.get_ylabel() for ax in figure.axes] == ["meta-loss", "validation loss"]
    assert len(draw_losses([3.0], label="meta-loss", validation={}).axes) == 1


SCRIPT = """
import os, sys, pathlib
sys.path.insert(0, {tests!r})
import test_trainer
test_trainer.make_real(pathlib.Path(sys.argv[1])).train(resume=True)
os._exit(0)  # not by the teardown of torch, which aborts now and then after all is done
"""


def make_real(output):
    suite = resolve_suite("tiny")
    return MetaTrainer(
        TruncatedBackprop(small_rule(), suite, networks=2, truncation=3, horizon=(4, 9)),
        output,
        steps=30,
        checkpoint_every=4,
        workers=2,
        average=0.9,
        interpolation=0.5,
        clip_quantile=0.9,
        validation=RuleValidation(resolve_suite("tiny/validation"), every=5, runs=1, steps=5),
        accelerator=Accelerator(cpu=True),
        progress=False,
    )


@pytest.mark.slow
def test_runs_that_are_killed_at_any_moment_end_the_same(tmp_path):
    make_real(tmp_path / "whole").train()
    parts, script = tmp_path / "parts", tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    for step in (6, 13, 22):  # not multiples of the interval
        process = subprocess.Popen([sys.executable, str(script), str(parts)], env=env)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (parts / "log.jsonl").exists() and len(log_of_complete(parts)) >= step:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert step - int(latest(parts / "checkpoints").name[5:]) <= 4
    make_real(parts).train(resume=True)
    for name in ("weights", "best"):
        a, b = (
            UpdateRule.from_pretrained(tmp_path / f / f"{name}.safetensors").state_dict()
            for f in ("whole", "parts")
        )
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert read_log(tmp_path / "whole", "loss") == read_log(parts, "loss")


@pytest.mark.slow
def test_two_processes_validate_and_average_as_one(tmp_path):
    make_real(tmp_path / "one").train()
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    root = str(Path(__file__).parents[2])
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [sys.executable, *command, str(script), str(tmp_path / "two")],
        check=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )
    for key in ("loss", "validation"):
        one, two = (read_log(tmp_path / folder, key) for folder in ("one", "two"))
        assert one.keys() == two.keys()
        assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-3, abs=1e-4)
    one, two = (
        UpdateRule.from_pretrained(tmp_path / folder / "weights.safetensors").state_dict()
        for folder in ("one", "two")
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


def log_of_complete(folder):
    return [x for x in (folder / "log.jsonl").read_text().splitlines(True) if x.endswith("\n")]
