"""Signed notes: a text with Ed25519 signatures below it, which people and programs of other projects can read.

A note is text that ends with a newline, an empty line, and one line for each signature: an em dash, the name of a key,
and base64 of four bytes of the key's hash and the signature over the text.

References:
    C2SP signed-note, https://c2sp.org/signed-note.
"""

import base64
import binascii
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Self

from keylock.crypto.signing import SigningKey, VerifyingKey, decode_base64url, encode_base64url
from keylock.errors import AuditLogError, SignatureError

__all__ = ["MAX_NOTE_BYTES", "NoteKey", "open_note", "sign_note"]

MAX_NOTE_BYTES: Final = 64 * 1024

_ED25519: Final = b"\x01"
_HASH_BYTES: Final = 4
_MAX_SIGNATURES: Final = 100
_DASH: Final = "— "


@dataclass(frozen=True)
class NoteKey:
    """A public key with the name it signs notes under.

    Attributes:
        name: Without white space and `+`.
        key: The key.
    """

    name: str
    key: VerifyingKey

    def __post_init__(self) -> None:
        """Checks the name.

        Raises:
            AuditLogError: If a note could not hold it.
        """
        if not self.name or "+" in self.name or any(c.isspace() or not c.isprintable() for c in self.name):
            raise AuditLogError("the name of a key that signs notes is empty or has white space or a + in it")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads the form `name+hash+key` in which verifiers of notes take keys.

        Raises:
            AuditLogError: If it is none, or not one of an Ed25519 key.
        """
        name, _, rest = text.strip().partition("+")
        hash_text, _, key_text = rest.partition("+")
        try:
            raw = _decode(key_text)
            key = VerifyingKey.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": encode_base64url(raw[1:])})
        except (ValueError, SignatureError):
            raise AuditLogError("this is not a key of a signed note: it is name+hash+base64") from None
        parsed = cls(name, key)
        if raw[:1] != _ED25519 or parsed.hash.hex() != hash_text:
            raise AuditLogError("this is no Ed25519 key of a signed note, or its hash does not fit")
        return parsed

    @property
    def hash(self) -> bytes:
        """The four bytes that name the key in a signature."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self._raw()).digest()[:_HASH_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.hash.hex()}+{base64.b64encode(_ED25519 + self._raw()).decode('ascii')}"

    def _raw(self) -> bytes:
        return decode_base64url(self.key.to_jwk()["x"])


def sign_note(text: str, *, name: str, key: SigningKey) -> str:
    """Returns a text with its signature.

    Args:
        text: Ends with a newline and has no control characters beside newlines.
        name: The name of the key.
        key: What signs.

    Raises:
        AuditLogError: If text or name cannot be in a note.
    """
    signer = NoteKey(name, key.verifying_key)
    if not text.endswith("\n") or _has_control(text):
        raise AuditLogError("a note must end with a newline and have no other control characters")
    signature = base64.b64encode(signer.hash + key.sign(text.encode())).decode("ascii")
    return f"{text}\n{_DASH}{name} {signature}\n"


def open_note(note: str, keys: Collection[NoteKey]) -> str:
    """Returns the text of a note that one of the keys signed.

    Signatures of unknown keys do not count; one of a known key that does not fit spoils the note.

    Args:
        note: The whole note.
        keys: The keys that are trusted.

    Raises:
        AuditLogError: If the note is malformed, or not signed by any of the keys.
    """
    if len(note.encode("utf-8", "replace")) > MAX_NOTE_BYTES or _has_control(note):
        raise AuditLogError("the note is malformed: it is too long or has control characters")
    body, separator, signatures = note.rpartition("\n\n")
    lines = signatures.split("\n")
    if not separator or lines.pop() != "" or not 0 < len(lines) <= _MAX_SIGNATURES:
        raise AuditLogError("the note is malformed: its signatures are missing or cut")
    text = body + "\n"
    good = False
    for line in lines:
        name, hash_, signature = _parse_signature(line)
        for key in keys:
            if (key.name, key.hash) == (name, hash_):
                try:
                    key.key.verify(signature, text.encode())
                except SignatureError:
                    raise AuditLogError(f"the note was changed: the signature of {name} does not fit") from None
                good = True
    if not good:
        raise AuditLogError("the note is not signed by a key that is trusted here")
    return text


def _parse_signature(line: str) -> tuple[str, bytes, bytes]:
    name, separator, encoded = line.removeprefix(_DASH).partition(" ")
    try:
        raw = _decode(encoded)
    except ValueError:
        raw = b""
    if not line.startswith(_DASH) or not separator or not name or len(raw) <= _HASH_BYTES:
        raise AuditLogError("the note is malformed: a signature line is not a signature")
    return name, raw[:_HASH_BYTES], raw[_HASH_BYTES:]


def _decode(text: str) -> bytes:
    """Returns the bytes of base64 in its one canonical spelling; raises ValueError for anything else."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("not base64") from None
    if base64.b64encode(raw).decode("ascii") != text:
        raise ValueError("not base64 as it is written")
    return raw


def _has_control(text: str) -> bool:
    return any(ord(character) < 0x20 and character != "\n" for character in text)
