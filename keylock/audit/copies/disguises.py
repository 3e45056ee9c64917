"""What attackers do to copies of a picture, so that nobody sees what they are copies of."""

import io
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["DISGUISES", "LEARNED", "Pictures"]

Pictures = NDArray[np.float32]
"""(copies, height, width, channels) in 0 to 1; a disguise may leave that range, and is clipped to it."""

_NOISE: Final = 16 / 255
_SHIFT: Final = 0.1
_MOST_NOISE, _MOST_SHIFT, _MOST_BLURS = 0.5, 0.5, 8


def _noise(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Add noise of up to 16/255."""
    return _with_noise(pictures, _NOISE, generator)


def _with_noise(pictures: Pictures, reach: float, generator: np.random.Generator) -> Pictures:
    noisy: Pictures = pictures + generator.uniform(-reach, reach, pictures.shape).astype(np.float32)
    return noisy


def _shift(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Move each by up to a tenth of its side."""
    return _moved(pictures, _SHIFT, generator)


def _moved(pictures: Pictures, share: float, generator: np.random.Generator) -> Pictures:
    reach = round(share * pictures.shape[1])
    moves = generator.integers(-reach, reach + 1, (len(pictures), 2))
    return np.stack([np.roll(picture, move, axis=(0, 1)) for picture, move in zip(pictures, moves, strict=True)])


def _expose(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Change brightness and contrast."""
    contrast, brightness = generator.uniform((0.6, -0.15), (1.2, 0.15), (len(pictures), 2)).T[:, :, None, None, None]
    exposed: Pictures = ((pictures - 0.5) * contrast + 0.5 + brightness).astype(np.float32)
    return exposed


def _mix(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Lay 30 % of random waves over each."""
    count, height, width, channels = pictures.shape
    waves = generator.uniform(-5, 5, (count, 2, channels))
    down, right = np.arange(height) / height, np.arange(width) / width
    angles = down[:, None, None] * waves[:, None, None, 0] + right[:, None] * waves[:, None, None, 1]
    mixed: Pictures = (0.7 * pictures + 0.3 * (0.5 + 0.5 * np.sin(2 * np.pi * angles))).astype(np.float32)
    return mixed


def _turn(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Mirror and turn each: by quarters where it is square, and upside down where it is not."""
    step = 1 if pictures.shape[1] == pictures.shape[2] else 2
    quarters, mirrored = generator.integers(0, 4, len(pictures)) // step * step, generator.random(len(pictures)) < 0.5
    turned = [np.rot90(picture, quarter) for picture, quarter in zip(pictures, quarters, strict=True)]
    return np.stack([one[:, ::-1] if mirror else one for one, mirror in zip(turned, mirrored, strict=True)])


def _blur(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Average every pixel with its neighbours, more or less."""
    return _blurred(pictures, generator.uniform(0.2, 1, (len(pictures), 1, 1, 1)))


def _blurred(pictures: Pictures, shares: NDArray[np.float64]) -> Pictures:
    total = np.zeros_like(pictures)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            total += np.roll(pictures, (down, right), axis=(1, 2))
    blurred: Pictures = ((1 - shares) * pictures + shares * total / 9).astype(np.float32)
    return blurred


def _jpeg(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Compress each at a random quality."""
    qualities = generator.integers(20, 90, len(pictures)).tolist()
    rows = (np.clip(pictures, 0, 1) * 255).astype(np.uint8)
    return np.stack([_compressed(row, quality) for row, quality in zip(rows, qualities, strict=True)])


def _compressed(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.float32]:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    found = np.asarray(Image.open(file)).reshape(pixels.shape) / np.float32(255)
    return found.astype(np.float32)


def _zoom(pictures: Pictures, generator: np.random.Generator) -> Pictures:
    """Cut out 70 to 95 % of each, and enlarge it."""
    sides = np.array(pictures.shape[1:3])
    found = []
    for picture, share in zip(pictures, generator.uniform(0.7, 0.95, len(pictures)), strict=True):
        starts = generator.uniform(0, (1 - share) * sides)
        rows, columns = (
            (start + np.arange(side) * share).astype(int) for start, side in zip(starts, sides, strict=True)
        )
        found.append(picture[rows[:, None], columns])
    return np.stack(found)


DISGUISES: Final[dict[str, Callable[[Pictures, np.random.Generator], Pictures]]] = {
    "noise": _noise,
    "shift": _shift,
    "exposure": _expose,
    "mix": _mix,
    "turn": _turn,
    "blur": _blur,
    "jpeg": _jpeg,
    "zoom": _zoom,
}
"""By name, how copies are changed at random."""


def _noise_of(pictures: Pictures, strength: float, generator: np.random.Generator) -> Pictures:
    """Add noise of up to half of the range."""
    return _with_noise(pictures, _MOST_NOISE * strength, generator)


def _shift_of(pictures: Pictures, strength: float, generator: np.random.Generator) -> Pictures:
    """Move each by up to half of its side."""
    return _moved(pictures, _MOST_SHIFT * strength, generator)


def _blur_of(pictures: Pictures, strength: float, _generator: np.random.Generator) -> Pictures:
    """Average with neighbours up to eight times."""
    times = _MOST_BLURS * strength
    for number in range(_MOST_BLURS):
        pictures = _blurred(pictures, np.clip(np.array(times - number), 0, 1))
    return pictures


LEARNED: Final[dict[str, Callable[[Pictures, float, np.random.Generator], Pictures]]] = {
    "noise": _noise_of,
    "shift": _shift_of,
    "blur": _blur_of,
}
"""By name, how copies are changed by as much as is wanted: from 0, hardly, to 1, beyond recognition."""
