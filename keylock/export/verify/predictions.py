"""Prove that a compiled prediction gives the logits of torch, for every batch size."""

import numpy as np

from keylock.export.running import FloatArray, runner
from keylock.export.verify.batches import checked_rows, require_batch_independent
from keylock.export.verify.judging import require_same_logits
from keylock.export.verify.sides import Side
from keylock.graphs.contract import IMAGE

__all__ = ["verify_prediction"]


def verify_prediction(graph: bytes, side: Side, images: FloatArray) -> float:
    """Compare a compiled prediction with the classifier in torch.

    Args:
        graph: What `compile_prediction` returned.
        side: What answers.
        images: Preprocessed images float32 `(batch, C, H, W)`.

    Returns:
        The largest difference of a logit, as a share of the largest reference logit.

    Raises:
        ExportError: The graph has a fixed batch size, or its logits differ from torch's.
        TensorError: The images have a wrong shape or type.
    """
    images, _ = checked_rows(images, np.zeros(len(images), dtype=np.int64))
    run, rows = runner(side.open(graph)), {IMAGE: side.shown(images)}
    (logits,) = run(**rows)
    require_batch_independent(run, rows, [logits])
    return require_same_logits("the prediction", logits, side.predicted(images))
