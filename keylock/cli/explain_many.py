"""`keylock explain-many`: explains hundreds of thousands of images with a bundle and its key, by workers of Ray."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keylock.cli._bulk_options import BulkOptions
from keylock.cli._bulk_telling import report, tell_beginning
from keylock.cli._console import StoppedError, note
from keylock.cli._options import takes
from keylock.cli._places import check_folder
from keylock.cli._progress import Display, shown_progress
from keylock.cli._receipts import read_license
from keylock.cli._several import raise_first
from keylock.cli._vendor_settings import complete_settings, take_secrets
from keylock.errors import (
    DataError,
    InputError,
    KeylockError,
    LicenseError,
    LicenseReason,
    QuotaError,
    UnknownNameError,
    UnsealError,
)

if TYPE_CHECKING:
    from keylock.bulk import Asked, Budget, Job, Outcome
    from keylock.bulk.charging import Cashier
    from keylock.bulk.worker import WorkerOrder
    from keylock.bundle import Bundle, ExplainerEntry
    from keylock_server import ServerSettings

__all__ = ["explain_many"]

_BLOCK_SIZE: Final = 256
_PASSPHRASE: Final = "KEYLOCK_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable
_GONE: Final = (
    "the job is gone from there, and with it what was charged: the same command begins a new one, which is charged by "
    "itself"
)
_FOR_WORKERS: Final = (
    "bundle",
    "device",
    "engine_cache",
    "keyless",
    "key_file",
    "key_passphrase_file",
    "key_seed_file",
    "key_provider",
    "sealed_key",
    "issuers",
    "max_image_bytes",
    "max_image_pixels",
    "max_image_ratio",
    "max_passes",
    "runtime",
    "variant",
    "least_pcc",
    "ways_file",
    "allow_torch",
    "threads",
)
"""Settings that workers need. Passphrase and address of the store are none of them."""


@takes(BulkOptions)
def explain_many(options: BulkOptions) -> None:
    """Explain very many images with a bundle and its key, in blocks; each block is charged once and has a receipt.

    Results are Parquet files in --out, one for each block, with a row for each image. Images that cannot be decoded are
    reported there and not charged. The same command again goes on where it was stopped. Without --address Ray is
    started on this machine for the time of the job; several machines need a folder --out that all of them share.
    """
    _require_ray()
    settings = _settings(options)
    begun = time.monotonic()
    with _prepared(options, settings) as prepared:
        job, outcome = _run(options, settings, prepared)
        report(
            job,
            outcome,
            cashier=prepared.cashier,
            budget=prepared.budget,
            seconds=time.monotonic() - begun,
            as_json=options.as_json,
        )
    wrong: list[KeylockError] = [] if outcome.limit is None else [outcome.limit]
    if outcome.failures:
        number, why = outcome.failures[0]
        wrong.append(
            DataError(
                f"{len(outcome.failures)} of {len(job.blocks)} blocks could not be explained, the first is {number}: "
                f"{why}. They were not charged; the same command again tries them again"
            )
        )
    raise_first(wrong)


class _Prepared:
    """A job that can begin: what it is, who pays and how much, what workers are told."""

    def __init__(
        self,
        job: "Job",
        order: "WorkerOrder",
        cashier: "Cashier | None",
        budget: "Budget",
        secrets: dict[str, str],
    ) -> None:
        self.job, self.order, self.cashier, self.budget, self.secrets = job, order, cashier, budget, secrets


def _require_ray() -> None:
    """Say what is missing before anything is opened: Ray itself is imported late."""
    if find_spec("ray") is None:
        raise ModuleNotFoundError("ray is not installed", name="ray")


def _settings(options: BulkOptions) -> "ServerSettings":
    """Returns the settings, with what the vendor's directory adds; and refuses what does not go together."""
    for name, given, known in (
        ("--prediction", options.prediction, ("public", "keyed")),
        ("--map-dtype", options.map_dtype, ("float32", "float16", "uint8")),
    ):
        if given not in known:
            raise InputError(f"{name} {given!r} is unknown: choose one of {', '.join(known)}")
    if options.explain_if is not None:
        from keylock.text.conditions import check_public, parse_condition

        check_public(options.prediction)
        parse_condition(options.explain_if)
    pays = [
        name
        for name, given in (
            ("--license-file", options.license_file),
            ("--offline-license", options.offline_license),
            ("--no-charge", options.no_charge),
            ("--keyless", options.keyless),
        )
        if given
    ]
    if len(pays) > 1:
        raise InputError(f"{' and '.join(pays)} exclude each other: give one of them")
    if not pays:
        raise LicenseError(
            LicenseReason.MISSING,
            "true maps are charged to a license: give --license-file or --offline-license; the holder of the key may "
            "explain its own pictures with --no-charge, and --keyless makes decoys",
        )
    settings = complete_settings(options.settings(), options.home)
    if settings.device == "auto":
        settings = settings.model_copy(update={"device": "cpu"})
    if _is_paid(options) and settings.license_store is None:
        raise InputError("a license is charged in a store: name that of the servers with --license-store, or --home")
    return settings


def _is_paid(options: BulkOptions) -> bool:
    return options.license_file is not None or options.offline_license is not None


@contextmanager
def _prepared(options: BulkOptions, settings: "ServerSettings") -> "Iterator[_Prepared]":
    """Opens everything that this process needs, in the order in which mistakes are the cheapest."""
    from contextlib import ExitStack

    from keylock.bulk import Budget
    from keylock.bulk.charging import Cashier
    from keylock.bulk.sources import Place
    from keylock.bundle import open_bundle
    from keylock.crypto.issuers import IssuerKeys
    from keylock.files.exclusive import held

    check_folder(options.out)
    secrets = _secrets(options, settings)
    token = _token(options)
    trusted = tuple(IssuerKeys(settings.issuers)()) if settings.issuers else None
    with ExitStack() as closing:
        bundle = closing.enter_context(open_bundle(options.bundle, trusted=trusted))
        if trusted is None:
            note(
                f"note: the bundle was signed by {bundle.issuer.key_id}, which nobody vouches for; --issuer names whom"
            )
        _require_way_to_key(bundle, settings, here=options.address is None)
        entry = _explainer(bundle, options.explainer)
        cashier = None
        if token is not None:
            cashier = Cashier(settings, token, manifest=bundle.manifest, entry=entry, signer=bundle.issuer)
            closing.callback(cashier.close)
        place = Place.of(options.data)
        closing.enter_context(held(options.out, "keylock explain-many"))
        job = _job(options, place, _asked(options, bundle, entry, cashier, place.name))
        if cashier is not None:
            cashier.look_up(job)
        budget = Budget(job, cashier, options.max_units)
        tell_beginning(job, cashier, budget)
        order = _order(options, settings, job, None if cashier is None else cashier.license.max_pixels)
        yield _Prepared(job, order, cashier, budget, secrets)


def _secrets(options: BulkOptions, settings: "ServerSettings") -> dict[str, str]:
    """Takes what opens the key out of the variables: by name, what workers on this machine will ask for.

    Raises:
        InputError: If workers on other machines would need it.
    """
    import os

    from keylock.cli._secrets import SEED_VARIABLE, TOKEN_VARIABLE
    from keylock.crypto.secrecy import take_variable, variable_of

    wanted = [TOKEN_VARIABLE]
    provider = settings.key_provider if isinstance(settings.key_provider, str) else None
    if provider is not None:
        wanted += filter(None, [variable_of(provider)])
    found = {name: value for name in wanted if (value := take_variable(os.environ, name)) is not None}
    take_variable(os.environ, SEED_VARIABLE)
    ways = (settings.key_file, settings.key_passphrase_file, settings.key_seed_file, settings.key_provider)
    if settings.key_passphrase is not None and not any(ways) and not settings.keyless:
        found[_PASSPHRASE] = settings.key_passphrase.get_secret_value()
    # These and an address of a store with a password; Ray's processes would get all of them.
    take_secrets()
    if options.address is not None and _PASSPHRASE in found:
        raise InputError(
            f"{_PASSPHRASE} does not reach the machines of a cluster: put the passphrase in a file there, and give "
            "--key-passphrase-file"
        )
    # On a cluster every machine has the variables of its key provider itself.
    return {} if options.address is not None else found


def _require_way_to_key(bundle: "Bundle", settings: "ServerSettings", *, here: bool) -> None:
    """Returns where workers are told how to open the key; they open it, and not this process.

    Args:
        bundle: Whose key.
        settings: What they are told.
        here: Whether they run on this machine, so that its files are theirs.

    Raises:
        UnsealError: They are told nothing, or a file that is not there.
    """
    from keylock_server.inference.shared_secrets import not_opened

    if settings.keyless:
        return
    files = (settings.key_file, settings.key_passphrase_file, settings.key_seed_file)
    if not any((*files, settings.key_provider, settings.key_passphrase)):
        raise not_opened(bundle)
    for path in files if here else ():
        if isinstance(path, Path) and not path.expanduser().exists():
            raise UnsealError(f"cannot read the file {path}, which is to open the key: there is no such file")


def _token(options: BulkOptions) -> str | None:
    from keylock.licensing.offline import OfflineLicense

    if options.offline_license is not None:
        return OfflineLicense.read(options.offline_license).token
    return None if options.license_file is None else read_license(options.license_file)


def _explainer(bundle: "Bundle", name: str | None) -> "ExplainerEntry":
    entries = bundle.manifest.explainers
    if name is not None:
        found = next((entry for entry in entries if entry.name == name), None)
        if found is None:
            raise UnknownNameError("explainer", name, (entry.name for entry in entries))
        return found
    compiled = [entry for entry in entries if entry.graph is not None]
    if not compiled:
        raise InputError("none of the bundle's explainers compiled: name one with --explainer, which torch computes")
    return compiled[0]


def _asked(
    options: BulkOptions, bundle: "Bundle", entry: "ExplainerEntry", cashier: "Cashier | None", data: str
) -> "Asked":
    from keylock.bulk import Asked

    return Asked(
        model=bundle.manifest.model_digest,
        explainer=entry.name,
        target=_target(options.target, bundle.manifest.classes),
        data=data,
        column=options.column or "",
        limit=options.limit,
        block_size=_block_size(options, cashier),
        map_dtype=options.map_dtype,
        prediction=options.prediction,
        keyed=not options.keyless,
        license=None if cashier is None else cashier.license.id,
        explain_if=_condition(options.explain_if, bundle.manifest.classes),
    )


def _target(text: str | None, classes: tuple[str, ...]) -> int:
    """Returns the index of a class; -1 for the predicted one."""
    from keylock.v1 import explanation_pb2 as pb
    from keylock_server.services.requests import choose_target

    request = pb.ExplainRequest()
    if text is not None and text not in classes and text.isascii() and text.isdigit():
        request.target_index = min(int(text), 2**31 - 1)
    elif text is not None:
        request.target_label = text
    return choose_target(request, classes)


def _condition(text: str | None, classes: tuple[str, ...]) -> str | None:
    """Returns a condition in its one spelling, in which it is a part of what a job is."""
    from keylock.licensing.conditions import Condition

    return None if text is None else str(Condition.parse(text, classes))


def _block_size(options: BulkOptions, cashier: "Cashier | None") -> int:
    most = None if cashier is None else cashier.license.max_images
    if options.block_size is None:
        return _BLOCK_SIZE if most is None else min(_BLOCK_SIZE, most)
    if most is not None and options.block_size > most:
        raise InputError(f"the license allows {most} images in a request, and a block is one: give --block-size {most}")
    return options.block_size


def _job(options: BulkOptions, place: Any, asked: "Asked") -> "Job":  # noqa: ANN401 - a `Place`, whose module needs Ray
    """Returns the job of the folder, or makes a new one there."""
    from keylock.bulk import Job
    from keylock.bulk.plan import make_blocks
    from keylock.bulk.sources import list_data

    there = Job.find(options.out, asked)
    if there is not None:
        return there
    listing = list_data(place, column=options.column)
    if listing.passed_over:
        note(f"note: {listing.passed_over} files that are no images were passed over")
    blocks = make_blocks(place, listing, size=asked.block_size, limit=asked.limit)
    job = Job.begin(options.out, asked, listing.kind, listing.column, blocks)
    if not job.blocks:
        raise DataError(f"{place.name} has no images: its Parquet files have no rows")
    return job


def _order(options: BulkOptions, settings: "ServerSettings", job: "Job", max_pixels: int | None) -> "WorkerOrder":
    from keylock.bulk.worker import WorkerOrder

    values = {name: _absolute(getattr(settings, name)) for name in _FOR_WORKERS}
    offline = settings.offline_license
    return WorkerOrder(
        folder=str(job.folder.absolute()),
        job=job.id,
        column=job.column,
        asked=job.asked,
        batch_size=options.batch_size,
        max_pixels=max_pixels,
        settings={**values, "max_batch": options.batch_size, "workers": 1, "batches": 1},
        offline_license=None if offline is None else str(offline.absolute()),
        variables=None,
    )


def _absolute(value: Any) -> Any:  # noqa: ANN401 - settings are of many types
    """Returns a setting as text, number or a tuple of them: workers run in another folder."""
    if isinstance(value, Path):
        return str(value.expanduser().absolute())
    return tuple(_absolute(one) for one in value) if isinstance(value, tuple) else value


def _run(options: BulkOptions, settings: "ServerSettings", prepared: _Prepared) -> "tuple[Job, Outcome]":
    from keylock.bulk.run import Workers, run_job

    job = prepared.job
    left = job.left()
    workers = Workers(
        count=options.workers,
        threads=options.threads,
        gpu=settings.device in ("cuda", "tensorrt"),
        address=options.address,
    )
    starting = "starting Ray on this machine" if options.address is None else f"asking Ray at {options.address}"
    try:
        with shown_progress() as progress:
            shown = _Shown(progress, len(job.blocks), len(job.blocks) - len(left))
            outcome = run_job(
                job,
                prepared.order,
                workers=workers,
                cashier=prepared.cashier,
                secrets=prepared.secrets,
                budget=prepared.budget,
                on_begin=lambda: note(starting),
                on_start=shown.begin,
                on_block=shown.advance,
            )
    except KeyboardInterrupt:
        go_on = "run the same command again to go on" if job.is_there else _GONE
        raise StoppedError(f"stopped; {_reached(job)}: {go_on}") from None
    except KeylockError as error:
        if isinstance(error, QuotaError) and job.asked.explain_if is not None:
            note("note: units are set aside for all images of a block, and charged for those that are explained")
        note(f"{_reached(job)}; {'the same command again goes on from there' if job.is_there else _GONE}")
        raise
    return job, outcome


class _Shown:
    """The progress of a job."""

    def __init__(self, progress: Display, total: int, done: int) -> None:
        self._progress, self._total, self._done = progress, total, done
        self._blocks = 0
        # When the first block was finished, and its images: before it, workers opened the bundle.
        self._first: tuple[float, int] | None = None

    def begin(self, workers: int) -> None:
        """Show that workers begin."""
        self._progress.start("blocks", self._total, self._done)
        self._progress.doing(f"{workers} workers open the bundle" if workers > 1 else "a worker opens the bundle")

    def advance(self, *, blocks: int, images: int) -> None:
        """Show that a block is finished; one that could not be explained is told of at the end."""
        if blocks == self._blocks:
            return
        self._blocks, now = blocks, time.monotonic()
        self._progress.advance({})
        if self._first is None:
            self._first = now, images
        begun, before = self._first
        rate = f", {(images - before) / (now - begun):.1f} in a second" if now > begun else ""
        self._progress.doing(f"{images:,} images{rate}")


def _reached(job: "Job") -> str:
    return f"{len(job.blocks) - len(job.left())} of {len(job.blocks)} blocks are finished in {job.folder}"
