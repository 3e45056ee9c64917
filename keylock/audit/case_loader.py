"""From a vendor's bundle, his secrets and a data set to the case to audit."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keylock.audit.budgets import Budget
from keylock.audit.case import Case
from keylock.audit.conclusion import TRAINED_TRIGGER
from keylock.audit.oracle import Oracle, of_networks
from keylock.bundle.manifest import Manifest
from keylock.bundle.sealing import Sealer
from keylock.data import DataSource
from keylock.data.batches import load_batch
from keylock.data.sets import stratified_order
from keylock.errors import DataError, InputError
from keylock.evaluation import affine_statistics, find_reference, load_reference
from keylock.models import create, load_weights, out_of_place_, prepare
from keylock.torch_runtime.locked_model import LockedModel, load_bundle
from keylock.trigger.keys import Key, KeySeed

__all__ = ["OpenedCase", "open_case"]


class OpenedCase(NamedTuple):
    """A case, and its images as pixels.

    Attributes:
        case: What to audit.
        pixels: The images of the case (count, height, width, channels), uint8.
    """

    case: Case
    pixels: NDArray[np.uint8]


def open_case(
    bundle: Path,
    data: DataSource,
    *,
    secret: KeySeed | Sealer,
    budget: Budget,
    reference: Path | None = None,
    base: Path | None = None,
    seed: int = 0,
    asked: Callable[[], Oracle] | None = None,
) -> OpenedCase:
    """Open a bundle for an audit.

    Args:
        bundle: The vendor's bundle.
        data: Test images are measured on; attackers have training images.
        secret: The key seed, or what opens the sealed key.
        budget: How many images are needed.
        reference: The reference model's weights; by default those in the work folder beside the bundle.
        base: Weights of a public model of the same architecture that the reference may have come from.
        seed: Of the choice of images.
        asked: Makes the oracle that T0 asks; by default one over the published module.

    Raises:
        BundleError: The bundle is refused.
        DataError: The data does not fit the model, or is too little.
        InputError: The secret does not give the key.
        ModelError: The reference is missing or not that of the bundle, or the base does not fit.
        UnsealError: The secret is not that of the bundle.
    """
    locked, key = _open_bundle(bundle, secret, data)
    truth = load_reference(reference or find_reference(bundle), locked.manifest)
    rows = stratified_order(data.test.labels, seed=seed)[: budget.images]
    test = load_batch(data.test, locked.preprocessing, indices=rows)
    own_rows = stratified_order(data.train.labels, seed=seed)[: budget.own_images]
    own = load_batch(data.train, locked.preprocessing, indices=own_rows)
    folded, statistics = (None, None) if base is None else _open_base(base, locked.manifest)
    case = Case(
        name=locked.manifest.name,
        digest=locked.manifest.model_digest,
        lock=TRAINED_TRIGGER if locked.delta is None else "sealed delta",
        about=f"{len(rows)} test images of {data.name}",
        module=locked.module,
        opened=locked.opened,
        reference=truth,
        key=key,
        explainers={name: locked.explainers[name] for name in of_networks(locked.explainers)},
        images=test.images,
        labels=test.labels,
        own_images=own.images,
        own_labels=own.labels,
        pair_images=own.images[: budget.pairs],
        fresh=_maker(locked.manifest),
        preprocessing=locked.preprocessing,
        base=folded,
        base_statistics=statistics,
        asked=asked,
    )
    return OpenedCase(case, data.test.resized(locked.preprocessing, rows))


def _open_bundle(bundle: Path, secret: KeySeed | Sealer, data: DataSource) -> tuple[LockedModel, Key]:
    """Open a bundle with its key, and check that data fit it."""
    locked = load_bundle(bundle, key=secret)
    if locked.key is None:
        raise InputError("an audit needs the key: give the key seed or what opens the sealed key")
    if len(data.classes) != len(locked.classes):
        raise DataError(
            f"{data.name} has {len(data.classes)} classes, the model {locked.manifest.name} has {len(locked.classes)}: "
            "give the data it was trained for"
        )
    return locked, locked.key


def _build(manifest: Manifest) -> nn.Module:
    return create(
        manifest.architecture.name,
        num_classes=manifest.architecture.num_classes,
        channels=manifest.preprocessing.channels,
        image_size=manifest.preprocessing.size[0],
    )


def _maker(manifest: Manifest) -> Callable[[torch.Generator], nn.Module]:
    def fresh(generator: torch.Generator) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            # Initial weights come from torch's global generator; inside the block it is ours.
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            return out_of_place_(_build(manifest), torch.randn((2, *manifest.preprocessing.shape)))

    return fresh


def _open_base(weights: Path, manifest: Manifest) -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]]]:
    """Return a public model, folded as the published one is, and what its BatchNorm puts out."""
    model = load_weights(_build(manifest), weights).eval()
    statistics = affine_statistics(model)
    example = torch.randn((2, *manifest.preprocessing.shape), generator=torch.Generator().manual_seed(0))
    return prepare(model, example).requires_grad_(requires_grad=False), statistics
