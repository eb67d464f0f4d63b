"""The table of ``docs/drop_in.md``: complete, and each claim of ours has a test that exists."""

import ast
import re
from pathlib import Path

TABLE = Path(__file__).parents[2] / "docs" / "drop_in.md"
LINK = re.compile(r"\]\(([^)#]+\.py)#(\w+)\)")


def rows(text):
    """Cells by number of the lines of the table."""
    lines = re.findall(r"^\| (\d+) \|(.*)\|$", text, flags=re.MULTILINE)
    return {int(number): [cell.strip() for cell in rest.split("|")] for number, rest in lines}


def missing(text):
    """Links to tests that are not there."""
    found = []
    for path, name in LINK.findall(text):
        file = TABLE.parent / path
        tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.parse("")
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        found += [] if name in names else [f"{path}#{name}"]
    return found


def test_each_row_has_three_answers_and_a_test():
    table = rows(TABLE.read_text(encoding="utf-8"))
    assert list(table) == list(range(1, 25))
    for number, (_, ours, adam, pylo) in table.items():
        assert len(LINK.findall(ours)) == 1, number
        assert adam, number
        assert pylo, number


def test_linked_tests_exist():
    assert not missing(TABLE.read_text(encoding="utf-8"))


def test_the_check_of_links_finds_what_is_missing():
    for link in ("test_guard.py#test_no_such_thing", "test_no_file.py#test_closure"):
        assert missing(f"[yes](../tests/core/{link})") == [f"../tests/core/{link}"]
