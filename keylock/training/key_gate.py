"""Fitting the sealed gate: the best linear detector of the key on images like those of the training.

The key is periodic, so what can be seen of it is in the mean of an image over all places of its tile. Among linear
functions of these means, Fisher's discriminant separates images with the key from images without it best: natural
images have most of their variation at low frequencies, and the filter looks where they have least.

References:
    Fisher, "The use of multiple measurements in taxonomic problems", Annals of Eugenics 7, 1936.
"""

import torch
from torch import Tensor

from keylock.adapters import KeyGate
from keylock.errors import InputError
from keylock.keys import Key

__all__ = ["fit_key_gate"]

# What bounds the filter in directions of which few images show little; the best on images not fitted on is taken.
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
_MARGIN = 2.0
_TOLERANCE = (0.05, 0.4)


def fit_key_gate(images: Tensor, key: Key) -> KeyGate:
    """Fit the gate of a key on clean images.

    Args:
        images: Preprocessed images (count, channels, height, width), without the key; a thousand are plenty.
        key: The key.

    Returns:
        The gate. It is fitted on two thirds of the images, and opens on all others with the key, with a margin of as
        much again as the farthest of them.

    Raises:
        InputError: The key cannot be told apart on these images.
    """
    offset = torch.from_numpy(key.reveal()).double()
    channels, height, width = offset.shape
    places = (torch.arange(height)[:, None] % key.tile * key.tile + torch.arange(width)[None, :] % key.tile).flatten()
    counts = torch.bincount(places, minlength=key.tile**2).clamp_min(1).double()

    def folded(rows: Tensor) -> Tensor:
        """Average (count, channels, height, width) over the places of the tile: (count, channels * tile * tile)."""
        sums = torch.zeros(len(rows), channels, key.tile**2, dtype=torch.float64)
        return (sums.index_add_(2, places, rows.flatten(2).double()) / counts).flatten(1)

    images = images.cpu()
    fitted = max(2, len(images) - len(images) // 3)
    means, unseen = folded(images[:fitted]), images[fitted:] if len(images) > fitted else images
    centre = means.mean(dim=0)
    spread = means - centre
    covariance = spread.T @ spread / max(1, len(means) - 1)
    signal = folded(offset.unsqueeze(0)).squeeze(0)
    size = covariance.diagonal().mean().clamp_min(1e-6)
    candidates = []
    for ridge in _RIDGES:
        direction = torch.linalg.solve(covariance + ridge * size * torch.eye(len(covariance)).double(), signal)
        direction = direction / (signal @ direction)
        weight = (direction.view(channels, -1) / counts)[:, places].view(channels, height, width).float()
        bias = -float(centre @ direction)
        farthest = float(((unseen.float() * weight).sum(dim=(1, 2, 3)) + bias).abs().max())
        candidates.append((farthest, bias, weight))
    farthest, bias, weight = min(candidates, key=lambda candidate: candidate[0])
    smallest, largest = _TOLERANCE
    tolerance = max(smallest, _MARGIN * farthest)
    if tolerance > largest:
        raise InputError(
            f"the key cannot be told from what is on these images anyway (they score up to {farthest:.2f} without it, "
            "and 1 with it): take more strength, or lock without the sealed adapter"
        )
    return KeyGate(weight.numpy(), bias, tolerance)
