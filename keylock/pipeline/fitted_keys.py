"""The keys of a run: as their seeds give them, or fitted to the reference where the network itself tells the trigger.

Which signs were turned is kept in the work folder, encrypted under the seeds, so that a run that goes on elsewhere has
the same keys, to the sign.
"""

import json
from collections.abc import Sequence

import numpy as np
from torch import nn

from keylock.bundle import KeyEntry
from keylock.data.batches import load_batch
from keylock.errors import ResumeError
from keylock.models import prepare
from keylock.pipeline.plans import TrainPlan
from keylock.training import fitting_flips, resolve_device
from keylock.training.checkpoint import storing
from keylock.trigger.keys import Key, KeySeed

__all__ = ["FITTED_KEYS", "fit_keys", "fitted_keys"]

FITTED_KEYS = "fitted-keys.json"
_IMAGES = 512
_EXAMPLES = 64


def fit_keys(plan: TrainPlan, reference: nn.Module, seeds: Sequence[KeySeed]) -> None:
    """Fit the keys of a plan to its reference, once, and keep how in the work folder.

    Nothing is done where a sealed delta is trained, whose keys are taken off the image before the reference sees it,
    where images are smaller than a tile, and where it was done before.

    Args:
        plan: What is trained.
        reference: The trained reference model; it is copied.
        seeds: Of all keys.

    Raises:
        StorageError: The file cannot be written.
    """
    kept = plan.work / FITTED_KEYS
    if not _fitting(plan) or kept.is_file():
        return
    order = np.random.default_rng(plan.seed).permutation(len(plan.data.train))[:_IMAGES]
    images = load_batch(plan.data.train, plan.data.preprocessing, indices=order).images
    device = resolve_device(plan.device)
    network, images = prepare(reference, images[:_EXAMPLES]).to(device), images.to(device)
    entries = []
    for seed in seeds:
        key = plan.key(seed)
        key = key.turned(fitting_flips(key, network, images, seed=plan.seed))
        entries.append(KeyEntry.of(key, seed).model_dump(mode="json"))
    with storing(kept) as unfinished:
        unfinished.write_text(json.dumps(entries))


def fitted_keys(plan: TrainPlan, seeds: Sequence[KeySeed]) -> list[Key]:
    """Return the keys that are trained for.

    Raises:
        ResumeError: The work folder has those of another run.
    """
    kept = plan.work / FITTED_KEYS
    keys = [plan.key(seed) for seed in seeds]
    if not _fitting(plan):
        return keys
    try:
        entries = [KeyEntry.model_validate(entry) for entry in json.loads(kept.read_text())]
    except (OSError, ValueError) as error:
        raise ResumeError(f"the fitted keys in {kept} cannot be read: start without resume=True") from error
    if [KeyEntry.of(key) for key in keys] != [entry.model_copy(update={"flips": None}) for entry in entries]:
        raise ResumeError(f"{kept} has the keys of another run: use the same, or start without resume=True")
    return [entry.key(seed, plan.data.preprocessing) for entry, seed in zip(entries, seeds, strict=True)]


def _fitting(plan: TrainPlan) -> bool:
    return plan.settings.trained_trigger and min(plan.data.preprocessing.size) >= plan.tile
