"""Least-squares tasks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegmn_opt.meta import Task
from scalegmn_opt.tasks import QuadraticTask


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_task(seed=0, *, dims=5, condition=10.0, columns=2):
    return QuadraticTask.random(dims, condition=condition, columns=columns, generator=seeded(seed))


@settings(max_examples=20, deadline=None)
@given(dims=st.integers(1, 12), columns=st.integers(0, 4), seed=st.integers(0, 1000))
def test_the_gradient_vanishes_at_the_solution_and_nowhere_near(dims, columns, seed):
    task = random_task(seed, dims=dims, columns=columns)
    batch = task.batch(seeded())
    at_solution = torch.func.grad(task.loss)(task.solution, batch)
    assert all(float(g.abs().max()) < 1e-4 for g in at_solution.values())
    moved = {name: p + 0.1 for name, p in task.solution.items()}
    assert task.loss(moved, batch) > task.loss(task.solution, batch)


def test_solution_of_an_overdetermined_problem():
    matrix = torch.tensor([[1.0], [1.0]])
    task = QuadraticTask(matrix, {"x": torch.tensor([0.0, 2.0])})
    torch.testing.assert_close(task.solution["x"], torch.tensor([1.0]))
    torch.testing.assert_close(task.loss(task.solution, task.batch(seeded())), torch.tensor(1.0))


def test_condition_is_the_one_asked_for():
    values = torch.linalg.svdvals(random_task(dims=8, condition=100.0).matrix)
    torch.testing.assert_close(values[0], torch.tensor(1.0))
    torch.testing.assert_close(values[0] / values[-1], torch.tensor(100.0), rtol=1e-3, atol=0)


def test_it_is_a_task_with_isolated_blocks():
    task = random_task()
    assert isinstance(task, Task)
    params = task.init(seeded())
    shapes = {b.parameter: b.parameter_shape for b in task.graph.blocks}
    assert shapes == {name: tuple(p.shape) for name, p in params.items()}
    assert shapes == {"vector": (5,), "matrix": (5, 2)}


def test_init_is_reproducible():
    task = random_task()
    assert torch.equal(task.init(seeded(3))["vector"], task.init(seeded(3))["vector"])
    assert not torch.equal(task.init(seeded(3))["vector"], task.init(seeded(4))["vector"])


def test_dtype_follows_the_problem():
    task = QuadraticTask(torch.eye(3, dtype=torch.float64), {"x": torch.ones(3).double()})
    assert task.init(seeded())["x"].dtype == torch.float64


def test_different_problems_share_one_loss():
    tasks = [random_task(seed) for seed in range(3)]
    matrices, targets = zip(*(t.batch(seeded()) for t in tasks), strict=True)
    params = [t.init(seeded(9)) for t in tasks]

    def stack(trees):
        return {name: torch.stack([tree[name] for tree in trees]) for name in trees[0]}

    batch = (torch.stack(matrices), stack(targets))
    together = torch.func.vmap(tasks[0].loss)(stack(params), batch)
    alone = [t.loss(p, t.batch(seeded())) for t, p in zip(tasks, params, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone))


@pytest.mark.parametrize(
    ("matrix", "targets", "message"),
    [
        (torch.zeros(3), {"x": torch.zeros(3)}, "matrix"),
        (torch.eye(3), {}, "targets"),
        (torch.eye(3), {"x": torch.zeros(4)}, r"\(4,\)"),
    ],
)
def test_wrong_problems(matrix, targets, message):
    with pytest.raises(ValueError, match=message):
        QuadraticTask(matrix, targets)


@pytest.mark.parametrize("change", [{"dims": 0}, {"columns": -1}, {"condition": 0.5}])
def test_wrong_sizes(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}="):
        random_task(**change)
