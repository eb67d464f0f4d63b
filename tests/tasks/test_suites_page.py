"""docs/suites.md: its example runs, and its table of splits is that of the recipes."""

import re
from pathlib import Path

import pytest

from scalegmn_opt.recipe import load_recipe
from scalegmn_opt.tasks import SuiteRecipe

PAGE = Path(__file__).parents[2] / "docs" / "suites.md"


def test_the_example_runs_and_is_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) < 40
    scope = {}
    exec(compile(block.replace("steps=20", "steps=2"), "suites.md", "exec"), scope)
    assert (tmp_path / "runs" / "mine" / "weights.safetensors").is_file()
    assert scope["optimizer"].param_groups


@pytest.mark.parametrize("suite", ["tiny", "mlp", "vision", "mixed", "plain", "apart"])
def test_every_family_is_in_the_row_of_its_suite(suite):
    recipe = load_recipe(f"{suite}_suite", SuiteRecipe)
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {suite} |"))
    for cell, split in zip(row.split("|")[2:5], ("training", "validation", "test"), strict=True):
        assert cell.strip().split(", ") == [family.name for family in getattr(recipe, split)]
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    assert links
    assert all((PAGE.parent / link).exists() for link in links)
