"""Tasks to train and measure learned optimizers on."""

from .classify import MLPClassification
from .data import Dataset, digits, mnist
from .patches import Patches, photographs
from .quadratic import QuadraticTask
from .suites import SUITES, DigitsMLPSuite, DigitsTinySuite, QuadraticSuite, resolve_suite

__all__ = [
    "SUITES",
    "Dataset",
    "DigitsMLPSuite",
    "DigitsTinySuite",
    "MLPClassification",
    "Patches",
    "QuadraticSuite",
    "QuadraticTask",
    "digits",
    "mnist",
    "photographs",
    "resolve_suite",
]
