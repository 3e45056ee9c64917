"""Who is calling: from a call to a verified license, or the reason why not.

A call without the entry `authorization` is unlicensed. One that has it is licensed or fails: whatever is wrong with
the entry, the call is never treated as if it were not there.
"""

import hashlib
import logging
import ssl
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import grpc

from keylock.crypto.signing import VerifyingKey
from keylock.errors import LicenseError, LicenseReason, ServiceError, StoreError, StoreReplacedError
from keylock.licensing import (
    ACCESS_TYPE,
    License,
    certificate_thumbprint,
    check_time,
    kind_of,
    verify_access,
    verify_ignoring_time,
)
from keylock_server.transport.statuses import StoreLostError

if TYPE_CHECKING:
    from keylock.store import LicenseStore

__all__ = ["Authenticator", "Caller", "Identity", "bearer_token"]

_LOG: Final = logging.getLogger("keylock_server")
_HEADER: Final = "authorization"
_CERTIFICATE: Final = "x509_pem_cert"
_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True)
class Caller:
    """What is known about a caller before anything was verified.

    Attributes:
        metadata: The entries sent with the call.
        thumbprint: Of the TLS certificate it has shown; None where it has shown none.
    """

    metadata: tuple[tuple[str, str | bytes], ...]
    thumbprint: str | None

    @classmethod
    def of(cls, context: "grpc.aio.ServicerContext[Any, Any]") -> "Caller":
        """Reads it from the context of a call."""
        shown = list(context.auth_context().get(_CERTIFICATE, ()))
        thumbprint = certificate_thumbprint(ssl.PEM_cert_to_DER_cert(shown[0].decode("ascii"))) if shown else None
        return cls(tuple(context.invocation_metadata() or ()), thumbprint)


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller whose license is good.

    Attributes:
        license: The license as the vendor has it now: that of the store, where there is one.
        presented: The license as it was presented.
        token_id: Id of the access token that stands for it; None where the license itself was presented.
    """

    license: License
    presented: License
    token_id: str | None


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
    """Verifies licenses. Its methods block; call them in a thread."""

    def __init__(
        self,
        *,
        keys: Callable[[], Collection[VerifyingKey]],
        access_keys: Collection[VerifyingKey] = (),
        store: "LicenseStore | None",
        leeway_s: int,
        now: Callable[[], datetime],
    ) -> None:
        """Makes the authenticator.

        Args:
            keys: Returns those whose licenses are accepted; another object when they have changed.
            access_keys: Whose access tokens are accepted.
            store: The licenses issued; without it neither revoked nor unknown ones are noticed.
            leeway_s: How far a clock may be off, in seconds.
            now: The clock, in UTC.
        """
        self._keys = keys
        self._trusted = keys()
        self._access_keys = tuple(access_keys)
        self._store = store
        self._leeway_s = leeway_s
        self._now = now
        # Licenses whose signature was found good, by the digest of their token: a signature stays good.
        self._verified: dict[bytes, License] = {}

    def authenticate(self, caller: Caller, *, disclosing: bool = False) -> Identity | None:
        """Verifies what a caller presents: form, signature, dates, and that it is issued and not revoked.

        Args:
            caller: The caller.
            disclosing: Whether for a disclosure, which outlives a suspension for non-payment for a while.

        Returns:
            Who it is, or None when nothing was presented.

        Raises:
            LicenseError: If something was presented and is not good.
            ServiceError: If the store cannot be used.
        """
        token = bearer_token(caller.metadata)
        if token is None:
            return None
        if kind_of(token) == ACCESS_TYPE:
            access = verify_access(
                token,
                self._access_keys,
                now=self._now(),
                leeway_s=self._leeway_s,
                thumbprint=caller.thumbprint,
            )
            current = self._look_up(
                access.license, issued_at=access.issued_at, token_id=access.id, disclosing=disclosing
            )
            return Identity(current, access.license, access.id)
        presented = self._verify(token)
        current = self._look_up(presented, issued_at=presented.issued_at, disclosing=disclosing)
        return Identity(current, presented, None)

    def authenticate_at_once(self, caller: Caller) -> Identity | None:
        """Does what `authenticate` does where that takes no wait and hardly any time; for the event loop.

        So it is for callers without a license, and for those whose license was verified before, with a store that is a
        file of this machine. For all others `authenticate` is to be called in a thread.

        Raises:
            BlockingIOError: If it would take longer.
            LicenseError: As `authenticate`.
            ServiceError: As `authenticate`.
        """
        token = bearer_token(caller.metadata)
        if token is None:
            return None
        known = self._verified.get(_digest(token)) if self._keys() is self._trusted else None
        if known is None:
            raise BlockingIOError
        check_time(known.id, known.not_before, known.expires, now=self._now(), leeway_s=self._leeway_s)
        return Identity(self._look_up(known, issued_at=known.issued_at, at_once=True), known, None)

    def require(self, caller: Caller, *, disclosing: bool = False) -> Identity:
        """Verifies what a caller presents, as `authenticate` does, and demands that there is something.

        Raises:
            LicenseError: If nothing was presented, or something that is not good.
            ServiceError: If the store cannot be used.
        """
        identity = self.authenticate(caller, disclosing=disclosing)
        if identity is None:
            raise LicenseError(
                LicenseReason.MISSING, "no license was presented: send one as 'authorization: Bearer ...'"
            )
        return identity

    def _verify(self, token: str) -> License:
        trusted = self._keys()
        if trusted is not self._trusted:
            self._verified.clear()
            self._trusted = trusted
        digest = _digest(token)
        known = self._verified.get(digest)
        if known is None:
            known = verify_ignoring_time(token, trusted)
            if len(self._verified) >= _REMEMBERED:
                self._verified.clear()
            self._verified[digest] = known
        check_time(known.id, known.not_before, known.expires, now=self._now(), leeway_s=self._leeway_s)
        return known

    def _look_up(
        self,
        presented: License,
        *,
        issued_at: datetime,
        token_id: str | None = None,
        at_once: bool = False,
        disclosing: bool = False,
    ) -> License:
        if self._store is None:
            return presented
        # The store's own messages are for the vendor: they name files of this machine and commands to run.
        try:
            if at_once:
                current = self._store.check_at_once(presented.id, issued_at=issued_at).license
            else:
                now = self._now() if disclosing else None
                current = self._store.check(
                    presented.id, issued_at=issued_at, token_id=token_id, disclosing_at=now
                ).license
            # Every issue of a license has a time of its own, so these two are the same one, and this one is signed.
            if current.issued_at == presented.issued_at and current != presented:
                raise StoreError(
                    f"the license {presented.id} in the store is not what was issued, it was changed by hand: renew it "
                    "with the terms it shall have"
                )
        except StoreError as error:
            _LOG.error("%s", error)
            if isinstance(error, StoreReplacedError):
                raise StoreLostError from None
            raise ServiceError("licenses cannot be checked at the moment: try again later") from None
        except LicenseError as error:
            why = {
                LicenseReason.REVOKED: "was revoked",
                LicenseReason.SUSPENDED: "is suspended",
            }.get(error.reason, "is not on the vendor's list")
            raise LicenseError(
                error.reason, f"the license {presented.id} {why}: ask the vendor for a new one"
            ) from None
        # A license may have been renewed with an earlier end than the file says that was presented.
        check_time(current.id, current.not_before, current.expires, now=self._now(), leeway_s=self._leeway_s)
        return current


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
