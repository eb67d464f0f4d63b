"""Runs of edits that are interrupted, and go on."""

import math
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from scalegmn_opt.editors import EDITS, Edit, EditRecipe, EditStep, Unfinished, measure
from scalegmn_opt.inr import INRStore, SirenSpec, initial_parameters

MEASURE = sys.modules[measure.__module__]  # the function hides its module
SPEC = SirenSpec(hidden=(6, 5))
STEPS = [
    EditStep(edit="brightness", strength=0.3),
    EditStep(edit="blur", strength=1.0, mechanism="refit", steps=3),
    EditStep(edit="contrast", strength=0.5),
]


@dataclass(frozen=True, eq=False)
class Failing(Edit):
    """An edit that is interrupted at one of its calls."""

    edit: Edit
    fails: float = math.inf
    calls: list = field(default_factory=list)

    name = property(lambda self: self.edit.name)
    unit = property(lambda self: self.edit.unit)
    mechanism = property(lambda self: self.edit.mechanism)

    def target(self, images, strength):
        return self.edit.target(images, strength)

    def apply(self, params, spec, strength):
        if len(params["layers.0.bias"]) > 1:  # not the one that warms up
            self.calls.append(strength)
            if len(self.calls) >= self.fails:
                raise KeyboardInterrupt
        return self.edit.apply(params, spec, strength)


@pytest.fixture
def store():
    params = initial_parameters(SPEC, 6, torch.Generator().manual_seed(0))
    return INRStore(params, SPEC, tuple("abcdef"), torch.full((6,), 30.0), (7, 8))


def run(store, edits, unfinished=None, curve=False):
    recipe = EditRecipe(name="a", edits=STEPS)
    return measure(store, recipe, edits, scale=2, curve=curve, unfinished=unfinished)


def same(report, other):
    for name, value in report.after.params.items():
        assert torch.equal(value, other.after.params[name])
    assert report.total == other.total
    assert report.after.names == other.after.names


def test_what_was_finished_is_kept(store, tmp_path, monkeypatch):
    monkeypatch.setattr(MEASURE, "_PART", 2 * 56)  # two networks
    recipe = EditRecipe(name="a", edits=STEPS)
    first, last = Failing(EDITS["brightness"]), Failing(EDITS["contrast"], fails=2)
    edits = {**EDITS, "brightness": first, "contrast": last}
    with pytest.raises(KeyboardInterrupt):
        run(store, edits, Unfinished(tmp_path / "u", recipe, store), curve=True)
    assert (len(first.calls), len(last.calls)) == (3, 2)
    again = Failing(EDITS["brightness"]), Failing(EDITS["contrast"])
    unfinished = Unfinished(tmp_path / "u", recipe, store)
    edits = {**EDITS, "brightness": again[0], "contrast": again[1]}
    report = run(store, edits, unfinished, curve=True)
    assert (len(again[0].calls), len(again[1].calls)) == (0, 2)
    same(report, run(store, EDITS))
    assert all(step.cpu_ms_per_inr > 0 and step.curve is not None for step in report.steps)
    unfinished.remove()
    assert not (tmp_path / "u").exists()


def test_curves_are_kept_too(store, tmp_path, monkeypatch):
    unfinished = Unfinished(tmp_path / "u", EditRecipe(name="a", edits=STEPS), store)
    report = run(store, EDITS, unfinished, curve=True)
    monkeypatch.setattr(MEASURE, "_curve", None)
    again = run(store, EDITS, unfinished, curve=True)
    same(again, report)
    assert [step.curve for step in again.steps] == [step.curve for step in report.steps]


def test_another_run_does_not_go_on_there(store, tmp_path):
    Unfinished(tmp_path / "u", EditRecipe(name="a", edits=STEPS), store)
    Unfinished(tmp_path / "u", EditRecipe(name="a", edits=STEPS), store)
    with pytest.raises(FileExistsError, match="another recipe or of other networks; delete it"):
        Unfinished(tmp_path / "u", EditRecipe(name="a", edits=STEPS[:2]), store)
    with pytest.raises(FileExistsError, match="another recipe or of other networks; delete it"):
        Unfinished(tmp_path / "u", EditRecipe(name="a", edits=STEPS), store[:3])
    mask = tmp_path / "mask.npy"
    np.save(mask, np.eye(7, 8, dtype=bool))
    masked = EditRecipe(name="a", edits=[STEPS[0].model_copy(update={"mask": str(mask)})])
    Unfinished(tmp_path / "masked", masked, store)
    Unfinished(tmp_path / "masked", masked, store)
    np.save(mask, np.ones((7, 8), bool))
    with pytest.raises(FileExistsError, match="another recipe or of other networks; delete it"):
        Unfinished(tmp_path / "masked", masked, store)
    (tmp_path / "other").mkdir()
    with pytest.raises(FileExistsError, match="delete it"):
        Unfinished(tmp_path / "other", EditRecipe(name="a", edits=STEPS), store)
