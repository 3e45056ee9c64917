"""From the options of `keylock train` to a `TrainPlan`; mistakes are found before anything slow begins."""

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keylock.cli._console import note, note_all
from keylock.cli._lists import split_list
from keylock.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from keylock.data import DataSource
    from keylock.locking.decoys import ImageDecoy
    from keylock.pipeline import TrainPlan

__all__ = ["check_batch", "make_plan", "model_name", "parse_decoy"]


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


def make_plan(
    *,
    out: Path,
    name: str,
    data: str,
    data_root: Path,
    image_size: int | None,
    bits: int | None,
    mean: str | None,
    std: str | None,
    train_images: int | None,
    test_images: int | None,
    arch: str,
    init: Path | None,
    explainers: str,
    decoy: str | None,
    strength: str,
    steps: int | None,
    epochs: float | None,
    batch_size: int,
    learning_rate: float | None,
    reference_steps: int | None,
    trained_trigger: bool,
    delta_rank: int | None,
    swapped: bool,
    search_every: int,
    search_steps: int | None,
    accumulate: int,
    compile: bool,
    cache_reference: bool,
    variants: str,
    seed: int,
    device: str,
    precision: str,
) -> "TrainPlan":
    """Check the options, open the data and make the plan. The arguments are the options of `keylock train`.

    Raises:
        InputError: An option is unusable.
        DataError: The data is.
    """
    from keylock.data import check_images, open_data
    from keylock.pipeline import TrainPlan
    from keylock.training import LockSettings, resolve_device

    names = _explainer_names(explainers)
    _check_names(arch=arch)
    wanted = None if decoy is None else parse_decoy(decoy)
    _check_numbers(steps=steps, epochs=epochs, batch_size=batch_size, reference_steps=reference_steps, init=init)
    if delta_rank is not None and trained_trigger:
        raise InputError("give --delta-rank or --trained-trigger, not both: the rank is that of the sealed delta")
    height = _parse_strength(strength)
    resolve_device(device)
    options = {
        "learning_rate": learning_rate,
        "decoy": wanted,
        "steps": steps,
        "delta_rank": delta_rank,
        "search_steps": search_steps,
    }
    given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    settings = LockSettings(
        seed=seed,
        trained_trigger=trained_trigger,
        swapped=swapped,
        search_every=search_every,
        accumulate=accumulate,
        compile=compile,
        precision=precision,
        **given,
    )
    source = open_data(
        data,
        root=data_root,
        seed=seed,
        image_size=image_size,
        train_count=train_images,
        test_count=test_images,
        bits=bits,
    )
    note_all(source.notes)
    check_images(source)
    source = _normalised(source, mean, std)
    check_batch(batch_size, len(source.train), given=batch_size != TrainPlan.batch_size)
    if epochs is not None:
        batches = max(1, len(source.train) // min(batch_size, len(source.train)))
        settings = replace(settings, steps=max(1, round(epochs * batches)))
    optional = {} if reference_steps is None else {"reference_steps": reference_steps}
    return TrainPlan(
        out=out,
        name=name,
        data=source,
        architecture=arch,
        settings=settings,
        explainers=names,
        init=init,
        batch_size=batch_size,
        strength=height,
        device=device,
        seed=seed,
        cache_reference=cache_reference,
        variants=_variant_names(variants),
        **optional,
    )


def _variant_names(text: str) -> tuple[str, ...]:
    from keylock.export import VARIANTS

    names = tuple(dict.fromkeys(split_list(text)))
    for name in names:
        if name not in VARIANTS:
            raise UnknownNameError("variant", name, VARIANTS)
    return names


def _explainer_names(text: str) -> tuple[str, ...]:
    from keylock.explainers import expand_names

    return expand_names(split_list(text))


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


def _normalised(source: "DataSource", mean: str | None, std: str | None) -> "DataSource":
    """Return data with the mean and the standard deviation of `--mean` and `--std`, where they are given."""
    if mean is None and std is None:
        return source
    if mean is None or std is None:
        raise InputError("give --mean and --std together: your weights were trained with both")
    channels = source.preprocessing.channels
    values = {"mean": _per_channel("--mean", mean, channels), "std": _per_channel("--std", std, channels)}
    if min(values["std"]) == 0:
        raise InputError(f"--std {std} would divide by 0: give numbers above 0")
    # Made anew, not copied: a copy would not be checked.
    preprocessing = type(source.preprocessing)(**{**source.preprocessing.model_dump(), **values})
    return replace(source, preprocessing=preprocessing)


def _per_channel(option: str, text: str, channels: int) -> tuple[float, ...]:
    """Return one number for each channel; one alone holds for all."""
    try:
        values = tuple(float(part) for part in split_list(text))
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


def _check_numbers(
    *, steps: int | None, epochs: float | None, batch_size: int, reference_steps: int | None, init: Path | None
) -> None:
    if steps is not None and epochs is not None:
        raise InputError("give --steps or --epochs, not both")
    if epochs is not None and not 0 < epochs < 1e6:
        raise InputError(f"--epochs {epochs:g} is out of range: give a number above 0")
    for option, value in (("--batch-size", batch_size), ("--reference-steps", reference_steps)):
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
