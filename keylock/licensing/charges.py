"""What one answered request cost and what it was about: the record that receipts and the audit log are made of.

It names images and maps by their digests alone. Nothing in it lets anybody see an image, a map, a key or a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pydantic import JsonValue

__all__ = ["Charge", "ReceiptIssuer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A request that was explained and charged. A repeat of the request has an equal charge and costs nothing.

    Attributes:
        license_id: The license that pays.
        request_id: Names the request within the license.
        request_digest: `sha256:` and the digest of all that was asked for, but its id.
        model_digest: `sha256:` and the digest of the model.
        explainer: Name of the saliency method.
        parameters: Those really used.
        target: Index of the class that was explained; -1 for the predicted class of each image.
        units: What it cost, all images together.
        keyed: Whether the maps are the true ones.
        time: When it was charged (UTC, to the second).
        image_digests: One for each image, in order.
        map_digests: One for each map, in order.
    """

    license_id: str
    request_id: str
    request_digest: str
    model_digest: str
    explainer: str
    parameters: Mapping[str, JsonValue]
    target: int
    units: int
    keyed: bool
    time: datetime
    image_digests: tuple[str, ...]
    map_digests: tuple[str, ...]


class ReceiptIssuer(Protocol):
    """Signs receipts for charges, after they were committed."""

    def issue(self, charge: Charge) -> str:
        """Returns the receipt of a charge; equal charges have equal receipts."""
        ...
