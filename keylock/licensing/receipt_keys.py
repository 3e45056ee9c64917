"""Receipt keys: what a server signs receipts and checkpoints with, and the issuer's word that it may.

The issuer's own key stays off the servers. It signs a certificate for the receipt key of each server; the certificate
travels in every receipt and checkpoint and names the issuer's public key, so that whoever trusts the issuer needs
nothing else.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keylock.crypto.jws import Jws, sign
from keylock.crypto.secrecy import NotSecretTextError, read_secret_text
from keylock.crypto.signing import SigningKey, VerifyingKey, canonical_json
from keylock.errors import AuditLogError, ReceiptError, SignatureError
from keylock.files.atomic import PUBLIC, write_file
from keylock.transparency import Checkpoint, NoteKey

__all__ = ["Certificate", "ReceiptKey", "certificate_path", "delegate", "open_checkpoint"]

_TYPE: Final = "keylock-receipt-key+jws"
_MAX_BYTES: Final = 2048
# Lines of a checkpoint beyond those of the format: when it was signed, and the certificate of the key that signed.
_TIME_LINE: Final = "keylock-time "
_CERTIFICATE_LINE: Final = "keylock-certificate "
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

    def check(
        self, trusts: Callable[[VerifyingKey], bool], *, at: datetime, revoked: Collection[str] = frozenset()
    ) -> None:
        """Returns when the certificate is of a trusted issuer, held at a time, and its key was not taken back.

        Args:
            trusts: Tells whether an issuer is trusted.
            at: When the key signed.
            revoked: Ids of receipt keys that the issuer has taken back; when it did so counts for nothing, because
                whoever stole a key can write any time.

        Raises:
            ReceiptError: If not.
        """
        if not trusts(self.issuer):
            raise ReceiptError(f"the key that signed was certified by {self.issuer.key_id}, which is not trusted here")
        if self.key.key_id in revoked:
            raise ReceiptError(
                f"the issuer has taken back the receipt key {self.key.key_id}: only a proof that the receipt is in the "
                "log, under a checkpoint of another key, would show that it is genuine"
            )
        if not self.not_before <= at < self.expires:
            raise ReceiptError(
                f"it was signed at {at:%Y-%m-%d %H:%M:%S} UTC, when its key was not certified "
                f"({self.not_before:%Y-%m-%d} to {self.expires:%Y-%m-%d})"
            )


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
            write_file(certificate_path(path), token + "\n", mode=PUBLIC)
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
            raise SignatureError(f"{beside} is not a certificate of a receipt key: {error}") from None
        if certificate.key != key.verifying_key:
            raise SignatureError(f"{beside} is the certificate of another key than {os.fspath(path)}")
        return cls(key, certificate)

    def sign_checkpoint(self, checkpoint: Checkpoint, *, at: datetime) -> str:
        """Returns a checkpoint as a signed note that names the time and carries the certificate.

        Args:
            checkpoint: The state of a log.
            at: The time, with its zone.
        """
        lines = (f"{_TIME_LINE}{int(at.timestamp())}", _CERTIFICATE_LINE + self.certificate.token)
        return replace(checkpoint, extensions=lines).sign(self.key)


def open_checkpoint(
    note: str, trusts: Callable[[VerifyingKey], bool], *, revoked: Collection[str] = frozenset()
) -> Checkpoint:
    """Returns the checkpoint in a note that a certified key signed.

    Args:
        note: The signed note.
        trusts: Tells whether an issuer is trusted.
        revoked: Ids of receipt keys that the issuer has taken back.

    Raises:
        AuditLogError: If it is none, or is not to be trusted.
    """
    told = Checkpoint.parse_unverified(note)
    refusal = AuditLogError("the checkpoint does not say when it was signed, and with which certified key")
    if len(told.extensions) != 2:
        raise refusal
    time_line, certificate_line = told.extensions
    seconds = time_line.removeprefix(_TIME_LINE)
    if not certificate_line.startswith(_CERTIFICATE_LINE) or not (seconds.isascii() and seconds.isdigit()):
        raise refusal
    try:
        certificate = Certificate.read(certificate_line.removeprefix(_CERTIFICATE_LINE))
        signed_at = datetime.fromtimestamp(min(int(seconds[:12]), _LAST_SECOND), UTC)
        certificate.check(trusts, at=signed_at, revoked=revoked)
    except ReceiptError as error:
        raise AuditLogError(f"the checkpoint is not to be trusted: {error}") from None
    return Checkpoint.open(note, [NoteKey(told.origin, certificate.key)])
