"""Who may import whom, what stays lazy, and no traces of one machine in the files."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import scalegmn_opt

PACKAGE = "scalegmn_opt"
# A module imports its own package and packages of lower rank. Same rank: neither sees the other.
RANKS = {
    "_yaml": 0,
    "figures": 0,
    "names": 0,
    "pretrained": 0,
    "processes": 0,
    "recipes": 0,
    "tables": 0,
    "graph": 1,
    "recipe": 1,
    "graph_layout": 2,
    "info_symmetries": 2,
    "symmetry": 2,
    "graph_figure": 3,
    "info_model": 3,
    "nn": 3,
    "backbone": 4,
    "heads": 5,
    "simulate": 6,
    "sparse": 6,
    "optim": 6,
    "inr": 6,
    "meta": 7,
    "evaluation_figures": 8,
    "testing": 8,  # for tests of ours and of users; the library never needs it
    "": 9,  # scalegmn_opt/__init__.py
    "tasks": 10,
    "editors": 10,
    "demo": 11,
    "editor_data": 11,
    "evaluation": 11,
    "image_networks": 11,
    "info": 11,
    "cli_images": 12,
    "cli": 13,
}
LAZY = {"matplotlib", "PIL", "sklearn", "torch_geometric", "higher"}
ON_REQUEST = {"scalegmn_opt/sparse.py"}  # may import them, and nobody imports it


def module_name(path):
    """Import name of a file: ``tasks/data.py`` is ``scalegmn_opt.tasks.data``."""
    parts = path.with_suffix("").parts
    parts = parts if parts[0] == PACKAGE else (PACKAGE, *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def component(name):
    """The part of the package a module belongs to, ``""`` for the package itself."""
    return name.split(".")[1] if "." in name else ""


def imported(tree, path):
    """Full names of everything imported in ``tree``, at module level or not."""
    own = module_name(path).split(".")
    package = own if path.name == "__init__.py" else own[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def target(name):
    """The component that an import of ``name`` needs: ``None`` if it is not ours."""
    if name.split(".")[0] != PACKAGE:
        return None
    found = component(name)
    return found if found in RANKS else ""  # a public name such as scalegmn_opt.LearnedOptimizer


def wrong_imports(source, path):
    """Imports of a file that go against the direction of the ranks."""
    own = component(module_name(path))
    needed = {(name, target(name)) for name in imported(ast.parse(source), path)}
    return sorted(
        name
        for name, other in needed
        if other is not None and other != own and RANKS[other] >= RANKS[own]
    )


def at_module_level(tree):
    """Nodes that run on import: no function bodies, nothing for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_module_level(node)


def heavy_imports(source):
    """Top-level names of optional or slow packages imported at module level."""
    found = set()
    for node in at_module_level(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return sorted(found & LAZY)


@pytest.fixture(scope="module")
def modules(root, project_files):
    """Source by path of every module of the package."""
    folders = (PACKAGE, "tasks", "editors", "recipes")
    paths = [p for p in project_files if p.parts[0] in folders and p.suffix == ".py"]
    return {path: (root / path).read_text(encoding="utf-8") for path in paths}


def test_every_module_has_a_rank(modules):
    unknown = {component(module_name(path)) for path in modules} - set(RANKS)
    assert not unknown, f"give {sorted(unknown)} a rank in {Path(__file__).name}"


def test_imports_go_one_way(modules):
    wrong = {str(path): wrong_imports(source, path) for path, source in modules.items()}
    assert not {path: names for path, names in wrong.items() if names}


def test_optional_and_slow_packages_are_imported_lazily(modules):
    heavy = {path.as_posix(): heavy_imports(source) for path, source in modules.items()}
    assert {path for path, names in heavy.items() if names} == ON_REQUEST


def test_nobody_imports_the_modules_that_do(modules):
    names = {module_name(Path(path)) for path in ON_REQUEST}
    users = {
        str(path)
        for path, source in modules.items()
        for name in imported(ast.parse(source), path)
        if any(f"{name}.".startswith(f"{own}.") for own in names)
    }
    assert not users


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("scalegmn_opt/graph/trace.py", "from scalegmn_opt.symmetry import verify"),
        ("scalegmn_opt/graph/trace.py", "def f():\n    from ..nn.mlp import MLP"),
        ("scalegmn_opt/inr/fit.py", "from scalegmn_opt import optim"),
        ("scalegmn_opt/optim/rule.py", "import scalegmn_opt.meta.trainer"),
        ("scalegmn_opt/meta/task.py", "from scalegmn_opt import LearnedOptimizer"),
        ("scalegmn_opt/recipe.py", "from scalegmn_opt.editors import EDITS"),
        ("scalegmn_opt/heads.py", "from scalegmn_opt.tasks.data import digits"),
        ("tasks/data.py", "from scalegmn_opt.editors import EDITS"),
        ("tasks/data.py", "from ..editors import EDITS"),
        ("editors/chain.py", "from scalegmn_opt.tasks import digits"),
        ("tasks/data.py", "from scalegmn_opt.cli import main"),
    ],
)
def test_the_check_of_direction_finds_what_is_wrong(path, source):
    assert len(wrong_imports(source, Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("scalegmn_opt/graph/trace.py", "from .rules import RULES\nimport torch"),
        ("scalegmn_opt/graph/trace.py", "from scalegmn_opt.graph.rules import RULES"),
        ("scalegmn_opt/meta/task.py", "from scalegmn_opt.graph import trace"),
        ("tasks/suites.py", "from .data import digits\nfrom scalegmn_opt.meta import Task"),
        ("tasks/suites.py", "from scalegmn_opt import LearnedOptimizer"),
        ("scalegmn_opt/cli.py", "from scalegmn_opt.tasks import digits"),
        ("scalegmn_opt/cli.py", "from scalegmn_opt.editors import EDITS"),
    ],
)
def test_the_check_of_direction_accepts_what_is_right(path, source):
    assert wrong_imports(source, Path(path)) == []


def test_the_check_of_lazy_imports_tells_levels_apart():
    assert heavy_imports("try:\n    import PIL.Image\nexcept ImportError:\n    pass") == ["PIL"]
    assert heavy_imports("class A:\n    from sklearn.datasets import load_digits") == ["sklearn"]
    assert heavy_imports("def f():\n    import matplotlib.pyplot") == []
    assert heavy_imports("if TYPE_CHECKING:\n    from torch_geometric.data import Data") == []


def test_importing_the_package_loads_nothing_optional_or_slow(modules):
    paths = [p for p in modules if len(p.parts) < 3 and p.stem != "__main__"]
    names = [module_name(p) for p in paths if p.as_posix() not in ON_REQUEST]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n    importlib.import_module(name)\n"
        f"loaded = sorted(set(sys.modules) & {LAZY!r})\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_version_is_the_same_in_both_places(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == scalegmn_opt.__version__


def paths_of_one_machine(text, root):
    """Absolute paths below a home or working folder, or below the checkout itself."""
    below = r"(?<![\w.])/(?:home|Users|root|work|farm)/[\w.-]+"
    found = re.findall(below, text)
    checkout = str(root)
    return found + ([checkout] if len(root.parts) > 2 and checkout in text else [])


def test_no_file_mentions_a_path_of_one_machine(root, project_files):
    found = {}
    for path in project_files:
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and weights
        if hits := paths_of_one_machine(text, root):
            found[str(path)] = hits
    assert not found


def test_the_check_of_paths_finds_them(root):
    for folder in ("home", "root", "Users"):
        assert paths_of_one_machine(f"read '/{folder}/someone/data'", root)
    assert paths_of_one_machine(f"cd {root}", root)
    assert not paths_of_one_machine("https://example.org/home/page and ./home/item", root)
