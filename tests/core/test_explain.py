"""A look inside a step: sizes in gauge units, ratios, counts; recorded only on request."""

import pytest
import torch
from matplotlib.figure import Figure
from optimizers import CLASSES, assert_same_state, make, network, same, traced, train, values

from scalegmn_opt import trace
from scalegmn_opt.optim import Explanation, ParameterStep, draw_steps


@pytest.mark.parametrize("cls", CLASSES)
def test_rows_are_those_of_the_step(cls):
    model = network()
    own = make(cls, model, lr=0.5, max_change=None)
    own.record = True
    for number in (1, 2):
        before = dict(zip(dict(model.named_parameters()), values(model), strict=True))
        train(model, own)
        found = own.explain()
        assert found.step == number
        assert list(found.parameters) == list(before)
        for name, p in model.named_parameters():
            ratio = ((p - before[name]).norm() / before[name].norm()).item()
            assert found.parameters[name].update_ratio == pytest.approx(ratio, rel=1e-3)


def test_step_size_is_in_units_of_the_gauge():
    """Adam's first step has entries of one in gauge coordinates and units, times its size."""
    model = network()
    own = traced(CLASSES[1], model, lr=0.25 / 0.3)
    own.record = True
    train(model, own)
    sizes = {name: row.step_size for name, row in own.explain().parameters.items()}
    rows, columns = model[2].weight.shape
    active = (model[2].weight.grad != 0).sum().item() / (rows * columns)  # dead neurons stay
    assert sizes["2.weight"] == pytest.approx(0.25 * active**0.5, rel=1e-4)
    assert max(sizes.values()) <= 0.25 * (1 + 1e-4)


@pytest.mark.parametrize("cls", CLASSES)
def test_recording_does_not_change_a_step(cls):
    models = network(), network()
    optimizers = [make(cls, model) for model in models]
    optimizers[0].record = True
    for model, own in zip(models, optimizers, strict=True):
        train(model, own, 3)
    assert same(*map(values, models))
    assert_same_state(*optimizers)


def test_off_by_default(monkeypatch):
    monkeypatch.setattr("scalegmn_opt.optim.base.explained", None)  # not even called
    model = network()
    own = make(CLASSES[0], model)
    train(model, own)
    with pytest.raises(RuntimeError, match="no step was recorded; set record = True"):
        own.explain()


def test_parameters_without_a_gradient_have_no_row_and_counts_add_up():
    model = network()
    model[0].bias.requires_grad_(False)
    own = make(CLASSES[1], model, max_change=1e-3)
    own.record = True
    train(model, own, 2)
    model[2].bias.grad[:2] = float("nan")
    with pytest.warns(RuntimeWarning, match="masked"):
        own.step()
    rows = own.explain().parameters
    assert "0.bias" not in rows
    assert (rows["2.bias"].masked, rows["2.bias"].replaced, rows["2.bias"].limited) == (2, 0, 3)
    assert rows["2.bias"].step_size == pytest.approx(1e-3)


def test_as_a_table():
    rows = {
        "weight": ParameterStep(0.5, 0.0125, 0, 0, 3),
        "bias": ParameterStep(2.0, float("inf"), 1, 12, 0),
    }
    assert str(Explanation(7, rows)).splitlines() == [
        "step 7",
        "parameter  step size  update/weight  masked  replaced  limited",
        "weight           0.5         0.0125       0         0        3",
        "bias               2            inf       1        12        0",
    ]


def recorded(steps=5):
    model = network()
    own = make(CLASSES[0], model)
    own.record, history = True, []
    for _ in range(steps):
        train(model, own)
        history.append(own.explain())
    return history


def test_figure_has_a_line_for_each_parameter(tmp_path):
    history = recorded()
    figure = draw_steps(history)
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "steps.png")
    for ax, what in zip(figure.axes, ("step_size", "update_ratio"), strict=True):
        assert ax.get_yscale() == "log"
        assert [line.get_label() for line in ax.lines] == list(history[0].parameters)
        for line in ax.lines:
            assert list(line.get_xdata()) == [1, 2, 3, 4, 5]
            expected = [getattr(e.parameters[line.get_label()], what) for e in history]
            assert list(line.get_ydata()) == expected
            assert line.get_linestyle() == ("--" if "bias" in line.get_label() else "-")
    assert len(figure.legends) == 1


def test_figure_of_many_parameters_and_of_gaps():
    rows = {f"{i}.weight": ParameterStep(1.0, 0.0, 0, 0, 0) for i in range(30)}
    figure = draw_steps([Explanation(1, rows), Explanation(2, {"new": rows["0.weight"]})])
    assert not figure.legends
    assert len(figure.axes[0].lines) == 31
    assert torch.tensor(figure.axes[1].lines[0].get_ydata()).isnan().all()


def test_no_explanation_no_figure():
    with pytest.raises(ValueError, match="explanations: expected at least one"):
        draw_steps([])


def test_graph_and_recording_go_together():
    model = network()
    own = traced(CLASSES[0], model)
    own.record = True
    train(model, own)
    assert set(own.explain().parameters) <= set(trace(model, (torch.ones(2, 4),)).parameters)
