"""Contenders, runs and their cache, and the comparison as a whole."""

import copy
import json
import subprocess
import sys
from itertools import product

import pytest
import torch
from torch import nn

from scalegmn_opt import LearnedOptimizer, UpdateRule
from scalegmn_opt.cli import main
from scalegmn_opt.evaluation import TARGET, TUNING_SEEDS, Evaluation
from scalegmn_opt.meta import evaluate
from scalegmn_opt.meta.contenders import CONTENDERS, contender
from scalegmn_opt.meta.evaluate import EvaluatedTask, Run, best, cached_run, fingerprint, train
from scalegmn_opt.optim.optimizer import DEFAULT_RULE
from scalegmn_opt.tasks import SupervisedTask, digits
from scalegmn_opt.tasks.models import mlp

LEARNED = f"learned:{DEFAULT_RULE}"
TASKS = """
from torch import nn
from scalegmn_opt.tasks import HeldOut, SupervisedTask, digits
from scalegmn_opt.tasks.models import mlp

def make(path):
    return SupervisedTask(
        digits(), mlp((64, 6, 10), nn.ReLU), loss="cross-entropy", batch_size=16
    )

class Mine:
    def __init__(self, path):
        self.module, self.example_inputs = make(path).module, make(path).example_inputs

TINY = HeldOut(12, make)
MINE = HeldOut(12, Mine)
WRONG = 3
"""


def make_task(width=6, **options):
    options = {"loss": "cross-entropy", "batch_size": 16} | options
    return SupervisedTask(digits(), mlp((64, width, 10), nn.ReLU), **options)


@pytest.fixture
def tasks_module(tmp_path, monkeypatch):
    (tmp_path / "users_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_tasks:TINY"
    sys.modules.pop("users_tasks", None)


@pytest.mark.parametrize("name", [*sorted(CONTENDERS), LEARNED, "no-graph:no-graph"])
def test_every_contender_lowers_the_loss_at_one_of_its_settings(name):
    grid = contender(name).grid
    settings = [grid[i] for i in range(0, len(grid), max(1, len(grid) // 4))]
    runs = [train(make_task(), name, s, seed=0, steps=25) for s in settings]
    assert min(run.final_loss for run in runs) < 0.95 * runs[0].losses[0]
    assert all(len(run.losses) == len(run.seconds) == 25 for run in runs)
    assert runs[0].seconds == sorted(runs[0].seconds)


def test_baselines_have_seven_rates_and_defaults():
    for name in ("sgd", "adam", "adamw", "nadamw", "muon", "soap"):
        assert len({settings["lr"] for settings in contender(name).grid}) >= 7
        assert contender(name).default is not None
    assert len(contender("gauge-adam").grid) == 1


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_a_missing_package_is_known_before_the_first_run(name, tasks_module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ImportError, match=r'pip install "scalegmn-opt\[baselines\]"'):
        Evaluation([tasks_module], ["adam", name], tmp_path)
    Evaluation([tasks_module], ["adam"], tmp_path)


def test_muon_is_that_of_torch_up_to_rounding_and_takes_kernels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 5))
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    options = {"lr": 0.01, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    steppers = [
        contender("muon").make(ours, (), {"lr": 0.01}),
        torch.optim.Muon(matrices, **options),
        torch.optim.Adam(vectors, lr=0.01),
    ]
    for _ in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for stepper in steppers:
            stepper.step()
    for p, q, start in zip(*(m.parameters() for m in (ours, theirs, model)), strict=True):
        assert (p - q).norm() < 0.02 * (p - start).norm()
    kernel = nn.Conv2d(2, 4, 3)
    before = kernel.weight.detach().clone()
    kernel.weight.grad, kernel.bias.grad = torch.randn(4, 2, 3, 3), torch.zeros(4)
    contender("muon").make(kernel, (), {"lr": 0.1}).step()
    sizes = torch.linalg.svdvals((kernel.weight - before).detach().flatten(1))
    assert sizes.max() < 2 * sizes.min()


def test_a_run_is_the_training_loop_that_users_write():
    task = make_task()
    run = train(task, "adam", {"lr": 0.01}, seed=3, steps=10)
    generator = torch.Generator().manual_seed(3)
    model = mlp((64, 6, 10), nn.ReLU)
    model.load_state_dict(task.init(generator))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(10):
        inputs, targets = task.batch(generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert run.losses == pytest.approx(losses)
    inputs, targets = digits().part("test")
    accuracy = (model(inputs).argmax(1) == targets).float().mean().item()
    assert run.held_out["test"]["accuracy"] == pytest.approx(accuracy)


def test_all_start_equal_and_seeds_differ():
    task = make_task()
    first = [
        train(task, name, {}, seed=s, steps=1).losses[0]
        for name, s in (("gauge-adam", 0), ("gauge-muon", 0), ("gauge-adam", 1))
    ]
    assert first[0] == first[1] != first[2]


def test_a_run_that_fails_ends_in_infinity():
    run = train(make_task(loss="one-hot-squares"), "sgd", {"lr": 1e9}, seed=0, steps=12)
    assert len(run.losses) == len(run.seconds) == 12
    assert run.losses[-1] == run.final_loss == float("inf")
    assert run.validation_loss == float("inf")


def test_a_cached_run_is_read_and_not_repeated(tmp_path, monkeypatch):
    task, options = make_task(), {"seed": 0, "steps": 4, "cache": tmp_path}
    first = cached_run(task, "adam", {"lr": 0.01}, **options)
    monkeypatch.setattr(evaluate, "train", lambda *a, **k: pytest.fail("trained again"))
    assert cached_run(make_task(), "adam", {"lr": 0.01}, **options) == first
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "change",
    ["optimizer", "settings", "seed", "steps", "width", "loss", "batch", "code"],
)
def test_whatever_changes_a_run_changes_its_key(monkeypatch, tmp_path, change):
    facts = {"task": make_task(), "optimizer": "adam", "settings": {"lr": 0.01}}
    numbers = {"seed": 0, "steps": 4}
    before = evaluate._key(*facts.values(), **numbers)
    match change:
        case "optimizer":
            facts["optimizer"] = "adamw"
        case "settings":
            facts["settings"] = {"lr": 0.1}
        case "seed" | "steps":
            numbers[change] += 1
        case "width":
            facts["task"] = make_task(width=7)
        case "loss":
            facts["task"] = make_task(loss="label-smoothing")
        case "batch":
            facts["task"] = make_task(batch_size=17)
        case "code":
            other = tmp_path / "contenders.py"
            other.write_text("changed")
            monkeypatch.setattr(evaluate.contenders, "__file__", str(other))
    assert evaluate._key(*facts.values(), **numbers) != before


def test_weights_are_part_of_the_key(tmp_path):
    keys = set()
    for seed, prefix in product(range(2), ("learned", "no-graph")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            UpdateRule(channels=4, message_channels=2, hidden_channels=4).save_pretrained(
                tmp_path / "rule.safetensors"
            )
        name = f"{prefix}:{tmp_path / 'rule.safetensors'}"
        keys.add(evaluate._key(make_task(), name, {}, seed=0, steps=1))
    assert len(keys) == 4


def test_weights_of_the_rule_without_a_model_are_part_of_the_key(monkeypatch):
    before = evaluate._key(make_task(), "no-graph", {}, seed=0, steps=1)
    monkeypatch.setattr(evaluate, "DEFAULT_RULE_WITHOUT_MODEL", DEFAULT_RULE)
    assert evaluate._key(make_task(), "no-graph", {}, seed=0, steps=1) != before


def test_equal_tasks_have_equal_fingerprints():
    assert fingerprint(make_task()) == fingerprint(make_task())
    assert isinstance(make_task(), EvaluatedTask)


def fake_run(lr, final, validation):
    held_out = {"validation": {"loss": validation, "accuracy": None}}
    return Run("adam", {"lr": lr}, 0, [3.0, final], [0.1, 0.2], held_out)


def test_settings_are_chosen_by_the_mean_over_seeds():
    runs = [
        fake_run(0.1, 1.0, 0.5),
        fake_run(0.1, 1.0, 2.0),
        fake_run(0.2, 1.5, 0.9),
        fake_run(0.2, 0.2, 0.9),
        fake_run(0.3, float("inf"), None),
        fake_run(0.3, 0.1, 0.1),
    ]
    assert best(runs, by="validation") == {"lr": 0.2}
    assert best(runs, by="training") == {"lr": 0.2}
    assert best([*runs[:2], fake_run(0.2, 1.1, 0.9)], by="training") == {"lr": 0.1}


def test_an_evaluation_as_a_whole(tmp_path, tasks_module):
    evaluation = Evaluation(
        [tasks_module], ["gauge-adam", LEARNED], tmp_path / "out", seeds=2, progress=False
    )
    report = evaluation.run()
    task = report["tasks"][tasks_module]
    labels = ["adam, tuned", TARGET, "adam, default", "gauge-adam", LEARNED]
    assert list(task["rows"]) == labels
    assert task["steps"] == 12
    assert all(len(row["final_loss"]) == 2 for row in task["rows"].values())
    assert task["rows"]["adam, default"]["settings"] == {"lr": 1e-3}
    adam = task["rows"][TARGET]
    assert min(adam["final_loss"]) <= task["target"] <= max(adam["final_loss"])
    for row in task["rows"].values():
        for steps, speedup in zip(row["steps_to_target"], row["speedup"], strict=True):
            assert speedup == (12 / steps if steps else 0)
    assert report["summary"]["gauge-adam"]["runs"] == 2
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored == report
    assert (tmp_path / "out" / "curves" / "users_tasks-TINY.png").stat().st_size > 10_000
    runs = len(list((tmp_path / "out" / "cache").iterdir()))
    assert runs >= len(contender("adam").grid) * len(TUNING_SEEDS) + 3 * 2
    assert evaluation.run() == report  # from the cache, with the same seconds
    assert len(list((tmp_path / "out" / "cache").iterdir())) == runs


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path, tasks_module, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reports = [
        Evaluation(
            [tasks_module], ["gauge-adam"], tmp_path / str(jobs), seeds=2, jobs=jobs, progress=False
        ).run()
        for jobs in (1, 2)
    ]
    for label, row in reports[0]["tasks"][tasks_module]["rows"].items():
        other = reports[1]["tasks"][tasks_module]["rows"][label]
        assert row["final_loss"] == pytest.approx(other["final_loss"], rel=1e-4)
        assert row["settings"] == other["settings"]


def test_the_command_prints_tables(tmp_path, tasks_module, capsys):
    out = ["--out", str(tmp_path / "out"), "--seeds", "1"]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", DEFAULT_RULE, "--task", tasks_module, "--against", "gauge-muon", *out])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("speed-up", "gauge-muon", LEARNED, "report.json", "12 steps, target"):
        assert word in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["mnist"]}, r"unknown task 'mnist'; choose from \['digits-5-layers'"),
        ({"optimizers": ["adamm"]}, r"unknown optimizer 'adamm'; choose from \['adam'"),
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"jobs": 0}, "jobs: expected at least 1, got 0"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    options = {"tasks": ["digits-5-layers"], "optimizers": ["adam"], "out": tmp_path} | options
    with pytest.raises(ValueError, match=message):
        Evaluation(**options)


def test_what_is_missing_is_known_before_the_first_run(tmp_path, tasks_module):
    with pytest.raises(FileNotFoundError, match=r"--data: expected the path of mnist\.npz"):
        Evaluation(["mnist-64"], ["adam"], tmp_path)
    with pytest.raises(FileNotFoundError, match="none"):
        Evaluation(["digits-long"], ["learned:none"], tmp_path)
    with pytest.raises(TypeError, match="users_tasks:WRONG: expected a HeldOut, got int"):
        Evaluation([tasks_module.replace("TINY", "WRONG")], ["adam"], tmp_path)
    with pytest.raises(ValueError, match=r"users_tasks:NONE: .* nothing of that name"):
        Evaluation([tasks_module.replace("TINY", "NONE")], ["adam"], tmp_path)
    with pytest.raises(TypeError, match=r"users_tasks:MINE: .* Mine lacks \['evaluate', 'graph'"):
        Evaluation([tasks_module.replace("TINY", "MINE")], ["adam"], tmp_path)


def test_a_learned_contender_is_the_optimizer_of_the_package():
    made = contender(LEARNED).make(mlp((64, 6, 10), nn.ReLU), (torch.zeros(2, 64),), {})
    assert isinstance(made, LearnedOptimizer)


def test_a_rule_of_no_graph_is_given_none():
    network = mlp((64, 6, 10), nn.ReLU)
    made = contender("no-graph:general").make(network, (torch.zeros(2, 64),), {})
    general = UpdateRule.from_pretrained("general").state_dict()
    assert all(torch.equal(general[name], p) for name, p in made.rule.state_dict().items())
    assert made.graph == LearnedOptimizer(network.parameters()).graph
    assert made.graph != contender(LEARNED).make(network, (torch.zeros(2, 64),), {}).graph
    assert (
        subprocess.run([sys.executable, "-c", "import scalegmn_opt.meta.contenders"]).returncode
        == 0
    )
