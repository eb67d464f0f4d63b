"""UpdateRule: a pure, batched, equivariant function; untrained it is a known optimizer."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scalegmn_opt import UpdateRule, random_transform, trace
from scalegmn_opt.graph import (
    NONZERO_SCALE,
    PERMUTATION,
    POSITIVE_SCALE,
    SIGN,
    NeuronGroup,
    Role,
    WeightGraph,
)
from scalegmn_opt.optim.directions import relative_to_noise, unit_rms, whitened
from scalegmn_opt.pretrained import available, save_weights
from scalegmn_opt.symmetry import only_permuted
from scalegmn_opt.testing import random_graph, random_params, random_tied_graph

SMALL = {"channels": 4, "message_channels": 3, "hidden_channels": 6, "weight_channels": 3}
MIXED = [PERMUTATION, SIGN, POSITIVE_SCALE, NONZERO_SCALE]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(seed=0, size=0.1, **options):
    """A rule whose weights are not those of its initialisation, as after meta-training."""
    torch.manual_seed(seed)
    rule = UpdateRule(**SMALL | options).double().requires_grad_(False)
    for p in rule.parameters():
        p.add_(size * torch.randn(p.shape, generator=seeded(seed), dtype=p.dtype))
    return rule


def assert_close(found, expected, tolerance=1e-9):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).abs().max() / value.abs().max().clamp_min(1e-12)
        assert error.item() <= tolerance, f"{name}: {error.item():.1e}"


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    make=st.sampled_from([random_graph, random_tied_graph]),
)
def test_equivariant_over_several_steps(seed, make):
    graph = make(seeded(seed))
    rule = trained(seed)
    transform = random_transform(graph, seeded(seed))
    params = random_params(graph, seeded(seed + 1))
    moved = transform.apply(params)
    input_rms = torch.tensor([0.3, 4.0], dtype=torch.float64)
    states = [rule.init(graph, p, input_rms=input_rms) for p in (params, moved)]
    for step in range(3):
        grads = random_params(graph, seeded(seed + 2 + step))
        updates, states[0] = rule(graph, params, grads, states[0])
        acted = transform.apply_to_gradients(grads)
        found, states[1] = rule(graph, moved, acted, states[1])
        assert_close(found, transform.apply(updates))
        params = {n: p + updates[n] for n, p in params.items()}
        moved = {n: p + found[n] for n, p in moved.items()}


def mismatch(graph, rule, transform, steps=20):
    """Relative difference of ``g·θ`` after training from ``θ`` and of training from ``g·θ``."""
    target, params = (random_params(graph, seeded(i)) for i in (1, 2))
    moved = transform.apply(params)
    states = [rule.init(graph, p) for p in (params, moved)]
    for step in range(steps):
        grads = {n: p - target[n] + 0.3 * step for n, p in params.items()}
        updates, states[0] = rule(graph, params, grads, states[0])
        found, states[1] = rule(graph, moved, transform.apply_to_gradients(grads), states[1])
        params = {n: p + updates[n] for n, p in params.items()}
        moved = {n: p + found[n] for n, p in moved.items()}
    acted = transform.apply(params)
    return max(((moved[n] - p).abs().max() / p.abs().max()).item() for n, p in acted.items())


@pytest.mark.parametrize("make", [random_graph, random_tied_graph])
@pytest.mark.parametrize("channels", [0, 4])
@pytest.mark.parametrize("seed", range(3))
def test_only_permuted_networks_train_alike_with_permutation_symmetry(make, channels, seed):
    graph = make(seeded(seed))
    rule = trained(seed, channels=channels, symmetry="permutation")
    assert mismatch(graph, rule, random_transform(only_permuted(graph), seeded(9))) < 1e-9


@pytest.mark.parametrize("symmetries", [[POSITIVE_SCALE] * 2, [SIGN] * 2, [NONZERO_SCALE] * 2])
def test_multipliers_matter_with_permutation_symmetry_alone(symmetries):
    graph = random_graph(seeded(), symmetries=symmetries)
    transform = random_transform(graph, seeded(9))
    assert mismatch(graph, trained(), transform) < 1e-9
    assert mismatch(graph, trained(symmetry="permutation"), transform) > 1e-3


def test_gauge_of_permutation_symmetry_is_one():
    graph = random_graph(seeded(3), symmetries=MIXED)
    params = random_params(graph, seeded(), batch=2)
    states = [UpdateRule(symmetry=s).init(graph, params) for s in ("scale", "permutation")]
    for name, own in states[1].items():
        assert own.keys() == states[0][name].keys()
        assert all((own[end] == 1).all() for end in ("target", "source"))
        assert not (states[0][name]["target"] == 1).all()


def test_unknown_symmetry():
    with pytest.raises(ValueError, match=r"symmetry: expected one of .*'scale'.*, got 'sign'"):
        UpdateRule(symmetry="sign")


def test_gradients_taken_for_weights_are_not_equivariant():
    graph, rule = random_graph(seeded(), symmetries=[POSITIVE_SCALE] * 2), trained()
    transform = random_transform(graph, seeded())
    params, grads = random_params(graph, seeded(1)), random_params(graph, seeded(2))
    updates, _ = rule(graph, params, grads, rule.init(graph, params))
    moved, acted = transform.apply(params), transform.apply(grads)
    found, _ = rule(graph, moved, acted, rule.init(graph, moved))
    with pytest.raises(AssertionError):
        assert_close(found, transform.apply(updates), 1e-3)


def test_arguments_are_not_modified():
    graph, rule = random_graph(seeded(), symmetries=MIXED), trained()
    params, grads = random_params(graph, seeded(1)), random_params(graph, seeded(2))
    _, state = rule(graph, params, grads, rule.init(graph, params))
    before = [t.clone() for t in tensors(params, grads, state)]
    rule(graph, params, grads, state)
    assert all(map(torch.equal, tensors(params, grads, state), before))


def tensors(params, grads, state):
    inner = [t for values in state.values() for t in values.values()]
    return [*params.values(), *grads.values(), *inner]


def test_same_arguments_same_result():
    graph, rule = random_graph(seeded(), symmetries=MIXED), trained()
    params, grads = random_params(graph, seeded(1)), random_params(graph, seeded(2))
    first, second = (rule(graph, params, grads, rule.init(graph, params))[0] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in params)


def test_batch_is_one_by_one():
    graph, rule = random_graph(seeded(), symmetries=MIXED), trained()
    params, grads = (random_params(graph, seeded(i), batch=3) for i in (1, 2))
    rms = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    state = rule.init(graph, params, input_rms=rms)
    together, state = rule(graph, params, grads, state)
    together, _ = rule(graph, params, grads, state)
    for i in range(3):
        one, grad = ({n: t[i : i + 1] for n, t in x.items()} for x in (params, grads))
        alone, own = rule(graph, one, grad, rule.init(graph, one, input_rms=rms[i]))
        alone, _ = rule(graph, one, grad, own)
        assert_close(alone, {n: u[i : i + 1] for n, u in together.items()}, 1e-10)


def test_state_before_the_first_step():
    graph = random_graph(seeded(3), symmetries=MIXED)
    params = {n: p.float() for n, p in random_params(graph, seeded(), batch=2).items()}
    state = UpdateRule().init(graph, params)
    for block in graph.blocks:
        values, p = state[block.parameter], params[block.parameter]
        ours = {"step", "fast", "slow", "square", "level", "peak", "target", "source"}
        assert values.keys() == ours
        assert values["step"].tolist() == [0.0, 0.0]
        assert all(not values[k].any() and values[k].shape == p.shape for k in ("fast", "slow"))
        assert values["target"].shape == (2, block.shape[0])
        assert values["source"].shape == (2, block.shape[1])
        assert {t.dtype for t in values.values()} == {torch.float32}


def mlp_gauge(params, rms):
    """Scales of a 3-4-2 ReLU network, by the formula of the paper's gauge."""
    hidden = (params["0.weight"] * rms).square().sum(-1) + params["0.bias"].square()
    output = (params["2.weight"] * hidden.sqrt()[:, None]).square().sum(-1)
    output = (output + params["2.bias"].square()).mean(1, keepdim=True).expand(-1, 2)
    return hidden.sqrt(), output.sqrt()


def test_untrained_rule_is_whitened_momentum_of_matrices_and_normalised_of_vectors():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = trace(module, (torch.ones(1, 3),))
    rule, rms = UpdateRule().double(), 2.5
    rank, vector, last, early, _, layers = rule.kinds.tolist()
    exponents = (rule.coherence + rule.shallow / 2).tolist()  # of two layers
    shares = dict(zip(("fast", "slow"), exponents, strict=True))
    assert shares == pytest.approx({"fast": 0.3, "slow": 0.5})
    kinds = {
        "0.weight": rank * math.log(3 / 64) + early,
        "0.bias": vector,
        "2.weight": rank * math.log(2 / 64) + last,
        "2.bias": vector + last,
    }
    params = random_params(graph, seeded())
    hidden, output = mlp_gauge(params, rms)
    ratio = {
        "0.weight": hidden[:, :, None] / rms,
        "0.bias": hidden,
        "2.weight": output[:, :, None] / hidden[:, None, :],
        "2.bias": output,
    }
    scale = {"0.weight": 1 / 3, "0.bias": 3**-0.5, "2.weight": 1 / 4, "2.bias": 4**-0.5}
    state = rule.init(graph, params, input_rms=rms)
    momentum, late, square = ({n: torch.zeros_like(p) for n, p in params.items()} for _ in range(3))
    peak = dict.fromkeys(params, 0.0)
    for step in range(1, 4):
        grads = random_params(graph, seeded(step))
        updates, state = rule(graph, params, grads, state)
        for name, grad in grads.items():
            momentum[name] = 0.9 * momentum[name] + 0.1 * grad
            late[name] = 0.98 * late[name] + 0.02 * grad
            square[name] = 0.99 * square[name] + 0.01 * grad**2
            noise = (square[name] / (1 - 0.99**step)).sqrt()
            direction = momentum[name] / (1 - 0.9**step) / noise
            slow = late[name] / (1 - 0.98**step) / noise
            coherent = direction.square().flatten(1).mean(1).sqrt() ** shares["fast"]
            coherent = coherent * slow.square().flatten(1).mean(1).sqrt() ** shares["slow"]
            if not name.endswith("bias"):
                ahead = 0.9 * momentum[name] + 0.1 * grad  # Nesterov's
                direction = whitened((ahead * ratio[name])[..., None])[..., 0]
            length = 4 / (1 + step / 100) * (1 + step / 3000) * (2 / 3) ** layers
            times = [step / (step + scale) for scale in (3, 10, 30, 100, 300, 1000)]
            schedule = sum(a * b for a, b in zip(rule.schedule.tolist(), [1, *times], strict=True))
            length = length * math.exp(schedule + kinds[name])
            seen = (square[name] * ratio[name] ** 2).flatten(1).mean(1) / (1 - 0.99**step)
            peak[name] = torch.maximum(seen, torch.as_tensor(peak[name]))
            length = length * (seen / peak[name]) ** (rule.decline.item() / 2)
            length = (length * coherent).reshape(-1, *[1] * (direction.ndim - 1))
            expected = -length * scale[name] * ratio[name] * direction
            torch.testing.assert_close(updates[name], expected, rtol=1e-9, atol=1e-12)


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


def plain_rule(**numbers):
    """The rule without networks, whose steps are all equal but for the numbers given."""
    rule = UpdateRule(channels=0).double().requires_grad_(False)
    equal = {"kinds": [0.0] * 6, "coherence": [0.0] * 2, "shallow": [0.0] * 2, "decline": 0.0}
    for name, values in {**equal, **numbers}.items():
        getattr(rule, name).copy_(torch.tensor(values, dtype=torch.float64))
    return rule


def run_rules(graph, gradients, *rules):
    """The last updates of each rule after a step for each of ``gradients``."""
    params, found = random_params(graph, seeded()), []
    for rule in rules:
        state = rule.init(graph, params)
        for grads in gradients:
            updates, state = rule(graph, params, grads, state)
        found.append(updates)
    return found


def test_steps_depend_on_the_kind_of_a_block():
    """Rank over 64, vector, last and first layer, periodic, number of matrices over three."""
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), Sine(), nn.Linear(4, 2))
    graph = trace(module, (torch.ones(1, 3),))
    numbers = [0.25, 0.3, -0.7, 0.2, -0.1, 0.9]
    grads = [random_params(graph, seeded(i)) for i in range(2)]
    found, plain = run_rules(graph, grads, plain_rule(kinds=numbers), plain_rule())
    logs = {
        "0.weight": 0.25 * math.log(3 / 64) + 0.2,
        "0.bias": 0.3,
        "2.weight": 0.25 * math.log(4 / 64) - 0.1,
        "2.bias": 0.3 - 0.1,
        "4.weight": 0.25 * math.log(2 / 64) - 0.7,
        "4.bias": 0.3 - 0.7,
    }
    for name, expected in logs.items():
        ratio = (found[name] / plain[name]).log()
        torch.testing.assert_close(ratio, torch.full_like(ratio, expected), rtol=1e-9, atol=1e-9)
    deeper = nn.Sequential(*module, nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    graph = trace(deeper, (torch.ones(1, 3),))
    grads = [random_params(graph, seeded(i)) for i in range(2)]
    found, plain = run_rules(graph, grads, plain_rule(kinds=numbers), plain_rule())
    ratio = (found["2.weight"] / plain["2.weight"]).log()
    expected = 0.25 * math.log(4 / 64) - 0.1 + 0.9 * math.log(5 / 3)
    torch.testing.assert_close(ratio, torch.full_like(ratio, expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("least", "most"), [(60, 70), (1, 2)])
def test_the_number_of_layers_counts_within_bounds(least, most):
    """From two to sixty: a single layer is as one of two, and of seventy as one of sixty."""
    small, large = (
        WeightGraph.from_parameters({str(i): (3, 3) for i in range(n)}) for n in (least, most)
    )
    rule, grads = plain_rule(kinds=[0.0] * 5 + [-1.0]), random_params(large, seeded(1))
    few, many = (run_rules(g, [{n: grads[n] for n in g.parameters}], rule) for g in (small, large))
    assert_close({"0": many[0]["0"]}, {"0": few[0]["0"]}, 1e-12)


@pytest.mark.parametrize("layers", [2, 5])
def test_steps_depend_on_how_coherent_gradients_are(layers):
    """By half the logs of the means of m² / v, the more so, the more layers there are."""
    more = {f"{i}": (4, 3) for i in range(1, layers)}
    graph = WeightGraph.from_parameters({"matrix": (40, 30), "vector": (50,), **more})
    change = 3 / layers - 1
    numbers = [0.6 - 0.2 * change, 0.2 + 0.1 * change]
    rules = plain_rule(coherence=[0.6, 0.2], shallow=[-0.2, 0.1]), plain_rule()
    noise = [random_params(graph, seeded(i)) for i in range(60)]
    for grads in noise:
        grads["vector"][:, :10] = 0.0  # never seen: does not count
    logs = {}
    for name in graph.parameters:
        every = torch.stack([grads[name] for grads in noise])
        every = every.flatten(2)[:, :, -40 if name == "vector" else 0 :]
        square = torch.zeros_like(every[0])
        fast, slow = square.clone(), square.clone()
        for x in every:
            fast, slow = 0.9 * fast + 0.1 * x, 0.98 * slow + 0.02 * x
            square = 0.99 * square + 0.01 * x**2
        square = square / (1 - 0.99**60)
        fast, slow = fast / (1 - 0.9**60), slow / (1 - 0.98**60)
        logs[name] = torch.stack([(m**2 / square).mean(1).log() / 2 for m in (fast, slow)], 1)
    found, plain = run_rules(graph, noise, *rules)
    for name, own in logs.items():
        expected = own @ torch.tensor(numbers).double()
        assert (expected < -0.5).all()
        seen = plain[name] != 0
        ratio = (found[name] / plain[name]).log()
        shaped = expected.reshape(-1, *[1] * (ratio.ndim - 1)).expand_as(ratio)
        torch.testing.assert_close(ratio[seen], shaped[seen], rtol=1e-7, atol=1e-7)
    found, plain = run_rules(graph, noise[:1] * 60, *rules)  # always the same gradient
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-9, atol=0)


def test_steps_fall_as_gradients_decline():
    """With a power of a block's root mean square over the largest it ever had."""
    shapes = {"a": (4, 3), "b": (4, 3), "kernel": (4, 3, 2), "vector": (5,), "other": (3,)}
    graph = WeightGraph.from_parameters(shapes)
    speeds = dict(zip(shapes, (0.97, 0.9, 1.02, 0.95, 1.0), strict=True))
    first, gradients = random_params(graph, seeded(1)), []
    for step in range(80):
        gradients.append({n: g * speeds[n] ** step for n, g in first.items()})
    found, plain = run_rules(graph, gradients, plain_rule(decline=0.6), plain_rule())
    for name, speed in speeds.items():
        levels = [
            sum(0.99 ** (step - i) * speed ** (2 * i) for i in range(step + 1))
            / sum(0.99**i for i in range(step + 1))
            for step in range(80)
        ]
        expected = (levels[-1] / max(levels)) ** (0.6 / 2)
        assert (expected < 0.7) == (speed < 1)
        ratio = found[name] / plain[name]
        torch.testing.assert_close(ratio, torch.full_like(ratio, expected), rtol=1e-9, atol=0)


def test_the_parts_of_a_parameter_decline_each_by_itself():
    module = nn.MultiheadAttention(4, 2, bias=False, dtype=torch.float64)
    x = torch.randn(3, 2, 4, generator=seeded(), dtype=torch.float64)
    graph = trace(module, (x, x, x))
    grads = random_params(graph, seeded(1))
    later = {n: g.clone() for n, g in grads.items()}
    later["in_proj_weight"][:, :4] *= 0.1  # of the queries
    steps = [grads, *[later] * 30]
    found, plain = run_rules(graph, steps, plain_rule(decline=0.6), plain_rule())
    ratio = (found["in_proj_weight"] / plain["in_proj_weight"])[0]
    assert (ratio[:4] < 0.8).all()
    torch.testing.assert_close(ratio[4:], torch.ones_like(ratio[4:]))


@pytest.mark.parametrize("size", [1e6, 1e100])
def test_one_gradient_that_is_far_off_is_hardly_a_peak(size):
    graph = WeightGraph.from_parameters({"matrix": (4, 3), "vector": (5,)})
    grads = random_params(graph, seeded(1))
    huge = {n: size * g for n, g in grads.items()}
    rules = plain_rule(decline=0.6), plain_rule()
    found, plain = run_rules(graph, [*[grads] * 20, huge, *[grads] * 60], *rules)
    for name in graph.parameters:
        share = (found[name] / plain[name]).min().item()
        assert 0.8 < share < 1.0


def test_gradients_that_begin_at_zero_have_no_peak_then():
    graph = WeightGraph.from_parameters({"matrix": (4, 3), "vector": (5,)})
    grads = random_params(graph, seeded(1))
    zero = {n: torch.zeros_like(g) for n, g in grads.items()}
    rules = plain_rule(decline=0.6), plain_rule()
    found, plain = run_rules(graph, [zero, zero, *[grads] * 3], *rules)
    assert_close(found, plain, 1e-12)


def test_zero_gradients_move_nothing():
    graph, rule = random_graph(seeded(), symmetries=MIXED), UpdateRule().double()
    params = random_params(graph, seeded())
    zero = {n: torch.zeros_like(p) for n, p in params.items()}
    updates, _ = rule(graph, params, zero, rule.init(graph, params))
    assert all(not u.any() for u in updates.values())


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_update_does_not_depend_on_the_size_of_gradients(size):
    graph, rule = random_graph(seeded(), symmetries=MIXED), trained()
    params, grads = random_params(graph, seeded()), random_params(graph, seeded(1))
    tiny = {n: size * g for n, g in grads.items()}
    found, expected = (rule(graph, params, g, rule.init(graph, params))[0] for g in (tiny, grads))
    assert_close(found, expected)


def test_every_parameter_of_a_trained_rule_is_used():
    graph, rule = random_graph(seeded(1), symmetries=MIXED), trained().requires_grad_()
    params, grads = random_params(graph, seeded()), random_params(graph, seeded(1))
    less = {n: g / 2 for n, g in grads.items()}
    _, state = rule(graph, params, grads, rule.init(graph, params))
    updates, _ = rule(graph, params, less, state)
    sum(u.square().sum() for u in updates.values()).backward()
    assert [n for n, p in rule.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_rule_works_on_isolated_blocks():
    graph = WeightGraph.from_parameters({"matrix": (4, 3), "vector": (5,), "number": ()})
    rule, params = trained(), random_params(graph, seeded())
    updates, _ = rule(graph, params, random_params(graph, seeded(1)), rule.init(graph, params))
    assert {n: u.shape for n, u in updates.items()} == {n: p.shape for n, p in params.items()}
    assert all(torch.isfinite(u).all() and u.any() for u in updates.values())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), rows=st.integers(2, 9), columns=st.integers(2, 9))
def test_whitened_commutes_with_permutations_and_signs(seed, rows, columns):
    x = torch.randn(1, rows, columns, 2, generator=seeded(seed), dtype=torch.float64)
    generator = seeded(seed + 1)
    sizes = {"rows": rows, "columns": columns}
    groups = tuple(NeuronGroup(name, n, Role.HIDDEN, SIGN) for name, n in sizes.items())
    transform = random_transform(WeightGraph(groups, ()), generator)
    (p, r), (q, t) = (tuple(d[n] for n in sizes) for d in (transform.orders, transform.scales))

    def act(y):
        return (y * q[:, None, None] * t[:, None])[:, p][:, :, r]

    torch.testing.assert_close(whitened(act(x)), act(whitened(x)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (10, 64)])
def test_whitened_has_singular_values_near_one(shape):
    x = 1e-8 * torch.randn(2, *shape, 1, generator=seeded(), dtype=torch.float64)
    out = whitened(x)
    values = torch.linalg.svdvals(out[..., 0]) / max(shape) ** 0.5
    assert values.min() > 0.6
    assert values.max() < 1.3
    before = torch.linalg.svdvals(x[..., 0])
    assert (before[:, 0] / before[:, -1]).min() > 1.5  # they were not equal at first
    assert 0.5 < unit_size(out) < 1.5


def unit_size(x):
    return x.square().mean().sqrt().item()


def test_whitened_sees_kernels_as_columns_and_normalises_vectors():
    x = torch.randn(1, 4, 3, 5, generator=seeded(), dtype=torch.float64)
    flat = whitened(x.reshape(1, 4, 15, 1)).reshape(1, 4, 3, 5)
    torch.testing.assert_close(whitened(x), flat)
    vector = torch.randn(1, 7, 1, 1, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(whitened(vector), vector / unit_size(vector))
    assert not whitened(torch.zeros(1, 3, 3, 1)).any()


def test_unit_rms_and_noise():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-30, 4e-30]])
    expected = torch.tensor([0.6, 0.8]) * 2**0.5
    found = unit_rms(x)
    torch.testing.assert_close(found[0], expected)
    assert not found[1].any()
    torch.testing.assert_close(found[2], expected)
    signal = relative_to_noise(torch.tensor([2.0, 0.0]), torch.tensor([4.0, 0.0]))
    assert signal.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("symmetry", ["scale", "permutation"])
def test_saved_rule_is_the_same_rule(tmp_path, symmetry):
    rule = trained(symmetry=symmetry).float()
    rule.save_pretrained(tmp_path / "folder" / "rule.safetensors")
    copy = UpdateRule.from_pretrained(tmp_path / "folder" / "rule.safetensors")
    assert copy.config == rule.config
    expected = rule.state_dict()
    assert copy.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in copy.state_dict().items())
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["rule.safetensors"]


def test_files_without_a_symmetry_are_of_rules_that_had_them_all(tmp_path):
    rule, path = trained().float(), tmp_path / "rule.safetensors"
    config = {key: value for key, value in rule.config.items() if key != "symmetry"}
    save_weights(path, rule, kind="rule", config=config)
    assert UpdateRule.from_pretrained(path).config == rule.config


def test_files_that_are_no_rule(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights 'tiny': expected a file, or one of"):
        UpdateRule.from_pretrained("tiny")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="expected a safetensors file, got a damaged one"):
        UpdateRule.from_pretrained(damaged)
    other = tmp_path / "other.safetensors"
    save_weights(other, nn.Linear(2, 2), kind="editor", config={})
    with pytest.raises(ValueError, match=r"'rule'\) \(format, kind\), got .*'editor'"):
        UpdateRule.from_pretrained(other)
    old = tmp_path / "old.safetensors"
    rule = UpdateRule(channels=0)
    del rule.decline
    save_weights(old, rule, kind="rule", config=rule.config)
    message = r"(?s)old.safetensors: expected weights of this version of UpdateRule: .*decline"
    with pytest.raises(ValueError, match=message):
        UpdateRule.from_pretrained(old)


@pytest.mark.parametrize(
    ("name", "symmetry"),
    [("general", "scale"), ("permutation", "permutation"), ("no-graph", "scale")],
)
def test_packaged_rules(name, symmetry):
    assert name in available()
    rule = UpdateRule.from_pretrained(name)
    assert (rule.config["channels"], rule.config["symmetry"]) == (0, symmetry)
