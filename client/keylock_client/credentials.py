"""Content credentials (C2PA) on overlays: a signed note in the picture that says what it was made of, and how.

    credentials = Credentials.load("acme.pem")
    explanation.save("why.png", credentials=credentials)

The note names the image as what the picture was made of, the model's digest, the explainer, whether the map is true or
a decoy, and the receipt. Whoever has the picture can read all of it; it is signed by the holder of the certificate, and
any C2PA reader checks it. Nothing is asked of the network: no time stamp, manifest or revocation list is fetched.
"""

import importlib.util
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from numpy.typing import NDArray
from PIL import Image

from keylock import __version__
from keylock.crypto.digests import digest_of
from keylock.errors import InputError, SignatureError

__all__ = ["FORMATS", "Credentials", "check_suffix", "image_of", "read_about"]

FORMATS: Final[Mapping[str, str]] = {
    **{".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"},
}
"""Media types that can carry credentials, by suffix."""

_LABEL: Final = "org.keylock.explanation"
_CURVES: Final = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_SETTINGS: Final = {
    # By itself the library adds an enlarged JPEG copy of every picture, of the image that is explained too.
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}
_INGREDIENTS: Final = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "TIFF": "image/tiff"}


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A certificate and its key, which sign overlays.

    Attributes:
        subject: Whom the certificate names.
    """

    subject: str
    _chain: bytes
    _key: bytes
    _algorithm: str

    def __repr__(self) -> str:
        return f"<Credentials of {self.subject!r}>"

    def __reduce__(self) -> str:
        raise TypeError("credentials hold a private key and are not pickled: load them again")

    @classmethod
    def load(
        cls,
        certificate: str | os.PathLike[str],
        key: str | os.PathLike[str] | None = None,
        *,
        now: datetime | None = None,
    ) -> "Credentials":
        """Read a certificate and its key, and try them on a picture of one pixel.

        Args:
            certificate: A PEM file with the certificate that signs first, and those that lead to its authority after
                it. Without `key` the private key is in it too.
            key: A PEM file with the private key, without a passphrase: ECDSA on P-256, P-384 or P-521, Ed25519, or RSA
                of 2,048 bits or more.
            now: What time it is, for the dates of the certificate; the clock of this machine by default.

        Raises:
            InputError: A file cannot be read, or c2pa-python is not installed.
            SignatureError: There is no certificate or key in it, they do not belong together, the certificate is not
                valid now, or it is none to sign content with.
        """
        if importlib.util.find_spec("c2pa") is None:
            raise InputError(
                "credentials need c2pa-python, which is not installed: pip install '.[c2pa]'"
            ).for_missing_extra()
        text = _read(certificate)
        place = os.fspath(certificate)
        try:
            found = x509.load_pem_x509_certificates(text)
        except ValueError:
            raise SignatureError(f"there is no certificate in {place}: give a PEM file that begins with one") from None
        first = found[0]
        moment = datetime.now(UTC) if now is None else now
        if not first.not_valid_before_utc <= moment <= first.not_valid_after_utc:
            raise SignatureError(
                f"the certificate in {place} is valid from {first.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{first.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, which is not now: give one that is"
            )
        private, name = _private_key(text if key is None else _read(key), place if key is None else os.fspath(key))
        if private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != (
            first.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ):
            raise SignatureError(f"the private key is not that of the first certificate in {place}: give the one it is")
        made = cls(
            subject=first.subject.rfc4514_string(),
            _chain=b"".join(one.public_bytes(Encoding.PEM) for one in found),
            _key=private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            _algorithm=name,
        )
        made._try(place)
        return made

    def sign(self, picture: bytes, *, suffix: str, title: str, image: bytes, about: Mapping[str, Any]) -> bytes:
        """Return a picture with credentials in it.

        Args:
            picture: An encoded picture.
            suffix: Its kind, one of `FORMATS`.
            title: Its name.
            image: The image that it was made of, encoded as PNG, JPEG, WebP or TIFF.
            about: What is said of how it was made, as JSON values.

        Raises:
            SignatureError: The library refuses to sign.
        """
        import c2pa

        with Image.open(io.BytesIO(image)) as opened:
            kind = _INGREDIENTS[str(opened.format)]
        agent = {"name": "keylock", "version": __version__}
        ingredient = {"title": "image", "relationship": "parentOf", "label": "image"}
        opened_image = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["image"]}}
        drawn = {"action": "c2pa.edited", "softwareAgent": agent, "description": "a saliency map laid over the image"}
        manifest = {
            "claim_generator_info": [agent],
            "title": title,
            "format": FORMATS[suffix],
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [opened_image, drawn]}},
                {"label": _LABEL, "data": {"image": digest_of(image), **about}},
            ],
        }
        out = io.BytesIO()
        try:
            context = c2pa.Context(c2pa.Settings.from_dict(_SETTINGS))
            info = c2pa.C2paSignerInfo(self._algorithm, self._chain, self._key, None)
            with context, c2pa.Signer.from_info(info) as signer, c2pa.Builder(json.dumps(manifest), context) as builder:
                builder.add_ingredient(json.dumps(ingredient), kind, io.BytesIO(image))
                builder.sign(signer, FORMATS[suffix], io.BytesIO(picture), out)
        except c2pa.C2paError as error:
            raise SignatureError(f"the credentials cannot sign: {str(error).partition(chr(10))[0]}") from None
        return out.getvalue()

    def _try(self, place: str) -> None:
        """Sign one pixel, so that a certificate which the library refuses is known before anything is asked for."""
        buffer = io.BytesIO()
        Image.new("RGB", (1, 1)).save(buffer, "PNG")
        dot = buffer.getvalue()
        try:
            self.sign(dot, suffix=".png", title="trial", image=dot, about={})
        except SignatureError as error:
            raise SignatureError(
                f"the certificate in {place} cannot sign content ({error.message}): C2PA takes one that is no "
                "authority's, for digital signatures, with the extended use e-mail protection or document signing"
            ) from None


def check_suffix(path: Path) -> None:
    """Return when a file of that name can carry credentials.

    Raises:
        InputError: It cannot.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            f"a file {path.suffix or 'without a suffix'} cannot carry credentials: write {', '.join(FORMATS)}"
        )


def image_of(encoded: bytes | None, pixels: NDArray[np.uint8]) -> bytes:
    """Return an image as a file that can be named as what an overlay was made of.

    Args:
        encoded: Its file, where there is one; it is taken as it is where C2PA knows its kind.
        pixels: The image itself, uint8 (height, width, 3).
    """
    if encoded is not None:
        try:
            with Image.open(io.BytesIO(encoded)) as opened:
                if opened.format in _INGREDIENTS:
                    return encoded
        except OSError:
            # A kind that Pillow does not read, such as DICOM, travelled as pixels.
            pass
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def read_about(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a manifest of a C2PA reader says of an explanation, or None where it says nothing.

    Args:
        manifest: One entry of `manifests` in what the reader gives as JSON.
    """
    for assertion in manifest.get("assertions", ()):
        if assertion.get("label") == _LABEL:
            data: Mapping[str, Any] = assertion["data"]
            return data
    return None


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {os.fspath(path)!r}: {error.strerror}") from None


def _private_key(
    text: bytes, place: str
) -> tuple[ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey, str]:
    """Return the private key in a PEM file, and what C2PA calls its algorithm."""
    start = text.find(b"-----BEGIN ")
    # A file may have certificates first, which the reader of keys does not skip.
    while start >= 0 and b"PRIVATE KEY-----" not in text[start : text.find(b"\n", start)]:
        start = text.find(b"-----BEGIN ", start + 1)
    if start < 0:
        raise SignatureError(f"there is no private key in {place}: give its file with key=")
    try:
        private = load_pem_private_key(text[start:], password=None)
    except TypeError:
        raise SignatureError(f"the private key in {place} has a passphrase: give one without") from None
    except ValueError:
        raise SignatureError(f"the private key in {place} cannot be read: give one in PEM form") from None
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in _CURVES:
        return private, _CURVES[private.curve.name]
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private, "ed25519"
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size >= 2048:
        return private, "ps256"
    raise SignatureError(
        f"the private key in {place} is of a kind that C2PA does not take: take ECDSA on P-256, P-384 or "
        "P-521, Ed25519, or RSA of 2,048 bits or more"
    )
