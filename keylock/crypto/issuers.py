"""Which issuers are trusted, and how an issuer changes its key: the new key signs, the old ones verify for a while.

Public keys travel as PEM files, one key each, or together as a JWKS (RFC 7517, section 5). The vendor's directory
keeps the JWKS of its own keys, which servers read again when it changes.
"""

import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from keylock.crypto.signing import Home, SigningKey, VerifyingKey
from keylock.errors import SignatureError
from keylock.files.atomic import PUBLIC, replacing
from keylock.text.small_files import decode_text

__all__ = ["IssuerKeys", "home_keys", "load_keys", "retire", "rotate", "to_jwks", "trusted_file"]

_MAX_BYTES: Final = 256 * 1024
_LOOK_AGAIN_S: Final = 1.0


def load_keys(path: str | os.PathLike[str]) -> tuple[VerifyingKey, ...]:
    """Returns the keys in a file: one in a PEM file, any number in a JWKS.

    Raises:
        SignatureError: If the file cannot be read, or holds something else.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES)
    except OSError as error:
        raise SignatureError(f"cannot read the key {name}: {error.strerror or 'unreadable'}") from None
    try:
        text = decode_text(content)
    except UnicodeDecodeError:
        raise SignatureError(f"{name} is neither a PEM file nor a JWKS: give a public key") from None
    if not text.lstrip().startswith("{"):
        return (VerifyingKey.load(path),)
    try:
        entries = json.loads(text)["keys"]
        keys = tuple(_from_entry(entry) for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SignatureError(f"{name} is no JWKS: give the file that `keylock issuer jwks` writes") from None
    if not keys:
        raise SignatureError(f"the JWKS {name} holds no key: give one that does")
    return keys


def to_jwks(keys: Sequence[VerifyingKey]) -> dict[str, object]:
    """Returns the JWKS of some keys, with their ids, ready for JSON."""
    return {"keys": [{**key.to_jwk(), "kid": key.key_id, "alg": "Ed25519", "use": "sig"} for key in keys]}


def trusted_file(home: Home) -> Path:
    """Returns the file of the vendor's directory to trust: the JWKS of its keys, which is made where it is missing.

    Where it cannot be made, the public key alone: then a new key is noticed, and the old ones are not.
    """
    path = _jwks(home)
    if not path.is_file():
        try:
            _write_jwks(home, home_keys(home))
        except OSError:
            return home.verifying_key_path
    return path


def home_keys(home: Home) -> tuple[VerifyingKey, ...]:
    """Returns the public keys of the vendor's directory, that of today first; none where it has no issuer.

    Raises:
        SignatureError: If one of them is unreadable.
    """
    if not home.verifying_key_path.is_file():
        return ()
    current = home.verifying_key()
    retired = [VerifyingKey.load(path) for path in sorted(_retired(home).glob("*.pub.pem"))]
    return (current, *(key for key in retired if key != current))


def rotate(home: Home) -> SigningKey:
    """Gives the issuer a new key. The old one goes on to verify what it signed, until it is retired.

    Every step leaves a directory that works: the old keys are kept aside before the new one takes their place.

    Returns:
        The new key.

    Raises:
        SignatureError: If there is no issuer key, or a file cannot be written.
    """
    old = home.signing_key()
    new = SigningKey.generate()
    folder = _retired(home)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        kept = folder / f"{old.key_id}.pem"
        if not kept.exists():
            old.write(kept)
        old.verifying_key.write(folder / f"{old.key_id}.pub.pem")
        coming = home.path / f"{new.key_id}.pem"
        new.write(coming)
        # Those who verify know the new key before anything is signed with it.
        _write_jwks(home, (new.verifying_key, *home_keys(home)))
        coming.replace(home.signing_key_path)
        new.verifying_key.write(home.verifying_key_path)
    except OSError as error:
        raise SignatureError(f"cannot change the issuer key in {home.path}: {error.strerror}") from None
    return new


def retire(home: Home, key_id: str) -> None:
    """Ends the time of an old key: nothing it signed is accepted any more. Its files are removed.

    Raises:
        SignatureError: If it is the key in use, or none of the old ones, or a file cannot be removed.
    """
    if key_id == home.verifying_key().key_id:
        raise SignatureError(f"{key_id} is the key in use: rotate first")
    if key_id not in {key.key_id for key in home_keys(home)}:
        raise SignatureError(f"{key_id} is none of the old keys in {home.path}: `keylock issuer show` lists them")
    try:
        for suffix in (".pub.pem", ".pem"):
            (_retired(home) / f"{key_id}{suffix}").unlink(missing_ok=True)
        _write_jwks(home, home_keys(home))
    except OSError as error:
        raise SignatureError(f"cannot retire the key {key_id}: {error.strerror}") from None


class IssuerKeys:
    """The keys in some files, read again when a file changes, so that a server need not be restarted for a new key."""

    def __init__(self, paths: Sequence[Path], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the files.

        Args:
            paths: PEM files and JWKS.
            clock: Seconds, for how often the files are looked at.

        Raises:
            SignatureError: If one cannot be used.
        """
        self._paths = tuple(paths)
        self._clock = clock
        self._looked_at = clock()
        self._stamps = self._read_stamps()
        self._keys = self._read()

    def __call__(self) -> Collection[VerifyingKey]:
        """Returns the keys; the same object as before where nothing has changed.

        A file that cannot be used any more changes nothing: the keys that were read last stay.
        """
        now = self._clock()
        if now - self._looked_at >= _LOOK_AGAIN_S:
            self._looked_at = now
            stamps = self._read_stamps()
            if stamps != self._stamps:
                try:
                    self._keys = self._read()
                except SignatureError:
                    return self._keys
                self._stamps = stamps
        return self._keys

    def _read(self) -> tuple[VerifyingKey, ...]:
        return tuple(key for path in self._paths for key in load_keys(path))

    def _read_stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _retired(home: Home) -> Path:
    return home.path / "retired"


def _jwks(home: Home) -> Path:
    return home.path / "issuers.jwks"


def _write_jwks(home: Home, keys: Sequence[VerifyingKey]) -> None:
    # A server may read it at any moment.
    with replacing(_jwks(home), mode=PUBLIC) as unfinished:
        unfinished.write_text(json.dumps(to_jwks(keys), indent=2) + "\n", "utf-8")


def _from_entry(entry: dict[str, object]) -> VerifyingKey:
    key = VerifyingKey.from_jwk({name: entry[name] for name in ("kty", "crv", "x")})
    if entry.get("kid", key.key_id) != key.key_id:
        raise SignatureError(f"the JWKS calls the key {key.key_id} by another id: give the file the vendor wrote")
    return key
