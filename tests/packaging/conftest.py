"""The files of the project, as seen by the packaging tests."""

import subprocess
from pathlib import Path

import pytest

LEFTOVERS = {".git", ".venv", "demo-output", "build", "dist", "__pycache__"}


@pytest.fixture(scope="session")
def root():
    """The folder of the checkout."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def project_files(root):
    """Paths of the project's files relative to its folder; what git ignores is not among them."""
    if (root / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listing = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        paths = map(Path, filter(None, listing.stdout.split("\0")))
    else:
        paths = (p.relative_to(root) for p in root.rglob("*") if p.is_file())
    return sorted(p for p in paths if (root / p).is_file() and not _is_leftover(p))


def _is_leftover(path):
    hidden_cache = path.parts[0].startswith(".") and path.parts[0].endswith(("cache", "hypothesis"))
    egg = any(part.endswith(".egg-info") for part in path.parts)
    return hidden_cache or egg or bool(LEFTOVERS & set(path.parts))
