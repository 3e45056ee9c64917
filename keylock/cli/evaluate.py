"""`keylock evaluate`: measure a lock, from the bundle, the vendor's secrets and test images."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, StoppedError, note, print_json
from keylock.cli._evaluation import print_evaluation
from keylock.cli._lists import split_list
from keylock.cli._measured_data import DataOptions, ReferenceOption, VendorBundleArgument, open_data_of, seed_of
from keylock.cli._options import takes
from keylock.cli._places import make_folder
from keylock.cli._secrets import KeyOptions, find_opener
from keylock.errors import InputError
from keylock.files.atomic import PUBLIC, write_file

if TYPE_CHECKING:
    from keylock.evaluation import Evaluation
    from keylock.pipeline import Gallery

__all__ = ["evaluate"]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What `keylock evaluate` was told; the help says what each is."""

    bundle: VendorBundleArgument
    data: DataOptions
    images: Annotated[int, typer.Option(metavar="N", help="Measure on at most N test images.")] = 500
    explainers: Annotated[
        list[str] | None,
        typer.Option(metavar="LIST", help="Measure only these; may be repeated. [those that are locked]"),
    ] = None
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Measure every other explainer that fits the architecture too.")
    ] = False
    reference: ReferenceOption = None
    key: KeyOptions
    faithfulness_images: Annotated[
        int, typer.Option(metavar="N", help="Test images for deletion and insertion curves; 0 skips them.")
    ] = 64
    gate_images: Annotated[int, typer.Option(metavar="N", help="Test images for the gate curve; 0 skips it.")] = 64
    slow_images: Annotated[
        int, typer.Option(metavar="N", help="Test images for explainers that need hundreds of predictions an image.")
    ] = 24
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Random seed of wrong keys and chosen images. [that of the training]"),
    ] = None
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Device to compute on.")] = "auto"
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder for a page, JSON, curves and map grids.")
    ] = None
    as_json: JsonOption = False


@takes(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> None:
    """Measure what the lock of a bundle is worth.

    Maps with the key, without it and with wrong keys are held against the reference model's, beside chance. The
    reference model and the key are the vendor's secrets, and needed. What the figures mean: docs/evaluation.md.
    """
    from keylock.bundle import open_bundle
    from keylock.cli._progress import shown_progress
    from keylock.pipeline import EvaluatePlan
    from keylock.pipeline import evaluate as run

    secret = find_opener(options.bundle, options.key)
    manifest = open_bundle(options.bundle, trusted=None).manifest
    plan = EvaluatePlan(
        bundle=options.bundle,
        data=open_data_of(options.data, manifest),
        reference=options.reference,
        explainers=_names(options.explainers),
        unseen=options.unseen,
        images=options.images,
        faithfulness_images=options.faithfulness_images,
        gate_images=options.gate_images,
        slow_images=options.slow_images,
        seed=seed_of(manifest) if options.seed is None else options.seed,
        device=options.device,
    )
    if options.out is not None:
        make_folder(options.out)
    try:
        with shown_progress() as progress:
            evaluation, gallery = run(plan, secret=secret, progress=progress)
    except KeyboardInterrupt:
        raise StoppedError("stopped; nothing was written: run the same command again to start anew") from None
    files = [] if options.out is None else _write(options.out, evaluation, gallery)
    if options.as_json:
        print_json({**evaluation.as_dict(), "files": files})
        return
    print_evaluation(evaluation)
    for file in files:
        note(f"wrote {file}")


def _names(given: list[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = tuple(dict.fromkeys(split_list(given)))
    if not names:
        raise InputError("--explainers names none: give names with commas between them, or leave it out")
    return names


def _write(out: Path, evaluation: "Evaluation", gallery: "Gallery") -> list[Path]:
    """Write everything into the folder; what an earlier evaluation left there under the same names is replaced."""
    from keylock.evaluation.drawing import draw_gate, draw_maps
    from keylock.evaluation.page import render_evaluation

    files = [out / "report.html", out / "evaluation.json"]
    write_file(files[0], render_evaluation(evaluation, gallery.pixels, gallery.samples), mode=PUBLIC)
    write_file(files[1], json.dumps(evaluation.as_dict(), indent=2, allow_nan=False) + "\n", mode=PUBLIC)
    if evaluation.gate is not None:
        files += draw_gate(evaluation.gate, out / "gate")
    for label, maps in gallery.samples.items():
        files += draw_maps(label, gallery.pixels, maps, out / f"maps-{label}")
    return files
