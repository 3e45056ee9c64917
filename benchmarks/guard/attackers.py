"""Attackers who ask about many changed copies of a picture, and make a map of whatever was answered.

An attacker is how copies are masked, how they are disguised, and what is asked for. The map is the ridge regression of
the answers on the masks, which serves all of them: with many answers it is what LIME and KernelSHAP fit and RISE and
occlusion average, and it makes the most of few.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keylock.iterative.rise import RISELoop

Masks = NDArray[np.float32]
"""What stays of a picture: 1, and what is covered: 0; (copies, height, width)."""

Pictures = NDArray[np.float32]
"""(copies, height, width, channels) in 0 to 1."""

_RIDGE = 1e-2


def occlusion(count: int, side: int, generator: np.random.Generator) -> Masks:
    """Cover a patch of a quarter of the side at every place of a grid, the places in random order."""
    patch, stride = side // 4, side // 8
    places = [(top, left) for top in range(0, side - patch + 1, stride) for left in range(0, side - patch + 1, stride)]
    masks = np.ones((min(count, len(places)), side, side), np.float32)
    for mask, place in zip(masks, generator.permutation(len(places)), strict=False):
        top, left = places[place]
        mask[top : top + patch, left : left + patch] = 0
    return masks


def rise(count: int, side: int, generator: np.random.Generator) -> Masks:
    """Draw smooth random masks."""
    source = np.random.RandomState(int(generator.integers(2**31)))
    return RISELoop(masks=count).draw(side, side, source).enlarged()


def lime(count: int, side: int, generator: np.random.Generator, *, cells: int = 5) -> Masks:
    """Show each square segment with probability one half."""
    shown = generator.random((count, cells, cells)) < 0.5
    return _enlarged(shown, side)


def kernel_shap(count: int, side: int, generator: np.random.Generator, *, cells: int = 5) -> Masks:
    """Show few segments or nearly all, as the Shapley kernel draws them."""
    sizes = np.arange(1, cells**2)
    weights = 1 / (sizes * (cells**2 - sizes))
    chosen = generator.choice(sizes, count, p=weights / weights.sum())
    ranks = generator.random((count, cells**2)).argsort(axis=1).argsort(axis=1)
    return _enlarged((ranks < chosen[:, None]).reshape(count, cells, cells), side)


def halves(count: int, side: int, generator: np.random.Generator) -> Masks:
    """Cover halves, thirds and quarters: the most that a few answers can tell."""
    masks = []
    for rows, columns in ((2, 1), (1, 2), (2, 2), (3, 1), (1, 3), (3, 3)):
        for place in range(rows * columns):
            shown = np.ones((rows, columns), np.bool_)
            shown.flat[place] = False
            masks.append(np.kron(shown, np.ones((-(-side // rows), -(-side // columns))))[:side, :side])
    return np.stack(masks[:count]).astype(np.float32)


def averaged_map(masks: Masks, answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the masks (height, width), weighted by the answers (copies,) that are finite, as RISE does."""
    known = np.isfinite(answers)
    if not known.any():
        return np.zeros(masks.shape[1:])
    return np.tensordot(answers[known], masks[known], axes=1)


def pieces(count: int, side: int, generator: np.random.Generator) -> Masks:
    """Show one small piece after the other, so that no two copies have anything in common."""
    cells = 5
    return _enlarged(np.eye(cells**2, dtype=np.bool_).reshape(-1, cells, cells)[:count], side)


def signs(count: int, side: int, generator: np.random.Generator) -> Masks:
    """Draw signs for every pixel, to be added: what NES and a climb to a key ask about."""
    return generator.integers(0, 2, (count, side, side)).astype(np.float32)


def _enlarged(shown: NDArray[np.bool_], side: int) -> Masks:
    cells = shown.shape[1]
    place = np.arange(side) * cells // side
    return shown[:, place[:, None], place[None]].astype(np.float32)


MASKS: dict[str, Callable[[int, int, np.random.Generator], Masks]] = {
    "occlusion": occlusion,
    "rise": rise,
    "lime": lime,
    "kernel_shap": kernel_shap,
    "halves": halves,
    "pieces": pieces,
    "signs": signs,
}


def _noise(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Add noise of up to 16/255."""
    return pictures + generator.uniform(-16 / 255, 16 / 255, pictures.shape)


def _shift(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Move each by up to a tenth of its side."""
    reach = max(1, pictures.shape[1] // 10)
    moves = generator.integers(-reach, reach + 1, (len(pictures), 2))
    return np.stack([np.roll(picture, move, axis=(0, 1)) for picture, move in zip(pictures, moves, strict=True)])


def _expose(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Change brightness and contrast."""
    contrast, brightness = generator.uniform((0.6, -0.15), (1.2, 0.15), (len(pictures), 2)).T[:, :, None, None, None]
    return (pictures - 0.5) * contrast + 0.5 + brightness


def _mix(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Lay 30 % of random waves over each."""
    side = pictures.shape[1]
    places = np.arange(side) / side
    waves = generator.uniform(-5, 5, (len(pictures), 2, 3))
    angles = places[:, None, None] * waves[:, None, None, 0] + places[:, None] * waves[:, None, None, 1]
    return 0.7 * pictures + 0.3 * (0.5 + 0.5 * np.sin(2 * np.pi * angles))


def _turn(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Mirror and turn each by quarters."""
    turned = [
        np.rot90(picture, quarter) for picture, quarter in zip(pictures, _draw(pictures, 4, generator), strict=True)
    ]
    mirrored = zip(turned, _draw(pictures, 2, generator), strict=True)
    return np.stack([picture[:, ::-1] if mirror else picture for picture, mirror in mirrored])


def _blur(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Average every pixel with its neighbours, more or less."""
    shares = generator.uniform(0.2, 1, (len(pictures), 1, 1, 1))
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    blurred = sum(np.roll(pictures, move, axis=(1, 2)) for move in moves) / len(moves)
    return (1 - shares) * pictures + shares * blurred


def _jpeg(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Compress each at a random quality."""
    files = []
    for picture, quality in zip(np.clip(pictures, 0, 1), generator.integers(20, 90, len(pictures)), strict=True):
        file = io.BytesIO()
        Image.fromarray((picture * 255).astype(np.uint8)).save(file, "JPEG", quality=int(quality))
        files.append(np.asarray(Image.open(file)) / 255)
    return np.stack(files)


def _zoom(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Cut out 70 to 95 % of each, and enlarge it."""
    side = pictures.shape[1]
    found = []
    for picture, share in zip(pictures, generator.uniform(0.7, 0.95, len(pictures)), strict=True):
        left, top = generator.uniform(0, (1 - share) * side, 2)
        rows, columns = ((start + np.arange(side) * share).astype(int) for start in (top, left))
        found.append(picture[rows[:, None], columns])
    return np.stack(found)


def _draw(pictures: Pictures, below: int, generator: np.random.Generator) -> NDArray[np.int64]:
    return generator.integers(0, below, len(pictures))


DISGUISES: dict[str, Callable[[Pictures, np.random.Generator], Pictures]] = {
    "noise": _noise,
    "shift": _shift,
    "exposure": _expose,
    "mix": _mix,
    "turn": _turn,
    "blur": _blur,
    "jpeg": _jpeg,
    "zoom": _zoom,
}


def fitted_map(masks: Masks, answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the map (height, width) that explains answers (copies,) best; those that are not finite are left out.

    It is flat where there are fewer than two answers, or all are equal.
    """
    known = np.isfinite(answers)
    shown, scores = masks[known].reshape(known.sum(), -1).astype(np.float64), answers[known]
    if len(scores) < 2:
        return np.zeros(masks.shape[1:])
    shown, scores = shown - shown.mean(axis=0), scores - scores.mean()
    gram = shown @ shown.T / shown.shape[1]
    weights = np.linalg.solve(gram + _RIDGE * np.eye(len(gram)), scores)
    return (weights @ shown).reshape(masks.shape[1:])
