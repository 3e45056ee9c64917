"""Receipt keys: what a server signs receipts and checkpoints with, and the issuer's word that it may.

The issuer's own key stays off the servers. It signs a certificate for the receipt key of each server; the certificate
travels in every receipt and names the issuer's public key, so that whoever trusts the issuer needs nothing else.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keylock.auditlog import NoteKey
from keylock.errors import ReceiptError, SignatureError
from keylock.jws import Jws, sign
from keylock.secrecy import NotSecretTextError, read_secret_text
from keylock.signing import SigningKey, VerifyingKey, canonical_json

__all__ = ["Certificate", "ReceiptKey", "certificate_path", "delegate"]

_TYPE: Final = "keylock-receipt-key+jws"
_MAX_BYTES: Final = 2048
_LAST_SECOND: Final = 253_402_300_799

_Seconds = Annotated[int, Field(ge=0, le=_LAST_SECOND)]


class _Claims(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    purpose: Literal["keylock-receipts/v1"] = "keylock-receipts/v1"
    key: dict[str, str]
    nbf: _Seconds
    exp: _Seconds


@dataclass(frozen=True)
class Certificate:
    """An issuer's word that a key signs receipts and checkpoints for it.

    Attributes:
        token: The certificate as it was signed.
        issuer: Who signed it; whether to trust it is for the reader to decide.
        key: The receipt key.
        not_before: From when it holds.
        expires: From when it holds no more.
    """

    token: str
    issuer: VerifyingKey
    key: VerifyingKey
    not_before: datetime
    expires: datetime

    @classmethod
    def read(cls, token: str) -> Self:
        """Verifies a certificate against the issuer it names.

        Raises:
            ReceiptError: If it is malformed or was changed.
        """
        try:
            parsed = Jws.parse(token, typ=_TYPE, members=("jwk",), max_bytes=_MAX_BYTES)
            jwk = parsed.header["jwk"]
            if not isinstance(jwk, dict):
                raise ValueError("not a key")
            issuer = VerifyingKey.from_jwk(jwk)
            payload = parsed.verify(issuer)
            claims = _Claims.model_validate_json(payload)
            if canonical_json(claims.model_dump()) != payload:
                raise ValueError("not spelled as it was signed")
            key = VerifyingKey.from_jwk(claims.key)
        except (ValueError, ValidationError, SignatureError):
            raise ReceiptError("the certificate of the receipt key is malformed, or was changed") from None
        return cls(token, issuer, key, datetime.fromtimestamp(claims.nbf, UTC), datetime.fromtimestamp(claims.exp, UTC))

    def check(self, trusts: Callable[[VerifyingKey], bool], *, at: datetime) -> None:
        """Returns when the certificate is of a trusted issuer and held at a time.

        Args:
            trusts: Tells whether an issuer is trusted.
            at: When the key signed.

        Raises:
            ReceiptError: If not.
        """
        if not trusts(self.issuer):
            raise ReceiptError(f"the receipt is of the issuer {self.issuer.key_id}, which is not trusted here")
        if not self.not_before <= at < self.expires:
            raise ReceiptError(
                f"the receipt is of {at:%Y-%m-%d %H:%M:%S} UTC, when its key was not certified "
                f"({self.not_before:%Y-%m-%d} to {self.expires:%Y-%m-%d})"
            )

    def note_key(self, origin: str) -> NoteKey:
        """Returns the key under the name of a log, to open its checkpoints with."""
        return NoteKey(origin, self.key)


def delegate(key: VerifyingKey, issuer: SigningKey, *, not_before: datetime, expires: datetime) -> str:
    """Returns the certificate of a receipt key.

    Args:
        key: The receipt key.
        issuer: Who vouches for it.
        not_before: From when it holds, with its zone.
        expires: From when it holds no more, with its zone.
    """
    claims = _Claims(key=key.to_jwk(), nbf=int(not_before.timestamp()), exp=int(expires.timestamp()))
    payload = canonical_json(claims.model_dump())
    return sign(payload, issuer, typ=_TYPE, jwk=issuer.verifying_key.to_jwk())


def certificate_path(path: str | os.PathLike[str]) -> Path:
    """Returns where the certificate of a receipt key is: beside it, with the suffix `.cert`."""
    return Path(path).with_suffix(".cert")


@dataclass(frozen=True)
class ReceiptKey:
    """A receipt key with its certificate.

    Attributes:
        key: What signs.
        certificate: What goes into every receipt.
    """

    key: SigningKey
    certificate: Certificate

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], issuer: SigningKey, *, not_before: datetime, expires: datetime
    ) -> Self:
        """Makes a new receipt key, in a new file that only its owner can read, and its certificate beside it.

        Args:
            path: The file of the key.
            issuer: Who vouches for it.
            not_before: From when it holds, with its zone.
            expires: From when it holds no more, with its zone.

        Raises:
            SignatureError: If the file exists already, which is never overwritten, or cannot be written.
        """
        key = SigningKey.generate()
        token = delegate(key.verifying_key, issuer, not_before=not_before, expires=expires)
        key.write(path)
        try:
            certificate_path(path).write_text(token + "\n", "ascii")
        except OSError as error:
            raise SignatureError(f"cannot write {certificate_path(path)}: {error.strerror}") from None
        return cls(key, Certificate.read(token))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a receipt key and the certificate beside it.

        Raises:
            SignatureError: If one of them cannot be read, or they do not belong together.
            ReceiptError: If the certificate was changed.
        """
        key, beside = SigningKey.load(path), certificate_path(path)
        try:
            certificate = Certificate.read(read_secret_text(beside))
        except OSError as error:
            raise SignatureError(f"cannot read the certificate {beside}: {error.strerror or 'unreadable'}") from None
        except NotSecretTextError as error:
            raise SignatureError(f"{beside} is no certificate of a receipt key: {error}") from None
        if certificate.key != key.verifying_key:
            raise SignatureError(f"{beside} is the certificate of another key than {os.fspath(path)}")
        return cls(key, certificate)
