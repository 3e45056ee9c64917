"""One repository of a registry over HTTP (OCI Distribution Specification 1.1): manifests and blobs, by digest.

What comes from a registry is bounded, and compared with its digest before it is used. A password goes to the registry,
and to the address that the registry names for tokens, over TLS alone; redirects to others get nothing.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urljoin, urlsplit

from keylock.errors import InputError, RegistryError
from keylock.registries.credentials import PASSWORD_VARIABLE, USER_VARIABLE, Credentials
from keylock.registries.reference import Reference
from keylock.text.printable import printable

if TYPE_CHECKING:
    import requests

__all__ = ["MANIFEST_TYPE", "Registry"]

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"

_TIMEOUT_S: Final = 30.0
_MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
_MAX_ANSWER_BYTES: Final = 1024 * 1024
_MAX_REDIRECTS: Final = 5
_CHUNK: Final = 1 << 20
_LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PARAMETER: Final = re.compile(r'([a-zA-Z_-]+)="((?:[^"\\]|\\.)*)"')

_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 401, 403, 404, 429


class Registry:
    """A repository of a registry, over one connection that is kept. Not for several threads at once."""

    def __init__(
        self, reference: Reference, *, credentials: Credentials | None = None, plain_http: bool = False
    ) -> None:
        """Asks nothing yet.

        Args:
            reference: The repository.
            credentials: Who asks; None asks without a login.
            plain_http: Whether to use HTTP without TLS, for a registry that is not on this machine.
        """
        import requests

        self.reference = reference
        self._credentials = credentials
        self._plain_http = plain_http
        scheme = "http" if plain_http or reference.is_local else "https"
        self._base = f"{scheme}://{reference.host}/v2/{reference.name}/"
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": "keylock", "Accept-Encoding": "identity", "Accept": "*/*"})
        if reference.is_local:
            self._session.trust_env = False  # A proxy would ask itself for what is on this machine.
        self._login: str | None = None

    def manifest(self) -> tuple[bytes, str]:
        """Returns the manifest and its digest.

        Raises:
            RegistryError: If there is none, it is not what its digest says, or the registry fails.
        """
        wanted = self.reference.manifest
        with self._ask("GET", f"manifests/{wanted}", headers={"Accept": MANIFEST_TYPE}) as answer:
            content = _read(answer, _MAX_MANIFEST_BYTES)
            named = self.reference.digest or answer.headers.get("Docker-Content-Digest")
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        if named is not None and named.startswith("sha256:") and named != digest:
            raise self._differs("the manifest", named, digest)
        return content, digest

    def has_blob(self, digest: str) -> bool:
        """Returns whether the registry has a blob, which then need not be sent.

        Raises:
            RegistryError: If the registry cannot be asked.
        """
        with self._ask("HEAD", f"blobs/{digest}", accepted=(200, _NOT_FOUND)) as answer:
            return int(answer.status_code) == 200

    def send_blob(self, digest: str, content: bytes) -> None:
        """Sends a blob.

        Raises:
            RegistryError: If the registry does not take it.
        """
        with self._ask("POST", "blobs/uploads/", accepted=(202,), headers={"Content-Length": "0"}) as answer:
            place = answer.headers.get("Location")
        if not place:
            raise self._strange("it names no place to send a file to")
        place = urljoin(self._base, place)
        self._require_private(place, "a file")
        place += ("&" if urlsplit(place).query else "?") + f"digest={digest}"
        headers = {"Content-Type": "application/octet-stream"}
        with self._ask("PUT", place, accepted=(201,), headers=headers, body=content):
            pass

    def send_manifest(self, content: bytes) -> str:
        """Sends the manifest under the tag, which is what makes everything before it one artefact.

        Returns:
            Its digest.

        Raises:
            RegistryError: If the registry does not take it.
        """
        headers = {"Content-Type": MANIFEST_TYPE}
        with self._ask("PUT", f"manifests/{self.reference.tag}", accepted=(201,), headers=headers, body=content):
            pass
        return "sha256:" + hashlib.sha256(content).hexdigest()

    def fetch_blob(self, digest: str, size: int, out: Path) -> None:
        """Writes a blob to a file, which is right once this has returned.

        Args:
            digest: Its digest.
            size: How many bytes it has; no more are read.
            out: A new file.

        Raises:
            OSError: If the file cannot be written.
            RegistryError: If there is no such blob, it is not what its digest says, or the registry fails.
        """
        found, length = hashlib.sha256(), 0
        with self._ask("GET", f"blobs/{digest}") as answer, out.open("xb") as file:
            for chunk in self._stream(answer):
                length += len(chunk)
                if length > size:
                    raise self._differs("a file", digest, f"one with more than {size} bytes")
                found.update(chunk)
                file.write(chunk)
        if length != size or "sha256:" + found.hexdigest() != digest:
            raise self._differs("a file", digest, f"sha256:{found.hexdigest()} ({length} bytes of {size})")

    def close(self) -> None:
        """Ends the connection."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, answer: "requests.Response") -> Iterator[bytes]:
        import urllib3

        try:
            yield from answer.raw.stream(_CHUNK, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise RegistryError(
                f"the registry {self.reference.host} broke off in the middle of a file ({type(error).__name__}): "
                "try again"
            ) from None

    @contextmanager
    def _ask(
        self,
        method: str,
        path: str,
        *,
        accepted: tuple[int, ...] = (200,),
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> "Iterator[requests.Response]":
        """Yields the answer; a login is made where the registry asks for one."""
        url = urljoin(self._base, path)
        answer = self._send(method, url, headers or {}, body)
        if answer.status_code == _UNAUTHORIZED:
            challenge = answer.headers.get("WWW-Authenticate", "")
            _finish(answer)
            self._log_in(challenge)
            answer = self._send(method, url, headers or {}, body)
        try:
            if answer.status_code not in accepted:
                raise self._refused(answer)
            yield answer
        except BaseException:
            answer.close()
            raise
        _finish(answer)

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> "requests.Response":
        """Returns the answer, after redirects, which are not shown the login where they lead elsewhere."""
        for _ in range(_MAX_REDIRECTS):
            shown = dict(headers)
            if self._login is not None and _origin(url) == _origin(self._base):
                shown["Authorization"] = self._login
            answer = self._request(method, url, headers=shown, data=body)
            if answer.status_code not in _MOVED or method not in ("GET", "HEAD"):
                return answer
            place = answer.headers.get("Location", "")
            _finish(answer)
            url = urljoin(url, place)
            self._require_private(url, "a redirect")
        raise self._strange("its redirects do not end")

    def _request(self, method: str, url: str, **given: Any) -> "requests.Response":  # noqa: ANN401 - those of requests
        """Returns an answer as it comes, or says why there is none."""
        import requests

        try:
            # `auth` keeps requests from looking into ~/.netrc, whose logins are not meant for registries.
            return self._session.request(
                method, url, stream=True, allow_redirects=False, timeout=_TIMEOUT_S, auth=_as_given, **given
            )
        except requests.exceptions.SSLError:
            raise RegistryError(
                f"the registry {self.reference.host} shows no certificate that is trusted here: name its authority in "
                "REQUESTS_CA_BUNDLE, or say plain_http=True if it has no TLS and the network is yours"
            ) from None
        except requests.exceptions.RequestException as error:
            raise RegistryError(
                f"the registry {self.reference.host} cannot be reached ({_why(error)}): check the name and that it runs"
            ) from None

    def _log_in(self, challenge: str) -> None:
        """Makes the login that a registry asks for.

        Raises:
            RegistryError: If there is none to make, or it is refused.
        """
        kind, _, rest = challenge.partition(" ")
        if self._login is not None and kind.lower() != "bearer":
            raise self._login_refused()
        if kind.lower() == "basic":
            if self._credentials is None or self._credentials.is_token:
                raise self._login_needed()
            self._require_private(self._base, "a login")
            self._login = self._credentials.basic()
        elif kind.lower() == "bearer":
            self._login = "Bearer " + self._fetch_token(dict(_PARAMETER.findall(rest)))
        else:
            raise self._strange("it asks for a login of a kind that is not known")

    def _fetch_token(self, parameters: Mapping[str, str]) -> str:
        """Returns a token for what was asked (Distribution's token authentication), anonymously without credentials."""
        realm = parameters.get("realm", "")
        if urlsplit(realm).scheme not in ("http", "https") or not urlsplit(realm).hostname:
            raise self._strange("it names no address for tokens")
        self._require_private(realm, "a login")
        asked = {name: parameters[name] for name in ("service", "scope") if name in parameters}
        given = self._credentials
        if given is not None and given.is_token:
            form = {**asked, "grant_type": "refresh_token", "client_id": "keylock", "refresh_token": given.reveal()}
            answer = self._request("POST", realm, data=form)
        else:
            shown = {} if given is None else {"Authorization": given.basic()}
            answer = self._request("GET", realm, params=asked, headers=shown)
        with answer:
            if answer.status_code in (_UNAUTHORIZED, _FORBIDDEN):
                raise self._login_needed() if given is None else self._login_refused()
            if answer.status_code != 200:
                raise self._strange(f"its address for tokens answers {answer.status_code}")
            try:
                document = json.loads(_read(answer, _MAX_ANSWER_BYTES))
                token = document.get("token") or document["access_token"]
            except (ValueError, KeyError, AttributeError, TypeError):
                raise self._strange("its address for tokens gives none") from None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise self._strange("its address for tokens gives none")
        return token

    def _require_private(self, url: str, what: str) -> None:
        parts = urlsplit(url)
        if parts.scheme == "https" or self._plain_http or parts.hostname in _LOCAL_HOSTS:
            return
        raise RegistryError(
            f"the registry {self.reference.host} would send {what} over the network in the clear: ask its operator for "
            "TLS, or say plain_http=True if the network is yours"
        )

    def _refused(self, answer: "requests.Response") -> RegistryError:
        """Returns what a status means, in a sentence."""
        code = answer.status_code
        if code == _UNAUTHORIZED:
            return self._login_needed() if self._credentials is None else self._login_refused()
        host, name = self.reference.host, self.reference.name
        if code == _FORBIDDEN:
            return RegistryError(
                f"the registry {host} does not allow this in {name}: ask its operator for the right to"
            )
        if code == _NOT_FOUND:
            checked = "tag" if self.reference.digest is None else "digest"
            return RegistryError(f"there is no {self.reference} in the registry: check name and {checked}")
        if code == _TOO_MANY:
            return RegistryError(f"the registry {host} was asked too often: try again later")
        return RegistryError(f"the registry {host} answers {code}{_said(answer)}: try again, or ask its operator")

    def _login_needed(self) -> RegistryError:
        return RegistryError(
            f"the registry {self.reference.host} asks for a login: set {USER_VARIABLE} and {PASSWORD_VARIABLE}, or run "
            f"docker login {self.reference.host}"
        )

    def _login_refused(self) -> RegistryError:
        user = self._credentials.user if self._credentials is not None else ""
        who = f"the login of {printable(user)}" if user else "the login"
        return RegistryError(f"the registry {self.reference.host} refuses {who} for {self.reference.name}: check it")

    def _strange(self, why: str) -> RegistryError:
        return RegistryError(f"what answers at {self.reference.host} is no registry that keylock can use: {why}")

    def _differs(self, what: str, named: str, found: str) -> RegistryError:
        return RegistryError(
            f"the registry {self.reference.host} sent {what} that is not the one asked for: {printable(named[:80])} "
            f"was asked for, {found} came; try again, and do not use this registry if it stays so"
        )


def _as_given(request: Any) -> Any:  # noqa: ANN401 - a prepared request, which requests hands to whatever logs in
    return request


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _read(answer: "requests.Response", limit: int) -> bytes:
    content: bytes = answer.raw.read(limit + 1, decode_content=False)
    if len(content) > limit:
        raise RegistryError(f"the registry sent more than {limit} bytes where fewer were expected: it cannot be used")
    return content


def _finish(answer: "requests.Response") -> None:
    """Reads what is left of an answer, so that its connection is used again; one that goes on and on is broken off."""
    import urllib3

    try:
        left = answer.raw.read(_MAX_ANSWER_BYTES, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError):
        left = None
    if left is None or len(left) == _MAX_ANSWER_BYTES:
        answer.close()
    else:
        answer.raw.release_conn()


def _said(answer: "requests.Response") -> str:
    """Returns what the registry says of an error, made safe to show; empty where it says nothing."""
    try:
        message = json.loads(_read(answer, _MAX_ANSWER_BYTES))["errors"][0]["message"]
    except (ValueError, KeyError, IndexError, TypeError, OSError, RegistryError):
        return ""
    return f" ({printable(message[:200])})" if isinstance(message, str) and message else ""


def _why(error: Exception) -> str:
    """Returns the reason in a word or two, without addresses of objects, of which the text of requests is full."""
    import requests

    text = str(error)
    for sign, reason in (
        ("refused", "nothing listens there"),
        ("Name or service not known", "there is no such host"),
        ("Temporary failure in name resolution", "there is no such host"),
        ("nodename nor servname", "there is no such host"),
        ("Failed to resolve", "there is no such host"),
        ("unreachable", "there is no way to it"),
        ("BadStatusLine", "it does not speak HTTP"),
    ):
        if sign in text:
            return reason
    if isinstance(error, requests.exceptions.Timeout):
        return "it does not answer"
    if isinstance(error, requests.exceptions.InvalidURL):
        raise InputError("this is no address of a registry: give HOST/NAME:TAG") from None
    return "the connection was broken off"
