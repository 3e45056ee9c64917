"""Prove that a compiled explainer computes what it computes in torch, for every batch size."""

import numpy as np

from keylock.explainers import Explainer
from keylock.export.running import FloatArray, IntArray, runner
from keylock.export.verify.batches import checked_rows, require_batch_independent, require_predicted_class, require_rows
from keylock.export.verify.judging import Verification, judge
from keylock.export.verify.sides import Side
from keylock.graphs.contract import IMAGE, TARGET

__all__ = ["explain_graph", "verify_graph"]


def verify_graph(graph: bytes, side: Side, explainer: Explainer, images: FloatArray, targets: IntArray) -> Verification:
    """Compare a compiled explainer with the explainer itself in torch.

    Args:
        graph: What `compile_explainer` returned.
        side: What answers.
        explainer: The explainer it was compiled from.
        images: Preprocessed images float32 `(batch, C, H, W)`, real ones: they decide what the figures mean.
        targets: Class of each image, int64 `(batch,)`; -1 means the predicted class.

    Returns:
        The figures, all within the limits.

    Raises:
        ExportError: The graph has a fixed batch size, answers differently for another batch size or for -1, or its
            maps correlate with torch's by less than .999 on average.
        TensorError: The images or targets have a wrong shape or type.
    """
    images, targets = checked_rows(images, targets)
    rows = {IMAGE: side.shown(images), TARGET: targets}
    run = runner(side.open(graph))
    logits, maps = run(**rows)
    # Each runtime rounds in its own way, so the predicted class is taken from the logits of the graph itself.
    resolved = np.where(targets < 0, logits.argmax(1), targets)
    require_batch_independent(run, rows, [logits, maps])
    require_predicted_class(run, rows, logits)
    return judge(f"the explainer {explainer.name!r}", logits, maps, side.explained(explainer, images, resolved))


def explain_graph(graph: bytes, side: Side, images: FloatArray) -> FloatArray:
    """Return the maps (batch, h, w) of a compiled explainer for the predicted classes.

    Args:
        graph: What `compile_explainer` returned, after `verify_graph` has accepted it, or a variant of it.
        side: What answers.
        images: Preprocessed images float32 `(batch, C, H, W)`.
    """
    targets = np.full(len(images), -1, dtype=np.int64)
    require_rows(images, targets)
    return runner(side.open(graph))(image=side.shown(images), target=targets)[1]
