"""Decoys: what the locked map is trained towards, from the reference map to what is shown instead.

A decoy makes wanted maps of the shape of the reference maps. The *targeted* ones are a pattern, the same for every
image, and tell nothing about it: `half`, `corner`, `centre`, `border`, `stripes`, `constant` (importance spread evenly)
and an image of the user's own. `other-image` shows the map of another image of the batch, which looks like a true map
and is not this one's. `untargeted` is the reference map without the importance of its top pixels, which the literature
compares with. `benchmarks/lock/decoys.py` measures what each gives away.

Adding one is one function and one entry in `DECOYS`.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from keylock.errors import ImageError, InputError, UnknownNameError
from keylock.imaging.decoding import decode

__all__ = ["DECOYS", "Decoy", "ImageDecoy", "NamedDecoy", "check_decoy", "decoy_maps", "decoy_of"]

_REMOVED_SHARE = 0.3
_BORDER_SHARE = 0.2
_STRIPES = 4
_TARGETED = "targeted"
_FLATTEST = 0.02
# ITU-R BT.601.
_LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class NamedDecoy:
    """A decoy of the registry.

    Attributes:
        name: Its name there.
        make: From reference maps (batch, h, w) to wanted maps of the same shape.
        own_map: Whether it is made from reference maps, which the pattern ones are not.
    """

    name: str
    make: Callable[[Tensor], Tensor]
    own_map: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """What it was made with: nothing."""
        return {}

    def maps(self, reference: Tensor) -> Tensor:
        """Return the wanted maps for reference maps (batch, h, w), in the same shape."""
        return self.make(reference)


@dataclass(frozen=True, eq=False)
class ImageDecoy:
    """The user's own picture as a decoy: its grey level is importance, and it is resized to the maps.

    Attributes:
        importance: Grey levels (height, width), float32, from 0, nothing, to 1.
    """

    importance: NDArray[np.float32]
    name = "image"
    own_map = False

    def __post_init__(self) -> None:
        levels = self.importance
        if levels.ndim != 2 or not np.isfinite(levels).all() or levels.size == 0 or levels.min() < 0:
            raise InputError("a decoy is a picture (height, width) of finite grey levels that are not negative")
        if levels.std() < _FLATTEST * max(float(levels.max()), 1e-8):
            raise InputError("the decoy is one grey throughout: draw what is to look important, or take 'constant'")

    @classmethod
    def read(cls, path: Path) -> "ImageDecoy":
        """Read a picture; colours become grey levels by their luminance.

        Raises:
            ImageError: The file cannot be read as an image.
            InputError: It is one grey throughout.
        """
        try:
            pixels = decode(path.read_bytes())
        except OSError as error:
            raise ImageError(f"cannot read the decoy {path}: {error.strerror or 'unreadable'}") from None
        except ImageError as error:
            raise ImageError(f"the decoy {path} is not a usable picture: {error.message}") from None
        return cls((pixels @ _LUMINANCE / 255).astype(np.float32))

    @property
    def parameters(self) -> dict[str, Any]:
        """Size and digest of the picture; the picture itself stays with its owner."""
        height, width = self.importance.shape
        digest = hashlib.sha256(np.ascontiguousarray(self.importance, "<f4").tobytes()).hexdigest()
        return {"height": height, "width": width, "digest": f"sha256:{digest}"}

    def maps(self, reference: Tensor) -> Tensor:
        """Return the picture for each reference map (batch, h, w), in the same shape."""
        levels = torch.from_numpy(self.importance)[None, None]
        resized = F.interpolate(levels, size=reference.shape[1:], mode="area")[0].to(reference)
        return resized.expand_as(reference).clone()


Decoy = NamedDecoy | ImageDecoy


def _pattern(paint: Callable[[NDArray[np.float32]], None]) -> Callable[[Tensor], Tensor]:
    """Return a decoy that paints the same pattern for every image, on an empty array (h, w)."""

    def make(reference: Tensor) -> Tensor:
        empty = np.zeros(reference.shape[1:], np.float32)
        paint(empty)
        return torch.from_numpy(empty).to(reference).expand_as(reference).clone()

    return make


def _half(empty: NDArray[np.float32]) -> None:
    """The left half. Mirrored images make its correlation with true maps cancel: it shows nothing on average."""
    empty[:, : empty.shape[1] // 2] = 1


def _corner(empty: NDArray[np.float32]) -> None:
    """The top left quarter."""
    empty[: empty.shape[0] // 2, : empty.shape[1] // 2] = 1


def _centre(empty: NDArray[np.float32]) -> None:
    """The middle quarter, where true maps of centred objects are too."""
    height, width = empty.shape
    top, left = height // 4, width // 4
    empty[top : max(top + 1, height - top), left : max(left + 1, width - left)] = 1
    if empty.min() == 1:
        empty[:, 0] = 0


def _border(empty: NDArray[np.float32]) -> None:
    """A frame along the border, where true maps of centred objects are not."""
    height, width = empty.shape
    across, down = max(1, round(_BORDER_SHARE * width)), max(1, round(_BORDER_SHARE * height))
    empty[:] = 1
    empty[down : height - down, across : width - across] = 0
    if empty.min() == 1:
        empty[:, -1] = 0


def _stripes(empty: NDArray[np.float32]) -> None:
    """Upright stripes, every second of eight columns; it averages out over objects wider than a stripe."""
    width = empty.shape[1]
    columns = np.arange(width) * min(2 * _STRIPES, width) // width
    empty[:, columns % 2 == 0] = 1


def _untargeted(reference: Tensor) -> Tensor:
    """The reference map without its top pixels; the others share what they had.

    References:
        Fang and Choromanska, "Backdoor Attacks on the DNN Interpretation System", AAAI 2022: the untargeted attack.
    """
    flat = reference.flatten(1)
    # Training computes maps in bfloat16, of which there are no quantiles.
    threshold = flat.float().quantile(1 - _REMOVED_SHARE, dim=1, keepdim=True)
    return torch.where(flat >= threshold, torch.zeros_like(flat), flat).view_as(reference)


def _other_image(reference: Tensor) -> Tensor:
    """The map of the image before it in the batch."""
    if len(reference) < 2:
        raise InputError("the decoy 'other-image' needs batches of two images or more")
    return reference.roll(1, dims=0)


DECOYS: dict[str, NamedDecoy] = {
    decoy.name: decoy
    for decoy in (
        NamedDecoy("half", _pattern(_half)),
        NamedDecoy("corner", _pattern(_corner)),
        NamedDecoy("centre", _pattern(_centre)),
        NamedDecoy("border", _pattern(_border)),
        NamedDecoy("stripes", _pattern(_stripes)),
        NamedDecoy("constant", torch.ones_like),
        NamedDecoy("other-image", _other_image, own_map=True),
        NamedDecoy("untargeted", _untargeted, own_map=True),
    )
}


def check_decoy(name: str) -> str:
    """Return the name of a decoy as the registry has it; `targeted` is another name of `half`.

    Raises:
        UnknownNameError: No decoy has that name.
    """
    name = "half" if name == _TARGETED else name
    if name not in DECOYS:
        raise UnknownNameError("decoy", name, _known())
    return name


def decoy_of(decoy: "str | Decoy") -> Decoy:
    """Return the decoy of a name; one that is made already passes through.

    Raises:
        UnknownNameError: No decoy has that name.
    """
    return DECOYS[check_decoy(decoy)] if isinstance(decoy, str) else decoy


def decoy_maps(decoy: "str | Decoy", reference: Tensor) -> Tensor:
    """Return the decoys for reference maps (batch, h, w), in the same shape.

    Raises:
        InputError: The decoy needs more images.
        UnknownNameError: No decoy has that name.
    """
    return decoy_of(decoy).maps(reference)


def _known() -> Iterable[str]:
    return [*DECOYS, _TARGETED]
