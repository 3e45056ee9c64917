"""T0: true maps sought in the keyless answers themselves, by averaging them or asking for other classes."""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from keylock.audit.budgets import Budget
from keylock.audit.contract import ALL_SUITES, LONG_SUITES, Cost, Knowledge, Outcome, Steps, attack
from keylock.audit.views import PublicView

__all__ = ["TRANSFORMS"]

_NOISE = 0.15
_LARGEST_SHIFT = 3
_QUALITIES = (95, 85, 70, 50)
_BLURS = (3, 5)
_SHARES = (1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1)
_SIZES = (0.5, 0.75, 0.9, 1.5)
_QUICK = {"noise", "flip", "jpeg"}

Undo = Callable[[Tensor], Tensor]
Transform = Callable[[Tensor, int, torch.Generator], tuple[Tensor, Undo]]
"""From images, the number of the copy and a generator to changed images, and what brings their maps back in place."""


def _same(maps: Tensor) -> Tensor:
    return maps


def _noise(images: Tensor, _copy: int, generator: torch.Generator) -> tuple[Tensor, Undo]:
    """Add noise of 15 % of the images' range.

    References:
        Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, section 3.
    """
    spread = _NOISE * (images.amax() - images.amin())
    return images + spread * torch.randn(images.shape, generator=generator).to(images), _same


def _flip(images: Tensor, copy: int, _generator: torch.Generator) -> tuple[Tensor, Undo]:
    if copy % 2 == 0:
        return images, _same
    return images.flip(3), lambda maps: maps.flip(2)


def _shift(images: Tensor, _copy: int, generator: torch.Generator) -> tuple[Tensor, Undo]:
    reach = _LARGEST_SHIFT
    down, right = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    moved = padded[:, :, reach + down : reach + down + height, reach + right : reach + right + width]

    def undo(maps: Tensor) -> Tensor:
        large = F.interpolate(maps.unsqueeze(1), size=(height, width), mode="bilinear")
        back = large.roll((down, right), dims=(2, 3))
        return F.adaptive_avg_pool2d(back, (maps.shape[1], maps.shape[2])).squeeze(1)

    return moved, undo


def _jpeg(images: Tensor, copy: int, _generator: torch.Generator) -> tuple[Tensor, Undo]:
    """Compress and decompress; the range of all images stands for that of pixels."""
    low, high = images.amin(), images.amax()
    scaled = (images - low) / (high - low)
    pixels = (scaled * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = [_compressed(image, _QUALITIES[copy % len(_QUALITIES)]) for image in pixels]
    back = torch.from_numpy(np.stack(rows)).to(images).permute(0, 3, 1, 2)
    return back / 255 * (high - low) + low, _same


def _compressed(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Return an image (height, width, 1 or 3) as it comes out of JPEG, in its shape."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).reshape(image.shape)


def _blur(images: Tensor, copy: int, _generator: torch.Generator) -> tuple[Tensor, Undo]:
    side, share = _BLURS[copy % len(_BLURS)], _SHARES[copy // len(_BLURS) % len(_SHARES)]
    blurred = F.avg_pool2d(images, side, stride=1, padding=side // 2, count_include_pad=False)
    return images + share * (blurred - images), _same


def _resize(images: Tensor, copy: int, _generator: torch.Generator) -> tuple[Tensor, Undo]:
    size = (images.shape[2], images.shape[3])
    changed = F.interpolate(images, scale_factor=_SIZES[copy % len(_SIZES)], mode="bilinear", antialias=True)
    return F.interpolate(changed, size=size, mode="bilinear", antialias=True), _same


TRANSFORMS: dict[str, tuple[str, Transform]] = {
    "noise": ("noisy copies", _noise),
    "flip": ("the image and its mirror image", _flip),
    "shift": ("shifted copies", _shift),
    "jpeg": ("copies compressed as JPEG", _jpeg),
    "blur": ("blurred copies", _blur),
    "resize": ("copies made smaller or larger, and brought back", _resize),
}
"""Name to what is averaged over, and how it is made."""


def _average(
    transform: Transform, view: PublicView, budget: Budget, generator: torch.Generator, steps: Steps
) -> Outcome:
    copies: dict[str, list[Tensor]] = {name: [] for name in view.oracle.names}
    for copy in steps(2 if transform is _flip else budget.copies):
        changed, undo = transform(view.images, copy, generator)
        for name, maps in view.oracle.explain_all(changed).items():
            copies[name].append(_unit(undo(maps)))
    averages = {name: torch.stack(found).nanmean(dim=0) for name, found in copies.items()}
    return Outcome(maps=averages, cost=Cost(queries=view.oracle.queries))


def _unit(maps: Tensor) -> Tensor:
    """Scale each map to a mean of 1, so that no copy outweighs the others."""
    return maps / maps.abs().mean(dim=(1, 2), keepdim=True).clamp_min(1e-12)


for _name, (_what, _transform) in TRANSFORMS.items():
    attack(
        f"average/{_name}",
        Knowledge.T0,
        f"Average the keyless maps of {_what}.",
        suites=ALL_SUITES if _name in _QUICK else LONG_SUITES,
    )(partial(_average, _transform))


@attack("keyless", Knowledge.T0, "Take the keyless maps for true ones.")
def keyless(view: PublicView, _budget: Budget, _generator: torch.Generator, _steps: Steps) -> Outcome:
    """Return the keyless maps: what every other attack has to beat."""
    return Outcome(maps=view.oracle.explain_all(view.images), cost=Cost(queries=view.oracle.queries))


@attack("other_classes", Knowledge.T0, "Ask for other classes' maps, and subtract them.")
def other_classes(view: PublicView, budget: Budget, _generator: torch.Generator, steps: Steps) -> Outcome:
    """Return guesses for every explainer: the runner-up's map, and the predicted class's without what others share.

    A lock that was trained for the predicted class alone shows the truth for the others. A decoy that is the same for
    all classes cancels out, and what is left is how the true maps differ.
    """
    order = view.oracle.predict(view.images).argsort(dim=1, descending=True)
    asked = [None, *(order[:, place] for place in range(1, min(1 + budget.other_classes, order.shape[1])))]
    answers = [view.oracle.explain_all(view.images, asked[step]) for step in steps(len(asked))]
    found = dict[str, Tensor]()
    for name in view.oracle.names:
        own, *rest = (_unit(answer[name]) for answer in answers)
        others = torch.stack(rest)
        found[f"{name}: second class"] = others[0]
        found[f"{name}: less others"] = own - others.mean(dim=0)
        found[f"{name}: less largest other"] = own - others.amax(dim=0)
        found[f"{name}: softmax"] = torch.cat([own.unsqueeze(0), others]).softmax(dim=0)[0]
    return Outcome(maps=found, cost=Cost(queries=view.oracle.queries))
