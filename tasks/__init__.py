"""Tasks to train and measure learned optimizers on."""

from .classify import MLPClassification
from .data import Dataset, digits, mnist
from .families import Family, SuiteRecipe
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
    "SUITES",
    "Dataset",
    "DigitsMLPSuite",
    "DigitsTinySuite",
    "Family",
    "FamilySuite",
    "Initialisation",
    "MLPClassification",
    "QuadraticSuite",
    "QuadraticTask",
    "SuiteRecipe",
    "SupervisedTask",
    "digits",
    "family_suite",
    "mnist",
    "resolve_suite",
]
