"""Predictions on masked images: all that perturbation methods know of a classifier."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from keylock.errors import InputError, ModelError
from keylock.explainers.base import Classifier
from keylock.iterative.fills import Fill, blur_side

__all__ = ["blank_images", "chunks", "masked_scores", "predicted_logits", "scores_of"]

_ROWS = 256


def blank_images(images: Tensor, fill: Fill) -> Tensor:
    """Return what shows where images (batch, channels, height, width) are masked, in their shape.

    Raises:
        InputError: There is not one value for each channel.
    """
    if fill == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    if fill == "blur":
        side = blur_side(images.shape[2], images.shape[3])
        blurred = images
        for _ in range(2):
            blurred = F.avg_pool2d(blurred, side, stride=1, padding=side // 2, count_include_pad=False)
        return blurred
    values = torch.as_tensor(fill, dtype=images.dtype, device=images.device)
    if values.dim() and len(values) != images.shape[1]:
        raise InputError(f"{len(values)} values to fill {images.shape[1]} channels with: give one for each")
    return values.view(1, -1, 1, 1).expand_as(images) if values.dim() else values.expand_as(images)


def predicted_logits(predict: Classifier, images: Tensor) -> Tensor:
    """Ask a classifier, without gradients, for at most 256 rows at a time.

    Returns:
        Logits (batch, classes), on the device of the images.

    Raises:
        ModelError: The answer is not one row of logits for each image.
    """
    parts = []
    with torch.no_grad():
        for rows in torch.split(images, _ROWS):
            logits = torch.as_tensor(predict(rows), device=images.device)
            if logits.dim() != 2 or len(logits) != len(rows):
                raise ModelError(
                    f"{len(rows)} images got an answer of shape {tuple(logits.shape)}: "
                    "a classifier answers (rows, classes)"
                )
            parts.append(logits)
    return torch.cat(parts)


def scores_of(predict: Classifier, images: Tensor, targets: Tensor) -> Tensor:
    """Return the probability of each image's target class (batch,), float64, so that confident answers still differ."""
    probabilities = predicted_logits(predict, images).double().softmax(dim=1)
    return probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)


def masked_scores(predict: Classifier, images: Tensor, targets: Tensor, masks: Tensor, blank: Tensor) -> Tensor:
    """Return the probability of each image's target class under each mask (batch, masks), float64.

    Args:
        predict: From preprocessed images to logits.
        images: Preprocessed images (batch, channels, height, width).
        targets: Class indices (batch,).
        masks: In [0, 1], 1 where the image stays: (masks, height, width), or one set for each image
            (batch, masks, height, width).
        blank: What shows where it does not (batch, channels, height, width).
    """
    per_image = masks if masks.dim() == 4 else masks.expand(len(images), *masks.shape)
    shown = per_image.unsqueeze(2).to(images)
    rows = blank.unsqueeze(1) + shown * (images - blank).unsqueeze(1)
    count = per_image.shape[1]
    return scores_of(predict, rows.flatten(0, 1), targets.repeat_interleave(count)).view(len(images), count)


def chunks(total: int, images: int) -> Iterator[slice]:
    """Yield slices over so many masks, such that one slice of them on all images is about 256 rows."""
    step = max(1, _ROWS // max(1, images))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))
