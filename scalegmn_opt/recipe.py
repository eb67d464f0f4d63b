"""Strict YAML recipes: every mistake is reported with its line and what would be valid."""

import difflib
import importlib.resources
import json
import typing
from collections.abc import Collection, Iterable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from ._yaml import Location, YamlError, read_mapping

Schema = TypeVar("Schema", bound=BaseModel)
_PACKAGE = "scalegmn_opt.recipes"
_SUFFIX = ".yaml"


class RecipeError(ValueError):
    """A recipe that cannot be used; one line per mistake, `file:line: key: what is wrong`.

    Attributes:
        file: the recipe as it was found.
        lines: line number of every mistake, from 1.
    """

    def __init__(self, file: str, mistakes: Iterable[tuple[int, str]]) -> None:
        ordered = sorted(mistakes)
        self.file = file
        self.lines = [line for line, _ in ordered]
        super().__init__("\n".join(f"{file}:{line}: {text}" for line, text in ordered))


def load_recipe(path_or_name: str | Path, schema: type[Schema]) -> Schema:
    """Read a recipe from a file, or by name from those in the package, and validate it.

    Raises:
        FileNotFoundError: neither a file nor the name of a packaged recipe.
        RecipeError: the file is no YAML mapping, or does not satisfy `schema`.
    """
    file = _find(path_or_name)
    try:
        data, lines = read_mapping(file.read_bytes())
    except YamlError as error:
        raise RecipeError(str(file), [(error.line, str(error))]) from error
    try:
        # As JSON, strict schemas take a list for a tuple and a string for an enumeration.
        return schema.model_validate_json(json.dumps(data))
    except ValidationError as error:
        details = error.errors(include_url=False)
        mistakes = [(_line(item["loc"], lines), _describe(item, schema)) for item in details]
        raise RecipeError(str(file), mistakes) from error


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    files = importlib.resources.files(_PACKAGE).iterdir()
    return sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX))


def one_of(kind: str, choices: Collection[str]) -> AfterValidator:
    """Annotation of a schema's field that holds the name of one of the `choices`."""

    def check(got: str) -> str:
        if got in choices:
            return got
        message = choice_message(kind, got, choices)
        # Passed as context, because braces in the template would be read as fields.
        raise PydanticCustomError("unknown_choice", "{message}", {"message": message})

    return AfterValidator(check)


def choice_message(kind: str, got: str, choices: Iterable[str]) -> str:
    """`unknown kind 'x'; choose from [...]`, with the closest valid name if one is close."""
    valid = sorted(choices)
    close = difflib.get_close_matches(got, valid, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {got!r}; choose from {valid}{hint}"


def _find(path_or_name: str | Path) -> Path | Traversable:
    path = Path(path_or_name)
    if path.is_file():
        return path
    name, known = str(path_or_name).removesuffix(_SUFFIX), packaged_recipes()
    if name not in known:
        raise FileNotFoundError(
            "path_or_name must be a file or a recipe's name: "
            + choice_message("recipe", name, known)
        )
    return importlib.resources.files(_PACKAGE) / f"{name}{_SUFFIX}"


def _line(loc: Location, lines: dict[Location, int]) -> int:
    """Line of the deepest part of `loc` in the file: for a missing key, that of its parent."""
    found: Location = ()
    for part in loc:
        # pydantic puts the tags of unions into the path; those are skipped.
        if (*found, part) in lines:
            found = (*found, part)
    return lines[found]


def _describe(item: ErrorDetails, schema: type[BaseModel]) -> str:
    loc, kind = item["loc"], item["type"]
    where = _dotted(loc)
    if kind == "extra_forbidden":
        return f"{where}: {choice_message('key', str(loc[-1]), _keys(schema, loc[:-1]))}"
    if kind == "missing":
        return f"{where}: this key is missing"
    if kind == "unknown_choice":
        return f"{where}: {item['msg']}"
    got = repr(item["input"])
    shown = got if len(got) <= 80 else f"{got[:77]}..."
    return f"{where}: {item['msg']}, got {shown}" if where else f"{item['msg']}, got {shown}"


def _dotted(loc: Location) -> str:
    """`("edits", 0, "strength")` as `edits[0].strength`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def _keys(schema: type[BaseModel], loc: Location) -> list[str]:
    """Valid keys of the mapping at `loc`."""
    models = [schema]
    for part in loc:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = [model for field in fields for model in _models(field.annotation)]
        elif isinstance(part, str):  # the tag of a union: one of its models
            models = [model for model in models if model.__name__ == part] or models
    return [field.alias or name for model in models for name, field in model.model_fields.items()]


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)
