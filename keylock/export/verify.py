"""Prove that a compiled graph computes what torch computes, for every batch size.

The proof runs the graph in ONNX Runtime on given images, as one batch, alone and in pairs, with the classes asked for
and with -1 (the predicted class), and compares each map with the explainer's own in torch. A lock is proved from both
sides: its graphs with the published weights against the published network, and with the opened ones against the
reference.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from keylock.errors import ExportError, TensorError
from keylock.explainers import Explainer
from keylock.export.loop_graphs import PointGradient
from keylock.export.running import FloatArray, IntArray, Weights, open_graph, runner, sums_runner
from keylock.imaging.contrast import same_map
from keylock.iterative import Loop, run_loop, share_of
from keylock.models import added_to_inputs, arrays_of

__all__ = [
    "Side",
    "Verification",
    "explain_graph",
    "surest_images",
    "verify_gradient_sums",
    "verify_graph",
    "verify_loop",
    "verify_prediction",
]

MINIMUM_PCC = 0.999
"""Smallest mean correlation of compiled and reference maps."""

MINIMUM_PCC_OF_ONE_IMAGE = 0.95
"""Smallest correlation of any one map. Rounding can flip single ReLUs and max-pool choices, a wrong graph does more."""

MAXIMUM_LOGITS_DIFFERENCE = 1e-2
"""Largest difference of a logit, relative to the largest logit of the batch."""

OTHER_BATCHES = (1, 2)
"""Batch sizes a graph must answer alike for, beside the whole batch; the network was traced with yet another."""


@dataclass(frozen=True)
class Verification:
    """How closely a compiled graph follows its torch reference.

    Attributes:
        max_difference: Largest difference of a place of a map, as a share of the largest value of that reference map.
        pcc_mean: Mean over images of Pearson's correlation of compiled and reference map.
        pcc_minimum: The smallest of these correlations.
        max_logits_difference: Largest difference of a logit, as a share of the largest reference logit.
    """

    max_difference: float
    pcc_mean: float
    pcc_minimum: float
    max_logits_difference: float


@dataclass(frozen=True, eq=False)
class Side:
    """What answers one kind of rows of a lock: with the trigger on them, or without.

    Attributes:
        module: The classifier in torch whose answers are right; it is run in eval mode, and given back in the mode it
            was in.
        weights: What graphs are given; those of `module` where that is None.
        offset: The trigger (C, H, W), where the network itself tells it, added to everything that is run.
    """

    module: nn.Module
    weights: Weights | None = None
    offset: FloatArray | None = None

    def open(self, graph: bytes) -> Any:  # noqa: ANN401 - ONNX Runtime has no type stubs
        """Open a graph in ONNX Runtime with the weights."""
        return open_graph(graph, arrays_of(self.module) if self.weights is None else self.weights)

    def shown(self, images: FloatArray) -> FloatArray:
        """Return what the network is shown of images (batch, C, H, W)."""
        return images if self.offset is None else np.asarray(images + self.offset, np.float32)


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
    images, targets = _checked(images, targets)
    rows = {"image": side.shown(images), "target": targets}
    run = runner(side.open(graph))
    logits, maps = run(**rows)
    # Each runtime rounds in its own way, so the predicted class is taken from the logits of the graph itself.
    resolved = np.where(targets < 0, logits.argmax(1), targets)
    _require_batch_independent(run, rows, [logits, maps])
    _require_predicted_class(run, rows, logits)
    return _judge(f"the explainer {explainer.name!r}", logits, maps, _reference(side, explainer, images, resolved))


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
    add_up = sums_runner(session)

    def logits(rows: FloatArray, _of: IntArray) -> FloatArray:
        return predict(image=np.ascontiguousarray(side.shown(rows)))[0]

    def gradient_sums(rows: FloatArray, of: IntArray, classes: IntArray) -> FloatArray:
        return add_up(share_of(of), image=np.ascontiguousarray(side.shown(rows)), target=classes)

    found, maps = run_loop(explainer, images, targets, logits=logits, gradient_sums=gradient_sums)
    resolved = np.where(targets < 0, found.argmax(1), targets)
    what = f"the explainer {explainer.name!r}"
    return _judge(what, found, maps, _reference(side, explainer, images, resolved))


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
    images, targets = _checked(images, targets)
    resolved = np.where(targets < 0, _predicted(side, images).argmax(1), targets)
    rows = {"image": side.shown(images), "target": resolved}
    add_up = sums_runner(side.open(graph))

    def single(**some: Any) -> list[FloatArray]:  # noqa: ANN401
        sums = add_up(share_of(np.arange(len(some["image"]))), **some)
        return [sums.reshape(len(sums), -1, sums.shape[-1])]

    (maps,) = single(**rows)
    _require_batch_independent(single, rows, [maps])
    # The graph gives no logits, so there is nothing to compare with these.
    expected = _reference(side, PointGradient(), images, resolved)
    found = _judge("the sum of input gradients", expected[0], maps, expected)
    share = np.random.default_rng(0).standard_normal((3, len(images)), dtype=np.float32)
    mixed = add_up(share, **rows).reshape(3, *maps.shape[1:])
    _require_close([mixed], [np.tensordot(share, maps, 1)], len(images))
    return found


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
    images, _ = _checked(images, np.zeros(len(images), dtype=np.int64))
    run, rows = runner(side.open(graph)), {"image": side.shown(images)}
    (logits,) = run(**rows)
    _require_batch_independent(run, rows, [logits])
    return _require_same_logits("the prediction", logits, _predicted(side, images))


def explain_graph(graph: bytes, side: Side, images: FloatArray) -> FloatArray:
    """Return the maps (batch, h, w) of a compiled explainer for the predicted classes.

    Args:
        graph: What `compile_explainer` returned, after `verify_graph` has accepted it, or a variant of it.
        side: What answers.
        images: Preprocessed images float32 `(batch, C, H, W)`.
    """
    targets = np.full(len(images), -1, dtype=np.int64)
    _require_rows(images, targets)
    return runner(side.open(graph))(image=side.shown(images), target=targets)[1]


def surest_images(sides: tuple[Side, ...], images: FloatArray, *, count: int) -> FloatArray:
    """Return the images of which a lock is surest on every side, in their order.

    Their class stays where another runtime rounds in another way, and with it their map.

    Args:
        sides: What answers.
        images: Preprocessed images float32 `(batch, C, H, W)`.
        count: How many to return, at most.
    """
    margins = [np.diff(np.sort(_predicted(side, images), axis=1)[:, -2:], axis=1)[:, 0] for side in sides]
    chosen = np.argsort(-np.min(margins, axis=0), kind="stable")[:count]
    return images[np.sort(chosen)]


def _require_rows(images: FloatArray, targets: IntArray) -> None:
    if images.ndim != 4 or images.dtype != np.float32 or len(images) == 0:
        raise TensorError(
            f"images to verify on have shape {images.shape} and type {images.dtype}; "
            "give float32 (batch, channels, height, width) with at least one image"
        )
    if targets.shape != (len(images),) or targets.dtype != np.int64:
        raise TensorError(
            f"targets have shape {targets.shape} and type {targets.dtype}; give one int64 class for each image"
        )


def _checked(images: FloatArray, targets: IntArray) -> tuple[FloatArray, IntArray]:
    """Return the rows of a proof, as often as it needs them."""
    _require_rows(images, targets)
    # The proof needs a batch size that is none of the others it runs.
    repeats = -(-(max(OTHER_BATCHES) + 1) // len(images))
    return np.tile(images, (repeats, 1, 1, 1)), np.tile(targets, repeats)


def _require_batch_independent(
    run: Callable[..., list[FloatArray]], rows: dict[str, Any], answers: list[FloatArray]
) -> None:
    for count in OTHER_BATCHES:
        few = run(**{name: value[:count] for name, value in rows.items()})
        _require_close(few, [answer[:count] for answer in answers], count)


def _require_close(found: list[FloatArray], expected: list[FloatArray], count: int) -> None:
    """Check the answers for `count` images against those for the whole batch; kernels may differ by rounding."""
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or any(
            same_map(a, b) < MINIMUM_PCC_OF_ONE_IMAGE for a, b in zip(one, other, strict=True)
        ):
            raise ExportError(
                f"the compiled graph answers differently for a batch of {count}: the network or the explainer mixes "
                "the images of a batch; explain each image by itself"
            )


def _require_predicted_class(run: Callable[..., list[FloatArray]], rows: dict[str, Any], logits: FloatArray) -> None:
    """Check that target -1 gives the map of the class with the largest logit."""
    few, predicted = {name: value[:64] for name, value in rows.items()}, logits[:64].argmax(1)
    unset, named = (run(**few | {"target": target})[1] for target in (np.full(len(predicted), -1), predicted))
    if not np.allclose(unset, named, rtol=1e-3, atol=1e-6 * float(np.abs(named).max(initial=0))):
        raise ExportError("the compiled graph does not explain the predicted class where the target is -1")


def _reference(
    side: Side, explainer: Explainer, images: FloatArray, targets: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Explain in torch. A loop varies the image and not the trigger, which is added last."""
    logits, maps = [], []
    varies = isinstance(explainer, Loop) and side.offset is not None
    added = torch.from_numpy(side.offset) if varies and side.offset is not None else None
    shown = images if varies else side.shown(images)
    with _evaluating(side.module), added_to_inputs(side.module, added):
        for start in range(0, len(images), 64):
            batch = _to_torch(shown[start : start + 64], side.module)
            classes = torch.from_numpy(targets[start : start + 64]).to(batch.device)
            explained = explainer.explain(side.module, batch, classes)
            logits.append(explained.logits.detach().float().cpu().numpy())
            maps.append(explained.maps.detach().float().cpu().numpy())
    return np.concatenate(logits), np.concatenate(maps)


def _predicted(side: Side, images: FloatArray) -> FloatArray:
    with _evaluating(side.module), torch.no_grad():
        logits: FloatArray = side.module(_to_torch(side.shown(images), side.module)).float().cpu().numpy()
    return logits


def _to_torch(images: FloatArray, module: nn.Module) -> torch.Tensor:
    parameter = next(module.parameters(), torch.empty(0))
    return torch.from_numpy(images).to(parameter.device, parameter.dtype)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Run `module` in eval mode inside the block, and give every layer its own mode back."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def _judge(what: str, logits: FloatArray, maps: FloatArray, reference: tuple[FloatArray, FloatArray]) -> Verification:
    reference_logits, reference_maps = reference
    logits_difference = _require_same_logits(what, logits, reference_logits)
    if maps.shape != reference_maps.shape:
        raise ExportError(
            f"{what} gives maps of shape {maps.shape[1:]} compiled, but {reference_maps.shape[1:]} in torch"
        )
    pccs = [same_map(one, other) for one, other in zip(maps, reference_maps, strict=True)]
    mean, minimum = float(np.mean(pccs)), float(np.min(pccs))
    if mean < MINIMUM_PCC or minimum < MINIMUM_PCC_OF_ONE_IMAGE:
        raise ExportError(
            f"{what} compiled does not compute what it computes in torch: its maps correlate with {mean:.4f} "
            f"(smallest {minimum:.4f}; needed {MINIMUM_PCC} and {MINIMUM_PCC_OF_ONE_IMAGE}); run it with torch"
        )
    peaks = np.maximum(reference_maps.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
    difference = float((np.abs(maps - reference_maps) / peaks).max())
    return Verification(difference, mean, minimum, logits_difference)


def _require_same_logits(what: str, logits: FloatArray, reference: FloatArray) -> float:
    scale = max(float(np.abs(reference).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(logits - reference).max()) / scale if logits.shape == reference.shape else float("inf")
    if not difference <= MAXIMUM_LOGITS_DIFFERENCE:
        raise ExportError(
            f"{what} compiled does not compute what it computes in torch: its logits differ by {difference:.1e} of "
            f"their range (allowed: {MAXIMUM_LOGITS_DIFFERENCE:.0e}); run it with torch"
        )
    return difference
