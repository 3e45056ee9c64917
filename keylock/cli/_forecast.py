"""What `keylock train --dry-run` prints."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from keylock.cli._console import print_json, print_pairs

if TYPE_CHECKING:
    from keylock.pipeline import Forecast

__all__ = ["print_forecast"]

_SHOWN_CLASSES = 10


def print_forecast(found: "Forecast", *, as_json: bool) -> None:
    """Print what a run is going to do and take."""
    if as_json:
        print_json(asdict(found))
        return
    channels, height, width = found.image_shape
    split = f"{found.train_images:,} to train, {found.test_images:,} to measure"
    rows = [
        ("data", f"{found.data}: {split}"),
        ("classes", f"{len(found.classes)}: {_first(found.classes)}"),
        (
            "input",
            f"{width} x {height} pixels, {channels} channels, mean {_listed(found.mean)}, std {_listed(found.std)}",
        ),
        ("network", f"{found.architecture}, {found.parameters:,} parameters"),
        *((f"  {name}", _parameters(taken)) for name, taken in found.layers.items()),
        ("trains on", f"{found.device}, {found.batch_size} images a step"),
    ]
    if found.reference_steps:
        rows.append(("reference", _steps(found.reference_steps, found.reference_step_s)))
    there = "" if found.memory_there_bytes is None else f" of {_bytes(found.memory_there_bytes)}"
    rows += [
        ("lock", _steps(found.steps, found.step_s)),
        ("time", f"about {_time(found.training_s)}, then measuring, compiling and signing"),
        ("memory", f"{_bytes(found.memory_bytes)}{there}"),
        ("compiled", f"{', '.join(found.checked) or 'nothing'}, in {found.trial_s:.0f} s"),
    ]
    print_pairs(rows)
    for sentence in found.advice:
        typer.echo(f"advice: {sentence}")


def _first(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN_CLASSES
    return ", ".join(names[:_SHOWN_CLASSES]) + (f" and {more} more" if more > 0 else "")


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _parameters(taken: object) -> str:
    pairs = dict(taken).items() if isinstance(taken, dict) else ()
    return ", ".join(f"{name} {value}" for name, value in pairs) or "the whole network"


def _steps(count: int, seconds: float) -> str:
    return f"{count:,} steps of {seconds:.3g} s"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
