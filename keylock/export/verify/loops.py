"""Prove that an iterative explainer over the answers of graphs shows what it shows in torch, for every batch size."""

import numpy as np

from keylock.explainers import Explainer
from keylock.export.running import FloatArray, IntArray, runner
from keylock.export.verify.judging import Verification, judge
from keylock.export.verify.sides import Side
from keylock.iterative import Loop, run_loop, share_of

__all__ = ["verify_loop"]


def verify_loop(
    graph: bytes,
    side: Side,
    explainer: Explainer,
    images: FloatArray,
    targets: IntArray,
    *,
    predictions: bytes | None = None,
) -> Verification:
    """Compare a loop over the answers of a compiled graph with the same explainer in torch.

    Args:
        graph: Of predictions, or of sums of gradients, as the loop reads; verified already.
        side: What answers.
        explainer: One that is a loop.
        images: Preprocessed images float32 `(batch, C, H, W)`; few, because each is run many times.
        targets: Class of each image, int64 `(batch,)`; -1 means the predicted class.
        predictions: The graph of predictions, where the loop reads gradients.

    Returns:
        The figures, all within the limits.

    Raises:
        ExportError: The maps or the logits differ, as for `verify_graph`.
    """
    assert isinstance(explainer, Loop), "the explainer is a loop"  # noqa: S101 - a broken promise of the caller
    session = side.open(graph)
    predict = runner(session if predictions is None else side.open(predictions))
    add_up = runner(session)

    def logits(rows: FloatArray, _of: IntArray) -> FloatArray:
        return predict(image=np.ascontiguousarray(side.shown(rows)))[0]

    def gradient_sums(rows: FloatArray, of: IntArray, classes: IntArray) -> FloatArray:
        return add_up(share=share_of(of), image=np.ascontiguousarray(side.shown(rows)), target=classes)[0]

    found, maps = run_loop(explainer, images, targets, logits=logits, gradient_sums=gradient_sums)
    resolved = np.where(targets < 0, found.argmax(1), targets)
    what = f"the explainer {explainer.name!r}"
    return judge(what, found, maps, side.explained(explainer, images, resolved))
