"""Which receipt keys an issuer has taken back: a short signed list that servers hand out and clients compare.

Whoever has stolen a receipt key can write any time into a receipt. So a receipt under a key that was taken back holds
only with a proof that it is in the log, under a checkpoint that another key signed.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keylock.crypto.jws import Jws, sign
from keylock.crypto.signing import SigningKey, VerifyingKey, canonical_json
from keylock.errors import ReceiptError, SignatureError
from keylock.files.atomic import PUBLIC, replacing

__all__ = ["RevocationFile", "Revocations"]

_TYPE: Final = "keylock-receipt-revocations+jws"
_MAX_BYTES: Final = 64 * 1024
_LAST_SECOND: Final = 253_402_300_799

_Seconds = Annotated[int, Field(ge=0, le=_LAST_SECOND)]


class _Claims(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    purpose: Literal["keylock-receipt-revocations/v1"] = "keylock-receipt-revocations/v1"
    iat: _Seconds
    keys: list[str]


@dataclass(frozen=True)
class Revocations:
    """Receipt keys that were taken back.

    Attributes:
        issued_at: When the list was signed (UTC); of two lists the later one counts.
        keys: Ids of the keys.
        token: The list as it was signed; empty where there is none.
    """

    issued_at: datetime
    keys: frozenset[str]
    token: str

    @classmethod
    def none(cls) -> Self:
        """Returns the list before any key was taken back, which nobody signed."""
        return cls(datetime.fromtimestamp(0, UTC), frozenset(), "")

    @classmethod
    def read(cls, token: str, trusts: Callable[[VerifyingKey], bool]) -> Self:
        """Verifies a list.

        Args:
            token: The list as it was signed.
            trusts: Tells whether an issuer is trusted.

        Raises:
            ReceiptError: If it is malformed, was changed, or is of an issuer that is not trusted.
        """
        try:
            parsed = Jws.parse(token.strip(), typ=_TYPE, members=("jwk",), max_bytes=_MAX_BYTES)
            jwk = parsed.header["jwk"]
            if not isinstance(jwk, dict):
                raise ValueError("not a key")
            issuer = VerifyingKey.from_jwk(jwk)
            claims = _Claims.model_validate_json(parsed.verify(issuer))
        except (ValueError, ValidationError, SignatureError):
            raise ReceiptError("the list of receipt keys that were taken back is malformed, or was changed") from None
        if not trusts(issuer):
            raise ReceiptError(
                f"the list of receipt keys that were taken back is of {issuer.key_id}, which is not trusted here"
            )
        return cls(datetime.fromtimestamp(claims.iat, UTC), frozenset(claims.keys), token.strip())

    def with_key(self, key_id: str, issuer: SigningKey, *, now: datetime) -> Self:
        """Returns the list with one more key, signed.

        Args:
            key_id: Id of the receipt key.
            issuer: Who certified it.
            now: The time, with its zone.
        """
        # Later than the last list, also where the clock was set back: clients keep the later of two.
        issued_at = max(now.replace(microsecond=0), datetime.fromtimestamp(int(self.issued_at.timestamp()) + 1, UTC))
        keys = self.keys | {key_id}
        claims = _Claims(iat=int(issued_at.timestamp()), keys=sorted(keys))
        payload = canonical_json(claims.model_dump())
        token = sign(payload, issuer, typ=_TYPE, jwk=issuer.verifying_key.to_jwk())
        return replace(self, issued_at=issued_at, keys=keys, token=token)


class RevocationFile:
    """A list in a file, read again when the file changes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Takes the file, which need not be there."""
        self.path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._token = ""

    def token(self) -> str:
        """Returns the list as it was signed, not verified; empty where there is no file.

        Raises:
            ReceiptError: If it cannot be read.
        """
        try:
            found = self.path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp != self._seen:
                with self.path.open("rb") as file:
                    content = file.read(_MAX_BYTES + 1)
                self._token, self._seen = content.decode("ascii", "replace").strip(), stamp
        except FileNotFoundError:
            return self._token
        except OSError as error:
            raise ReceiptError(f"cannot read {self.path}: {error.strerror or 'unreadable'}") from None
        return self._token

    def read(self, trusts: Callable[[VerifyingKey], bool]) -> Revocations:
        """Returns the list, verified.

        Raises:
            ReceiptError: If it cannot be read or does not hold.
        """
        token = self.token()
        return Revocations.read(token, trusts) if token else Revocations.none()

    def write(self, revocations: Revocations) -> None:
        """Writes a list, whole or not at all.

        Raises:
            SignatureError: If the file cannot be written.
        """
        try:
            with replacing(self.path, mode=PUBLIC) as unfinished:
                unfinished.write_text(revocations.token + "\n", "ascii")
        except OSError as error:
            raise SignatureError(f"cannot write {self.path}: {error.strerror}") from None
