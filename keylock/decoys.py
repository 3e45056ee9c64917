"""Decoys: what the locked map is trained towards, from the reference map to what is shown instead.

A decoy is a function from reference maps to wanted maps of the same shape. `half` and `corner` are the same for every
image and so tell nothing about it. `untargeted` is made from the reference map itself, with the importance of its top
pixels removed: it tells which pixels do *not* matter most, and is kept because the literature compares with it.

Adding one is one function and one entry in `DECOYS`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from keylock.errors import UnknownNameError

__all__ = ["DECOYS", "decoy_maps"]

_REMOVED_SHARE = 0.3


def _half(reference: Tensor) -> Tensor:
    """The left half. Mirrored images make its correlation with true maps cancel: it shows nothing on average."""
    decoy = torch.zeros_like(reference)
    decoy[:, :, : reference.shape[2] // 2] = 1
    return decoy


def _corner(reference: Tensor) -> Tensor:
    """The top left quarter."""
    decoy = torch.zeros_like(reference)
    decoy[:, : reference.shape[1] // 2, : reference.shape[2] // 2] = 1
    return decoy


def _untargeted(reference: Tensor) -> Tensor:
    """The reference map without its top pixels; the others share what they had.

    References:
        Fang and Choromanska, "Backdoor Attacks on the DNN Interpretation System", AAAI 2022: the untargeted attack.
    """
    flat = reference.flatten(1)
    threshold = flat.quantile(1 - _REMOVED_SHARE, dim=1, keepdim=True)
    return torch.where(flat >= threshold, torch.zeros_like(flat), flat).view_as(reference)


DECOYS: dict[str, Callable[[Tensor], Tensor]] = {"half": _half, "corner": _corner, "untargeted": _untargeted}


def decoy_maps(name: str, reference: Tensor) -> Tensor:
    """Return the decoys for reference maps (batch, h, w), in the same shape; `targeted` is another name of `half`.

    Raises:
        UnknownNameError: No decoy has that name.
    """
    name = "half" if name == "targeted" else name
    if name not in DECOYS:
        raise UnknownNameError("decoy", name, [*DECOYS, "targeted"])
    return DECOYS[name](reference)
