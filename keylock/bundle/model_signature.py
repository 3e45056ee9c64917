"""`model.sig`: a second signature over a bundle, in the format that OpenSSF Model Signing 1.0 defines.

Tools that know nothing of keylock verify it with a public key. It is a Sigstore bundle with a DSSE envelope around an
in-toto statement, whose predicate lists every file with its SHA-256. The sealed parts, which a copy may come without,
are named as ignored; `manifest.json`, which is listed, has their digests.
"""

import base64
import binascii
import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from keylock.bundle.manifest import (
    DELTA_FILE,
    MANIFEST_FILE,
    MODEL_SIGNATURE_FILE,
    SEALED_KEY_FILE,
    SIGNATURE_FILE,
)
from keylock.bundle.read import Bundle
from keylock.bundle.write import place
from keylock.crypto.ecdsa import EcdsaSigningKey, EcdsaVerifyingKey
from keylock.errors import BundleError, BundleTamperedError, SignatureError
from keylock.files.atomic import PUBLIC, write_file
from keylock.text.printable import printable

__all__ = ["add_model_signature", "make_model_signature", "verify_model_signature"]

_BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"

_IGNORED: Final = (DELTA_FILE, SEALED_KEY_FILE, MODEL_SIGNATURE_FILE)
"""What a copy may come without, and the signature itself."""


class _Part(BaseModel):
    """A part of what is read; fields of later versions are ignored, as the format demands."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class _PublicKey(_Part):
    hint: str | None = None


class _Material(_Part):
    public_key: _PublicKey | None = None
    certificate: Any = None
    x509_certificate_chain: Any = Field(default=None, alias="x509CertificateChain")


class _EnvelopeSignature(_Part):
    sig: str


class _Envelope(_Part):
    payload: str
    payload_type: str
    signatures: Annotated[tuple[_EnvelopeSignature, ...], Field(min_length=1, max_length=1)]


class _SigstoreBundle(_Part):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Subject(_Part):
    name: str
    digest: dict[str, str]


class _Serialization(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    method: str
    hash_type: str
    ignore_paths: tuple[str, ...] = ()


class _Resource(_Part):
    name: str
    algorithm: str
    digest: Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})+$")]


class _Predicate(_Part):
    serialization: _Serialization
    resources: tuple[_Resource, ...]


class _Statement(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    predicate_type: str
    subject: Annotated[tuple[_Subject, ...], Field(min_length=1, max_length=1)]
    predicate: _Predicate


def make_model_signature(bundle: Bundle, key: EcdsaSigningKey) -> bytes:
    """Returns the content of `model.sig` for a bundle; it fits the bundle itself and every copy of it.

    Args:
        bundle: The bundle, or a public copy.
        key: What signs.

    Raises:
        BundleTamperedError: If a file changed since the bundle was opened.
    """
    listed = {name: digest.removeprefix("sha256:") for name, digest in bundle.digests().items() if name not in _IGNORED}
    resources = [{"name": name, "algorithm": "sha256", "digest": listed[name]} for name in sorted(listed)]
    root = _digest_of_digests(resource["digest"] for resource in resources)
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": bundle.manifest.name, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": sorted(_IGNORED),
            },
            "resources": resources,
        },
    }
    payload = json.dumps(statement, indent=2).encode("ascii")
    signed = {
        "mediaType": _BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key.verifying_key.hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _base64(payload),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": _base64(key.sign(_pre_authentication_encoding(payload))), "keyid": ""}],
        },
    }
    return json.dumps(signed).encode("ascii")


def add_model_signature(bundle: Bundle, key: EcdsaSigningKey) -> None:
    """Writes `model.sig` into a bundle, in place of one that is there, all or nothing. Nothing else is changed.

    Raises:
        BundleError: If it cannot be written.
        BundleTamperedError: If a file changed since the bundle was opened.
    """
    signature = make_model_signature(bundle, key)
    if not bundle.path.is_dir():
        place(bundle.path, {**bundle.all_files(), MODEL_SIGNATURE_FILE: signature}, overwrite=True)
        return
    # Beside the folder, because whoever opens the bundle meanwhile would refuse a file of another name in it.
    unfinished = bundle.path.absolute().with_name(f".{bundle.path.absolute().name}-{secrets.token_hex(4)}.sig")
    try:
        write_file(unfinished, signature, mode=PUBLIC, new=True)
        unfinished.replace(bundle.path / MODEL_SIGNATURE_FILE)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise BundleError(f"cannot write {bundle.path / MODEL_SIGNATURE_FILE}: {error.strerror}") from None


def verify_model_signature(bundle: Bundle, key: EcdsaVerifyingKey) -> None:
    """Returns when `model.sig` was made by a key over the bundle as it is.

    1. It is a Sigstore bundle whose material is a public key, and that key is the one expected.
    2. The signature fits the DSSE envelope.
    3. The statement is one of OpenSSF Model Signing 1.0, over SHA-256 of whole files.
    4. Its own digest is that of the digests that it lists.
    5. Every listed file is there with its digest, and every other file is named as ignored.

    Args:
        bundle: The bundle, whose own signature has been verified.
        key: The vendor's key for signatures of this format.

    Raises:
        BundleError: If there is no such signature, it is of a kind that is not read here, or was made with another key.
        BundleTamperedError: If it is damaged, or a file differs from what it says.
    """
    raw = bundle.model_signature()
    if raw is None:
        raise BundleError(f"{bundle.path} has no {MODEL_SIGNATURE_FILE}: its vendor adds one with `keylock sign`")
    statement = _verified_statement(raw, key)
    predicate = statement.predicate
    _check_kind(predicate)
    listed = {resource.name: resource.digest for resource in predicate.resources}
    if len(listed) != len(predicate.resources):
        raise _tampered("lists a file twice")
    if statement.subject[0].digest.get("sha256") != _digest_of_digests(one.digest for one in predicate.resources):
        raise _tampered("has a digest that is not that of the files it lists")
    _compare(listed, predicate.serialization.ignore_paths, bundle.digests())


def _verified_statement(raw: bytes, key: EcdsaVerifyingKey) -> _Statement:
    try:
        signed = _SigstoreBundle.model_validate_json(raw)
    except ValidationError:
        raise _tampered("is not a Sigstore bundle with a DSSE envelope") from None
    if signed.media_type != _BUNDLE_TYPE:
        raise _foreign(f"is of another version ({printable(signed.media_type[:80])})")
    material = signed.verification_material
    if material.public_key is None:
        kind = "certificates" if material.certificate or material.x509_certificate_chain else "something else"
        raise BundleError(
            f"{MODEL_SIGNATURE_FILE} was made with {kind} and not with a key: verify it with the tool that made it"
        )
    if material.public_key.hint not in (None, "", key.hint):
        raise BundleError(
            f"{MODEL_SIGNATURE_FILE} was made with another key, {printable(material.public_key.hint[:16])}, than the "
            f"one expected, {key.hint[:16]}: give the key of whoever signed it by oms_key=, if you trust them"
        )
    envelope = signed.dsse_envelope
    try:
        payload, signature = _from_base64(envelope.payload), _from_base64(envelope.signatures[0].sig)
        key.verify(signature, _pre_authentication_encoding(payload, payload_type=envelope.payload_type))
    except (ValueError, SignatureError):
        raise _tampered(f"is no signature of the key {key.hint[:16]}") from None
    return _parse_statement(payload, envelope.payload_type)


def _parse_statement(payload: bytes, payload_type: str) -> _Statement:
    """Returns the statement in a verified payload."""
    if payload_type != _PAYLOAD_TYPE:
        raise _foreign(f"is over something else than an in-toto statement ({printable(payload_type[:80])})")
    try:
        document = json.loads(payload)
        predicate_type = document.get("predicateType") if isinstance(document, dict) else None
        if isinstance(predicate_type, str) and predicate_type != _PREDICATE_TYPE:
            raise _foreign(f"says something else of the model ({printable(predicate_type[:80])})")
        return _Statement.model_validate(document)
    except (ValidationError, ValueError, RecursionError):
        raise _foreign("has a statement that is not of OpenSSF Model Signing 1.0") from None


def _check_kind(predicate: _Predicate) -> None:
    """Returns when the files are digested in the one way that is read here."""
    how = predicate.serialization
    algorithms = {how.hash_type, *(resource.algorithm for resource in predicate.resources)}
    if how.method != "files" or algorithms != {"sha256"}:
        found = printable(", ".join(sorted({how.method, *algorithms}))[:80])
        raise _foreign(f"is not over the SHA-256 of whole files ({found})")


def _compare(listed: Mapping[str, str], ignored: tuple[str, ...], found: Mapping[str, str]) -> None:
    """Returns when files and list agree; the file at fault is named."""
    for name in sorted(listed):
        if name not in found:
            raise BundleTamperedError(printable(name), f"is missing, and {MODEL_SIGNATURE_FILE} lists it")
        if found[name] != f"sha256:{listed[name]}":
            raise BundleTamperedError(name, f"differs from what {MODEL_SIGNATURE_FILE} lists")
    for name in sorted(found):
        if name not in listed and not _is_ignored(name, ignored):
            raise BundleTamperedError(name, f"is not listed by {MODEL_SIGNATURE_FILE}")


def _is_ignored(name: str, ignored: tuple[str, ...]) -> bool:
    # A folder that is ignored is ignored with all in it. The files that carry the bundle's own signature never are.
    if name in (MANIFEST_FILE, SIGNATURE_FILE):
        return False
    return any(name == path or name.startswith(path.rstrip("/") + "/") for path in ignored)


def _pre_authentication_encoding(payload: bytes, *, payload_type: str = _PAYLOAD_TYPE) -> bytes:
    """Returns what DSSE signs (DSSE 1.0.0, protocol.md)."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _digest_of_digests(digests: Iterable[str]) -> str:
    """Returns SHA-256 over digests, one after the other in the order of the list, in hexadecimal."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("not base64") from None


def _tampered(why: str) -> BundleTamperedError:
    return BundleTamperedError(MODEL_SIGNATURE_FILE, why)


def _foreign(why: str) -> BundleError:
    return BundleError(f"{MODEL_SIGNATURE_FILE} {why}: sign the bundle with `keylock sign`, or verify it elsewhere")
