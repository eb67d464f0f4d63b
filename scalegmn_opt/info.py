"""What a name stands for: a model's weight graph, stored networks, weights or a recipe."""

import importlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError, safe_open
from torch import nn

from scalegmn_opt import pretrained
from scalegmn_opt.editors import EditRecipe
from scalegmn_opt.editors.training import EditorRecipe
from scalegmn_opt.graph import TraceWarning, WeightGraph, trace
from scalegmn_opt.info_model import block_table, group_parts, summary
from scalegmn_opt.info_symmetries import symmetry_tables
from scalegmn_opt.inr import INRStore
from scalegmn_opt.meta.recipe import RuleRecipe
from scalegmn_opt.recipe import choice_message, load_recipe, packaged_recipes
from scalegmn_opt.symmetry import verify
from scalegmn_opt.tables import new_table, times
from scalegmn_opt.tasks import SuiteRecipe

_RECIPES: Mapping[str, type[BaseModel]] = {
    "rule": RuleRecipe,
    "editor": EditorRecipe,
    "suite": SuiteRecipe,
}
_CARDS = (".md", ".json")
SYMMETRIES = "symmetries"  # the subject that stands for the table of all rules


@dataclass(frozen=True)
class Description:
    """Tables and lines to show, and whether every check that was made succeeded."""

    parts: tuple[Table | str, ...]
    ok: bool = True
    graph: WeightGraph | None = None  # of a model


def describe(subject: str) -> Description:
    """Describe `package.module:factory`, a file, or packaged weights or recipes by name.

    `symmetries` is what is claimed for each operator and activation. A factory takes no argument
    and returns `(module, example_inputs)`.

    Raises:
        FileNotFoundError: nothing has this name.
        ValueError: a file of another content, or a factory that is not found.
        TypeError: a factory that returns something else.
    """
    path = Path(subject)
    if path.is_file():
        return _tensors(path) if path.suffix == ".safetensors" else _recipe(subject)
    if subject == SYMMETRIES:
        return Description(symmetry_tables())
    if ":" in subject:
        return _model(subject)
    if subject in pretrained.available():
        with resources.as_file(resources.files(pretrained) / f"{subject}.safetensors") as packaged:
            return _tensors(packaged)
    if subject.removesuffix(".yaml") in packaged_recipes():
        return _recipe(subject)
    known = [SYMMETRIES, *pretrained.available(), *packaged_recipes()]
    raise FileNotFoundError(
        "expected a file, package.module:factory, or a packaged name: "
        + choice_message("name", subject, known)
    )


def _model(subject: str) -> Description:
    module, inputs = _made(subject)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TraceWarning)
        graph = trace(module, inputs)
    notes = [escape(f"note: {warning.message}") for warning in caught]
    verification = verify(module, graph, inputs)
    check = (
        f"check: {'passed' if verification.ok else 'FAILED'}: random symmetries change the outputs "
        f"by {verification.error:.1e} (relative; tolerance {verification.tolerance:.0e})"
    )
    lines = map(escape, summary(graph, sum(p.numel() for p in module.parameters())))
    groups = [escape(part) if isinstance(part, str) else part for part in group_parts(graph)]
    parts = (*groups, block_table(graph), *notes, *lines, check)
    return Description(parts, verification.ok, graph)


def _made(subject: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The module and example inputs that a factory makes."""
    module_name, _, attribute = subject.partition(":")
    try:
        found = vars(importlib.import_module(module_name))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module was found; something that it imports was not
        raise ValueError(f"model {subject!r}: there is no module {error.name!r}") from error
    if not callable(found.get(attribute)):
        functions = [name for name, value in found.items() if callable(value) and name[0] != "_"]
        raise ValueError(f"model {subject!r}: {choice_message('function', attribute, functions)}")
    made = found[attribute]()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise TypeError(
            f"model {subject!r}: expected (module, example_inputs), got {type(made).__name__}"
        )
    return made


def _tensors(path: Path) -> Description:
    """A store of networks, or the weights of a rule or an editor."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got a damaged one") from error
    if metadata.get("format") != pretrained.FORMAT:
        return _store(path, INRStore.load(path))
    cards = [card for suffix in _CARDS if (card := path.with_suffix(suffix)).is_file()]
    count = sum(prod(shape) for shape in shapes.values())
    facts = {
        "file": path,
        "kind": metadata["kind"],
        **json.loads(metadata["config"]),
        "parameters": f"{count} in {len(shapes)} tensors",
        "card": cards[0] if cards else "none beside the file",
    }
    return Description((_facts("weights", facts),))


def _store(path: Path, store: INRStore) -> Description:
    facts = {
        "file": path,
        "networks": len(store),
        "layers": "-".join(map(str, store.spec.layer_sizes)),
        "w0": f"{store.spec.w0:g}",
        "parameters of each": sum(map(prod, store.spec.parameter_shapes.values())),
        "image size": times(store.image_size),
        "PSNR": f"mean {store.psnr.mean():.1f} dB, min {store.psnr.min():.1f} dB",
        "names": ", ".join(store.names[:4]) + (", ..." if len(store) > 4 else ""),
    }
    return Description((_facts("networks", facts),))


class _AnyRecipe(BaseModel):
    """A recipe of which only the kind is read; edit recipes have none."""

    kind: str | None = None


def _recipe(subject: str) -> Description:
    kind = load_recipe(subject, _AnyRecipe).kind
    schema = EditRecipe if kind is None else _RECIPES.get(kind)
    if schema is None:
        raise ValueError(f"{subject}: {choice_message('kind', kind or '', _RECIPES)}")
    fields = load_recipe(subject, schema).model_dump(mode="json", exclude_none=True)
    facts = {name: json.dumps(value).strip('"') for name, value in fields.items() if value != ""}
    return Description((_facts("edit recipe" if kind is None else f"{kind} recipe", facts),))


def _facts(title: str, facts: Mapping[str, Any]) -> Table:
    return new_table(title, ("", ""), facts.items())
