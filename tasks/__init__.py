"""Tasks to train and measure learned optimizers on."""

from .classify import MLPClassification
from .data import Dataset, digits, mnist
from .families import Family, SuiteRecipe
from .held_out import HELD_OUT, HeldOut, held_out_task
from .patches import Patches, photographs
from .quadratic import QuadraticTask
from .sampling import FamilySuite
from .suites import (
    SUITES,
    DigitsMLPSuite,
    DigitsTinySuite,
    QuadraticSuite,
    family_suite,
    resolve_suite,
)
from .supervised import Initialisation, SupervisedTask

__all__ = [
    "HELD_OUT",
    "SUITES",
    "Dataset",
    "DigitsMLPSuite",
    "DigitsTinySuite",
    "Family",
    "FamilySuite",
    "HeldOut",
    "Initialisation",
    "MLPClassification",
    "Patches",
    "QuadraticSuite",
    "QuadraticTask",
    "SuiteRecipe",
    "SupervisedTask",
    "digits",
    "family_suite",
    "held_out_task",
    "mnist",
    "photographs",
    "resolve_suite",
]
