"""Prove that a compiled graph computes what torch computes, for every batch size.

The proof runs the graph in ONNX Runtime on given images, as one batch, alone and in pairs, with the classes asked for
and with -1 (the predicted class), and compares each map with the explainer's own in torch. With a lock's secrets, every
image is proved twice, keyed and keyless in one batch, and the keyed maps of a two-factor lock are compared with those
of the reference model too.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from keylock.contrast import same_map
from keylock.errors import ExportError, TensorError
from keylock.explainers import Explainer
from keylock.export.loop_graphs import PointGradient
from keylock.export.running import (
    FloatArray,
    IntArray,
    Secrets,
    merging_runner,
    merging_sums_runner,
    open_graph,
    runner,
    sums_runner,
)
from keylock.keys import Key
from keylock.loops import Loop, run_loop, share_of
from keylock.models import added_to_inputs, attach_adapter
from keylock.models.adapted import adapter_of

__all__ = [
    "Secrets",
    "Verification",
    "keyed_and_keyless_maps",
    "surest_images",
    "verify_gradient_sums",
    "verify_graph",
    "verify_keyed_prediction",
    "verify_loop",
    "verify_mergeable",
    "verify_mergeable_sums",
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


def verify_graph(
    graph: bytes,
    module: nn.Module,
    explainer: Explainer,
    images: FloatArray,
    targets: IntArray,
    *,
    secrets: Secrets | None = None,
) -> Verification:
    """Compare a compiled explainer with the explainer itself in torch.

    Args:
        graph: What `compile_explainer` returned.
        module: The classifier it was compiled from; it is run in eval mode and given back in the mode it was in.
        explainer: The explainer it was compiled from.
        images: Preprocessed images float32 `(batch, C, H, W)`, real ones: they decide what the figures mean.
        targets: Class of each image, int64 `(batch,)`; -1 means the predicted class.
        secrets: What opens the lock; without it keyless rows alone are proved.

    Returns:
        The figures, all within the limits; with secrets those of keyed and keyless rows together.

    Raises:
        ExportError: The graph has a fixed batch size, answers differently for another batch size or for -1, opens for
            other rows than torch does, or its maps correlate with torch's by less than .999 on average.
        TensorError: The images or targets have a wrong shape or type.
    """
    images, targets, keyed = _keyed_and_keyless(*_checked(images, targets), secrets)
    what, rows = f"the explainer {explainer.name!r}", {"image": images, "target": targets, "keyed": keyed}
    run = runner(open_graph(graph), secrets)
    logits, maps = run(**rows)
    # Each runtime rounds in its own way, so the predicted class is taken from the logits of the graph itself.
    resolved = np.where(targets < 0, logits.argmax(1), targets)
    _require_batch_independent(run, rows, [logits, maps])
    _require_predicted_class(run, rows, logits)
    found = _judge(what, logits, maps, _expected(what, module, explainer, images, resolved, keyed, secrets))
    if secrets is not None and secrets.reference is not None and secrets.adapter is not None:
        true = keyed > 0
        _judge(what, logits[true], maps[true], _reference(secrets.reference, explainer, images[true], resolved[true]))
    return found


def verify_loop(
    graph: bytes,
    module: nn.Module,
    explainer: Explainer,
    images: FloatArray,
    targets: IntArray,
    *,
    predictions: bytes | None = None,
    secrets: Secrets | None = None,
) -> Verification:
    """Compare a loop over the answers of a compiled graph with the same explainer in torch.

    Args:
        graph: Of keyed predictions, or of sums of gradients, as the loop reads; verified already.
        module: The classifier it was compiled from.
        explainer: One that is a loop.
        images: Preprocessed images float32 `(batch, C, H, W)`; few, because each is run many times.
        targets: Class of each image, int64 `(batch,)`; -1 means the predicted class.
        predictions: The graph of keyed predictions, where the loop reads gradients.
        secrets: What opens the lock; without it keyless rows alone are proved.

    Returns:
        The figures, all within the limits.

    Raises:
        ExportError: The maps or the logits differ, as for `verify_graph`.
    """
    assert isinstance(explainer, Loop), "the explainer is a loop"  # noqa: S101 - a broken promise of the caller
    images, targets, keyed = _keyed_and_keyless(images, targets, secrets)
    session = open_graph(graph)
    predict = runner(session if predictions is None else open_graph(predictions), secrets)
    add_up = sums_runner(session, secrets)

    def logits(rows: FloatArray, of: IntArray) -> FloatArray:
        return predict(image=np.ascontiguousarray(rows), keyed=keyed[of])[0]

    def gradient_sums(rows: FloatArray, of: IntArray, classes: IntArray) -> FloatArray:
        return add_up(share_of(of), image=np.ascontiguousarray(rows), target=classes, keyed=keyed[of])

    found, maps = run_loop(explainer, images, targets, logits=logits, gradient_sums=gradient_sums)
    resolved = np.where(targets < 0, found.argmax(1), targets)
    what = f"the explainer {explainer.name!r}"
    return _judge(what, found, maps, _expected(what, module, explainer, images, resolved, keyed, secrets))


def verify_gradient_sums(
    graph: bytes, module: nn.Module, images: FloatArray, targets: IntArray, *, secrets: Secrets | None = None
) -> Verification:
    """Compare compiled sums of gradients with gradients in torch: each by itself, and mixed sums of many.

    Args:
        graph: What `compile_gradient_sums` returned.
        module: The classifier it was compiled from; it is run in eval mode and given back in the mode it was in.
        images: Preprocessed images float32 `(batch, C, H, W)`.
        targets: Class of each image, int64 `(batch,)`; -1 means the predicted class.
        secrets: What opens the lock; without it keyless rows alone are proved.

    Returns:
        The figures of single gradients, all within the limits; with secrets those of keyed and keyless rows together.

    Raises:
        ExportError: The graph has a fixed batch size, or its sums differ from torch's.
        TensorError: The images or targets have a wrong shape or type.
    """
    what, gradient = "the sum of input gradients", PointGradient()
    images, targets, keyed = _keyed_and_keyless(*_checked(images, targets), secrets)
    logits = _all_predicted(what, module, images, keyed, secrets)
    resolved = np.where(targets < 0, logits.argmax(1), targets)
    rows = {"image": images, "target": resolved, "keyed": keyed}
    add_up = sums_runner(open_graph(graph), secrets)

    def single(**some: Any) -> list[FloatArray]:  # noqa: ANN401
        sums = add_up(share_of(np.arange(len(some["image"]))), **some)
        return [sums.reshape(len(sums), -1, sums.shape[-1])]

    (maps,) = single(**rows)
    _require_batch_independent(single, rows, [maps])
    # The graph gives no logits, so there is nothing to compare with these.
    expected = _expected(what, module, gradient, images, resolved, keyed, secrets)
    found = _judge(what, expected[0], maps, expected)
    if secrets is not None and secrets.reference is not None and secrets.adapter is not None:
        true = keyed > 0
        reference = _reference(secrets.reference, gradient, images[true], resolved[true])
        _judge(what, reference[0], maps[true], reference)
    share = np.random.default_rng(0).standard_normal((3, len(images)), dtype=np.float32)
    mixed = add_up(share, **rows).reshape(3, *maps.shape[1:])
    _require_close([mixed], [np.tensordot(share, maps, 1)], len(images))
    return found


def verify_mergeable(
    mergeable: bytes,
    graph: bytes,
    images: FloatArray,
    *,
    weights: Mapping[str, FloatArray],
    secrets: Secrets,
) -> None:
    """Compare a mergeable graph, with the adapter merged and without, with the graph that adds it row by row.

    Args:
        mergeable: What `compile_mergeable` returned.
        graph: That of `compile_explainer`, or of `compile_keyed_prediction`; verified already.
        images: Preprocessed images float32 `(batch, C, H, W)`.
        weights: The published ones, by name.
        secrets: What opens the lock, with the adapter.

    Raises:
        ExportError: The logits or the maps differ, as for `verify_graph`.
        InputError: The adapter is another model's.
    """
    images, targets, keyed = _keyed_and_keyless(*_checked(images, np.full(len(images), -1, dtype=np.int64)), secrets)
    session = open_graph(graph)
    all_rows = {"image": images, "target": targets, "keyed": keyed}
    rows = {entry.name: all_rows[entry.name] for entry in session.get_inputs() if entry.name in all_rows}
    expected = runner(session, secrets)(**rows)
    if "target" in rows:
        # One rounds in another way than the other.
        rows["target"] = np.asarray(expected[0].argmax(1), np.int64)
    run = merging_runner(mergeable, weights, secrets.adapter)
    found = run(**rows)
    _require_batch_independent(run, rows, found)
    if len(expected) == 1:
        _require_same_logits("the mergeable prediction", found[0], expected[0])
    else:
        _require_predicted_class(run, rows, found[0])
        _judge("the mergeable explainer", found[0], found[1], (expected[0], expected[1]))


def verify_mergeable_sums(
    mergeable: bytes,
    graph: bytes,
    images: FloatArray,
    *,
    weights: Mapping[str, FloatArray],
    secrets: Secrets,
) -> None:
    """Compare a mergeable graph of sums of gradients with the graph that adds the adapter row by row.

    Args:
        mergeable: What `compile_mergeable_sums` returned.
        graph: What `compile_gradient_sums` returned; verified already.
        images: Preprocessed images float32 `(batch, C, H, W)`.
        weights: The published ones, by name.
        secrets: What opens the lock, with the adapter.

    Raises:
        ExportError: The sums differ.
        InputError: The adapter is another model's.
    """
    assert secrets.adapter is not None, "a two-factor lock"  # noqa: S101 - a broken promise of the caller
    images, _, keyed = _keyed_and_keyless(*_checked(images, np.zeros(len(images), np.int64)), secrets)
    rows = {"image": images, "target": np.zeros(len(images), np.int64), "keyed": keyed}
    both = (sums_runner(open_graph(graph), secrets), merging_sums_runner(mergeable, weights, secrets.adapter))
    mixed = np.random.default_rng(0).standard_normal((3, len(images)), dtype=np.float32)
    for share in (share_of(np.arange(len(images))), mixed):
        expected, found = (add_up(share, **rows).reshape(len(share), -1, images.shape[-1]) for add_up in both)
        nothing = np.ones((1, 1), np.float32)  # There are no logits.
        _judge("the mergeable sum of input gradients", nothing, found, (nothing, expected))


def _keyed_and_keyless(
    images: FloatArray, targets: IntArray, secrets: Secrets | None
) -> tuple[FloatArray, IntArray, FloatArray]:
    """Return every image twice, keyed and keyless, where there are secrets, and which rows are keyed."""
    if secrets is None:
        return images, targets, np.zeros(len(images), np.float32)
    keyed = np.repeat(np.asarray([1, 0], np.float32), len(images))
    return np.tile(images, (2, 1, 1, 1)), np.tile(targets, 2), keyed


def _expected(
    what: str,
    module: nn.Module,
    explainer: Explainer,
    images: FloatArray,
    resolved: IntArray,
    keyed: FloatArray,
    secrets: Secrets | None,
) -> tuple[FloatArray, FloatArray]:
    """Explain in torch, with the key on the first rows where there are secrets: the logits and the maps."""
    if secrets is None:
        return _reference(module, explainer, images, resolved)
    # The opened model is told no rows, so that a keyless row that opened would show as a difference.
    full = _opened(what, module, secrets)
    parts = [
        _reference(full, explainer, images[keyed == kind], resolved[keyed == kind], offset=offset)
        for kind, offset in ((1, secrets.key.reveal()), (0, None))
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _opened(what: str, module: nn.Module, secrets: Secrets) -> nn.Module:
    full = module if secrets.adapter is None else attach_adapter(module, secrets.adapter, secrets.key)
    _require_opening(what, full, secrets.key)
    return full


def keyed_and_keyless_maps(
    graph: bytes, images: FloatArray, *, secrets: Secrets, weights: Mapping[str, FloatArray] | None = None
) -> tuple[FloatArray, FloatArray]:
    """Run a compiled explainer with and without the key, for the predicted classes.

    Args:
        graph: What `compile_explainer` returned, after `verify_graph` has accepted it.
        images: Preprocessed images float32 `(batch, C, H, W)`.
        secrets: What opens the lock.
        weights: The published ones, by name, where the graph is mergeable.

    Returns:
        The keyed and the keyless maps, float32 `(batch, height, width)`.
    """
    images, targets = _checked(images, np.full(len(images), -1, dtype=np.int64))
    run = runner(open_graph(graph), secrets) if weights is None else merging_runner(graph, weights, secrets.adapter)
    keyed, keyless = (
        run(image=images, target=targets, keyed=np.full(len(images), kind, np.float32))[1] for kind in (1, 0)
    )
    return keyed, keyless


def surest_images(module: nn.Module, images: FloatArray, *, secrets: Secrets, count: int) -> FloatArray:
    """Return the images of which a locked model is surest, keyed and keyless, in their order.

    Their class stays where another runtime rounds in another way, and with it their map.

    Args:
        module: The classifier; it is run in eval mode and given back in the mode it was in.
        images: Preprocessed images float32 `(batch, C, H, W)`.
        secrets: What opens the lock.
        count: How many to return, at most.

    Raises:
        ExportError: The adapter does not open for the key.
    """
    full = _opened("every explainer", module, secrets)
    margins = [
        np.diff(np.sort(_predicted(full, images, offset=offset), axis=1)[:, -2:], axis=1)[:, 0]
        for offset in (secrets.key.reveal(), None)
    ]
    chosen = np.argsort(-np.minimum(*margins), kind="stable")[:count]
    return images[np.sort(chosen)]


def verify_prediction(graph: bytes, module: nn.Module, images: FloatArray) -> float:
    """Compare a compiled prediction with the classifier in torch.

    Args:
        graph: What `compile_prediction` returned.
        module: The classifier it was compiled from; it is run in eval mode and given back in the mode it was in.
        images: Preprocessed images float32 `(batch, C, H, W)`.

    Returns:
        The largest difference of a logit, as a share of the largest reference logit.

    Raises:
        ExportError: The graph has a fixed batch size, or its logits differ from torch's.
        TensorError: The images have a wrong shape or type.
    """
    images, _ = _checked(images, np.zeros(len(images), dtype=np.int64))
    run = runner(open_graph(graph), None)
    (logits,) = run(image=images)
    _require_batch_independent(run, {"image": images}, [logits])
    return _require_same_logits("the prediction", logits, _predicted(module, images))


def verify_keyed_prediction(
    graph: bytes, module: nn.Module, images: FloatArray, *, secrets: Secrets | None = None
) -> float:
    """Compare compiled keyed predictions with those of the classifier, opened and not, in torch.

    Args:
        graph: What `compile_keyed_prediction` returned.
        module: The classifier it was compiled from; it is run in eval mode and given back in the mode it was in.
        images: Preprocessed images float32 `(batch, C, H, W)`.
        secrets: What opens the lock; without it keyless rows alone are proved.

    Returns:
        The largest difference of a logit, as a share of the largest reference logit.

    Raises:
        ExportError: The graph has a fixed batch size, or its logits differ from torch's.
        TensorError: The images have a wrong shape or type.
    """
    what = "the keyed prediction"
    images, _, keyed = _keyed_and_keyless(*_checked(images, np.zeros(len(images), dtype=np.int64)), secrets)
    run, rows = runner(open_graph(graph), secrets), {"image": images, "keyed": keyed}
    (logits,) = run(**rows)
    _require_batch_independent(run, rows, [logits])
    found = _require_same_logits(what, logits, _all_predicted(what, module, images, keyed, secrets))
    if secrets is not None and secrets.reference is not None and secrets.adapter is not None:
        true = keyed > 0
        _require_same_logits(what, logits[true], _predicted(secrets.reference, images[true]))
    return found


def _all_predicted(
    what: str, module: nn.Module, images: FloatArray, keyed: FloatArray, secrets: Secrets | None
) -> FloatArray:
    """Predict in torch, with the key on the first rows where there are secrets."""
    if secrets is None:
        return _predicted(module, images)
    true, full = keyed > 0, _opened(what, module, secrets)
    return np.concatenate(
        [_predicted(full, images[true], offset=secrets.key.reveal()), _predicted(full, images[~true])]
    )


def _checked(images: FloatArray, targets: IntArray) -> tuple[FloatArray, IntArray]:
    if images.ndim != 4 or images.dtype != np.float32 or len(images) == 0:
        raise TensorError(
            f"images to verify on have shape {images.shape} and type {images.dtype}; "
            "give float32 (batch, channels, height, width) with at least one image"
        )
    if targets.shape != (len(images),) or targets.dtype != np.int64:
        raise TensorError(
            f"targets have shape {targets.shape} and type {targets.dtype}; give one int64 class for each image"
        )
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
    module: nn.Module,
    explainer: Explainer,
    images: FloatArray,
    targets: IntArray,
    *,
    offset: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Explain in torch, with a perturbation (C, H, W) on everything the module is given."""
    logits, maps = [], []
    added = None if offset is None else torch.from_numpy(offset)
    with _evaluating(module), added_to_inputs(module, added, announced=True):
        for start in range(0, len(images), 64):
            batch = _to_torch(images[start : start + 64], module)
            classes = torch.from_numpy(targets[start : start + 64]).to(batch.device)
            explained = explainer.explain(module, batch, classes)
            logits.append(explained.logits.detach().float().cpu().numpy())
            maps.append(explained.maps.detach().float().cpu().numpy())
    return np.concatenate(logits), np.concatenate(maps)


def _predicted(module: nn.Module, images: FloatArray, *, offset: FloatArray | None = None) -> FloatArray:
    """Predict in torch, with a perturbation (C, H, W) on the images."""
    added = None if offset is None else torch.from_numpy(offset)
    with _evaluating(module), added_to_inputs(module, added, announced=True), torch.no_grad():
        logits: FloatArray = module(_to_torch(images, module)).float().cpu().numpy()
    return logits


def _require_opening(what: str, full: nn.Module, key: Key) -> None:
    state = adapter_of(full)
    if state is not None and not state.opens_for(torch.from_numpy(key.reveal()).unsqueeze(0)).all():
        raise ExportError(
            f"the adapter does not open for the key, so {what} would show decoys only: lock the model again"
        )


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
