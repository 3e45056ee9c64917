"""Who asks a registry: from variables of keylock's own, or from where `docker login` and its like left it."""

import base64
import binascii
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from keylock.crypto.secrecy import Opaque
from keylock.errors import InputError

__all__ = ["PASSWORD_VARIABLE", "USER_VARIABLE", "Credentials", "find_credentials"]

USER_VARIABLE: Final = "KEYLOCK_REGISTRY_USER"
PASSWORD_VARIABLE: Final = "KEYLOCK_REGISTRY_PASSWORD"  # noqa: S105 - the name of a variable

_HELPER_TIMEOUT_S: Final = 30.0
_TOKEN_USER: Final = "<token>"  # noqa: S105 - what credential helpers say in place of a user, where they give a token
# Docker's own registry has a name of its own in the file.
_OTHER_NAMES: Final = {
    "docker.io": "https://index.docker.io/v1/",
    "registry-1.docker.io": "https://index.docker.io/v1/",
}


class Credentials(Opaque):
    """A user with a password, or a token that tokens are fetched with.

    Attributes:
        user: The user; empty with a token.
    """

    __slots__ = ("_secret", "is_token", "user")

    def __init__(self, user: str, secret: str, *, is_token: bool = False) -> None:
        """Takes them.

        Args:
            user: The user.
            secret: The password, or the token.
            is_token: Whether it is an identity token (OAuth 2) and no password.
        """
        self.user, self._secret, self.is_token = user, secret, is_token

    def reveal(self) -> str:
        """Returns the password or the token."""
        return self._secret

    def basic(self) -> str:
        """Returns the value of the header that shows user and password."""
        return "Basic " + base64.b64encode(f"{self.user}:{self._secret}".encode()).decode("ascii")

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r})"


def find_credentials(host: str, environment: Mapping[str, str]) -> Credentials | None:
    """Returns the credentials for a registry; None where there are none, and it is asked without.

    1. `KEYLOCK_REGISTRY_USER` and `KEYLOCK_REGISTRY_PASSWORD`.
    2. `config.json` in `DOCKER_CONFIG`, else in `~/.docker`: the credential helper of the registry, the entry of the
       registry in `auths`, the credential store.

    Args:
        host: The registry, with its port where it has one.
        environment: Variables.

    Raises:
        InputError: If only one of the two variables is set, or the file or a helper cannot be used.
    """
    user, password = environment.get(USER_VARIABLE), environment.get(PASSWORD_VARIABLE)
    if user and password:
        return Credentials(user, password)
    if user or password:
        missing = PASSWORD_VARIABLE if user else USER_VARIABLE
        raise InputError(f"{missing} is not set: set both {USER_VARIABLE} and {PASSWORD_VARIABLE}, or neither")
    folder = environment.get("DOCKER_CONFIG")
    path = Path(folder) if folder else Path(environment.get("HOME", "~")).expanduser() / ".docker"
    return _from_docker(path / "config.json", host, environment)


def _from_docker(path: Path, host: str, environment: Mapping[str, str]) -> Credentials | None:
    try:
        config = json.loads(path.read_bytes())
        helpers, entries = config.get("credHelpers") or {}, config.get("auths") or {}
        helper = helpers.get(host)
        if helper is None and (entry := _entry(entries, host)) is not None:
            found = _from_entry(entry)
            if found is not None:
                return found
        helper = helper or config.get("credsStore")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or 'unreadable'}") from None
    except (ValueError, AttributeError, TypeError, binascii.Error):
        raise InputError(f"{path} is not what `docker login` writes: mend or remove it") from None
    if not helper:
        return None
    return _ask_helper(str(helper), _OTHER_NAMES.get(host, host), environment)


def _entry(entries: Mapping[str, Any], host: str) -> Mapping[str, Any] | None:
    for name in (host, f"https://{host}", f"http://{host}", f"https://{host}/v1/", _OTHER_NAMES.get(host, host)):
        if name in entries:
            found: Mapping[str, Any] = entries[name]
            return found
    return None


def _from_entry(entry: Mapping[str, Any]) -> Credentials | None:
    """Returns what an entry holds; None where it only says that a credential store has it."""
    if entry.get("identitytoken"):
        return Credentials("", str(entry["identitytoken"]), is_token=True)
    if entry.get("auth"):
        user, colon, password = base64.b64decode(entry["auth"], validate=True).decode("utf-8").partition(":")
        if not colon:
            raise ValueError("no colon")
        return Credentials(user, password.rstrip("\0"))
    return None


def _ask_helper(name: str, host: str, environment: Mapping[str, str]) -> Credentials | None:
    """Asks a program of Docker's protocol for credential helpers, which gets the host on its standard input."""
    program = f"docker-credential-{name}"
    if "/" in name:
        raise InputError(f"the credential helper {name!r} of docker's config.json is a path and not a name: mend it")
    try:
        done = subprocess.run(  # noqa: S603 - the user's own settings name it
            [program, "get"],
            input=host.encode(),
            capture_output=True,
            timeout=_HELPER_TIMEOUT_S,
            check=False,
            env=dict(environment),
        )
        if done.returncode != 0:
            if b"credentials not found" in done.stdout:
                return None
            raise InputError(
                f"{program}, which docker's config.json names, fails (exit {done.returncode}): log in again"
            )
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (FileNotFoundError, PermissionError):
        raise InputError(f"{program}, which docker's config.json names, is not installed: install it") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{program}, which docker's config.json names, does not answer: log in again") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{program}, which docker's config.json names, gives no credentials: log in again") from None
    return Credentials("" if user == _TOKEN_USER else user, secret, is_token=user == _TOKEN_USER)
