"""The transit engine of HashiCorp Vault or OpenBao: it encrypts the data key, under a key that never leaves it.

The context is the associated data, so the key must be of a type that has it (`aes256-gcm96`).

References:
    Vault HTTP API, /transit/encrypt/:name and /transit/decrypt/:name.
"""

import base64
import binascii
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from cryptography.exceptions import InvalidTag
from pydantic import Field

from keylock.bundle.providers.base import DATA_KEY_BYTES, Entry, Provider, new_data_key, read_text
from keylock.errors import UnsealError

__all__ = ["VaultEntry", "VaultTransit"]

_TIMEOUT_S: Final = 10.0
_MAX_ANSWER_BYTES: Final = 64 * 1024
_BAD_REQUEST: Final = 400
_KEY: Final = r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+$"


class VaultEntry(Entry):
    """Under which key of a vault a data key was encrypted."""

    kind: ClassVar[str] = "a key of a vault"
    give: ClassVar[str] = "the key provider vault:MOUNT/KEY"

    name: Literal["vault-transit"] = "vault-transit"
    key: Annotated[str, Field(pattern=_KEY, max_length=200)]
    wrapped: Annotated[str, Field(pattern=r"^[A-Za-z0-9:+/=_-]+$", max_length=1000)]


class VaultTransit(Provider[VaultEntry]):
    """A key of a transit engine."""

    __slots__ = ("_address", "_authority", "_key", "_token")

    entry = VaultEntry

    def __init__(self, key: str, environment: Mapping[str, str]) -> None:
        """Takes the way to the key.

        Args:
            key: `MOUNT/KEY`, for example `transit/keylock`.
            environment: `VAULT_ADDR`, `VAULT_TOKEN` or `VAULT_TOKEN_FILE`, and `VAULT_CACERT`, as Vault's own tools
                read them.

        Raises:
            UnsealError: If one of them is missing, or the address is in the clear and not on this machine.
        """
        mount, _, name = key.rpartition("/")
        if not mount or not name:
            raise UnsealError("a key of a vault is given as MOUNT/KEY, for example transit/keylock")
        self._key = key
        self._address = environment.get("VAULT_ADDR", "").rstrip("/")
        parts = urllib.parse.urlsplit(self._address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UnsealError("VAULT_ADDR is not set to the address of the vault, for example https://vault:8200")
        if parts.scheme == "http" and parts.hostname not in {"localhost", "127.0.0.1", "::1"}:
            raise UnsealError("VAULT_ADDR is in the clear: a vault on another machine must be reached by https")
        self._authority = environment.get("VAULT_CACERT") or None
        file = environment.get("VAULT_TOKEN_FILE")
        self._token = read_text(file, "vault token") if file else environment.get("VAULT_TOKEN", "")
        if not self._token:
            raise UnsealError("neither VAULT_TOKEN nor VAULT_TOKEN_FILE is set: the vault wants a token")

    @property
    def name(self) -> str:
        """Names it in errors."""
        return f"the vault key {self._key}"

    def wrap(self, context: bytes) -> tuple[VaultEntry, bytearray]:
        """Has a new data key encrypted."""
        key = new_data_key()
        plaintext = base64.b64encode(key).decode("ascii")
        wrapped = self._ask("encrypt", {"plaintext": plaintext, "associated_data": _encode(context)}, "ciphertext")
        return VaultEntry(key=self._key, wrapped=wrapped), key

    def unwrap(self, entry: VaultEntry, context: bytes) -> bytearray:
        """Has a data key decrypted."""
        if entry.key != self._key:
            raise UnsealError(f"the key was sealed with the vault key {entry.key}, and {self._key} was given")
        answer = self._ask("decrypt", {"ciphertext": entry.wrapped, "associated_data": _encode(context)}, "plaintext")
        try:
            key = bytearray(base64.b64decode(answer, validate=True))
        except binascii.Error:
            key = bytearray()
        if len(key) != DATA_KEY_BYTES:
            raise UnsealError(f"{self.name} gives something that is not a key: check that VAULT_ADDR is a vault")
        return key

    def _ask(self, operation: str, body: Mapping[str, str], field: str) -> str:
        mount, _, name = self._key.rpartition("/")
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            f"{self._address}/v1/{urllib.parse.quote(mount)}/{operation}/{urllib.parse.quote(name)}",
            data=json.dumps(body).encode("ascii"),
            headers={"X-Vault-Token": self._token, "Content-Type": "application/json"},
            method="POST",
        )
        # The causes are dropped: they could quote the request, in which the token is.
        try:
            with self._opener().open(request, timeout=_TIMEOUT_S) as answer:
                found = json.loads(answer.read(_MAX_ANSWER_BYTES))["data"][field]
        except urllib.error.HTTPError as error:
            with error:
                code = error.code
            if operation == "decrypt" and code == _BAD_REQUEST:
                raise InvalidTag from None
            raise UnsealError(
                f"{self.name} cannot be used (the vault answers {code}): check the key, its type and the token's policy"
            ) from None
        except (OSError, ssl.SSLError) as error:
            why = getattr(error, "reason", None) or error.strerror or "no answer"
            raise UnsealError(f"the vault at {self._address} cannot be reached: {why}") from None
        except (ValueError, KeyError, TypeError):
            raise UnsealError(f"what answers at {self._address} is not a vault: check VAULT_ADDR") from None
        if not isinstance(found, str):
            raise UnsealError(f"what answers at {self._address} is not a vault: check VAULT_ADDR")
        return found

    def _opener(self) -> urllib.request.OpenerDirector:
        # No proxies and no redirects: the token goes to the address that was given and nowhere else.
        context = ssl.create_default_context(cafile=self._authority)
        return urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoRedirect()
        )

    def __repr__(self) -> str:
        return f"VaultTransit({self._key!r})"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follows nothing; the answer becomes an `HTTPError`."""


def _encode(context: bytes) -> str:
    return base64.b64encode(context).decode("ascii")
