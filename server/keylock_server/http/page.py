"""The page for people: one document with its style and its program, and a policy that lets nothing else in."""

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["Page"]


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        body: The document.
        headers: What goes with it.
    """

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    @classmethod
    def load(cls) -> "Page":
        """Reads the page that comes with the package."""
        text = files("keylock_server.http").joinpath("page.html").read_text("utf-8")
        policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src {_hashes(text, 'script')}",
                f"style-src {_hashes(text, 'style')}",
                "img-src blob: data:",
                "connect-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
                "require-trusted-types-for 'script'",
                "trusted-types 'none'",
            )
        )
        headers = (
            (b"content-security-policy", policy.encode("ascii")),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
            (b"x-frame-options", b"DENY"),
        )
        return cls(text.encode(), headers)


def _hashes(text: str, element: str) -> str:
    """Returns what the policy allows: the contents of the elements in the page, by their digests (CSP 3)."""
    contents = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(one.encode()).digest()).decode("ascii") for one in contents)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
