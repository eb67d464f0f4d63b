"""The hand-set backbone is the forward and backward pass, as autograd has it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalegmn_opt.graph import Role, trace
from scalegmn_opt.simulate import simulate


class Sine(nn.Module):
    def __init__(self, w0=1.0):
        super().__init__()
        self.w0 = w0

    def forward(self, z):
        return torch.sin(self.w0 * z)


def mlp(depth, activation, *, width=6, bias=True, classes=3, scale=1.0):
    torch.manual_seed(depth)
    sizes = [2, *[width + i for i in range(depth - 1)], classes]
    layers = []
    for i in range(depth):
        layers += [nn.Linear(sizes[i], sizes[i + 1], bias=bias), activation()]
    module = nn.Sequential(*layers[:-1]).double()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(scale)
    return module


def problem(module, *, loss="mse", samples=9):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 2, generator=generator, dtype=torch.float64)
    outputs = module(x).detach()
    if loss == "cross_entropy":
        return x, torch.randint(outputs.shape[1], (samples,), generator=generator)
    return x, torch.randn(outputs.shape, generator=generator, dtype=torch.float64)


def hidden_activations(module, x):
    """Outputs of all activations, in order."""
    found = []
    for layer in module:
        x = layer(x)
        if not isinstance(layer, nn.Linear):
            found.append(x)
    return found


def assert_simulates(module, *, loss="mse", tolerance=1e-9, samples=9):
    x, target = problem(module, loss=loss, samples=samples)
    graph = trace(module, (x,))
    params = dict(module.named_parameters())
    found = simulate(graph, params, x, target, loss)
    value = getattr(F, {"mse": "mse_loss"}.get(loss, loss))(module(x), target)
    expected = dict(zip(params, torch.autograd.grad(value, params.values()), strict=True))
    assert found.loss.item() == pytest.approx(value.item(), rel=tolerance)
    groups = {group.role: group.name for group in graph.groups}
    assert relative(found.activations[groups[Role.OUTPUT]], module(x).detach()) < tolerance
    assert torch.equal(found.activations[groups[Role.INPUT]], x)
    names = [group.name for group in graph.groups if group.role is Role.HIDDEN]
    for name, activation in zip(names, hidden_activations(module, x), strict=True):
        assert relative(found.activations[name], activation.detach()) < tolerance, name
    assert found.gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found.gradients[name].shape == gradient.shape
        assert relative(found.gradients[name], gradient) < tolerance, name


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("activation", [nn.ReLU, lambda: nn.LeakyReLU(0.2)], ids=["relu", "leaky"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_piecewise_linear_activations_are_exact(depth, activation, loss):
    assert_simulates(mlp(depth, activation), loss=loss)


@pytest.mark.parametrize("depth", [2, 3])
def test_linear_network_is_exact(depth):
    assert_simulates(mlp(depth, nn.Identity))


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("activation", [nn.Tanh, Sine], ids=["tanh", "sine"])
def test_odd_activations(depth, activation):
    assert_simulates(mlp(depth, activation, width=3), tolerance=1e-6, samples=4)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_sine_of_high_frequency(loss):
    module = mlp(3, lambda: Sine(30.0), width=3, scale=0.1)
    assert_simulates(module, loss=loss, tolerance=1e-6, samples=3)


def test_scaled_relu():
    class Doubled(nn.Module):
        def forward(self, z):
            return torch.relu(2 * z)

    assert_simulates(mlp(3, Doubled))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_layers_without_bias(activation):
    module = mlp(3, activation, width=3, bias=False)
    assert_simulates(module, tolerance=1e-6, samples=4)


def test_zero_weights_and_dead_neurons():
    module = mlp(3, nn.ReLU)
    with torch.no_grad():
        module[0].weight[0] = 0
        module[0].bias[0] = -1
        module[2].weight[1] = 0
    assert_simulates(module)


def test_own_loss_function():
    module = mlp(2, nn.ReLU)
    x, target = problem(module)

    def loss(outputs, wanted):
        return (outputs - wanted).abs().sum()

    params = dict(module.named_parameters())
    found = simulate(trace(module, (x,)), params, x, target, loss)
    expected = torch.autograd.grad(loss(module(x), target), params.values())
    for name, gradient in zip(params, expected, strict=True):
        assert relative(found.gradients[name], gradient) < 1e-9


def test_parameters_and_inputs_are_left_alone():
    module = mlp(3, nn.ReLU)
    x, target = problem(module)
    before = [p.detach().clone() for p in module.parameters()]
    found = simulate(trace(module, (x,)), dict(module.named_parameters()), x, target, "mse")
    assert all(map(torch.equal, module.parameters(), before))
    assert not any(g.requires_grad for g in found.gradients.values())
    assert math.isfinite(found.loss.item())


class Residual(nn.Module):
    """``tanh(a(x)) + b(x)`` and ``tanh(a(x) + b(x))`` have the same graph."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.a(x)) + self.b(x))


class Shifted(nn.Module):
    def forward(self, z):
        return torch.tanh(z + 1)


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (
            nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Flatten()),
            "expected a multilayer perceptron",
        ),
        (
            nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)),
            "expected one hidden activation",
        ),
        (nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 3)), "expected one hidden"),
        (nn.Sequential(nn.Linear(2, 3), nn.PReLU(), nn.Linear(3, 3)), "expected one hidden"),
        (Residual(), r"got a sum of \['a.weight', 'b.weight'\]"),
        (nn.Sequential(nn.Linear(2, 3), Shifted(), nn.Linear(3, 3)), "nothing but 'tanh'"),
    ],
    ids=["kernel", "mixed", "gelu", "prelu", "residual", "shifted"],
)
def test_networks_that_are_not_covered(module, match):
    module = module.double()
    x = torch.randn(4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=match):
        simulate(trace(module, (x,)), dict(module.named_parameters()), x, module(x), "mse")


def test_unknown_loss():
    module = mlp(2, nn.ReLU)
    x, target = problem(module)
    with pytest.raises(ValueError, match=r"unknown loss 'huber'; choose from \['cross_entropy'"):
        simulate(trace(module, (x,)), dict(module.named_parameters()), x, target, "huber")
