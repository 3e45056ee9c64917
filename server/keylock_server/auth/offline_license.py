"""Serving under an offline license, on the customer's own machine: the license is put into the customer's own store.

From there on it is a license like any other: units are counted by the ledger of that store, and the dates are checked
by the clock of that machine. The clock is not believed when it is behind the last charge.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from keylock.bundle import Manifest
from keylock.crypto.signing import VerifyingKey, decode_base64url
from keylock.errors import LicenseError, LicenseReason, ServiceError
from keylock.licensing import License, check, verify
from keylock.licensing.offline import OfflineLicense, check_limits

if TYPE_CHECKING:
    from keylock.store import LicenseStore

__all__ = ["admit_offline_license"]


def admit_offline_license(
    path: Path,
    store: "LicenseStore",
    *,
    manifest: Manifest,
    issuers: tuple[VerifyingKey, ...],
    now: datetime,
    leeway_s: float,
) -> License:
    """Verifies an offline license and puts it into the store, once; what it has used stays.

    Args:
        path: The offline license.
        store: The customer's store.
        manifest: The model that is served.
        issuers: Whose licenses are accepted.
        now: The time, with its zone.
        leeway_s: How far a clock may be off, in seconds.

    Returns:
        The license.

    Raises:
        LicenseError: If it is not good, does not cover the model, or has no total quota.
        ServiceError: If the clock is behind the last charge in the store.
        StoreError: If the store cannot be used.
    """
    token = OfflineLicense.read(path).token
    granted = verify(token, issuers, now=now, leeway_s=leeway_s)
    check_limits(granted)
    check(granted, model_name=manifest.name, model_digest=manifest.model_digest)
    _check_clock(store, now=now, leeway=timedelta(seconds=leeway_s))
    # The header was verified above, so its key is one of the issuers.
    issuer = str(json.loads(decode_base64url(token.partition(".")[0]))["kid"])
    try:
        stored = store.get(granted.id).license
    except LicenseError as error:
        if error.reason is not LicenseReason.UNKNOWN:
            raise
        store.add(granted, issuer=issuer)
        return granted
    # A newer license under the same id replaces the older one, and never the other way round.
    if granted.issued_at > stored.issued_at:
        store.renew(granted, issuer=issuer)
    elif granted != stored:
        raise LicenseError(
            LicenseReason.MALFORMED, f"an offline license newer than {path} was used here before: use the newest"
        )
    return granted


def _check_clock(store: "LicenseStore", *, now: datetime, leeway: timedelta) -> None:
    with store.database.transaction() as connection:
        seconds = connection.exec_driver_sql("SELECT max(charged_at) FROM ledger").scalar_one()
    last = None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    if last is not None and now + leeway < last:
        raise ServiceError(
            f"the clock says {now:%Y-%m-%d %H:%M:%S} UTC and something was charged at {last:%Y-%m-%d %H:%M:%S} UTC "
            "already: set the clock"
        )
