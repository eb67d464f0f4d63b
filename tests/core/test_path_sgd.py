"""PathSGD: the sum over paths, by brute force; equivariance of whole trainings; what is no path."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from optimizers import X, Y, loss_of, train
from test_optimizer import MODELS, divergence
from torch import nn

from scalegmn_opt import trace
from scalegmn_opt.graph import pack
from scalegmn_opt.optim import PathSGD
from scalegmn_opt.symmetry import backward_sweep, forward_sweep


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3)
    ).double()


def paths_through(weights, layer, i, j):
    """Sum over paths of the product of the squares of all weights but one; by enumeration."""
    total = 0.0
    sizes = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    for path in product(*map(range, sizes)):
        if (path[layer], path[layer + 1]) == (j, i):
            factors = [
                weights[n][path[n + 1], path[n]] ** 2 for n in range(len(weights)) if n != layer
            ]
            total = total + torch.stack(factors).prod()
    return total


def test_sweeps_give_the_sum_over_all_paths():
    model = perceptron()
    for layer in (0, 2, 4):
        nn.init.zeros_(model[layer].bias)
    graph = trace(model, (X.double(),))
    edges = pack(graph, {n: p.detach()[None] for n, p in model.named_parameters()})
    forward = forward_sweep(graph, edges)
    backward = backward_sweep(graph, edges, forward=forward)
    weights = [model[layer].weight.detach() for layer in (0, 2, 4)]
    for number, layer in enumerate((0, 2, 4)):
        block = graph.block[f"{layer}.weight"]
        s, t = forward.scales[block.source][0], backward[block.target][0]
        for i, j in product(range(len(t)), range(len(s))):
            expected = paths_through(weights, number, i, j)
            torch.testing.assert_close((s[j] * t[i]) ** 2, expected, rtol=1e-12, atol=0)


def test_step_is_the_gradient_over_the_sum():
    model = perceptron()
    graph, before = trace(model, (X.double(),)), copy.deepcopy(model)
    own = PathSGD.for_model(model, (X.double(),), lr=0.01, max_change=None)
    train(model, own, x=X.double())
    edges = pack(graph, {n: p.detach()[None] for n, p in before.named_parameters()})
    forward = forward_sweep(graph, edges, input_rms=X.double().square().mean().sqrt())
    backward = backward_sweep(graph, edges, forward=forward)
    count = sum(p.numel() for p in model.parameters())
    for name, p in before.named_parameters():
        block = graph.block[name]
        s, t = forward.scales[block.source][0], backward[block.target][0]
        kappa = (t[:, None] * s).square().reshape(p.shape)
        expected = p - 0.01 * 300 / count * model.get_parameter(name).grad / kappa
        torch.testing.assert_close(model.get_parameter(name), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_training_does_not_depend_on_the_scales(name):
    assert divergence(name, lambda m, x: PathSGD.for_model(m, (x,), lr=0.3)) < 1e-7


@pytest.mark.parametrize("name", ["positive scale", "mixed"])
def test_without_the_graph_it_does(name):
    assert divergence(name, lambda m, _: PathSGD(m.parameters(), lr=0.3)) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_one_step_size_for_all_models(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    losses = train(model, PathSGD.for_model(model, (X,)), 60)
    assert min(losses[-5:]) < 0.8 * losses[0]


def test_neurons_that_only_a_normalisation_reads_count_by_their_size():
    model = MODELS["normalised"]()
    graph = trace(model, (X,))
    edges = pack(graph, {n: p.detach()[None] for n, p in model.named_parameters()})
    forward = forward_sweep(graph, edges)
    backward = backward_sweep(graph, edges, forward=forward)
    for layer in (0, 3):  # before the batch and before the layer norm
        group = graph.block[f"{layer}.weight"].target
        assert torch.equal(backward[group], 1 / forward.scales[group])
    after = graph.block["6.weight"]
    assert torch.equal(backward[after.target], torch.ones(1, 3))
    shared = edges["6.weight"].square().sum((1, 3)).mean().sqrt()
    torch.testing.assert_close(backward[after.source], shared.expand(1, 6))


def test_each_residual_block_has_a_way_to_the_outputs():
    graph = trace(MODELS["resnet"]().eval(), (X,))
    edges = {b.name: torch.ones(b.folds, *b.shape) for b in graph.blocks}
    forward = forward_sweep(graph, edges)
    backward = backward_sweep(graph, edges, forward=forward)
    assert set(backward) == {block.target for block in graph.blocks}
    assert all(torch.isfinite(t).all() and (t > 0).all() for t in backward.values())


def test_dead_neurons_do_no_harm():
    model = perceptron()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0.0, 0.0
        model[2].weight[:, 2] = 0.0
    losses = train(model, PathSGD.for_model(model, (X.double(),)), 30, x=X.double())
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_step_that_is_refused_is_left_out():
    model = perceptron()
    own = PathSGD.for_model(model, (X.double(),), max_change=None)
    before = model[4].bias.detach().clone()
    (1e12 * loss_of(model, X.double())).backward()
    with pytest.warns(RuntimeWarning, match="replaced the update"):
        own.step()
    assert own.health().replaced["4.bias"] == 1
    assert torch.equal(model[4].bias, before)
    own.zero_grad()
    F.cross_entropy(model(X.double()), Y).backward()
    own.step()
    assert not torch.equal(model[4].bias, before)
