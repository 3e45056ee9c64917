"""What of a picture attackers cover or change in each copy that they ask about."""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keylock.iterative import RISELoop

__all__ = ["MASKS", "Masks"]

Masks = NDArray[np.float32]
"""What stays of a picture, 1, and what is covered, 0 (copies, height, width)."""

_CELLS: Final = 5


def _occlusion(count: int, size: tuple[int, int], generator: np.random.Generator) -> Masks:
    """Cover a patch of a quarter of the sides at every place of a grid, the places in random order.

    The grid gets finer until it has as many places as are wanted, or one at every pixel.
    """
    height, width = size
    patch = max(1, height // 4), max(1, width // 4)
    steps = 8
    places = _places(size, patch, steps)
    while len(places) < count and steps < max(size):
        steps *= 2
        places = _places(size, patch, steps)
    masks = np.ones((min(count, len(places)), height, width), np.float32)
    for mask, place in zip(masks, generator.permutation(len(places)), strict=False):
        top, left = places[place]
        mask[top : top + patch[0], left : left + patch[1]] = 0
    return masks


def _places(size: tuple[int, int], patch: tuple[int, int], steps: int) -> list[tuple[int, int]]:
    tops, lefts = (
        range(0, side - covered + 1, max(1, side // steps)) for side, covered in zip(size, patch, strict=True)
    )
    return [(top, left) for top in tops for left in lefts]


def _rise(count: int, size: tuple[int, int], generator: np.random.Generator) -> Masks:
    """Draw smooth random masks."""
    source = np.random.RandomState(int(generator.integers(2**31)))
    return RISELoop(masks=count).draw(*size, source).enlarged()


def _lime(count: int, size: tuple[int, int], generator: np.random.Generator) -> Masks:
    """Show each square segment with probability one half."""
    return _enlarged(generator.random((count, _CELLS, _CELLS)) < 0.5, size)


def _kernel_shap(count: int, size: tuple[int, int], generator: np.random.Generator) -> Masks:
    """Show few segments or nearly all, as the Shapley kernel draws them."""
    sizes = np.arange(1, _CELLS**2)
    weights = 1 / (sizes * (_CELLS**2 - sizes))
    chosen = generator.choice(sizes, count, p=weights / weights.sum())
    ranks = generator.random((count, _CELLS**2)).argsort(axis=1).argsort(axis=1)
    return _enlarged((ranks < chosen[:, None]).reshape(count, _CELLS, _CELLS), size)


def _halves(count: int, size: tuple[int, int], _generator: np.random.Generator) -> Masks:
    """Cover halves, thirds and quarters: the most that a few answers can tell."""
    shown = []
    for rows, columns in ((2, 1), (1, 2), (2, 2), (3, 1), (1, 3), (3, 3)):
        for place in range(rows * columns):
            cells = np.ones((1, rows, columns), np.bool_)
            cells.flat[place] = False
            shown.append(_enlarged(cells, size))
    return np.concatenate(shown[:count])


def _pieces(count: int, size: tuple[int, int], _generator: np.random.Generator) -> Masks:
    """Show one small piece after the other, so that no two copies have anything in common."""
    return _enlarged(np.eye(_CELLS**2, dtype=np.bool_).reshape(-1, _CELLS, _CELLS)[:count], size)


def _signs(count: int, size: tuple[int, int], generator: np.random.Generator) -> Masks:
    """Draw a sign for every pixel, 1 or 0 for minus: what NES asks about."""
    return generator.integers(0, 2, (count, *size)).astype(np.float32)


def _enlarged(shown: NDArray[np.bool_], size: tuple[int, int]) -> Masks:
    """Return masks of the cells that are shown (copies, rows, columns)."""
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(size, shown.shape[1:], strict=True))
    return shown[:, rows[:, None], columns[None]].astype(np.float32)


MASKS: Final[dict[str, Callable[[int, tuple[int, int], np.random.Generator], Masks]]] = {
    "occlusion": _occlusion,
    "rise": _rise,
    "lime": _lime,
    "kernel_shap": _kernel_shap,
    "halves": _halves,
    "pieces": _pieces,
    "signs": _signs,
}
"""By name, from how many at most, height and width, and a generator to masks. All but `signs` cover; it adds."""
