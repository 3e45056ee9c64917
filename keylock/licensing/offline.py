"""Offline licenses: a license together with the key of its model, sealed to the customer's own key.

For a customer that runs the public bundle itself. The license is an ordinary one with a total quota; the sealed key is
that of any server. What a server on the customer's machine can enforce, and what it cannot, is in
docs/threat-model.md.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from keylock.crypto.signing import canonical_json
from keylock.errors import LicenseError, LicenseReason
from keylock.licensing.claims import License
from keylock.text.small_files import decode_text

__all__ = ["OfflineLicense", "check_limits"]

_MAX_BYTES: Final = 64 * 1024


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["keylock-offline-license/v1"] = "keylock-offline-license/v1"
    license: str
    sealed_key: dict[str, JsonValue]


@dataclass(frozen=True)
class OfflineLicense:
    """What is in the file; nothing in it is verified yet.

    Attributes:
        token: The license.
        sealed_key: The key of its model, sealed to the customer's key: the content of a sealed key file.
    """

    token: str
    sealed_key: bytes

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Reads an offline license.

        Raises:
            LicenseError: If the file cannot be read or is none.
        """
        try:
            with Path(path).open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
            if len(content) > _MAX_BYTES:
                raise ValueError("too long")
            parsed = _File.model_validate_json(decode_text(content))
            sealed_key = canonical_json(parsed.sealed_key)
        except OSError as error:
            why = error.strerror or "unreadable"
            raise LicenseError(LicenseReason.MALFORMED, f"cannot read {os.fspath(path)}: {why}") from None
        except (ValueError, ValidationError):
            raise LicenseError(
                LicenseReason.MALFORMED, f"{os.fspath(path)} is not an offline license: ask the vendor for another"
            ) from None
        return cls(parsed.license, sealed_key)

    def to_bytes(self) -> bytes:
        """Returns the content of the file."""
        return canonical_json(_File(license=self.token, sealed_key=json.loads(self.sealed_key)).model_dump()) + b"\n"


def check_limits(license: License) -> None:
    """Returns when a license has the limit that an offline license needs.

    Raises:
        LicenseError: If it has no quota for its whole life, or allows use beyond it.
    """
    if license.quota.total is None or license.quota.overage:
        raise LicenseError(
            LicenseReason.MALFORMED,
            f"the license {license.id} cannot be used offline: it needs a total quota, without overage",
        )
