"""Recipes of families of tasks: a data set, a kind of network, and what varies."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from scalegmn_opt.recipe import one_of

from .models import Activation
from .sources import SOURCES, Kind

ACTIVATIONS: dict[str, Activation] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky-relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
MODELS: dict[str, frozenset[Kind]] = {
    "autoencoder": frozenset({"vectors", "pictures"}),
    "cnn": frozenset({"pictures"}),
    "cnn-batchnorm": frozenset({"pictures"}),
    "mlp": frozenset({"vectors", "pictures"}),
    "residual-cnn": frozenset({"pictures"}),
    "residual-mlp": frozenset({"vectors", "pictures"}),
    "siren": frozenset({"coordinates"}),
    "transformer": frozenset({"text"}),
}
Range = tuple[int, int]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Family(_Strict):
    """One data set on one kind of network. Ranges are from smallest to largest, log-uniform.

    ``width`` is hidden neurons or channels of a layer, ``depth`` hidden layers, stages or blocks,
    ``inputs`` the input neurons of flat networks. ``augment`` turns on all that changes a task
    but not its kind: other losses, initialisations and their reparametrisation, scales of inputs
    and loss, subsets of the classes, label noise, and, of perceptrons, what the inputs are
    projected to.
    """

    data: Annotated[str, one_of("data set", SOURCES)]
    model: Annotated[str, one_of("model", MODELS)]
    weight: float = Field(default=1.0, gt=0)
    width: Range = (8, 128)
    depth: Range = (1, 3)
    inputs: Range = (16, 800)
    batch_size: Range = (16, 128)
    activations: tuple[Annotated[str, one_of("activation", ACTIVATIONS)], ...] = tuple(ACTIVATIONS)
    augment: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        kind = SOURCES[self.data].kind
        if kind not in MODELS[self.model]:
            fit = sorted(name for name, kinds in MODELS.items() if kind in kinds)
            raise ValueError(f"{self.data!r} fits the models {fit}, got {self.model!r}")
        for name in ("width", "depth", "inputs", "batch_size"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name}: expected 1 <= smallest <= largest, got {[low, high]}")
        if not self.activations:
            raise ValueError("activations: expected at least one")
        return self

    @property
    def name(self) -> str:
        """Data set and model: what must not be shared between splits."""
        return f"{self.data} {self.model}"


class SuiteRecipe(_Strict):
    """A suite of task families, those of training, validation and test apart from each other."""

    kind: Literal["suite"]
    name: str
    description: str = ""
    training: tuple[Family, ...] = Field(min_length=1)
    validation: tuple[Family, ...] = Field(min_length=1)
    test: tuple[Family, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_disjoint(self) -> Self:
        splits = (self.training, self.validation, self.test)
        names = [{family.name for family in families} for families in splits]
        shared = (names[0] & names[1]) | (names[0] & names[2]) | (names[1] & names[2])
        if shared:
            raise ValueError(f"families of more than one split: {sorted(shared)}")
        return self
