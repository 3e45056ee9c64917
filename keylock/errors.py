"""Every error keylock raises on purpose, in one tree.

    KeylockError
    ├── InputError              the caller's input: says what is wrong and what to send instead
    │   ├── ImageError          an image that cannot or must not be decoded
    │   ├── TensorError         an array of the wrong shape, type or range
    │   ├── UnknownNameError    a name that is in no registry; lists the names that are
    │   └── DataError           a data set that is missing, unreadable or unusable
    ├── KeySeedError            a key seed that is empty, unreadable or too short
    ├── SignatureError          a signing key that is missing or unreadable, or a signature that does not fit
    ├── BundleError             a bundle that cannot be used
    │   ├── BundleTamperedError a file that differs from what was signed; carries its name
    │   └── UnsealError         the sealed key does not open with what was given
    ├── LicenseError            a license that was presented and is not good; carries its reason
    ├── AuditLogError           an audit log, checkpoint or proof that does not hold
    ├── ReceiptError            a receipt that does not hold, or not for the answer it came with
    ├── ModelError              a model keylock cannot work on
    │   └── LayerNotFoundError  a target layer that is missing or ambiguous
    ├── TrainingError           training that cannot go on
    │   ├── NonFiniteLossError  a loss term became NaN or infinite; carries the term
    │   ├── OutOfMemoryError    a step does not fit into memory; carries the size of the batch
    │   ├── StorageError        the state of a run cannot be written; carries the file
    │   ├── InUseError          a folder that another run works in; carries the folder
    │   └── ResumeError         a checkpoint that does not belong to this run
    ├── ExportError             a compiled graph that disagrees with its reference
    └── ServiceError            the server cannot start, or the client cannot reach it
        ├── StoreError          the store of licenses and usage cannot be used
        │   └── StoreReplacedError  it is not the one that was opened
        ├── RegistryError       a registry of artefacts cannot be used, or has not what was asked for
        └── MeteringError       a good license whose use does not fit
            ├── QuotaError      its quota is spent; carries what is left and when it is filled again
            │   └── DisclosuresSpentError  as many disclosures were made as it allows
            ├── RateError       it comes too fast; carries when to come again
            └── RequestReusedError  a request id that stands for another request already

A message is one sentence (or two) that says what happened and what to do. `exit_code` is what the command line
exits with; the codes are part of the interface and are listed in `docs/cli.md`.
"""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

__all__ = [
    "EXIT_MISSING_EXTRA",
    "AuditLogError",
    "BundleError",
    "BundleTamperedError",
    "DataError",
    "DisclosuresSpentError",
    "ExportError",
    "ImageError",
    "InUseError",
    "InputError",
    "KeySeedError",
    "KeylockError",
    "LayerNotFoundError",
    "LicenseError",
    "LicenseReason",
    "MeteringError",
    "ModelError",
    "NonFiniteLossError",
    "OutOfMemoryError",
    "QuotaError",
    "RateError",
    "ReceiptError",
    "RegistryError",
    "RequestReusedError",
    "ResumeError",
    "ServiceError",
    "SignatureError",
    "StorageError",
    "StoreError",
    "StoreReplacedError",
    "TensorError",
    "TrainingError",
    "UnknownNameError",
    "UnsealError",
]

EXIT_MISSING_EXTRA: Final = 10
"""What the command line exits with where an optional part is not installed, whatever kind of error says so."""


class KeylockError(Exception):
    """Base of every error keylock raises on purpose."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def for_missing_extra(self) -> Self:
        """Return this error with the exit code of an optional part that is not installed."""
        self.exit_code = EXIT_MISSING_EXTRA
        return self


class InputError(KeylockError):
    """The caller's input is wrong.

    Attributes:
        field: The field of a request that is at fault, for example `images[2]`; set by the server alone.
    """

    exit_code = 3
    field: str | None = None


class ImageError(InputError):
    """An image cannot, or must not, be decoded."""


class TensorError(InputError):
    """An array has the wrong shape, type or range."""


class UnknownNameError(InputError):
    """A name is in no registry.

    Attributes:
        kind: What was asked for, for example `explainer`.
        name: The unknown name.
        known: The names that would have been valid, sorted.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        super().__init__(f"unknown {kind} {name!r}: choose one of {', '.join(self.known) or '(none available)'}")


class DataError(InputError):
    """A data set is missing, unreadable or unusable."""


class KeySeedError(KeylockError):
    """A key seed is empty, unreadable or too short."""

    exit_code = 6


class SignatureError(KeylockError):
    """A signing key is missing or unreadable, or a signature does not fit."""

    exit_code = 6


class BundleError(KeylockError):
    """A bundle cannot be used."""

    exit_code = 4


class BundleTamperedError(BundleError):
    """A file of a bundle differs from what was signed.

    Attributes:
        file: Name of the file inside the bundle.
    """

    def __init__(self, file: str, why: str) -> None:
        self.file = file
        super().__init__(f"bundle refused: {file} {why}; get a fresh copy from the vendor")


class UnsealError(BundleError):
    """The sealed key does not open with what was given."""

    exit_code = 6


class LicenseReason(StrEnum):
    """Why a license was refused. The values are sent to callers as `ErrorInfo.reason` and never change."""

    MALFORMED = "LICENSE_MALFORMED"
    FORGED = "LICENSE_FORGED"
    UNKNOWN_ISSUER = "LICENSE_UNKNOWN_ISSUER"
    UNKNOWN = "LICENSE_UNKNOWN"
    NOT_YET_VALID = "LICENSE_NOT_YET_VALID"
    EXPIRED = "LICENSE_EXPIRED"
    REVOKED = "LICENSE_REVOKED"
    SUSPENDED = "LICENSE_SUSPENDED"
    WRONG_CERTIFICATE = "LICENSE_WRONG_CERTIFICATE"
    WRONG_MODEL = "LICENSE_WRONG_MODEL"
    WRONG_EXPLAINER = "LICENSE_WRONG_EXPLAINER"
    BATCH_TOO_LARGE = "LICENSE_BATCH_TOO_LARGE"
    IMAGE_TOO_LARGE = "LICENSE_IMAGE_TOO_LARGE"
    MISSING = "LICENSE_MISSING"
    NEEDED_FOR_TARGET = "TARGET_NEEDS_LICENSE"
    WITHOUT_DISCLOSURE = "LICENSE_WITHOUT_DISCLOSURE"


class LicenseError(KeylockError):
    """A license was presented and is not good, or one is needed and none was presented.

    Attributes:
        reason: The stable reason.
        field: The field of a request that needs one; None where it is not a field that does.
    """

    exit_code = 5

    def __init__(self, reason: LicenseReason, message: str, *, field: str | None = None) -> None:
        self.reason, self.field = reason, field
        super().__init__(message)


class AuditLogError(KeylockError):
    """An audit log, a checkpoint or a proof does not hold."""

    exit_code = 11


class ReceiptError(KeylockError):
    """A receipt does not hold, or is not for the answer it came with."""

    exit_code = 11


class ModelError(KeylockError):
    """A model keylock cannot work on."""

    exit_code = 3


class LayerNotFoundError(ModelError):
    """A target layer is missing or ambiguous."""


class TrainingError(KeylockError):
    """Training cannot go on."""

    exit_code = 8


class NonFiniteLossError(TrainingError):
    """A loss term became NaN or infinite.

    Attributes:
        term: Name of the loss term.
        step: The step at which it happened.
    """

    def __init__(self, term: str, step: int) -> None:
        self.term, self.step = term, step
        super().__init__(
            f"the loss term {term!r} became NaN or infinite at step {step}; the last good checkpoint is kept: "
            "resume with a lower learning rate (learning_rate=)"
        )


class OutOfMemoryError(TrainingError):
    """A step does not fit into memory.

    Attributes:
        rows: Images in the batch.
    """

    def __init__(self, rows: int, parts: int | None = None) -> None:
        self.rows = rows
        in_parts = (
            "" if parts is None else f", or accumulate={2 * parts}, which keeps the batch and computes it in parts"
        )
        super().__init__(
            f"a batch of {rows} images does not fit into memory: try batch_size={max(1, rows // 2)}{in_parts}"
        )


class StorageError(TrainingError):
    """The state of a run cannot be written: the disk is full or read-only, or the folder is gone.

    Attributes:
        path: The file that could not be written; what was there before is still there, and so is what the run has
            finished and keeps beside it.
    """

    def __init__(
        self, path: Path, reason: str, advice: str = "go on with resume=True", *, kept: str | None = None
    ) -> None:
        self.path = path
        if kept is not None:
            pass
        elif path.is_file():
            kept = "the state that was kept before is still there"
        else:
            beside = sorted(file.name for file in path.parent.glob("[!.]*.safetensors"))
            kept = f"{' and '.join(beside)} beside it can still be used" if beside else "nothing was kept before"
        super().__init__(f"cannot write {path} ({reason}): {kept}; make room or make the folder writable, and {advice}")


class InUseError(TrainingError):
    """A folder that a run needs for itself is in use by another.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        self.folder = folder
        super().__init__(f"the folder {folder} is in use by {holder}: wait until it ends, or choose another out=")


class ResumeError(TrainingError):
    """A checkpoint does not belong to this run."""


class ExportError(KeylockError):
    """A compiled graph disagrees with its reference, or cannot be compiled."""

    exit_code = 9


class ServiceError(KeylockError):
    """The server cannot start, or the client cannot reach it."""

    exit_code = 7


class StoreError(ServiceError):
    """The store of licenses and usage cannot be used.

    Attributes:
        passing: Whether the store itself is the trouble (away, locked, full), so that a later attempt may succeed.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        self.passing = passing
        super().__init__(message)


class StoreReplacedError(StoreError):
    """The store is not the one that was opened: its file was replaced or removed, or it was put back from a backup."""


class RegistryError(ServiceError):
    """A registry cannot be reached, refuses, has not what was asked for, or sends something else."""


class MeteringError(ServiceError):
    """A license is good, but what was asked for does not fit what it has left."""

    exit_code = 5


class QuotaError(MeteringError):
    """The quota of a license is spent.

    Attributes:
        license_id: The license.
        period: `day`, `month` or `total`.
        limit: Units the license has in that period.
        used: Units used or reserved in it.
        units: Units that were asked for.
        resets_at: When the period ends; None for the total, which ends never.
    """

    def __init__(
        self, *, license_id: str, period: str, limit: int, used: int, units: int, resets_at: datetime | None
    ) -> None:
        self.license_id, self.period, self.limit, self.used, self.units = license_id, period, limit, used, units
        self.resets_at = resets_at
        advice = "ask the vendor for more" if resets_at is None else f"wait until {resets_at:%Y-%m-%d %H:%M} UTC"
        super().__init__(f"the license {license_id} has {self._left()}: {advice}")

    def _left(self) -> str:
        left = max(0, self.limit - self.used)
        return f"{left} of {self.limit} units left ({self.period}) and this takes {self.units}"


class DisclosuresSpentError(QuotaError):
    """A license has made as many disclosures as it may; `limit` and `used` count them, and no units."""

    def _left(self) -> str:
        return f"none of its {self.limit} disclosures left ({self.period})"


class RateError(MeteringError):
    """A license is used faster than it allows.

    Attributes:
        license_id: The license.
        retry_after_s: When to come again, in seconds.
    """

    def __init__(self, *, license_id: str, retry_after_s: float) -> None:
        self.license_id, self.retry_after_s = license_id, retry_after_s
        super().__init__(f"the license {license_id} is used too fast: come again in {retry_after_s:.2f} s")


class RequestReusedError(MeteringError):
    """A request id was used before, for another request.

    Attributes:
        request_id: The id.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        super().__init__("this request id stands for another request already: use a new id for every new request")
