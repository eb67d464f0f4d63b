"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert found
    for block in found:
        exec(compile(block.replace("steps=20", "steps=2"), "README.md", "exec"), {})
    assert (tmp_path / "runs" / "mine" / "weights.safetensors").is_file()


def test_meta_training_on_own_data_takes_at_most_25_lines():
    body = next(block for block in blocks("python") if "class MyTask" in block)
    lines = [line for line in body.splitlines() if line.strip()]
    assert len(lines) <= 25


def test_replacing_adam_is_the_diff_shown():
    lines = blocks("diff")[0].splitlines()
    code = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    model, inputs = torch.nn.Linear(4, 3), torch.randn(8, 4)
    before = model.weight.detach().clone()
    scope = {"model": model, "inputs": inputs, "targets": torch.zeros(8, dtype=torch.long)}
    exec(compile(code, "README.md", "exec"), scope | {"F": torch.nn.functional, "torch": torch})
    assert not torch.equal(model.weight, before)


def test_pictures_and_recipes_that_it_names_exist():
    text = README.read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (README.parent / link).exists(), link
    for recipe in re.findall(r"--recipe (\w+)|meta-train (\w+) ", text):
        name = next(filter(None, recipe))
        assert (README.parent / "recipes" / f"{name}.yaml").is_file(), name
