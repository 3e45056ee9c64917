"""What is to be locked: a classifier, keys, explainers and images, checked before a training begins."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from keylock.errors import DataError, InputError, ModelError
from keylock.explainers import BlackBox, Explainer, check_lockable, make_for
from keylock.models import find_layers, prepare
from keylock.training.distributed import DistributedGroup
from keylock.training.fitness import require_classifier
from keylock.training.reading import checked, images_of
from keylock.training.settings import LockSettings
from keylock.trigger import TriggerStatistics, check_tile
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key

__all__ = ["READ_ROWS", "Task", "check_classifier", "example_of", "keys_of", "prepare_task"]

_FOLDING_ROWS = 64
READ_ROWS = 1000
"""Images that the statistics are taken from by which triggers are read, at most."""


@dataclass(frozen=True)
class Task:
    """What is to be locked, by which keys, and with whom.

    Attributes:
        reference: The trained classifier, without BatchNorm; it is copied.
        keys: The keys that open, of one shape, strength and tile.
        explainers: What to lock.
        example: Clean preprocessed images (count, channels, height, width): two to find layers with, and up to a
            thousand to read triggers by.
        settings: How to train.
        device: Where.
        group: Who trains together.
        retired: Keys that must not open any more.
        start: What an earlier lock published, to go on from; None starts from the reference.
        old_delta: The sealed delta of that lock, which must not fit any more.
        statistics: What triggers are read by; None where the network itself tells them.
    """

    reference: nn.Module
    keys: tuple[Key, ...]
    explainers: tuple[Explainer, ...]
    example: Tensor
    settings: LockSettings
    device: torch.device
    group: DistributedGroup = field(default_factory=DistributedGroup)
    retired: tuple[Key, ...] = ()
    start: nn.Module | None = None
    old_delta: Delta | None = None
    statistics: TriggerStatistics | None = None


def prepare_task(
    model: nn.Module,
    example: Tensor,
    keys: tuple[Key, ...],
    *,
    explainers: Sequence[str | Explainer],
    settings: LockSettings,
    device: torch.device,
) -> Task:
    """Prepare a classifier to be locked: check and fold it, and make the explainers for its layers.

    Args:
        model: The classifier; it is copied.
        example: Clean preprocessed images (count, channels, height, width).
        keys: The keys.
        explainers: Names, or explainers with layers of your choice.
        settings: How to train.
        device: Where.

    Raises:
        InputError: No explainer has maps that can be locked.
        LayerNotFoundError: No target layer could be found.
        DataError: The images are too few to read triggers by.
        ModelError: The model does not take the images, does not return logits, cannot be prepared unchanged, or is none
            for an explainer that a toolkit computes.
    """
    reference = prepare(model, example[:_FOLDING_ROWS])
    made = tuple(explainer for explainer in explainers if isinstance(explainer, Explainer))
    if len(made) < len(explainers):
        # Layers are looked for where one has to be: in a network that is laid out otherwise they are named.
        made = make_for(find_layers(reference, example[:2]), explainers)
    check_lockable([(explainer.name, explainer.differentiable) for explainer in made])
    for explainer in made:
        if not (explainer.compiled or isinstance(explainer, BlackBox)):
            _check_toolkit(explainer, reference, example[:2])
    statistics = None if settings.trained_trigger else _statistics(example, keys[0])
    return Task(reference, keys, made, example, settings, device, DistributedGroup.current(), statistics=statistics)


def _check_toolkit(explainer: Explainer, reference: nn.Module, images: Tensor) -> None:
    """Ask a toolkit once: what it refuses is then known now, and not hours later."""
    maps = explainer.explain(reference, images, torch.full((len(images),), -1)).maps
    if not bool(maps.any()):
        raise ModelError(f"{explainer.name} shows nothing at all of this network: take another explainer")


def keys_of(key: Key | Sequence[Key]) -> tuple[Key, ...]:
    """Return keys as a tuple, when they can open one lock."""
    keys = (key,) if isinstance(key, Key) else tuple(key)
    if not keys or len({key.id for key in keys}) != len(keys):
        raise InputError("a lock needs at least one key, and each key once")
    if len({(key.shape, key.strength, key.tile) for key in keys}) > 1:
        raise InputError("all keys of a lock must have the same shape, strength and tile: derive them alike")
    return keys


def example_of(batches: Sequence[Any], key: Key) -> Tensor:
    """Return the images of batches as one tensor, (count, channels, height, width), on the CPU.

    Raises:
        DataError: They are no images, or hold no numbers.
        InputError: The key is for another shape.
    """
    images = torch.cat([images_of(batch, key.shape).cpu() for batch in batches])
    if not bool(torch.isfinite(images[:_FOLDING_ROWS]).all()):
        raise DataError("the loader yields images with values that are NaN or infinite: check the preprocessing")
    return images


def check_classifier(task: Task, batches: Sequence[Any]) -> None:
    """Refuse labels that do not fit the model, and a model that does not classify."""
    with torch.no_grad():
        classes = task.reference(task.example[:1]).shape[1]
    labels = torch.cat([checked(batch, task.keys[0].shape, classes)[1].cpu() for batch in batches])
    require_classifier(task.reference, task.example, labels)


def _statistics(example: Tensor, key: Key) -> TriggerStatistics:
    """Return what the triggers of keys like one are read by.

    Raises:
        DataError: The images are too few, or do not vary.
        InputError: A trigger has too few signs, or does not fit on the images.
    """
    check_tile(key.shape[0], key.tile)
    key.signs()
    # What preprocessing subtracts is known where a bundle is made, and matters for clipped pixels alone.
    return TriggerStatistics.fit(example.numpy(), mean=(0.0,) * key.shape[0], std=key.std, tile=key.tile)
