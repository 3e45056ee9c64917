"""Names of splits as people write them: which folder or array is for training, which for testing, and which is unclear.

Kaggle's `Training/` and `Testing/`, `training_set/`, `Test`, `val`, `dev`, `hold-out` and the names of arrays in `.npz`
files all go through here. What looks like a split and is not known is an error: a split that is taken for a class, or
left out unseen, spoils every figure.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["KNOWN_SPLITS", "Role", "SplitName", "choose_test", "looks_like_a_split", "parse_split", "words_of"]


class Role(StrEnum):
    """What a split is for; the values are how messages name it."""

    TRAIN = "train"
    TEST = "test"
    HOLDOUT = "holdout"
    EVALUATION = "eval"
    VALIDATION = "validation"
    DEVELOPMENT = "dev"


# The order is that in which they serve as the test set.
_WORDS: Final[Mapping[Role, tuple[str, ...]]] = {
    Role.TRAIN: ("train", "training", "trn", "trainval"),
    Role.TEST: ("test", "testing", "tst"),
    Role.HOLDOUT: ("holdout", "heldout"),
    Role.EVALUATION: ("eval", "evaluation", "evaluating"),
    Role.VALIDATION: ("val", "valid", "validation", "validate", "validating"),
    Role.DEVELOPMENT: ("dev", "devel", "development"),
}
_ROLE_OF: Final = {word: role for role, words in _WORDS.items() for word in words}

# Words that change nothing about the role; `seg` is in the folders of a set of landscapes that many use.
_FILLING: Final = re.compile(
    r"(data)?sets?|data|images?|imgs?|pics?|pictures?|photos?|splits?|folder|dir|samples?|seg|the"
)
_ENDINGS: Final = ("dataset", "data", "images", "set")

# Words by which parts of data sets go, too, of which nobody can say whether to train or to test on them.
_PARTS: Final = re.compile(
    r"k?folds?|unlabell?ed|unlab(el)?|unsup(ervised)?|pred(ict|iction)?s?|pseudo|calib(ration)?|mini(val|train)"
)
# These are part of many a class name, so they count only where no word says otherwise.
_PARTS_ALONE: Final = re.compile(r"extra|query|gallery|splits?|subset|part|shard|submission")

KNOWN_SPLITS: Final = "; ".join(
    (
        f"for training {', '.join(_WORDS[Role.TRAIN])}",
        f"for testing {', '.join(word for role, words in _WORDS.items() if role is not Role.TRAIN for word in words)}",
    )
)
"""The names that are understood, for messages."""


@dataclass(frozen=True)
class SplitName:
    """A name that was understood as that of a split.

    Attributes:
        name: As it is written.
        role: What the split is for.
    """

    name: str
    role: Role


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case: `TrainingSet`, `training_set` and `Training Set` have the same."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^a-z0-9]+", apart.casefold()) if word]


def parse_split(name: str) -> Role | None:
    """Return what the split of a name is for, or None where the name is that of no split that is known.

    Args:
        name: Of a folder, or of a part of an array's name.
    """
    words = _joined([_without_ending(word) for word in words_of(name)])
    telling = [word for word in words if not _FILLING.fullmatch(word)]
    roles = {_ROLE_OF[word] for word in telling if word in _ROLE_OF}
    if len(roles) == 1 and all(word in _ROLE_OF for word in telling):
        return roles.pop()
    return None


def looks_like_a_split(name: str, *, wholly: bool = False) -> bool:
    """Return whether a name that is that of no known split might yet be meant as one: `train2`, `fold_1`, `unlabeled`.

    Args:
        name: Of a folder, or of an array.
        wholly: Ask that every word says so, which tells `test1` from `test_tube`.
    """
    if parse_split(name) is not None:
        return False
    words = [word for word in (_without_ending(re.sub(r"\d+$", "", word)) for word in words_of(name)) if word]
    words = _joined(words)
    telling = [word for word in words if word in _ROLE_OF or _PARTS.fullmatch(word)]
    alone = [word for word in words if _PARTS_ALONE.fullmatch(word)]
    if all(word in (*telling, *alone) or _FILLING.fullmatch(word) for word in words):
        return bool(telling or alone)
    return bool(telling) and not wholly


def choose_test(found: Iterable[SplitName]) -> SplitName | None:
    """Return which of several splits is the test set: the one named test, or else what comes nearest to it.

    Args:
        found: Splits, no two of the same role.
    """
    by_role = {split.role: split for split in found}
    return next((by_role[role] for role in Role if role is not Role.TRAIN and role in by_role), None)


def _without_ending(word: str) -> str:
    """Take `set`, `data` and the like off a word of a split: `trainset`, `testdata`."""
    for ending in _ENDINGS:
        if word.endswith(ending) and word.removesuffix(ending) in _ROLE_OF:
            return word.removesuffix(ending)
    return word


def _joined(words: list[str]) -> list[str]:
    """Write `hold out` and `held out` as one word, and `train val` too."""
    text = " ".join(words)
    for two in ("hold out", "held out", "train val"):
        text = re.sub(rf"\b{two}\b", two.replace(" ", ""), text)
    return text.split()
