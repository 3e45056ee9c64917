"""`keylock retire`: retire one key of a lock with several, and write new bundles for the keys that remain."""

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, note
from keylock.cli._home import DEFAULT_HOME, HomeOption, open_home
from keylock.cli._issued import bundles_for, report_issued, run_issuing
from keylock.cli._measured_data import DataOption, DataRootOption, ReferenceOption, open_data_of
from keylock.cli._places import check_bundle_place, make_folder_above
from keylock.cli._plan import check_batch, parse_decoy
from keylock.cli._secrets import beside, find_opener, find_secrets_again, take_environment, without_seed
from keylock.errors import InputError

if TYPE_CHECKING:
    from keylock.pipeline import Retirement, TrainPlan

__all__ = ["retire"]


def retire(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The bundle of the key that must not open any more.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="PATH", help="Bundle to write; those of further keys are OUT-2, OUT-3."),
    ],
    keep: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="The bundle of a key that goes on opening; once for each of them."),
    ] = None,
    data: DataOption = "shapes",
    data_root: DataRootOption = Path("data"),
    train_images: Annotated[int | None, typer.Option(metavar="N", help="Train on at most N images.")] = None,
    test_images: Annotated[int | None, typer.Option(metavar="N", help="Measure on at most N images.")] = None,
    reference: ReferenceOption = None,
    decoy: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="What is shown without the key. [as before, if no picture]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps of the training. [half of those of the lock]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Batch size. [as before]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="RATE", help="Highest learning rate. [as before]")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(metavar="N", help="Split each batch into N parts. [as before]")
    ] = None,
    cache_reference: Annotated[
        bool,
        typer.Option("--cache-reference", help="Train without augmentation, with each reference map computed once."),
    ] = False,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Device to train on.")] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="auto|float32|bfloat16", help="Precision to compute in; auto uses bfloat16 where the device has it."
        ),
    ] = "auto",
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Key file of all bundles, old and new. [BUNDLE.key, and a new OUT.key for each new one]",
        ),
    ] = None,
    key_passphrase_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with their passphrase instead. [env: KEYLOCK_KEY_PASSPHRASE]"),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run with the same options.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace bundles, or the interrupted run, that are there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Retire a key of a lock with several keys: train it further, and write new bundles for the others.

    The remaining keys and their seeds stay as they are. Serve the new bundles alone: what was published before stays
    open to the retired key. Ctrl-C stops after the step, --resume goes on.
    """
    from keylock.training import joined

    kept = keep or []
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch-size {batch_size} is out of range: give a number of at least 1")
    outs = bundles_for(out, len(kept))
    given = {path.resolve() for path in (bundle, *kept)}
    if any(path.resolve() in given for path in outs):
        raise InputError("a new bundle would replace one of the old ones, which the run reads: choose another --out")

    def prepare() -> tuple["TrainPlan", "Retirement"]:
        from keylock.pipeline import OwnBundle, read_lock
        from keylock.training import resolve_device, resolve_precision

        resolve_precision(precision, resolve_device(device))
        owned = [
            OwnBundle(
                path,
                find_opener(
                    path,
                    key_seed_file=None,
                    key_file=key_file,
                    key_passphrase_file=key_passphrase_file,
                    environment=environment,
                ),
            )
            for path in (bundle, *kept)
        ]
        wanted = None if decoy is None else parse_decoy(decoy)
        retirement = read_lock(owned[0], owned[1:], reference=reference, decoy=wanted)
        source = open_data_of(data, data_root, retirement.manifest, train_count=train_images, test_count=test_images)
        if batch_size is not None:
            check_batch(batch_size, len(source.train), given=True)
        plan = retirement.plan(
            out,
            source,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            accumulate=accumulate,
            device=device,
            precision=precision,
            cache_reference=cache_reference,
        )
        return plan, retirement

    environment = without_seed(take_environment())
    with joined(os.environ) as group:
        if not group.leads:
            from keylock.pipeline import assist_retirement

            with suppress(KeyboardInterrupt):
                assist_retirement(*prepare())
            return
        from keylock.pipeline import retire as retire_key

        for new in outs:
            check_bundle_place(new, beside(out, "work"), resume=resume, overwrite=overwrite)
        plan, retirement = prepare()
        make_folder_above(out)
        secrets = [
            find_secrets_again(
                new,
                old,
                seed,
                key_file=key_file,
                key_passphrase_file=key_passphrase_file,
                environment=environment,
            )
            for new, old, seed in zip(outs, kept, retirement.kept, strict=True)
        ]
        signing_key = open_home(home, create=True).signing_key()
        run = partial(retire_key, plan, retirement, signing_key=signing_key, resume=resume, overwrite=overwrite)
        outcomes = run_issuing(run, outs, secrets, work=plan.work)
    gone = {"bundle": bundle, "key_id": retirement.retired.id}
    report_issued(outs, outcomes, secrets, home, as_json=as_json, further={"retired": gone})
    if not as_json:
        note(f"retired the key {retirement.retired.id}; the old bundles stay open to it: serve the new ones alone")
