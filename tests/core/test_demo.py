"""The demo: its parts on small runs, and all of it once."""

import json
import math

import pytest
import torch

from scalegmn_opt import UpdateRule, cli, demo
from scalegmn_opt.editors.targets import dilate
from scalegmn_opt.meta.recipe import RuleRecipe
from scalegmn_opt.recipe import load_recipe


def curves(validation, accuracy=0.5):
    return demo.Curves(
        torch.ones(len(validation), 3),
        torch.tensor(validation),
        torch.full((len(validation),), accuracy),
    )


@pytest.fixture(scope="module")
def rule():
    return UpdateRule()


@pytest.fixture(scope="module")
def comparison(rule):
    return demo.compare_optimizers(rule=rule, learning_rates=(1e-3, 3e-2), steps=12, seeds=2)


def test_all_optimizers_start_alike_and_lower_the_loss(comparison):
    runs = [comparison.learned, *comparison.adam.values()]
    assert comparison.steps == (0, 5, 10, 12)
    first = comparison.learned.training_loss[:, 0]
    assert first[0] != first[1]  # seeds differ
    for curves_of_one in runs:
        assert curves_of_one.training_loss.shape == (2, 4)
        assert torch.equal(curves_of_one.training_loss[:, 0], first)
        assert (curves_of_one.training_loss[:, -1] < first).all()
        assert (curves_of_one.validation_accuracy > 0.1).all()


def test_runs_are_reproducible_and_leave_the_global_state_alone(rule, comparison):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = demo.compare_optimizers(rule=rule, learning_rates=(3e-2,), steps=12, seeds=2)
    adam, before = again.adam[3e-2], comparison.adam[3e-2]
    assert torch.equal(adam.training_loss, before.training_loss)
    assert torch.equal(again.learned.training_loss, comparison.learned.training_loss)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_best_learning_rate_is_that_of_least_validation_loss():
    adam = {0.1: curves([math.nan] * 3), 0.01: curves([0.5, 0.9, 0.1]), 0.001: curves([0.6] * 3)}
    comparison = demo.Comparison((0, 5, 6), curves([0.1] * 3), adam)
    assert comparison.best_lr == 0.01
    assert comparison.as_dict()["adam_learning_rate"] == 0.01


def test_the_picture_of_optimizers_shows_every_run(comparison):
    figure = demo.draw_comparison_of_optimizers(comparison)
    (ax,) = figure.axes
    drawn = [line for line in ax.lines if len(line.get_xdata())]
    assert len(drawn) == 3
    assert ax.get_yscale() == "log"
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    accuracy = comparison.learned.validation_accuracy.median()
    assert any(f"untuned: {accuracy:.1%} validation accuracy" in text for text in texts)
    assert [text.get_text() for text in ax.texts] == [
        f"{lr:g}" for lr in comparison.adam if lr != comparison.best_lr
    ]


def test_a_rule_is_learned_for_as_long_as_its_recipe_says():
    recipe = load_recipe(demo.META_RECIPE, RuleRecipe)
    short = recipe.trainer.model_copy(update={"seconds": None, "steps": 3})
    losses = demo.learn_rule(recipe.model_copy(update={"trainer": short}))
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)


def test_the_moving_average_keeps_level_and_length():
    figure = demo.draw_losses([1.0, 3.0] * 30, label="loss")
    raw, smooth = figure.axes[0].lines
    assert len(raw.get_ydata()) == len(smooth.get_ydata()) == 60
    assert all(abs(value - 2) < 0.35 for value in smooth.get_ydata())


def test_dilated_digits_are_fitted_and_edited_well():
    report, images = demo.edit_digits()
    assert len(report.before) == demo.DIGITS
    assert report.before.psnr.min() > 30
    torch.testing.assert_close(report.target, dilate(images, 1.0))
    assert report.total.mse < 0.25 * report.total.mse_do_nothing


@pytest.mark.slow
def test_the_whole_demo(tmp_path, monkeypatch, capsys):
    UpdateRule().save_pretrained(tmp_path / "rule.safetensors")
    monkeypatch.setattr(demo, "RULE", str(tmp_path / "rule.safetensors"))
    out = tmp_path / "new" / "out"
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", "--out", str(out)])
    assert end.value.code == 0
    names = ["edit.png", "meta.png", "optimizer.png", "report.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    shown = capsys.readouterr().out
    assert all(str(out / name) in shown for name in names)
    report = json.loads((out / "report.json").read_text())
    assert sum(part["seconds"] for part in report.values()) < 180
    assert report["meta"]["meta_loss_last_quarter"] < report["meta"]["meta_loss_first_quarter"]
    assert len(report["optimizer"]["adam_of_each_learning_rate"]) == 5
    assert report["edit"]["total"]["mse_do_nothing"] > 0.01
    assert report["edit"]["mse_of_the_fit"] < 1e-3
