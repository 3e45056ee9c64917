"""`keylock retire`: retire one key of a lock with several, and write new bundles for the keys that remain."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, note
from keylock.cli._home import DEFAULT_HOME, HomeOption, open_home
from keylock.cli._issued import bundles_for, report_issued, run_issuing
from keylock.cli._measured_data import DataOptions, ReferenceOption, open_data_of
from keylock.cli._options import takes
from keylock.cli._places import check_bundle_place, make_folder_above
from keylock.cli._plan import check_batch, parse_decoy
from keylock.cli._secrets import KeyOptions, beside, find_opener, find_secrets_again, take_environment, without_seed
from keylock.errors import InputError

if TYPE_CHECKING:
    from keylock.pipeline import Retirement, TrainPlan

__all__ = ["retire"]


@dataclass(frozen=True, kw_only=True)
class RetireOptions:
    """What `keylock retire` was told; the help says what each is."""

    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle of the key that must not open any more.")]
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="PATH", help="Bundle to write; those of further keys are OUT-2, OUT-3."),
    ]
    keep: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="The bundle of a key that goes on opening; once for each of them."),
    ] = None
    data: DataOptions
    train_images: Annotated[int | None, typer.Option(metavar="N", help="Train on at most N images.")] = None
    test_images: Annotated[int | None, typer.Option(metavar="N", help="Measure on at most N images.")] = None
    reference: ReferenceOption = None
    decoy: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="What is shown without the key. [as before, if no picture]")
    ] = None
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps of the training. [half of those of the lock]")
    ] = None
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Batch size. [as before]")] = None
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Highest learning rate. [as before]"),
    ] = None
    accumulate: Annotated[
        int | None,
        typer.Option(metavar="N", help="Split each batch into N parts. [as before]"),
    ] = None
    cache_reference: Annotated[
        bool,
        typer.Option("--cache-reference", help="Train without augmentation, with each reference map computed once."),
    ] = False
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Device to train on.")] = "auto"
    precision: Annotated[
        str,
        typer.Option(
            metavar="auto|float32|bfloat16", help="Precision to compute in; auto uses bfloat16 where the device has it."
        ),
    ] = "auto"
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Key file of all bundles, old and new. [BUNDLE.key, and a new OUT.key for each new one]",
        ),
    ] = None
    key_passphrase_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with their passphrase instead. [env: KEYLOCK_KEY_PASSPHRASE]"),
    ] = None
    home: HomeOption = DEFAULT_HOME
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run with the same options.")] = False
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace bundles, or the interrupted run, that are there.")
    ] = False
    as_json: JsonOption = False


@takes(RetireOptions)
def retire(options: RetireOptions) -> None:
    """Retire a key of a lock with several keys: train it further, and write new bundles for the others.

    The remaining keys and their seeds stay as they are. Serve the new bundles alone: what was published before stays
    open to the retired key. Ctrl-C stops after the step, --resume goes on.
    """
    from keylock.training import joined

    out, kept = options.out, options.keep or []
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"--batch-size {options.batch_size} is out of range: give a number of at least 1")
    outs = bundles_for(out, len(kept))
    given = {path.resolve() for path in (options.bundle, *kept)}
    if any(path.resolve() in given for path in outs):
        raise InputError("a new bundle would replace one of the old ones, which the run reads: choose another --out")
    environment = without_seed(take_environment())
    with joined(os.environ, device=options.device) as group:
        if not group.leads:
            from keylock.pipeline import assist_retirement

            with suppress(KeyboardInterrupt):
                assist_retirement(*_prepare(options, environment))
            return
        from keylock.pipeline import retire as retire_key

        for new in outs:
            check_bundle_place(new, beside(out, "work"), resume=options.resume, overwrite=options.overwrite)
        plan, retirement = _prepare(options, environment)
        make_folder_above(out)
        secrets = [
            find_secrets_again(
                new,
                old,
                seed,
                key_file=options.key_file,
                key_passphrase_file=options.key_passphrase_file,
                environment=environment,
            )
            for new, old, seed in zip(outs, kept, retirement.kept, strict=True)
        ]
        run = partial(
            retire_key,
            plan,
            retirement,
            signing_key=open_home(options.home, create=True).signing_key(),
            resume=options.resume,
            overwrite=options.overwrite,
        )
        outcomes = run_issuing(run, outs, secrets, work=plan.work)
    gone = {"bundle": options.bundle, "key_id": retirement.retired.id}
    report_issued(outs, outcomes, secrets, options.home, as_json=options.as_json, further={"retired": gone})
    if not options.as_json:
        note(f"retired the key {retirement.retired.id}; the old bundles stay open to it: serve the new ones alone")


def _prepare(options: RetireOptions, environment: Mapping[str, str]) -> "tuple[TrainPlan, Retirement]":
    """Open the bundles with their keys, and the data, and plan the training; every process of a run does it."""
    from keylock.pipeline import OwnBundle, read_lock
    from keylock.training import resolve_device, resolve_precision

    resolve_precision(options.precision, resolve_device(options.device))
    key = KeyOptions(key_file=options.key_file, key_passphrase_file=options.key_passphrase_file)
    owned = [
        OwnBundle(path, find_opener(path, key, environment=environment))
        for path in (options.bundle, *(options.keep or ()))
    ]
    decoy = None if options.decoy is None else parse_decoy(options.decoy)
    retirement = read_lock(owned[0], owned[1:], reference=options.reference, decoy=decoy)
    source = open_data_of(
        options.data,
        retirement.manifest,
        train_count=options.train_images,
        test_count=options.test_images,
    )
    if options.batch_size is not None:
        check_batch(options.batch_size, len(source.train), given=True)
    plan = retirement.plan(
        options.out,
        source,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        accumulate=options.accumulate,
        device=options.device,
        precision=options.precision,
        cache_reference=options.cache_reference,
    )
    return plan, retirement
