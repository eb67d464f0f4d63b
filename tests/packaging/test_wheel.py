"""The wheel: what is in it, and that it works outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PACKAGE = "scalegmn_opt"
FOLDERS = (PACKAGE, "tasks", "editors", "recipes")

IMPORT_ALL = """
import importlib, pkgutil, warnings
import scalegmn_opt
names = [m.name for m in pkgutil.walk_packages(scalegmn_opt.__path__, "scalegmn_opt.")]
for name in names:
    if not name.endswith("__main__"):
        with warnings.catch_warnings():
            if name == "scalegmn_opt.sparse":  # torch_geometric itself warns of torch.jit
                warnings.simplefilter("ignore", DeprecationWarning)
            importlib.import_module(name)
for part in ("graph", "meta", "tasks.suites", "editors", "cli"):
    assert f"scalegmn_opt.{part}" in names, (part, names)
"""

ONE_STEP = """
import torch
from torch import nn
from scalegmn_opt import LearnedOptimizer

torch.manual_seed(0)
model, x, y = nn.Linear(4, 3), torch.randn(16, 4), torch.randn(16, 3)
before = [p.detach().clone() for p in model.parameters()]
optimizer = LearnedOptimizer.for_model(model, (x,))
nn.functional.mse_loss(model(x), y).backward()
optimizer.step()
for old, new in zip(before, model.parameters(), strict=True):
    assert torch.isfinite(new).all()
    assert not torch.equal(old, new)
"""


def run(command, *, cwd, env=None):
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def environment(root):
    """Our limits on versions, for every pip and every build; no way back to the checkout."""
    limits = (root / "constraints.txt").as_uri()
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**kept, "PIP_CONSTRAINT": limits, "PIP_BUILD_CONSTRAINT": limits}


@pytest.fixture(scope="module")
def wheel(root, project_files, environment, tmp_path_factory):
    """The wheel, built from a copy of the project's files."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for path in project_files:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, copy / path)
    run([sys.executable, "-m", "build", "--wheel", "--outdir", out], cwd=copy, env=environment)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, environment, tmp_path_factory):
    """Folder of the programs of a new virtual environment with the wheel installed."""
    folder = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", folder], cwd=folder)
    programs = folder / "bin"
    requirement = f"{wheel}[images,data]"
    run([programs / "python", "-m", "pip", "install", requirement], cwd=folder, env=environment)
    return programs


def place(path):
    """Where a file of the tree is in the wheel."""
    return path.as_posix() if path.parts[0] == PACKAGE else f"{PACKAGE}/{path.as_posix()}"


def test_the_wheel_holds_the_files_of_the_tree_and_no_others(wheel, project_files):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in names if Path(name).parts[0].endswith(".dist-info")}
    expected = {place(path) for path in project_files if path.parts[0] in FOLDERS}
    assert sorted(names - metadata) == sorted(expected)
    assert {Path(name).name for name in metadata} >= {"METADATA", "LICENSE", "entry_points.txt"}


def test_the_command_answers(installed, environment, tmp_path):
    assert "demo" in run([installed / "scalegmn-opt", "--help"], cwd=tmp_path, env=environment)


def test_every_module_imports_without_a_warning(installed, environment, tmp_path):
    run([installed / "python", "-W", "error", "-c", IMPORT_ALL], cwd=tmp_path, env=environment)


def test_a_learned_step_changes_the_weights(installed, environment, tmp_path):
    run([installed / "python", "-c", ONE_STEP], cwd=tmp_path, env=environment)


@pytest.mark.parametrize("name", ["tasks", "editors", "recipes"])
def test_no_other_top_level_package_is_installed(installed, environment, tmp_path, name):
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    run([installed / "python", "-c", code], cwd=tmp_path, env=environment)
