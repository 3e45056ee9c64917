"""Runs keyed rows of a batch one way and the others another way, and puts the answers back in their order."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Run", "run_split"]

Run = Callable[..., list[NDArray[Any]]]
"""Takes arrays by name that have a row for each image, and answers with such arrays."""


def run_split(
    keyed: NDArray[np.float32], rows: Mapping[str, NDArray[Any]], *, with_key: Run, without: Run
) -> list[NDArray[Any]]:
    """Run a batch in one part or two.

    Args:
        keyed: Which rows are keyed (batch,), 1 or 0.
        rows: What to run, by name; each array has a row for each image.
        with_key: Runs keyed rows.
        without: Runs the others.

    Returns:
        The answers, in the order of the rows.
    """
    true = keyed > 0
    if true.all():
        return with_key(**rows)
    if not true.any():
        return without(**rows)
    parts = [
        (place, run(**{name: value[place] for name, value in rows.items()}))
        for place, run in ((true, with_key), (~true, without))
    ]
    found = [np.empty((len(true), *answer.shape[1:]), answer.dtype) for answer in parts[0][1]]
    for place, answers in parts:
        for whole, part in zip(found, answers, strict=True):
            whole[place] = part
    return found
