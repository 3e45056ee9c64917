"""From the options of `keylock train` to a `TrainPlan`; mistakes are found before anything slow begins."""

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keylock.cli._console import note, note_all
from keylock.cli._lists import split_list
from keylock.cli._train_options import TrainOptions
from keylock.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from keylock.data import DataSource
    from keylock.locking.decoys import ImageDecoy
    from keylock.pipeline import TrainPlan
    from keylock.training import LockSettings

__all__ = ["check_batch", "make_plan", "model_name", "parse_decoy"]

_LOCKED = ("grad_cam",)
"""The explainers that are locked where none are named."""


def model_name(name: str | None, data: str) -> str:
    """Return the model's name: the one given, or one made from that of the data.

    Raises:
        InputError: Bundles and licenses could not carry the name.
    """
    if name is None:
        stem = Path(data).expanduser().resolve().stem if any(mark in data for mark in "/\\.") else data
        cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64]
        return cleaned or "model"
    from keylock.bundle.manifest import check_model_name

    return check_model_name(name)


def make_plan(options: TrainOptions, out: Path) -> "TrainPlan":
    """Check the options, open the data and make the plan.

    Args:
        options: Those of `keylock train`.
        out: The bundle to write.

    Raises:
        InputError: An option is unusable.
        DataError: The data is.
    """
    from keylock.data import check_images, open_data
    from keylock.pipeline import TrainPlan
    from keylock.training import resolve_device

    names, variants = _explainer_names(options.explainers), _variant_names(options.variants)
    _check_names(arch=options.arch)
    settings = _lock_settings(options)
    strength = _parse_strength(options.strength)
    resolve_device(options.device)
    source = open_data(
        options.data,
        root=options.data_root,
        seed=options.seed,
        image_size=options.image_size,
        train_count=options.train_images,
        test_count=options.test_images,
        bits=options.bits,
    )
    note_all(source.notes)
    check_images(source)
    source = _normalised(source, options.mean, options.std)
    check_batch(options.batch_size, len(source.train), given=options.batch_size != TrainPlan.batch_size)
    if options.epochs is not None:
        batches = max(1, len(source.train) // min(options.batch_size, len(source.train)))
        settings = replace(settings, steps=max(1, round(options.epochs * batches)))
    steps = {} if options.reference_steps is None else {"reference_steps": options.reference_steps}
    return TrainPlan(
        out=out,
        name=model_name(options.name, options.data),
        data=source,
        architecture=options.arch,
        settings=settings,
        explainers=names,
        init=options.init,
        batch_size=options.batch_size,
        strength=strength,
        device=options.device,
        seed=options.seed,
        cache_reference=options.cache_reference,
        variants=variants,
        **steps,
    )


def _lock_settings(options: TrainOptions) -> "LockSettings":
    from keylock.training import LockSettings

    _check_numbers(options)
    if options.delta_rank is not None and options.trained_trigger:
        raise InputError("give --delta-rank or --trained-trigger, not both: the rank is that of the sealed delta")
    optional = {
        "learning_rate": options.learning_rate,
        "decoy": None if options.decoy is None else parse_decoy(options.decoy),
        "steps": options.steps,
        "delta_rank": options.delta_rank,
        "search_steps": options.search_steps,
    }
    given: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
    return LockSettings(
        seed=options.seed,
        trained_trigger=options.trained_trigger,
        swapped=options.swapped,
        search_every=options.search_every,
        accumulate=options.accumulate,
        compile=options.compile,
        precision=options.precision,
        **given,
    )


def _variant_names(given: list[str] | None) -> tuple[str, ...]:
    from keylock.export import VARIANTS

    names = tuple(dict.fromkeys(split_list(given)))
    for name in names:
        if name not in VARIANTS:
            raise UnknownNameError("variant", name, VARIANTS)
    return names


def _explainer_names(given: list[str] | None) -> tuple[str, ...]:
    from keylock.explainers import expand_names

    return expand_names(_LOCKED if given is None else split_list(given))


def _check_names(*, arch: str) -> None:
    from keylock.models import require_architecture

    require_architecture(arch)


def check_batch(batch_size: int, images: int, *, given: bool) -> None:
    """Return when a batch is no larger than the data; a default that is larger is not a mistake, and said.

    Args:
        batch_size: Images in a step.
        images: Training images there are.
        given: Whether somebody chose the batch size.

    Raises:
        InputError: A batch size that was chosen is larger.
    """
    if batch_size <= images:
        return
    if given:
        raise InputError(f"--batch-size {batch_size} is more than the {images} training images: give {images} or fewer")
    note(f"there are {images} training images, fewer than a batch of {batch_size}: each step takes all of them")


def _normalised(source: "DataSource", mean: list[str] | None, std: list[str] | None) -> "DataSource":
    """Return data with the mean and the standard deviation of `--mean` and `--std`, where they are given."""
    if mean is None and std is None:
        return source
    if mean is None or std is None:
        raise InputError("give --mean and --std together: your weights were trained with both")
    channels = source.preprocessing.channels
    values = {"mean": _per_channel("--mean", mean, channels), "std": _per_channel("--std", std, channels)}
    if min(values["std"]) == 0:
        raise InputError(f"--std {','.join(std)} would divide by 0: give numbers above 0")
    # Made anew, not copied: a copy would not be checked.
    preprocessing = type(source.preprocessing)(**{**source.preprocessing.model_dump(), **values})
    return replace(source, preprocessing=preprocessing)


def _per_channel(option: str, given: list[str], channels: int) -> tuple[float, ...]:
    """Return one number for each channel; one alone holds for all."""
    text = ",".join(given)
    try:
        values = tuple(float(part) for part in split_list(given))
    except ValueError:
        raise InputError(f"{option} {text} is not a list of numbers: write 0.485,0.456,0.406 or 0.5") from None
    if len(values) not in (1, channels):
        raise InputError(f"{option} has {len(values)} numbers for {channels} channels: give {channels}, or 1 for all")
    if not all(0 <= value <= 1 for value in values):
        raise InputError(
            f"{option} {text} is out of range: pixels are numbers of 0 to 1 here, so divide what is meant for 0 to 255 "
            "by 255"
        )
    return values if len(values) == channels else values * channels


def parse_decoy(text: str) -> "str | ImageDecoy":
    """Return the decoy that `--decoy` says: a name, or the picture in a file.

    Raises:
        InputError: There is no such decoy or file.
    """
    from keylock.locking.decoys import ImageDecoy, check_decoy

    if not any(mark in text for mark in "/\\."):
        return check_decoy(text)
    path = Path(text).expanduser()
    if not path.is_file():
        raise InputError(f"there is no file {path}: give a picture, or the name of a decoy")
    return ImageDecoy.read(path)


def _check_numbers(options: TrainOptions) -> None:
    epochs, reference_steps, init = options.epochs, options.reference_steps, options.init
    if options.steps is not None and epochs is not None:
        raise InputError("give --steps or --epochs, not both")
    if epochs is not None and not 0 < epochs < 1e6:
        raise InputError(f"--epochs {epochs:g} is out of range: give a number above 0")
    for option, value in (("--batch-size", options.batch_size), ("--reference-steps", reference_steps)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value} is out of range: give a number of at least 1")
    if init is not None and reference_steps is not None:
        raise InputError("give --init or --reference-steps, not both: your trained weights are the reference model")
    if init is not None and not init.is_file():
        from keylock.models import split_entry

        file, _ = split_entry(init)
        if not file.is_file():
            raise InputError(f"there is no file {file}: give the path of your trained weights")


def _parse_strength(text: str) -> float:
    try:
        strength = float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"the strength {text!r} is not a number: write 8/255 or 0.03") from None
    if not 0 < strength <= 1:
        raise InputError(f"the strength {text} is out of range: it must be above 0 and at most 1, and 8/255 is usual")
    return strength
