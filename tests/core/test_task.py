"""The task protocols and the base class of tasks on modules."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from scalegmn_opt.graph import trace
from scalegmn_opt.meta import ModuleTask, Task, TaskSuite


class TwoMoons(ModuleTask):
    """A user's own classification task: this class is the whole of what they write."""

    def __init__(self, module=None):
        super().__init__(module or small_network(), (torch.randn(8, 2),))

    def batch(self, generator):
        angle = torch.rand(16, generator=generator) * torch.pi
        side = torch.randint(2, (16,), generator=generator)
        sign = 1 - 2 * side
        points = torch.stack([angle.cos() * sign + side, angle.sin() * sign + side / 2], dim=1)
        return points, side

    def loss(self, params, batch):
        inputs, targets = batch
        return cross_entropy(self.forward(params, inputs), targets)


class OneTaskSuite:
    def sample(self, generator, count):
        return [TwoMoons() for _ in range(count)]


def small_network():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_module_task_is_a_task():
    task = TwoMoons()
    assert isinstance(task, Task)
    assert isinstance(OneTaskSuite(), TaskSuite)
    assert not isinstance(object(), Task)
    assert not isinstance(object(), TaskSuite)


def test_gradient_descent_solves_the_users_task():
    task, generator = TwoMoons(), seeded()
    params = task.init(generator)
    first = task.loss(params, task.batch(seeded(1)))
    for _ in range(300):
        grads = torch.func.grad(task.loss)(params, task.batch(generator))
        params = {name: p - 0.3 * grads[name] for name, p in params.items()}
    assert task.loss(params, task.batch(seeded(1))) < 0.6 * first


def test_graph_is_the_modules_graph_and_is_traced_once():
    module = small_network()
    task = TwoMoons(module)
    assert task.graph == trace(module, (torch.randn(8, 2),))
    assert task.graph is task.graph


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), other=st.integers(0, 2**31))
def test_init_depends_on_the_generator_alone(seed, other):
    task = TwoMoons()
    torch.manual_seed(other)
    first = task.init(seeded(seed))
    torch.manual_seed(other + 1)
    second = task.init(seeded(seed))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    if seed != other:
        assert not torch.equal(first["0.weight"], task.init(seeded(other))["0.weight"])


def test_successive_inits_differ_and_leave_module_and_global_state_alone():
    module = small_network()
    before = copy.deepcopy(module.state_dict())
    task, generator = TwoMoons(module), seeded()
    state = torch.get_rng_state()
    first, second = task.init(generator), task.init(generator)
    assert not torch.equal(first["0.weight"], second["0.weight"])
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert not any(p.requires_grad for p in first.values())


def test_init_follows_the_modules_own_initialisation():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.full((2,), 3.0))

        def reset_parameters(self):
            nn.init.constant_(self.inner.bias, 7.0)  # a parent may overrule its children

        def forward(self, x):
            return self.inner(x) * self.scale

    module = Scaled().double()
    params = TwoMoons(module).init(seeded())
    assert params["inner.bias"].tolist() == [7.0, 7.0]
    assert params["scale"].tolist() == [3.0, 3.0]
    assert params["inner.weight"].dtype == torch.float64
    assert not torch.equal(params["inner.weight"], module.inner.weight)


def test_attention_is_initialised_again():
    task = TwoMoons(nn.TransformerEncoderLayer(2, 1, dim_feedforward=4, dropout=0.0))
    first, second = task.init(seeded(0)), task.init(seeded(1))
    assert not torch.equal(first["self_attn.in_proj_weight"], second["self_attn.in_proj_weight"])


def test_loss_maps_over_stacked_networks():
    task, generator = TwoMoons(), seeded()
    networks = [task.init(generator) for _ in range(3)]
    batches = [task.batch(generator) for _ in range(3)]
    stacked = {name: torch.stack([n[name] for n in networks]) for name in networks[0]}
    stacked_batch = tuple(torch.stack(parts) for parts in zip(*batches, strict=True))
    together = torch.func.vmap(task.loss)(stacked, stacked_batch)
    alone = torch.stack([task.loss(n, b) for n, b in zip(networks, batches, strict=True)])
    torch.testing.assert_close(together, alone)


def test_forward_does_not_write_to_buffers():
    module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    task = TwoMoons(module)
    task.loss(task.init(seeded()), task.batch(seeded()))
    assert int(task.module[1].num_batches_tracked) == 0
    assert torch.equal(task.module[1].running_mean, torch.zeros(4))


def test_forward_refuses_parameters_of_another_network():
    task = TwoMoons()
    params = task.init(seeded())
    params["stray"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="stray"):
        task.loss(params, task.batch(seeded()))


def test_input_rms_is_that_of_the_floating_point_inputs():
    class Sized(TwoMoons):
        def __init__(self, *inputs):
            ModuleTask.__init__(self, small_network(), inputs)

    assert Sized(torch.full((4, 2), -3.0)).input_rms == pytest.approx(3.0)
    assert Sized(torch.full((4, 2), 2.0), torch.ones(5).long()).input_rms == pytest.approx(2.0)
    assert Sized(torch.ones(4, dtype=torch.int64)).input_rms == 1.0


def test_a_bare_tensor_is_not_a_tuple_of_inputs():
    class Bare(TwoMoons):
        def __init__(self):
            ModuleTask.__init__(self, small_network(), torch.randn(8, 2))

    with pytest.raises(TypeError, match="example_inputs"):
        Bare()


def test_a_task_without_loss_cannot_be_made():
    class Unfinished(ModuleTask):
        def batch(self, generator):
            return ()

    with pytest.raises(TypeError, match="loss"):
        Unfinished(small_network(), (torch.randn(8, 2),))
