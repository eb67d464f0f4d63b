"""Every mistake in a recipe is reported with its line."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from scalegmn_opt.editors import EDITS, EditRecipe
from scalegmn_opt.recipe import RecipeError, load_recipe

GOOD = """\
# a comment
name: test
edits:
  - edit: invert
    strength: 1.0

  - edit: shift
    strength: 1e-1
    angle: 90
"""


def load(folder, text, schema=EditRecipe):
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipe(path, schema)


def test_a_good_recipe(tmp_path):
    recipe = load(tmp_path, GOOD)
    assert [step.edit for step in recipe.edits] == ["invert", "shift"]
    assert (recipe.edits[1].strength, recipe.edits[1].angle) == (0.1, 90.0)
    assert load_recipe(str(tmp_path / "recipe.yaml"), EditRecipe) == recipe


@pytest.mark.parametrize(
    ("old", "new", "line", "match"),
    [
        pytest.param(
            "angle: 90",
            "angel: 90",
            9,
            r"edits\[1\]\.angel: unknown key 'angel'; "
            r"choose from \['angle', 'blend', .*'strength'\]; did you mean 'angle'\?",
            id="typo in a key",
        ),
        pytest.param(
            "name: test",
            "name: test\ncolour: red",
            3,
            r"colour: unknown key 'colour'; choose from \['description', 'edits', 'name'\]$",
            id="unknown key",
        ),
        pytest.param(
            "edit: invert",
            "edit: posterize",
            4,
            r"edits\[0\]\.edit: unknown edit 'posterize'; choose from \['blur', .*'zoom'\]$",
            id="unknown edit",
        ),
        pytest.param("invert", "inverts", 4, r"did you mean 'invert'\?", id="typo in an edit"),
        pytest.param(
            "strength: 1.0",
            "strength: strong",
            5,
            r"edits\[0\]\.strength: .*valid number, got 'strong'",
            id="wrong type",
        ),
        pytest.param("strength: 1.0", "strength: yes", 5, "got True", id="boolean"),
        pytest.param("strength: 1.0", "strength: .nan", 5, "finite", id="not finite"),
        pytest.param("angle: 90", "angle: .inf", 9, "finite", id="infinite"),
        pytest.param("edit: shift", "edit: zoom", 9, "zoom takes no angle", id="no direction"),
        pytest.param("angle: 90", "channel: red", 9, "shift takes no channel", id="no colour"),
        pytest.param("angle: 90", "mask: [0, 0, 2, 1]", 9, "mask must be left", id="bad box"),
        pytest.param("angle: 90", "steps: 5", 9, "add mechanism: refit", id="steps of nothing"),
        pytest.param("angle: 90", "mechanism: wish", 9, "unknown mechanism 'wish'", id="mechanism"),
        pytest.param(
            "    strength: 1.0\n", "", 4, r"edits\[0\]\.strength: .*missing", id="missing key"
        ),
        pytest.param("name: test\n", "", 2, "name: .*missing", id="missing key at the top"),
        pytest.param("name: test", "name:", 2, "name: .*string, got None", id="no value"),
        pytest.param("  - edit: shift", "  - shift", 8, "no valid YAML", id="broken item"),
        pytest.param(
            "angle: 90",
            "strength: 2",
            9,
            "key 'strength' is given twice, first in line 8",
            id="duplicate key",
        ),
        pytest.param("angle: 90", "angle: [90", 10, "no valid YAML", id="syntax error"),
        pytest.param("angle: 90", "\tangle: 90", 9, "no valid YAML", id="tab"),
        pytest.param("angle: 90", "90: angle", 9, "keys must be text, got '90'", id="number key"),
        pytest.param("angle: 90", "[a]: 1", 9, "keys must be text", id="list as a key"),
        pytest.param("angle: 90", "angle: !!python/tuple [1]", 9, "tag", id="tag"),
        pytest.param("angle: 90", "angle: !!int x", 9, "no valid value: 'x'", id="bad number"),
        pytest.param("name: test", "name: &a test\ndescription: *a", 3, "alias", id="alias"),
        pytest.param("angle: 90", "angle: 90\n---\na: 1", 10, "no valid YAML", id="documents"),
    ],
)
def test_mistakes_have_lines(tmp_path, old, new, line, match):
    assert old in GOOD
    with pytest.raises(RecipeError, match=match) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert caught.value.lines == [line]
    assert str(caught.value).startswith(f"{tmp_path / 'recipe.yaml'}:{line}: ")
    assert caught.value.file == str(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "line", "match"),
    [
        ("", 1, "empty"),
        ("# only a comment\n\n", 1, "empty"),
        ("- a\n- b\n", 1, "expected a mapping, got a sequence"),
        ("\nword\n", 2, "expected a mapping, got a scalar"),
        ("name: a\nedits: []\n", 2, "at least 1 item"),
        ("name: a\nedits:\n  edit: zoom\n", 2, "edits: .*got {'edit': 'zoom'}"),
        ("name: a\nedits:\n- zoom\n", 3, r"edits\[0\]: .*got 'zoom'"),
        (b"name: a\nedits: \xff\xfe\n", 2, "no readable text"),
        (b"name: a\nedits: \x00\n", 2, "no readable text"),
    ],
)
def test_files_of_another_kind(tmp_path, text, line, match):
    with pytest.raises(RecipeError, match=match) as caught:
        load(tmp_path, text)
    assert caught.value.lines == [line]


def test_all_mistakes_are_reported_in_the_order_of_the_file(tmp_path):
    text = GOOD.replace("strength: 1e-1", "strength: high").replace("edit: invert", "edit: x")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, "speed: 3\n" + text)
    assert caught.value.lines == [1, 5, 9]
    assert len(str(caught.value).splitlines()) == 3


def test_a_typo_in_a_required_key_is_both_missing_and_unknown(tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'strength'") as caught:
        load(tmp_path, GOOD.replace("strength: 1e-1", "strenght: 0.1"))
    assert caught.value.lines == [7, 8]


def test_a_long_value_is_cut(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, GOOD.replace("1.0", "x" * 5000))
    assert len(str(caught.value)) < 400


class _Wide(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    kind: Literal["wide"]
    widths: tuple[int, ...]


class _Deep(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    depth: int


class _Nested(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    network: _Wide | None = None
    several: dict[str, _Deep] = {}
    either: _Wide | _Deep | None = None


def test_schemas_of_other_shapes(tmp_path):
    text = "network:\n  kind: wide\n  widths: [3, 4]\nseveral:\n  a:\n    depth: 2\n"
    assert load(tmp_path, text, _Nested).network.widths == (3, 4)
    with pytest.raises(RecipeError, match=r"network\.width: .*\['kind', 'widths'\]") as caught:
        load(tmp_path, text.replace("widths", "width"), _Nested)
    assert set(caught.value.lines) == {1, 3}  # the missing key at its parent
    with pytest.raises(RecipeError, match=r"several\.a\.size: .*\['depth'\]") as caught:
        load(tmp_path, text + "    size: 3\n", _Nested)
    assert caught.value.lines == [7]
    with pytest.raises(RecipeError, match="unknown key 'dept'") as caught:
        load(tmp_path, "either:\n  depth: 1\n  dept: 2\n", _Nested)
    assert 3 in caught.value.lines


@given(text=st.text(alphabet="ab:-[]{}&*!|>'\"#%@\n \t0.~?,", max_size=30))
def test_any_text_is_a_recipe_or_a_recipe_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:  # the alphabet cannot spell the names of the keys
        load_recipe(path, EditRecipe)
    assert all(1 <= line <= text.count("\n") + 1 for line in caught.value.lines)


def test_edit_names_are_the_table(tmp_path):
    for name in EDITS:
        text = f"name: a\nedits:\n  - {{edit: {name}, strength: 0}}\n"
        assert load(tmp_path, text).edits[0].edit == name
