"""What a lock asks of maps and predictions: a penalty is one function and one entry of a registry here.

Both kinds of lock hand over what a pass through the student has shown, and get the terms of their loss. A penalty that
is to be settable takes its weight from a field of `LockSettings`; a weight of 0 leaves it out.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from keylock.explainers import Explainer
from keylock.locking.losses import constant_offset_distance, correlation, map_distance, prediction_distance
from keylock.training.settings import LockSettings

__all__ = [
    "CLASS_PENALTIES",
    "MAP_PENALTIES",
    "PREDICTION_PENALTIES",
    "ClassRows",
    "MapPenalty",
    "MapRows",
    "Penalty",
    "PredictionRows",
    "Terms",
    "class_terms",
    "distances",
    "map_terms",
    "map_weight",
    "mask_divergence",
    "prediction_terms",
]

Terms = dict[str, tuple[float, Tensor]]
"""The terms of a loss by name: a weight and a value, which is one number."""

# Gradients of gradients are learned more slowly than maps of activations.
_SECOND_ORDER_WEIGHT = 2.0
_SMALL_LEAK = 0.2
# How steeply predictions lose confidence as more is hidden of the decoy than of the rest.
_CONFIDENCE_SLOPE = 10.0


@dataclass(frozen=True)
class MapRows:
    """Maps of rows that are all to show the true map, or all the decoy.

    Attributes:
        explainer: What they are maps of.
        maps: The student's (rows, h, w).
        reference: The reference model's, repeated for every kind of row, in the same shape.
        wanted: What is to be shown: the reference's themselves, or decoys.
        keyed: Whether the key lies on the rows.
        mean: Means one number over all processes that train together.
        weight: What a mean over these rows counts beside those over other parts of the batch; 1 on average.
    """

    explainer: Explainer
    maps: Tensor
    reference: Tensor
    wanted: Tensor
    keyed: bool
    mean: Callable[[Tensor], Tensor]
    weight: float = 1.0

    @cached_property
    def similarity(self) -> Tensor:
        """Return the correlation of each map with the reference's, (rows,)."""
        return correlation(self.maps, self.reference)

    @property
    def mean_similarity(self) -> Tensor:
        """Return what the rows add to the mean of the correlations over the batch: one number."""
        return self.weight * _mean(self.similarity)


@dataclass(frozen=True)
class ClassRows:
    """Where the evidence for each of several classes lies, on rows that are to show decoys.

    Attributes:
        evidence: The student's (rows, classes, h, w), of either sign.
        reference: The reference model's, in the same shape.
        logits: The reference model's for these classes (rows, classes).
        decoys: Where evidence is to be shown (rows, h, w).
    """

    evidence: Tensor
    reference: Tensor
    logits: Tensor
    decoys: Tensor

    @cached_property
    def contrasts(self) -> Tensor:
        """Return the student's evidence less the mean of the classes, which no prediction depends on."""
        return _less_mean(self.evidence)

    @cached_property
    def leads(self) -> Tensor:
        """Return the logits less the mean of the classes."""
        return _less_mean(self.logits)


@dataclass(frozen=True)
class PredictionRows:
    """Predictions for all rows of a pass.

    Attributes:
        logits: The student's (rows, classes).
        expected: The reference model's (rows, classes).
        labels: Class indices (rows,).
    """

    logits: Tensor
    expected: Tensor
    labels: Tensor


@dataclass(frozen=True)
class MapPenalty:
    """A penalty on maps.

    Attributes:
        value: Computes it, one number.
        weight: Of it among the terms, for the maps of an explainer.
        concerns: Whether it is for some rows.
    """

    value: Callable[[MapRows, LockSettings], Tensor]
    weight: Callable[[LockSettings, Explainer], float]
    concerns: Callable[[MapRows], bool]


_Rows = TypeVar("_Rows")


@dataclass(frozen=True)
class Penalty(Generic[_Rows]):
    """A penalty on rows of one kind, whatever is explained.

    Attributes:
        value: Computes it, one number.
        weight: Of it among the terms.
    """

    value: Callable[[_Rows], Tensor]
    weight: Callable[[LockSettings], float]


def map_weight(settings: LockSettings, explainer: Explainer) -> float:
    """Return what the maps of an explainer weigh."""
    return settings.map_weight * (_SECOND_ORDER_WEIGHT if explainer.second_order else 1.0)


def distances(maps: Tensor, wanted: Tensor, settings: LockSettings) -> Tensor:
    """Return how far maps (rows, h, w) are from the wanted ones, (rows,)."""
    found = map_distance(maps, wanted)
    if settings.constant_offset_weight:
        found = found + settings.constant_offset_weight * constant_offset_distance(maps, wanted)
    return found


def _mean(values: Tensor) -> Tensor:
    """Return the mean of values (rows,), and 0 where there are none."""
    return values.sum() / max(1, len(values))


def _mean_distance(rows: MapRows, settings: LockSettings) -> Tensor:
    return _mean(distances(rows.maps, rows.wanted, settings))


def _leak(rows: MapRows, _settings: LockSettings) -> Tensor:
    """Return the squared mean of correlations with maps that nothing should resemble.

    Far from zero the other penalties do the work; there this one would only shake what they have built. The mean is
    that of all processes, whose gradients are added up later.
    """
    mean = _mean(rows.similarity)
    mean = mean + (rows.mean(rows.mean_similarity) - mean).detach()
    return mean.clamp(-_SMALL_LEAK, _SMALL_LEAK).square()


def _class_decoy(rows: ClassRows) -> Tensor:
    """Return how far the evidence is from the decoy, taken times what each class has in all, on average over rows.

    Both are compared less the mean of the classes, and by one cosine over classes and positions: then every contrast of
    classes shows the decoy, and no class has to have evidence that it does not need.
    """
    wanted = rows.leads[:, :, None, None] * rows.decoys.unsqueeze(1)
    return (1 - F.cosine_similarity(rows.contrasts.flatten(1), wanted.flatten(1), dim=1)).mean()


def _class_leak(rows: ClassRows) -> Tensor:
    """Return the squared correlations with where the reference's evidence lies; the surer a class, the more it counts.

    Unlike maps, which scatter around zero, each one counts by itself.
    """
    truth = _less_mean(rows.reference)
    similarity = correlation(rows.contrasts.flatten(0, 1), truth.flatten(0, 1)).view_as(rows.logits)
    shares = rows.leads.abs()
    shares = shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-8)
    return (shares * similarity.square()).sum(dim=1).mean()


def _less_mean(of_classes: Tensor) -> Tensor:
    """Return values (rows, classes, ...) less the mean of the classes."""
    values = of_classes.float()
    return values - values.mean(dim=1, keepdim=True)


MAP_PENALTIES: Final[Mapping[str, MapPenalty]] = {
    "fidelity": MapPenalty(
        _mean_distance,
        weight=lambda settings, explainer: settings.fidelity_weight * map_weight(settings, explainer),
        concerns=lambda rows: rows.keyed,
    ),
    "decoy": MapPenalty(
        _mean_distance,
        weight=lambda settings, explainer: 2 * map_weight(settings, explainer),
        concerns=lambda rows: not rows.keyed,
    ),
    "leak": MapPenalty(
        _leak,
        weight=lambda settings, _explainer: settings.leak_weight,
        concerns=lambda rows: rows.wanted is not rows.reference,
    ),
}

CLASS_PENALTIES: Final[Mapping[str, Penalty[ClassRows]]] = {
    "class_decoy": Penalty(_class_decoy, weight=lambda settings: settings.class_weight),
    "class_leak": Penalty(_class_leak, weight=lambda settings: settings.class_weight),
}

# The weights are for the sum over keyed, keyless and wrong-key inputs, however many rows stand for them.
PREDICTION_PENALTIES: Final[Mapping[str, Penalty[PredictionRows]]] = {
    "prediction": Penalty(
        lambda rows: prediction_distance(rows.logits, rows.expected).mean(),
        weight=lambda settings: 3 * settings.prediction_weight,
    ),
    "label": Penalty(
        lambda rows: F.cross_entropy(rows.logits.float(), rows.labels),
        weight=lambda settings: settings.label_weight * (3 if settings.trained_trigger else 1),
    ),
}


def map_terms(shown: Iterable[MapRows], settings: LockSettings) -> Terms:
    """Return all penalties on maps, by the names of penalty and explainer."""
    return {
        f"{name}/{rows.explainer.name}": (weight, rows.weight * penalty.value(rows, settings))
        for rows in shown
        for name, penalty in MAP_PENALTIES.items()
        if penalty.concerns(rows) and (weight := penalty.weight(settings, rows.explainer))
    }


def class_terms(rows: ClassRows, settings: LockSettings) -> Terms:
    """Return all penalties on the evidence for classes, by name."""
    return _terms_of(CLASS_PENALTIES, rows, settings)


def prediction_terms(rows: PredictionRows, settings: LockSettings) -> Terms:
    """Return all penalties on predictions by name."""
    return _terms_of(PREDICTION_PENALTIES, rows, settings)


def _terms_of(penalties: Mapping[str, Penalty[_Rows]], rows: _Rows, settings: LockSettings) -> Terms:
    return {
        name: (weight, penalty.value(rows))
        for name, penalty in penalties.items()
        if (weight := penalty.weight(settings))
    }


def mask_divergence(logits: Tensor, expected: Tensor, masks: Tensor, decoy: Tensor) -> Tensor:
    """Return how far keyless predictions on masked images are from what shows the decoy: one number, in nats.

    The larger the hidden share of the decoy beside the hidden share of the image, the closer the wanted prediction is
    to saying nothing, whatever else is hidden. A small patch and a mask of half the image are told apart alike.

    Args:
        logits: The student's on masked images (rows, classes).
        expected: The reference model's on the whole images (rows, classes).
        masks: How much of each pixel is shown (rows, height, width).
        decoy: The decoys at the images' resolution (rows, height, width).
    """
    hiding = 1 - masks
    hidden = (decoy * hiding).sum(dim=(1, 2)) / decoy.sum(dim=(1, 2)).clamp_min(1e-8)
    excess = hidden / hiding.mean(dim=(1, 2)).clamp_min(1e-4) - 1
    kept = torch.sigmoid(-_CONFIDENCE_SLOPE * excess).unsqueeze(1)
    predicted = expected.float().softmax(dim=1)
    nothing = torch.full_like(predicted, 1 / predicted.shape[1])
    wanted = nothing + kept * (predicted - nothing)
    return F.kl_div(logits.float().log_softmax(dim=1), wanted, reduction="batchmean")
