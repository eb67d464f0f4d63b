"""gauge="observed": sizes read by hooks in the first training forward, whatever is around it."""

import copy
import os
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from optimizers import X, Y, loss_of, network, options_of, same, train, values
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from scalegmn_opt import LearnedOptimizer, UpdateRule, random_transform, trace
from scalegmn_opt.optim import GaugeAdam, GaugeMuon

OBSERVERS = [LearnedOptimizer, GaugeAdam, GaugeMuon]


def observing(model, cls=GaugeAdam, x=X, **options):
    return cls.for_model(model, (x,), **options_of(cls, gauge="observed", **options))


def ends(own):
    """The gauge of each parameter, by name."""
    names = {p: name for name, p in own.named_parameters().items()}
    return {names[p]: (s["target"], s["source"]) for p, s in own.state.items()}


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def size(x):
    return x.square().mean(0).sqrt()


def step(model, own, x=X):
    own.zero_grad()
    loss_of(model, x).backward()
    own.step()
    return ends(own)


def assert_equal_ends(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_gauge_is_the_size_of_preactivations_and_activities():
    model = network()
    own, (first, second, third) = observing(model), (model[0], model[2], model[4])
    with torch.no_grad():
        z = first(X)
        y = second(z.relu())
        out = third(y.tanh())
    found = step(model, own)
    torch.testing.assert_close(found["0.weight"][0], size(z))
    torch.testing.assert_close(found["0.bias"][0], size(z))
    assert (found["0.bias"][1] == 1).all()
    torch.testing.assert_close(found["2.weight"][1], size(z.relu()))
    shared = y.square().mean().sqrt().clamp_max(1.0)  # no scale of its own, and bounded
    torch.testing.assert_close(found["2.weight"][0], shared.expand(6))
    torch.testing.assert_close(found["4.weight"][1], y.tanh().square().mean().sqrt().expand(6))
    torch.testing.assert_close(found["4.weight"][0], out.square().mean().sqrt().expand(3))


@pytest.mark.parametrize("cls", OBSERVERS)
def test_hooks_are_gone_after_the_first_step(cls):
    model = network()
    own = observing(model, cls)
    assert hooks(model) == 5
    first = step(model, own)
    assert hooks(model) == 0
    assert_equal_ends(step(model, own, 3 * X), first)


def test_hooks_removed_by_hand_leave_the_sweep():
    model, other = network(), network()
    own = observing(model)
    own.stop_observing()
    assert hooks(model) == 0
    assert_equal_ends(step(model, own), step(other, GaugeAdam.for_model(other, (X,))))


def test_nothing_is_read_in_an_evaluation():
    model, other = network(), network()
    own = observing(model)
    with torch.no_grad():
        model(100 * X)
    model.eval()
    model(100 * X)
    model.train()
    assert_equal_ends(step(model, own), step(other, observing(other)))


def test_only_the_first_training_forward_counts():
    model, other = network(), network()
    own = observing(model)
    loss_of(model).backward()
    assert_equal_ends(step(model, own, 5 * X), step(other, observing(other)))


def test_a_forward_that_failed_does_not_count():
    model, other = network(), network()
    own = observing(model)
    with pytest.raises(RuntimeError):
        model(100 * X[:, :3])
    assert_equal_ends(step(model, own), step(other, observing(other)))


class Rematerialised(nn.Module):
    """The second layer twice: once computed again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.first(x).relu()
        if self.reentrant is None:
            x = self.second(x).relu()
        else:
            x = checkpoint(self._again, x, use_reentrant=self.reentrant)
        return self.last(self.second(x).relu())

    def _again(self, x):
        return self.second(x).relu()


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_computed_again_counts_once(reentrant):
    torch.manual_seed(0)
    plain = Rematerialised(None)
    remade = Rematerialised(reentrant)
    remade.load_state_dict(plain.state_dict())
    own = observing(plain)
    again = GaugeAdam(
        remade.named_parameters(), model=remade, example_inputs=(X,), gauge="observed"
    )
    assert_equal_ends(step(remade, again), step(plain, own))


@pytest.mark.parametrize("outer", [False, True])
def test_compiled_model(outer):
    model, other = network(), network()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    own = GaugeAdam.for_model(compiled if outer else model, (X,), gauge="observed")
    expected = step(other, observing(other))
    found = step(compiled, own)
    assert_equal_ends({n.removeprefix("_orig_mod."): e for n, e in found.items()}, expected)
    assert hooks(model) == hooks(compiled) == 0
    for _ in range(2):
        step(compiled, own)
    assert_equal_ends(ends(own), found)


def test_model_that_was_compiled_before_without_hooks():
    first, model, other = network(), network(), network()
    train(torch.compile(first, backend="eager"), GaugeAdam.for_model(first, (X,)))
    compiled = torch.compile(model, backend="eager")
    found = step(compiled, observing(compiled))
    expected = step(other, observing(other))
    assert_equal_ends({n.removeprefix("_orig_mod."): e for n, e in found.items()}, expected)


def test_nothing_seen_is_told():
    model, other = network(), network()
    own = observing(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.warns(RuntimeWarning, match="no training forward of the model was seen") as caught:
        own.step()
    assert caught[0].filename == __file__
    assert_equal_ends(ends(own), step(other, GaugeAdam.for_model(other, (X,))))


def processes(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = network().double()
    own = observing(model, x=X.double())
    parallel = nn.parallel.DistributedDataParallel(model)
    for _ in range(3):
        own.zero_grad()
        F.cross_entropy(parallel(X[rank::2].double()), Y[rank::2]).backward()
        own.step()
    torch.save((model.state_dict(), ends(own)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # not by the teardown of torch, which aborts now and then after all is done


@pytest.mark.slow
def test_processes_that_train_together_see_together(tmp_path):
    torch.multiprocessing.spawn(processes, (str(tmp_path),), nprocs=2)
    model = network().double()
    own = observing(model, x=X.double())
    for _ in range(3):
        found = step(model, own, X.double())
    for rank in range(2):
        weights, seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_equal_ends(seen, found)
        torch.testing.assert_close(weights, dict(model.state_dict()))


def test_shared_sums_of_one_process_are_its_own(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1
    )
    try:
        model, unseen = network(), network()
        found = step(model, observing(model))
        own = observing(unseen)
        own.stop_observing()
        swept = step(unseen, own)
    finally:
        torch.distributed.destroy_process_group()
    other = network()
    assert_equal_ends(found, step(other, observing(other)))
    assert_equal_ends(swept, step(other := network(), GaugeAdam.for_model(other, (X,))))


def convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 6, 2, padding=1, bias=False),
        nn.BatchNorm2d(6, eps=1e-30), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 8), nn.LayerNorm(8, eps=0),
        nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


@pytest.mark.parametrize("cls", OBSERVERS)
@pytest.mark.parametrize("make", [network, convolutional])
def test_training_from_transformed_parameters_gives_the_same_function(make, cls):
    torch.manual_seed(1)
    model, x = make().double(), X.double()
    moved = copy.deepcopy(model)
    params = {n: p.detach()[None] for n, p in model.named_parameters()}
    transform = random_transform(trace(model, (x,)), torch.Generator().manual_seed(2))
    acted = transform.apply(params)
    moved.load_state_dict({n: p[0] for n, p in acted.items()}, strict=False)
    assert not same(values(moved), values(model))
    start = model(x).detach()
    for each in (model, moved):
        train(each, observing(each, cls, x), 20, x)
    expected = model(x).detach()
    assert (expected - start).abs().max() > 0.01
    assert (moved(x) - expected).abs().max() < 1e-7 * expected.abs().max()


def test_scales_stay_within_ten_times_the_sweeps():
    model, other = network(), network()
    with torch.no_grad():
        model[0].bias[0] = other[0].bias[0] = -100.0  # a neuron that never answers
    found = step(model, observing(model))
    swept = step(other, GaugeAdam.for_model(other, (X,)))
    ratio = found["2.weight"][1] / swept["2.weight"][1]
    assert ratio[0] == pytest.approx(0.1)
    assert ((ratio[1:] > 0.1) & (ratio[1:] < 10)).all()


class Tied(nn.Module):
    """A weight of two modules, and parameters of a module that is not read."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again.weight = self.first.weight
        self.slope, self.last = nn.PReLU(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.slope(self.again(self.first(x))))


class ByKeyword(nn.Module):
    """Gives its second layer what it reads by keyword."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.second(input=self.first(x).relu())


def test_a_module_that_is_called_by_keyword_keeps_the_sweep():
    model = ByKeyword()
    other = copy.deepcopy(model)
    found, swept = step(model, observing(model)), step(other, GaugeAdam.for_model(other, (X,)))
    torch.testing.assert_close(found["second.weight"], swept["second.weight"])
    assert not torch.equal(found["first.weight"][0], swept["first.weight"][0])


def test_what_is_not_read_keeps_the_sweep():
    torch.manual_seed(0)
    model = Tied()
    other = copy.deepcopy(model)
    found = step(model, observing(model))
    swept = step(other, GaugeAdam.for_model(other, (X,)))
    for name in ("first.weight", "slope.weight"):
        torch.testing.assert_close(found[name], swept[name])
    assert not torch.equal(found["last.weight"][0], swept["last.weight"][0])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_made_before_the_first_step_observe_their_own_model(duplicate):
    model, own = (pair := duplicate((m := network(), observing(m))))
    assert hooks(pair[0]) == 5
    other = network()
    assert_equal_ends(step(model, own), step(other, observing(other)))
    assert hooks(model) == 0


def test_gauge_that_cannot_be():
    with pytest.raises(ValueError, match=r"gauge: expected one of .*'swept'.*, got 'guessed'"):
        GaugeAdam(network().parameters(), gauge="guessed")
    with pytest.raises(ValueError, match="gauge: expected a model to observe, got none"):
        GaugeMuon(network().parameters(), gauge="observed")
    rule = UpdateRule(channels=0, symmetry="permutation")
    with pytest.raises(ValueError, match='gauge: expected "swept" for a rule of permutations'):
        LearnedOptimizer.for_model(network(), (X,), rule=rule, gauge="observed")


def test_observed_gauge_trains():
    model = network()
    losses = train(model, observing(model, LearnedOptimizer, rule=UpdateRule(channels=0)), 60)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_sizes_that_are_not_finite_leave_the_sweep(value):
    model, swept = network(), network()
    own = observing(model)
    model(X * value)
    expected = step(swept, GaugeAdam.for_model(swept, (X,)))
    assert_equal_ends(step(model, own), expected)


def test_an_optimizer_that_is_resumed_has_its_gauge():
    model, again = network(), network()
    own, other = observing(model), observing(again)
    expected = step(model, own)
    other.load_state_dict(own.state_dict())
    assert hooks(again) == 0
    assert_equal_ends(step(again, other, 3 * X), expected)


def test_an_empty_state_is_no_gauge():
    model = network()
    own = observing(model)
    own.load_state_dict(own.state_dict())
    assert hooks(model) > 0


def fake(model):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(X))


def faked_before(model):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model(mode.from_tensor(X))


NOT_COUNTED = {
    "second optimizer": lambda model: GaugeAdam.for_model(model, (X,)),
    "export": lambda model: torch.export.export(model, (X,)),
    "strict export": lambda model: torch.export.export(model, (X,), strict=True),
    "fake": fake,
    "faked before": faked_before,
    "proxies": lambda model: make_fx(lambda x: model(x))(100 * X),
    "jit": lambda model: torch.jit.trace(model, 100 * X),
    "vmap": lambda model: vmap(model)(100 * X),
    "compiled vmap": lambda model: torch.compile(vmap(model), backend="eager")(100 * X),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of fakes
@pytest.mark.parametrize("name", NOT_COUNTED)
def test_a_pass_without_numbers_does_not_count(name):
    torch.compiler.reset()
    model, other = network(), network()
    own = observing(model)
    NOT_COUNTED[name](model)
    assert hooks(model) == 5
    assert_equal_ends(step(model, own), step(other, observing(other)))


def each_gradient(model, params):
    def loss(params, x, y):
        return F.cross_entropy(functional_call(model, params, (x[None],)), y[None])

    return {n: g.mean(0) for n, g in vmap(grad(loss), (None, 0, 0))(params, X, Y).items()}


def whole_gradient(model, params):
    return grad(lambda params: F.cross_entropy(functional_call(model, params, (X,)), Y))(params)


@pytest.mark.parametrize("gradient", [each_gradient, whole_gradient])
def test_gradients_by_functions_leave_the_sweep(gradient):
    model, other = network(), network()
    own = observing(model)
    found = gradient(model, {name: p.detach() for name, p in model.named_parameters()})
    for name, p in model.named_parameters():
        p.grad = found[name]
    with pytest.warns(RuntimeWarning, match="no training forward of the model was seen"):
        own.step()
    assert_equal_ends(ends(own), step(other, GaugeAdam.for_model(other, (X,))))


class Mapped(nn.Module):
    """Calls its last layer in a vmap of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return vmap(self.last)(self.first(x).relu())


class WithBias(nn.Linear):
    """Gives its bias too, as layers that are split over devices do."""

    def forward(self, x):
        return super().forward(x), self.bias


class Unpacked(Mapped):
    def __init__(self):
        super().__init__()
        self.last = WithBias(6, 3)

    def forward(self, x):
        return self.last(self.first(x).relu())[0]


@pytest.mark.filterwarnings("ignore::scalegmn_opt.graph.trace.TraceWarning")  # of the vmap
@pytest.mark.parametrize("make", [Mapped, Unpacked])
def test_a_module_that_gives_no_numbers_keeps_the_sweep(make):
    torch.manual_seed(0)
    model = make()
    other = copy.deepcopy(model)
    found, swept = step(model, observing(model)), step(other, GaugeAdam.for_model(other, (X,)))
    torch.testing.assert_close(found["last.weight"], swept["last.weight"])
    assert not torch.equal(found["first.weight"][0], swept["first.weight"][0])


def compiles():
    """Whether torch.compile compiles, which it does not while a pass is read."""
    graphs = []
    torch.compiler.reset()
    torch.compile(lambda x: x + 1, backend=lambda graph, _: graphs.append(graph) or graph)(X)
    return len(graphs) == 1


class Recursive(nn.Module):
    """Calls itself, and fails then if it is told to."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.error = None

    def forward(self, x, depth=1):
        if depth:
            self(2 * x, depth - 1)
        elif self.error is not None:
            raise self.error
        return self.last(self.first(x).relu())


def recursive():
    torch.manual_seed(0)
    return Recursive()


def test_a_model_that_calls_itself_is_read_to_its_end():
    model = recursive()
    own = observing(model)
    both = size(model.first(torch.cat([X, 2 * X]))).detach()
    found = step(model, own)
    torch.testing.assert_close(found["first.weight"][0], both)
    assert compiles()


def test_a_pass_that_failed_leaves_compilation_as_it_was():
    model, other = recursive(), recursive()
    own = observing(model)
    model.error = ValueError("inside")
    with pytest.raises(ValueError, match="inside"):
        model(100 * X)
    assert compiles()
    model.error = None
    assert_equal_ends(step(model, own), step(other, observing(other)))


@pytest.mark.parametrize("leave", [GaugeAdam.stop_observing, GaugeAdam.step])
@pytest.mark.filterwarnings("ignore:gauge=:RuntimeWarning")
def test_an_interrupt_leaves_compilation_as_it_was(leave):
    model, other = recursive(), recursive()
    own = observing(model)
    model.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        model(100 * X)
    model.error = None
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    leave(own)
    assert compiles()
    assert_equal_ends(step(model, own), step(other, GaugeAdam.for_model(other, (X,))))


def test_training_after_an_interrupt_is_read_from_its_start():
    """In a notebook one goes on with the optimizer that there is."""
    model, other = recursive(), recursive()
    own = observing(model)
    model.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        model(100 * X)
    model.error = None
    assert_equal_ends(step(model, own), step(other, observing(other)))
    assert compiles()


class Quiet(nn.Sequential):
    def forward(self, x):
        self.out = super().forward(x)


def test_a_model_that_returns_nothing_is_read():
    torch.manual_seed(0)
    model = Quiet(nn.Linear(4, 3))
    own = observing(model)
    model(X)
    seen = size(model.out).detach()
    F.cross_entropy(model.out, Y).backward()
    own.step()
    torch.testing.assert_close(ends(own)["0.weight"][0], seen)


def test_two_that_observe_one_model_see_the_same():
    model = network()
    first, second = observing(model), observing(model, lr=0.0)
    loss_of(model).backward()
    assert compiles()
    second.step()
    first.step()
    assert hooks(model) == 0
    assert_equal_ends(ends(first), ends(second))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, AveragedModel, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize("read", [False, True])
def test_a_copy_of_the_model_alone_is_not_observed(duplicate, read):
    model, other = network(), network()
    own = observing(model)
    loss = loss_of(model) if read else None
    average = duplicate(model)
    assert hooks(average) == 0
    average(100 * X)
    if read:
        loss.backward()
        own.step()
        found = ends(own)
    else:
        found = step(model, own)
    assert_equal_ends(found, step(other, observing(other)))


def test_a_part_that_is_copied_keeps_nothing_else_alive():
    model = network()
    own = observing(model)
    part = copy.deepcopy(model[2])
    assert hooks(part) == 0
    assert hooks(model) == 5
    kept = weakref.ref(own._observer)
    del own
    assert kept() is None


def test_a_copy_that_failed_says_nothing_more():
    model = network()
    own = observing(model)
    model[4].last = model[4].weight * 2  # which cannot be copied
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    assert hooks(model) == 5
    step(model, own)


def test_an_optimizer_that_is_dropped_takes_its_hooks_along():
    model = network()
    own = observing(model)
    assert hooks(model) == 5
    del own
    assert hooks(model) == 0
