"""GaugeAdam and GaugeMuon: Adam's and Muon's steps, made independent of scale and width."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalegmn_opt import random_transform, trace
from scalegmn_opt.optim import GaugeAdam, GaugeMuon

CONTROLS = [GaugeAdam, GaugeMuon]
X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (32,), generator=torch.Generator().manual_seed(1))


def network(width=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, 3)
    )


def train(model, own, steps, x=X):
    losses = []
    for _ in range(steps):
        own.zero_grad()
        loss = F.cross_entropy(model(x), Y)
        loss.backward()
        own.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("control", [*CONTROLS, torch.optim.Adam])
def test_training_does_not_depend_on_the_scales(control):
    model, x = network().double(), X.double()
    moved = copy.deepcopy(model)
    acted = random_transform(trace(model, (x,)), torch.Generator().manual_seed(2)).apply(
        {n: p.detach()[None] for n, p in model.named_parameters()}
    )
    moved.load_state_dict({n: p[0] for n, p in acted.items()})
    for each in (model, moved):
        if control is torch.optim.Adam:  # the negative control
            own = control(each.parameters(), lr=0.01)
        else:
            own = control.for_model(each, (x,), lr=0.1)
        train(each, own, 20, x)
    expected, found = model(x), moved(x)
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert error > 1e-3 if control is torch.optim.Adam else error < 1e-7


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("width", [4, 64, 512])
def test_one_step_size_for_all_widths(control, width):
    model = network(width)
    losses = train(model, control.for_model(model, (X,)), 40)
    assert losses[-1] < 0.8 * losses[0]


def test_gauge_adam_is_adam_with_a_step_in_the_unit_of_the_neurons():
    """A vector on its own has its root mean square as gauge and the unit ``1 / size``."""
    ours, theirs = (nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.5])) for _ in range(2))
    rms = ours.detach().square().mean().sqrt().item()
    own = GaugeAdam([ours], lr=0.1 / 0.3)
    adam = torch.optim.Adam([theirs], lr=0.1 * rms / 4, betas=(0.9, 0.999), eps=0.0)
    for _ in range(10):
        for p, optimizer in ((ours, own), (theirs, adam)):
            optimizer.zero_grad()
            (p * torch.arange(1.0, 5.0)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_gauge_muon_has_equal_singular_values():
    model = nn.Linear(6, 5, bias=False)
    before = model.weight.detach().clone()
    own = GaugeMuon.for_model(model, (torch.randn(3, 6),))
    (model.weight * torch.randn(5, 6)).sum().backward()
    own.step()
    values = torch.linalg.svdvals(model.weight.detach() - before)
    assert values.max() / values.min() < 2  # Newton-Schulz brings them to 0.7 to 1.2


@pytest.mark.parametrize("control", CONTROLS)
def test_state_survives_saving(control):
    model, other = network(), network()
    own = control.for_model(model, (X,), lr=0.1, weight_decay=0.01)
    train(model, own, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "own": own.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = control.for_model(other, (X,), lr=0.1, weight_decay=0.01)
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["own"])
    assert train(model, own, 3) == train(other, again, 3)


@pytest.mark.parametrize("control", CONTROLS)
def test_without_a_model_and_bad_numbers(control):
    model = network()
    own = control(model.named_parameters())
    losses = train(model, own, 40)
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="lr: expected a finite number of at least"):
        control(model.parameters(), lr=-1.0)
    with pytest.raises(ValueError, match="model and example_inputs: expected both"):
        control(model.parameters(), model=model)
