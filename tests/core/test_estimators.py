"""Estimators of the meta-gradient on problems whose answer is known; objectives."""

import pytest
import torch
from torch import nn

from scalegmn_opt import LearnedOptimizer, UpdateRule, WeightGraph
from scalegmn_opt.meta import (
    EvolutionStrategies,
    InnerRun,
    PersistentES,
    RunOptions,
    TruncatedBackprop,
)
from scalegmn_opt.meta.estimators import RuleObjective
from scalegmn_opt.meta.evolution import PopulationRun
from scalegmn_opt.meta.objectives import ADAM_RATES, AIMS, Reference, adam_curve
from scalegmn_opt.meta.task import draw_batches
from scalegmn_opt.optim.state import Rule
from scalegmn_opt.tasks.suites import DigitsTinySuite, QuadraticSuite, resolve_suite

F64 = torch.float64


class Descent(Rule):
    """``update = -exp(rate) grad``; counts its steps in the state."""

    def __init__(self, rate=-2.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=F64))

    @classmethod
    def init(cls, graph, params, *, input_rms=1.0):
        return {name: {"step": torch.zeros(len(p), dtype=F64)} for name, p in params.items()}

    def forward(self, graph, params, grads, state):
        updates = {name: -self.rate.exp() * grad for name, grad in grads.items()}
        return updates, {n: {"step": s["step"] + 1} for n, s in state.items()}


class Drift(Descent):
    """``update = rate``, whatever the gradient."""

    def forward(self, graph, params, grads, state):
        return {name: self.rate.expand_as(p) for name, p in params.items()}, state


class Scalar:
    """A loss of one unknown that starts at 1."""

    graph = WeightGraph.from_parameters({"x": (1,)})
    input_rms = 1.0

    def __init__(self, loss):
        self.function = loss

    def init(self, generator):
        return {"x": torch.ones(1, dtype=F64)}

    def batch(self, generator):
        return None

    def loss(self, params, batch):
        return self.function(params["x"]).sum()

    def sample(self, generator, count):
        return [self] * count


def bowl(x):
    return 0.5 * 3.0 * x.square()


def line(x):
    return x + 50.0  # positive, so that nothing counts as diverged


def gradients(objective, *, runs, windows):
    """Sums over the windows of each of many runs of the estimates for the rate, (runs,)."""
    worker, found = objective.new_worker(0), []
    for _ in range(runs):
        total = 0.0
        for _ in range(windows):
            objective.zero_grad()
            loss, _ = objective(worker)
            loss.backward()
            total += float(objective.rule.rate.grad)
        assert worker.remaining == worker.length  # a whole number of runs
        found.append(total)
    return torch.tensor(found, dtype=F64)


def true_gradient(*, steps, truncation, sigma=0.0, rate=-2.0):
    """d/d rate of the sum of window means of the loss of gradient descent on the bowl."""

    def total(theta):
        lr, x, losses = theta.exp(), torch.ones((), dtype=F64), []
        for _ in range(steps):
            x = x - lr * 3.0 * x
            losses.append(bowl(x))
        return torch.stack(losses).sum() / truncation

    noise = sigma * torch.linspace(-3, 3, 61, dtype=F64)
    density = torch.exp(-noise.square() / (2 * max(sigma, 1e-9) ** 2)) if sigma else noise * 0 + 1
    thetas = (rate + noise).requires_grad_()
    return float(
        sum(
            torch.autograd.grad(total(t), t)[0] * d
            for t, d in zip(thetas.unbind(), density, strict=True)
        )
        / density.sum()
    )


@pytest.mark.parametrize("truncation", [1, 2, 6])
def test_bias_of_truncation_is_what_theory_says(truncation):
    """Within a window ``dx_t/dθ = -lr Σ g_s`` over its steps; everything earlier is a constant."""
    objective = TruncatedBackprop(
        Descent(),
        Scalar(bowl),
        networks=1,
        truncation=truncation,
        horizon=(6, 6),
        objective="mean",
    )
    lr, x, expected, slope = torch.tensor(-2.0, dtype=F64).exp(), 1.0, 0.0, 0.0
    for step in range(6):
        slope = 0.0 if step % truncation == 0 else slope
        slope, x = slope - lr * 3.0 * x, x - lr * 3.0 * x
        expected += float(3.0 * x * slope) / truncation
    found = float(gradients(objective, runs=1, windows=6 // truncation))
    assert found == pytest.approx(expected, rel=1e-12)
    assert found / true_gradient(steps=6, truncation=truncation) != pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("estimator", ["es", "pes", "truncated es"])
def test_evolution_strategies_are_unbiased_and_truncated_ones_are_not(estimator):
    """At a small sigma the smoothed objective's gradient is the objective's own."""
    options = {"networks": 1, "horizon": (4, 4), "objective": "mean", "sigma": 0.02}
    rule, suite, runs = Descent(), Scalar(bowl), 300
    if estimator == "es":
        objective, windows, truncation = EvolutionStrategies(rule, suite, **options), 1, 4
    else:
        make = TruncatedES if estimator == "truncated es" else PersistentES
        objective, windows, truncation = make(rule, suite, truncation=1, **options), 4, 1
    found = gradients(objective, runs=runs, windows=windows)
    error = found.std() / runs**0.5
    truth = true_gradient(steps=4, truncation=truncation, sigma=0.0)
    distance = abs(float(found.mean()) - truth) / float(error)
    assert distance > 4 if estimator == "truncated es" else distance < 3


class TruncatedES(PersistentES):
    """PES without its sum of perturbations."""

    def estimate(self, worker, *, steps):
        worker.drift = {}
        return super().estimate(worker, steps=steps)


def test_variance_of_pes_and_of_whole_runs():
    """On ``L_t = Σ_{s ≤ t} θ`` an estimate is Σ_t (Σ_{s ≤ t} ε_s)² / σ² for PES, Σ_t t ε² / σ² for
    whole runs; the variances are ``2 Σ_{s,t} min(s, t)²`` and ``2 (Σ_t t)²``: 140 and 200 of 4."""
    options = {"networks": 1, "horizon": (4, 4), "objective": "mean", "sigma": 0.1}
    rule, suite = Drift(0.0), Scalar(line)
    pes = gradients(PersistentES(rule, suite, truncation=1, **options), runs=500, windows=4)
    whole = 4 * gradients(EvolutionStrategies(rule, suite, **options), runs=500, windows=1)
    for found, variance in ((pes, 140.0), (whole, 200.0)):
        assert abs(float(found.mean()) - 10) < 4 * (variance / 500) ** 0.5
        assert float(found.var()) == pytest.approx(variance, rel=0.45)
    assert pes.var() < whole.var()


@pytest.mark.parametrize("make", [TruncatedBackprop, PersistentES])
def test_nothing_of_a_window_outlives_it(make):
    """Memory does not grow with the number of windows: what is kept has no history."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rule = UpdateRule(channels=4, message_channels=2, hidden_channels=4)
    objective = make(rule, QuadraticSuite(), networks=2, truncation=2, horizon=(10, 10))
    worker = objective.new_worker(0)
    for _ in range(3):
        objective(worker)[0].backward()
        kept = [*worker.params.values(), *(x for s in worker.state.values() for x in s.values())]
        assert not [x for x in kept if x.grad_fn is not None or x.requires_grad]
    assert worker.remaining == 4


def test_a_population_continues_exactly_from_its_state(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rule = UpdateRule(channels=4, message_channels=2, hidden_channels=4)
    objective = PersistentES(rule, QuadraticSuite(), networks=2, truncation=2, horizon=(4, 8))
    run, copy = objective.new_worker(0), objective.new_worker(9)
    assert isinstance(run, PopulationRun)
    objective(run)
    torch.save(run.state_dict(), tmp_path / "run.pt")
    copy.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    for _ in range(5):
        for a, b in zip(*(self_gradients(objective, r) for r in (run, copy)), strict=True):
            assert torch.equal(a, b)


def self_gradients(objective, run):
    objective.zero_grad()
    objective(run)[0].backward()
    return [p.grad.clone() for p in objective.parameters()]


def test_a_population_is_its_copies_one_by_one():
    """Three pairs on two tasks: the estimate from runs of single networks, without ``vmap``."""
    rule = UpdateRule(channels=0).double().requires_grad_(True)
    options = {"networks": 2, "horizon": (4, 4), "sigma": 0.2, "pairs": 3}
    objective = EvolutionStrategies(rule, DoubleDigits(), **options)
    worker, again = objective.new_worker(5), objective.new_worker(5)
    loss, _ = objective(worker)
    loss.backward()
    weights = {name: p.detach() for name, p in rule.named_parameters()}
    noise = {name: objective._noise(p, again.generator) for name, p in weights.items()}
    batches = [draw_batches(again.tasks, again.generator) for _ in range(5)]
    judged = {}
    for pair in range(3):
        for sign in (1, -1):
            own = {name: p + sign * noise[name][pair] for name, p in weights.items()}
            losses = [train_alone(own, again, i, batches) for i in (0, 1)]
            judged[pair, sign] = torch.stack(losses).add(0.02).log().mean()
    for name, p in rule.named_parameters():
        expected = sum(
            (judged[i, 1] - judged[i, -1]) / (2 * 0.2**2) * noise[name][i] / 3 for i in range(3)
        )
        torch.testing.assert_close(p.grad, expected, rtol=1e-9, atol=1e-12)
    assert loss.item() == pytest.approx(sum(judged.values()).item() / 6, rel=1e-9)


class DoubleDigits(DigitsTinySuite):
    """Tasks in float64."""

    def sample(self, generator, count):
        tasks = super().sample(generator, count)
        for task in tasks:
            init, batch = task.init, task.batch
            task.init = lambda g, init=init: {n: p.double() for n, p in init(g).items()}
            task.batch = lambda g, batch=batch: (batch(g)[0].double(), batch(g)[1])
        return tasks


def train_alone(weights, run, network, batches):
    """Losses (steps,) after each step of one network by ``UpdateRule`` with ``weights``."""
    rule = UpdateRule(channels=0).double().requires_grad_(False)
    rule.load_state_dict(weights)
    task = run.tasks[network]
    params = {name: p[network : network + 1] for name, p in run.params.items()}
    state, losses = rule.init(run.graph, params, input_rms=task.input_rms), []
    for number, every in enumerate(batches):
        own = {name: p[0].detach().requires_grad_() for name, p in params.items()}
        loss = task.loss(own, every[network])
        if number:
            losses.append(loss.detach())
        grads = torch.autograd.grad(loss, list(own.values()))
        grads = {name: grad[None] for name, grad in zip(own, grads, strict=True)}
        updates, state = rule(run.graph, params, grads, state)
        params = {name: p + updates[name] for name, p in params.items()}
    return torch.stack(losses)


def test_more_pairs_give_less_variance():
    options = {"networks": 1, "horizon": (3, 3), "objective": "mean", "sigma": 0.1}
    one, four = (
        gradients(
            EvolutionStrategies(Drift(0.0), Scalar(line), pairs=pairs, **options),
            runs=400,
            windows=1,
        ).var()
        for pairs in (1, 4)
    )
    assert one / four == pytest.approx(4, rel=0.35)


def test_a_pair_that_is_not_finite_counts_zero_and_the_others_count():
    class Cliff(Descent):
        def forward(self, graph, params, grads, state):
            step = torch.where(self.rate > 0.25, torch.inf, self.rate)
            return {name: step.expand_as(p) for name, p in params.items()}, state

    options = {"networks": 1, "horizon": (3, 3), "objective": "mean", "sigma": 0.3, "pairs": 8}
    objective = EvolutionStrategies(Cliff(0.0), Scalar(line), **options)
    loss, log = objective(objective.new_worker(0))
    loss.backward()
    assert 0 < log["skipped"] < 1
    assert objective.rule.rate.grad.item() > 0


@pytest.mark.parametrize("make", [PersistentES, EvolutionStrategies])
def test_windows_that_are_not_finite_count_zero(make):
    objective = make(Descent(400.0), Scalar(bowl), networks=1, horizon=(6, 6))
    worker = objective.new_worker(0)
    resets = worker.resets
    loss, log = objective(worker)
    loss.backward()
    assert loss.item() == 0
    assert log["skipped"] == 1
    assert log["diverged"] == 1
    assert worker.resets == resets + 1
    assert objective.rule.rate.grad.item() == 0


def test_the_share_of_networks_that_diverged_is_logged():
    class Two(Scalar):
        def __init__(self, factor):
            super().__init__(lambda x: factor * bowl(x))

        def sample(self, generator, count):
            return [Two(1.0), Two(30.0)]

    objective = TruncatedBackprop(Descent(-1.0), Two(1.0), networks=2, truncation=5)
    worker = objective.new_worker(0)
    assert objective(worker)[1]["diverged"] == 0.5
    assert worker.remaining == worker.length


LOSSES = torch.tensor([[1.0, 3.0], [0.5, 0.1]])


def test_objectives_by_hand():
    curve = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    reference = Reference(curve, (curve[1] + 0.02).log())
    logs = (LOSSES + 0.02).log()
    assert AIMS["log"](LOSSES, None).item() == pytest.approx(logs.mean().item())
    assert AIMS["mean"](LOSSES, None).item() == pytest.approx(1.15)
    ratio = (logs - (curve + 0.02).log()).mean()
    assert AIMS["log-ratio"](LOSSES, reference).item() == pytest.approx(ratio.item())
    assert AIMS["log-ratio"](curve, reference).item() == 0
    # Only the loss of 3 is above Adam's last one of 2, by exp(0.4) and more; 1 is as far below.
    shares = 1 / (1 + (((2.02 / (LOSSES + 0.02)).log()) / 0.2).exp())
    assert AIMS["time-to-target"](LOSSES, reference).item() == pytest.approx(shares.mean().item())
    assert shares.mean().item() == pytest.approx(0.25, abs=0.05)


def test_the_reference_is_adam_at_its_best_rate():
    suite = DigitsTinySuite()
    run = InnerRun(
        Descent(),
        suite,
        options=RunOptions(2, (12, 12), batches="validation", referenced=True),
        seed=0,
    )
    assert run.reference.shape == (12, 2)
    assert torch.equal(run.reference_of(5).curve, run.reference[:5])
    run.remaining = 4
    assert torch.equal(run.reference_of(4).curve, run.reference[8:])
    before = {name: p.clone() for name, p in run.params.items()}
    alone = []
    for lr in ADAM_RATES:
        curve = reference_curve(run, lr)
        alone.append((curve[-1] + 0.02).log())
    best = torch.stack(alone).min(0).values
    torch.testing.assert_close((run.reference[-1] + 0.02).log(), best)
    torch.testing.assert_close(run.reference_of(4).target, best)
    assert all(torch.equal(before[name], p) for name, p in run.params.items())


def reference_curve(run, lr):
    generator = torch.Generator().manual_seed(run._task_seed)
    models = [{n: p[i].clone().requires_grad_() for n, p in run.params.items()} for i in (0, 1)]
    optimizers = [torch.optim.Adam(model.values(), lr=lr) for model in models]
    rows = []
    for _ in range(12):
        batches = [task.batch(generator) for task in run.tasks]
        for task, model, optimizer, batch in zip(
            run.tasks, models, optimizers, batches, strict=True
        ):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
        batches = [task.validation_batch(generator) for task in run.tasks]
        rows.append(
            [t.loss(m, b).item() for t, m, b in zip(run.tasks, models, batches, strict=True)]
        )
    return torch.tensor(rows)


def test_a_rule_without_a_graph_sees_what_an_optimizer_without_a_model_sees():
    suite = resolve_suite("tiny")
    run = InnerRun(
        UpdateRule(channels=0), suite, options=RunOptions(2, (5, 5), graph=False), seed=0
    )
    params = {name: torch.nn.Parameter(p[0]) for name, p in run.params.items()}
    assert run.graph == LearnedOptimizer(params.items()).graph != run.tasks[0].graph
    objective = TruncatedBackprop(
        UpdateRule(channels=0), suite, networks=2, truncation=3, horizon=(6, 6), graph=False
    )
    worker = objective.new_worker(0)
    for own in worker.state.values():  # one number for all neurons of a parameter
        assert torch.equal(own["target"], own["target"][:, :1].expand_as(own["target"]))
        assert (own["source"] == 1).all()
    loss, log = objective(worker)
    loss.backward()
    assert log["skipped"] == 0
    assert objective.rule.schedule.grad.abs().min() > 0
    assert objective.rule.kinds.grad[2] != 0  # all layers count as the last
    assert (objective.rule.kinds.grad[3:5] == 0).all()  # none as the first, or as periodic


def test_a_reference_that_diverges_is_not_chosen():
    steep = Scalar(lambda x: torch.exp(x.abs() * 100))
    params = {"x": torch.full((1, 1), 0.5, dtype=F64)}
    curve = adam_curve(
        [steep], params, steps=3, validation=False, generator=torch.Generator().manual_seed(0)
    )
    assert curve.isfinite().all()


@pytest.mark.parametrize("objective", ["log", "mean", "log-ratio", "time-to-target"])
@pytest.mark.parametrize("batches", ["training", "validation"])
def test_every_objective_on_every_kind_of_batch_has_a_gradient(objective, batches):
    suite = resolve_suite("tiny")
    estimator = TruncatedBackprop(
        Descent(-1.0).float(),
        suite,
        networks=2,
        truncation=3,
        horizon=(6, 6),
        objective=objective,
        batches=batches,
    )
    loss, log = estimator(estimator.new_worker(0))
    loss.backward()
    assert log["skipped"] == 0
    assert abs(estimator.rule.rate.grad.item()) > 1e-6


def test_validation_batches_are_those_of_the_held_out_part():
    suite = resolve_suite("tiny")
    run = InnerRun(Descent(), suite, options=RunOptions(1, (5, 5), batches="validation"), seed=0)
    task = run.tasks[0]
    held_out = task._project(task.dataset.validation_inputs)
    seen = []
    task.losses = lambda params, batches: seen.append(batches[0][0]) or torch.zeros(1)
    run.measure(run.params, validation=True)
    run.losses(run.params)
    known = {tuple(x) for x in held_out.tolist()}
    assert [{tuple(x) for x in inputs.tolist()} <= known for inputs in seen] == [True, False]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            RuleObjective,
            {"objective": "loss"},
            "objective: choose from .'log', 'mean', 'log-ratio'",
        ),
        (
            RuleObjective,
            {"batches": "test"},
            "batches: choose from .'training', 'validation'.*'test'",
        ),
        (PersistentES, {"sigma": 0.0}, "sigma: expected a finite number > 0, got 0.0"),
        (PersistentES, {"truncation": 0}, "truncation: expected at least 1, got 0"),
        (EvolutionStrategies, {"sigma": float("inf")}, "sigma"),
        (EvolutionStrategies, {"pairs": 0}, "pairs: expected at least 1, got 0"),
    ],
)
def test_wrong_options(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(Descent(), QuadraticSuite(), **options)
