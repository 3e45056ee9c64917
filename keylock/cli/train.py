"""`keylock train`: train or load a classifier, lock its explanations, and write a signed bundle."""

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from keylock.cli._home import open_home
from keylock.cli._issued import bundles_for, report_issued, run_issuing
from keylock.cli._options import takes
from keylock.cli._places import check_bundle_place, make_folder_above
from keylock.cli._plan import make_plan, model_name
from keylock.cli._secrets import Secrets, beside, find_secrets, take_environment, without_seed
from keylock.cli._train_options import TrainOptions
from keylock.errors import InputError

if TYPE_CHECKING:
    from keylock.pipeline import TrainPlan

__all__ = ["train"]


@takes(TrainOptions)
def train(options: TrainOptions) -> None:
    """Lock a classifier and write a signed bundle.

    Without --init the classifier is trained first. Everything on the way is kept in OUT.work: Ctrl-C stops after the
    step, --resume goes on. OUT.work and the secrets OUT.seed and OUT.key are the vendor's alone.
    """
    if options.unexpected:
        # They are not repeated: they may be the words of a passphrase that lacks its quotes.
        raise InputError("train takes options alone: put a value that has spaces in quotes")
    from keylock.training import joined

    out = options.out or Path(f"{model_name(options.name, options.data)}.klb")
    bundles = bundles_for(out, options.keys)
    if options.dry_run and "WORLD_SIZE" in os.environ:
        raise InputError("--dry-run measures one process: start it without torchrun")
    if options.keys > 1 and (options.key_seed is not None or options.key_seed_file is not None):
        raise InputError("give --keys or a key seed, not both: every key gets a new seed beside its bundle")
    with joined(os.environ, device=options.device) as group:
        if not group.leads:
            # The first process makes the secrets and downloads data.
            group.wait()
            _assist(*_prepare(options, bundles))
            return
        from keylock.pipeline import train_for_keys

        for bundle in bundles:
            check_bundle_place(bundle, beside(out, "work"), resume=options.resume, overwrite=options.overwrite)
        if options.dry_run:
            _forecast(make_plan(options, out), options.check_seconds, as_json=options.as_json)
            return
        plan, secrets = _prepare(options, bundles)
        signing_key = open_home(options.home, create=True).signing_key()
        group.wait()
        run = partial(
            train_for_keys,
            plan,
            signing_key=signing_key,
            resume=options.resume,
            overwrite=options.overwrite,
            trial_seconds=options.check_seconds,
        )
        outcomes = run_issuing(run, bundles, secrets, work=plan.work)
    report_issued(bundles, outcomes, secrets, options.home, as_json=options.as_json)


def _prepare(options: TrainOptions, bundles: list[Path]) -> "tuple[TrainPlan, list[Secrets]]":
    """Plan the run, and find the secrets of each bundle or make them; every process of a run does it."""
    plan = make_plan(options, bundles[0])
    make_folder_above(bundles[0])
    environment = take_environment()
    secrets = [
        find_secrets(
            bundle,
            key_seed=options.key_seed,
            key_seed_file=options.key_seed_file,
            key_file=options.key_file,
            key_passphrase_file=options.key_passphrase_file,
            environment=without_seed(environment) if options.keys > 1 else environment,
        )
        for bundle in bundles
    ]
    return plan, secrets


def _forecast(plan: "TrainPlan", check_seconds: float, *, as_json: bool) -> None:
    from keylock.cli._forecast import print_forecast
    from keylock.cli._progress import shown_progress
    from keylock.pipeline import forecast

    with shown_progress() as progress:
        found = forecast(plan, progress=progress, trial_seconds=check_seconds)
    print_forecast(found, as_json=as_json)


def _assist(plan: "TrainPlan", secrets: list[Secrets]) -> None:
    from keylock.pipeline import assist

    with suppress(KeyboardInterrupt):
        assist(plan, seeds=[secret.seed for secret in secrets])
