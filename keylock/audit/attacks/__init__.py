"""The attacks. Importing this package registers them all, in the order of the imports.

Adding one is one function with the decorator `attack`, and one row in the conformance table of the tests.
"""

from keylock.audit.attacks import (
    aise,
    answers,
    base_model,
    detection,
    evidence,
    explaining,
    guesses,
    imitation,
    key_search,
    low_rank,
    near_copies,
    normalisation,
    pairs,
    perturbations,
    reading,
    toolkits,
    tuning,
    weights,
)

__all__ = [
    "aise",
    "answers",
    "base_model",
    "detection",
    "evidence",
    "explaining",
    "guesses",
    "imitation",
    "key_search",
    "low_rank",
    "near_copies",
    "normalisation",
    "pairs",
    "perturbations",
    "reading",
    "toolkits",
    "tuning",
    "weights",
]
