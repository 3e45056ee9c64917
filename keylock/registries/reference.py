"""Where in a registry an artefact is: `HOST[:PORT]/NAME[:TAG]` or `HOST[:PORT]/NAME@sha256:DIGEST`."""

import re
from dataclasses import dataclass
from typing import Final

from keylock.errors import InputError

__all__ = ["Reference"]

# OCI Distribution Specification 1.1, section "Pulling manifests".
_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE: Final = re.compile(
    rf"(?P<host>(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?)/(?P<name>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_MAX_NAME: Final = 255
_LOCAL: Final = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Reference:
    """A place in a registry.

    Attributes:
        host: The registry: its name, with a port where that is not 443.
        name: The repository in it.
        tag: The tag; `latest` where neither tag nor digest was given.
        digest: The digest of the manifest, `sha256:...`, or None.
    """

    host: str
    name: str
    tag: str = "latest"
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Returns the place that a text names.

        Raises:
            InputError: If it names none. A registry is always named: none is taken for granted.
        """
        found = _REFERENCE.fullmatch(text)
        if found is None or len(found["name"]) > _MAX_NAME or not _is_host(found["host"]):
            raise InputError(
                f"{text!r} is no place in a registry: give HOST/NAME:TAG, for example "
                "registry.example.com/acme/shapes:1"
            )
        return cls(found["host"], found["name"], found["tag"] or "latest", found["digest"])

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine."""
        return self.host.rpartition(":")[0] in _LOCAL or self.host in _LOCAL

    @property
    def manifest(self) -> str:
        """What asks for the manifest: the digest where there is one, else the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return f"{self.host}/{self.name}{f'@{self.digest}' if self.digest else f':{self.tag}'}"


def _is_host(host: str) -> bool:
    # As container tools read it: `acme/shapes` names no host, `localhost/shapes` and `acme.example/shapes` do.
    return "." in host or ":" in host or host == "localhost"
