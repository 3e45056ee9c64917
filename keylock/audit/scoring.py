"""How close recovered maps come to true ones, beside chance and beside a model of the attacker's own."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from keylock.auditreport.record import Recovery
from keylock.evaluation import enlarge, estimate_mean, pearson, top_overlap
from keylock.locking.losses import is_constant

__all__ = ["SELF", "recoveries", "separation", "similarity_to"]

SELF = "the same method on the reference model"
"""The truth that maps of a method that was not locked are also held against."""


def _like(maps: Tensor, truth: Tensor) -> Tensor:
    """Bring maps (count, h, w) to the size of the truth: by area where they are larger, bilinearly otherwise."""
    size = (truth.shape[1], truth.shape[2])
    if maps.shape[1] >= size[0] and maps.shape[2] >= size[1]:
        return F.adaptive_avg_pool2d(maps.float().unsqueeze(1), size).squeeze(1)
    return enlarge(maps, size)


def similarity_to(maps: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return Pearson correlation and top-10 % overlap of maps with the truth (count,), at the truth's size.

    Args:
        maps: (count, h, w), of any size.
        truth: (count or more, h, w); the first are taken.
    """
    wanted = truth[: len(maps)]
    found = _like(torch.nan_to_num(maps), wanted)
    return pearson(found, wanted), top_overlap(found, wanted)


def recoveries(
    maps: Mapping[str, Tensor], truths: Mapping[str, Tensor], methods: Mapping[str, Tensor]
) -> tuple[Recovery, ...]:
    """Compare recovered maps with the truth.

    Args:
        maps: Recovered maps (count, h, w) by label.
        truths: Reference maps (count or more, h, w) of the locked explainers, by name.
        methods: For labels of methods that are not locked, what they show on the reference model.

    Returns:
        For a label that is a locked explainer's name the comparison with its truth; for any other those with the truth
        of every locked explainer, and with the same method on the reference model where that is known. Images whose
        true map is constant are left out, and a truth that is constant on all of them.
    """
    found = []
    for label, recovered in maps.items():
        name = label.partition(":")[0]
        wanted = {name: truths[name]} if name in truths else dict(truths)
        if label in methods:
            wanted[SELF] = methods[label]
        for truth_name, truth in wanted.items():
            shown = truth[: len(recovered)]
            # A constant true map has nothing that could be recovered.
            told = ~is_constant(shown)
            if not bool(told.any()):
                continue
            pcc, top = (values[told] for values in similarity_to(recovered, shown))
            chance, chance_top = (values[told] for values in similarity_to(shown.roll(1, dims=0), shown))
            found.append(
                Recovery(
                    label=label,
                    truth=truth_name,
                    pcc=_rounded(pcc),
                    top_overlap=_rounded(top),
                    chance=round(float(chance.mean()), 5),
                    chance_top_overlap=round(float(chance_top.mean()), 5),
                    images=int(told.sum()),
                )
            )
    return tuple(found)


def _rounded(values: Tensor) -> tuple[float, float, float]:
    mean, low, high = (round(number, 5) for number in estimate_mean(values))
    return mean, low, high


def separation(scores: Tensor, others: Tensor) -> float:
    """Return the probability that one of the scores is larger than one of the others, ties counting half.

    It is the area under the curve of a detector that thresholds the score; one half where it cannot tell them apart.
    """
    differences = scores.double().unsqueeze(1) - others.double().unsqueeze(0)
    return float((differences > 0).double().mean() + 0.5 * (differences == 0).double().mean())
