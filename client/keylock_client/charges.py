"""What a license grants, what calls cost, and the vendor's word for it, as frozen values.

explanation.usage               what the call cost, and what is left
explanation.receipt.save(...)   what an auditor checks later
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from keylock.errors import InputError
from keylock.files.atomic import PRIVATE, write_file

__all__ = ["Estimate", "LicenseInfo", "Proof", "Quota", "Receipt", "Usage"]


@dataclass(frozen=True, slots=True)
class Quota:
    """What a license may use in a period, and has used.

    Attributes:
        period: `day`, `month` (both in UTC) or `total`.
        limit: Units; None where there is no limit.
        used: Units that are charged, or reserved for calls that run.
        resets_at: When it is filled again (UTC); None for the total.
    """

    period: str
    limit: int | None
    used: int
    resets_at: datetime | None

    @property
    def remaining(self) -> int | None:
        """Units that are left; None where there is no limit."""
        return None if self.limit is None else max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost. A long list of images is sent in several calls, and each explanation has that of its own.

    Attributes:
        units: Units charged for the call, all its images together; 0 without a license.
        license_id: The license that paid; empty without one.
        replayed: Whether an earlier call with the same request id was charged, so that this one cost nothing.
        overage_units: Units that were beyond the quota.
        remaining: Units that are left in the period with the fewest left; None where nothing is limited.
        resets_at: When that period is filled again (UTC); None for the total.
        charged_at: When it was charged (UTC); None where nothing was.
    """

    units: int
    license_id: str
    replayed: bool
    overage_units: int
    remaining: int | None
    resets_at: datetime | None
    charged_at: datetime | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call would cost.

    Attributes:
        explainer: The explainer it is for.
        units: What it would cost with a license.
        units_per_image: What one image costs.
        fits: Whether it fits what the license has left now; nothing is set aside.
        quotas: Those of the license, one for each period; empty without one.
    """

    explainer: str
    units: int
    units_per_image: int
    fits: bool
    quotas: tuple[Quota, ...]


@dataclass(frozen=True, slots=True)
class LicenseInfo:
    """What the caller's license grants. The token itself is not in here.

    Attributes:
        id: Id of the license.
        customer: Whom it was issued to.
        models: Names or digests of models; `*` stands for all.
        explainers: Names of explainers; `*` stands for all.
        issued_at: When it was issued (UTC).
        not_before: When it begins to hold (UTC).
        expires: When it ends (UTC).
        max_images: Most images in a call; None where the server's limit is the only one.
        max_pixels: Most pixels of an image; None where the server's limit is the only one.
        rate: Images a second, on average, and at once; None where there is no limit.
        similar_queries: Whether predictions of near copies of a picture are answered beyond the server's query guard.
        disclosures_per_day: Most disclosures in a day (UTC); 0 where it is entitled to none.
    """

    id: str
    customer: str
    models: tuple[str, ...]
    explainers: tuple[str, ...]
    issued_at: datetime
    not_before: datetime
    expires: datetime
    max_images: int | None = None
    max_pixels: int | None = None
    rate: tuple[float, int] | None = None
    similar_queries: bool = False
    disclosures_per_day: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """The vendor's signed word of what was charged and answered; it was verified when the answer came.

    Attributes:
        token: The receipt itself. Keep it: it is what an auditor checks.
        license_id: The license that paid.
        request_id: The call.
        model_digest: The model that answered.
        explainer: Name of the saliency method.
        parameters: Those really used.
        keyed: Whether the maps are true ones.
        units: What the call cost, all images together.
        time: When it was charged (UTC).
        image_digests: Digests of the images as they were sent, in order.
        map_digests: Digests of the maps as they were answered, in order; None of an image that was not explained.
        target: Index of the class that was asked for; -1 for the predicted one of each image.
        repeated: Whether it is for another answer to the same request than the one that was charged: computed again,
            a map can come out different in its last bits. Nothing is charged for it.
        issuer: Id of the key of the vendor who certified the key that signed.
        trusted: Whether that vendor is the one who issued the license, or was named; False where the client knew
            nobody to compare with.
    """

    token: str = field(repr=False)
    license_id: str
    request_id: str
    model_digest: str
    explainer: str
    parameters: Mapping[str, Any]
    keyed: bool
    units: int
    time: datetime
    image_digests: tuple[str, ...] = field(repr=False)
    map_digests: tuple[str | None, ...] = field(repr=False)
    target: int
    repeated: bool
    issuer: str
    trusted: bool

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the token to a file, over one that is there.

        Raises:
            InputError: If the file cannot be written.
        """
        return _write_text(Path(path), self.token + "\n")


@dataclass(frozen=True, slots=True)
class Proof:
    """That a receipt is in the vendor's log; it was verified when it came.

    Attributes:
        text: The proof itself, in the format of C2SP: an auditor checks it with `keylock receipt verify --proof`.
        index: The place of the charge in the log, from 0.
        size: Entries the log had.
        log: Name of the log.
        checkpoint: The signed state of the log. Keep it: later proofs show that the log goes on from it.
    """

    text: str = field(repr=False)
    index: int
    size: int
    log: str
    checkpoint: str = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the proof to a file, over one that is there.

        Raises:
            InputError: If the file cannot be written.
        """
        return _write_text(Path(path), self.text)


def _write_text(out: Path, text: str) -> Path:
    try:
        write_file(out, text, mode=PRIVATE)
    except OSError as error:
        raise InputError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
    return out
