"""Tasks to train and measure learned optimizers on."""

from .classify import MLPClassification
from .data import Dataset, digits, mnist
from .quadratic import QuadraticTask
from .suites import SUITES, DigitsMLPSuite, DigitsTinySuite, QuadraticSuite, resolve_suite

__all__ = [
    "SUITES",
    "Dataset",
    "DigitsMLPSuite",
    "DigitsTinySuite",
    "MLPClassification",
    "QuadraticSuite",
    "QuadraticTask",
    "digits",
    "mnist",
    "resolve_suite",
]
