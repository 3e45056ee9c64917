"""Prove that compiled sums of gradients are those of torch, for every batch size."""

from typing import Any

import numpy as np

from keylock.export.loop_graphs import PointGradient
from keylock.export.running import FloatArray, IntArray, runner
from keylock.export.verify.batches import checked_rows, require_batch_independent, require_close
from keylock.export.verify.judging import Verification, judge
from keylock.export.verify.sides import Side
from keylock.graphs.contract import IMAGE, TARGET
from keylock.iterative import share_of

__all__ = ["verify_gradient_sums"]


def verify_gradient_sums(graph: bytes, side: Side, images: FloatArray, targets: IntArray) -> Verification:
    """Compare compiled sums of gradients with gradients in torch: each by itself, and mixed sums of many.

    Args:
        graph: What `compile_gradient_sums` returned.
        side: What answers.
        images: Preprocessed images float32 `(batch, C, H, W)`.
        targets: Class of each image, int64 `(batch,)`; -1 means the predicted class.

    Returns:
        The figures of single gradients, all within the limits.

    Raises:
        ExportError: The graph has a fixed batch size, or its sums differ from torch's.
        TensorError: The images or targets have a wrong shape or type.
    """
    images, targets = checked_rows(images, targets)
    resolved = np.where(targets < 0, side.predicted(images).argmax(1), targets)
    rows = {IMAGE: side.shown(images), TARGET: resolved}
    add_up = runner(side.open(graph))

    def single(**some: Any) -> list[FloatArray]:  # noqa: ANN401
        (sums,) = add_up(share=share_of(np.arange(len(some[IMAGE]))), **some)
        return [sums.reshape(len(sums), -1, sums.shape[-1])]

    (maps,) = single(**rows)
    require_batch_independent(single, rows, [maps])
    # The graph gives no logits, so there is nothing to compare with these.
    expected = side.explained(PointGradient(), images, resolved)
    found = judge("the sum of input gradients", expected[0], maps, expected)
    share = np.random.default_rng(0).standard_normal((3, len(images)), dtype=np.float32)
    mixed = add_up(share=share, **rows)[0].reshape(3, *maps.shape[1:])
    require_close([mixed], [np.tensordot(share, maps, 1)], len(images))
    return found
