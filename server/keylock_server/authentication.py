"""Who is calling: from the metadata of a call to a verified license, or the reason why not.

A call without the entry `authorization` is unlicensed. One that has it is licensed or fails: whatever is wrong with
the entry, the call is never treated as if it were not there.
"""

import logging
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from keylock.bundle import Manifest
from keylock.errors import LicenseError, LicenseReason, ServiceError
from keylock.licensing import License, check, verify
from keylock.signing import VerifyingKey

if TYPE_CHECKING:
    from keylock.store import LicenseStore

__all__ = ["Authenticator", "bearer_token"]

_LOG: Final = logging.getLogger("keylock_server")
_HEADER: Final = "authorization"


def bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Finds the token in the metadata of a call.

    Returns:
        The token, or None when none was presented.

    Raises:
        LicenseError: If there are several entries, or one that is not `Bearer <token>` (RFC 6750, section 2.1).
    """
    values = [value for name, value in metadata if name.lower() == _HEADER]
    if not values:
        return None
    if len(values) > 1:
        raise LicenseError(LicenseReason.MALFORMED, "the call has several authorization entries: send one license")
    text = values[0] if isinstance(values[0], str) else ""
    scheme, _, token = text.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise LicenseError(
            LicenseReason.MALFORMED,
            "the authorization entry is not 'Bearer <token>': send the license as it was issued",
        )
    return token.strip()


class Authenticator:
    """Verifies licenses for one model. Its methods block; call them in a thread."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        keys: Collection[VerifyingKey],
        store: "LicenseStore | None",
        leeway_s: int,
        now: Callable[[], datetime],
    ) -> None:
        """Makes the authenticator.

        Args:
            manifest: The model's manifest.
            keys: Whose licenses are accepted.
            store: The licenses issued; without it neither revoked nor unknown ones are noticed.
            leeway_s: How far a clock may be off, in seconds.
            now: The clock, in UTC.
        """
        self._manifest = manifest
        self._keys = tuple(keys)
        self._store = store
        self._leeway_s = leeway_s
        self._now = now

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> License | None:
        """Verifies the license presented with a call: form, signature, dates, and that it is issued and not revoked.

        Returns:
            The license, or None when none was presented.

        Raises:
            LicenseError: If one was presented and is not good.
            ServiceError: If the store cannot be used.
        """
        token = bearer_token(metadata)
        if token is None:
            return None
        granted = verify(token, self._keys, now=self._now(), leeway_s=self._leeway_s)
        if self._store is not None:
            self._check_store(granted, self._store)
        return granted

    def authorise(self, granted: License, *, explainer: str) -> None:
        """Checks that a license covers this model and an explainer.

        Raises:
            LicenseError: If it does not.
        """
        check(
            granted,
            model_name=self._manifest.name,
            model_digest=self._manifest.model_digest,
            explainer=explainer,
        )

    @staticmethod
    def _check_store(granted: License, store: "LicenseStore") -> None:
        # The store's own messages are for the vendor: they name files of this machine and commands to run.
        try:
            store.check(granted.id)
        except ServiceError as error:
            _LOG.error("%s", error)
            raise ServiceError("licenses cannot be checked at the moment: try again later") from None
        except LicenseError as error:
            why = "was revoked" if error.reason is LicenseReason.REVOKED else "is not on the vendor's list"
            raise LicenseError(error.reason, f"the license {granted.id} {why}: ask the vendor for a new one") from None
