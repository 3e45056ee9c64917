"""What one answered request cost and what it was about: the record that receipts and the audit log are made of.

It names images and what was answered by their digests alone. Nothing in it lets anybody see an image, a map, a
prediction, a key or a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from pydantic import JsonValue

from keylock.crypto.digests import digest_of
from keylock.crypto.signing import canonical_json
from keylock.licensing.conditions import Condition
from keylock.licensing.disclosures import Disclosure

__all__ = ["AnswerDigests", "Charge", "ReceiptIssuer", "UsageNote", "content_digest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDigests:
    """What was answered, by the digests of its parts: one of each for each image, in order.

    `keylock.licensing.answers` makes them.

    Attributes:
        maps: Of the elements of the maps as they were sent; None of an image that was not explained, because its
            prediction did not meet the condition of the request.
        scalings: Of what makes values of the elements; None where the elements are the values.
        predictions: Of the predictions.
        targets: Of the classes that were explained; None where none was.
    """

    maps: tuple[str | None, ...] = ()
    scalings: tuple[str | None, ...] = ()
    predictions: tuple[str, ...] = ()
    targets: tuple[str | None, ...] = ()

    @property
    def explained(self) -> tuple[bool, ...]:
        """Which images were explained: those that have a map."""
        return tuple(one is not None for one in self.maps)

    def digest(self) -> str:
        """Returns the one digest of them all, by which answers to a request are compared."""
        return digest_of(
            canonical_json(
                {
                    "maps": list(self.maps),
                    "predictions": list(self.predictions),
                    "scalings": list(self.scalings),
                    "targets": list(self.targets),
                }
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A request that was explained and charged.

    A repeat of the request costs nothing. It has an equal charge where it was answered with the same bits, and
    otherwise one that differs in `answer` and `repeats` alone.

    Attributes:
        license_id: The license that pays.
        request_id: Names the request within the license.
        request_digest: `sha256:` and the digest of all that was asked for, but its id; see `content_digest`.
        model_digest: `sha256:` and the digest of the model.
        model_name: Its name.
        explainer: Name of the saliency method.
        parameters: Those really used.
        target: Index of the class that was explained; -1 for the predicted class of each image.
        units: What it cost, all images that were explained together.
        keyed: Whether the maps are the true ones.
        time: When it was charged (UTC, to the second).
        image_digests: One for each image, in order.
        answer: What was answered.
        explain_if: Which images were to be explained; None for all.
        disclosure: Why it is one, and about whom; None where it is none.
        repeats: The digest of the answer that was charged, where this is another answer to the same request; None
            where this is the one that was charged.
    """

    license_id: str
    request_id: str
    request_digest: str
    model_digest: str
    model_name: str
    explainer: str
    parameters: Mapping[str, JsonValue]
    target: int
    units: int
    keyed: bool
    time: datetime
    image_digests: tuple[str, ...]
    answer: AnswerDigests = field(default_factory=AnswerDigests)
    explain_if: Condition | None = None
    disclosure: Disclosure | None = None
    repeats: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageNote:
    """What a caller is told about its use beside the charge itself. It differs from repeat to repeat.

    Attributes:
        replayed: Whether an earlier call was charged, so that this one cost nothing.
        overage_units: Units of the charge that were beyond the quota.
        remaining: Units that are left in the period that has the fewest left; None where nothing is limited.
        resets_at: When that period is filled again, in seconds since 1970; None for the total.
    """

    replayed: bool
    overage_units: int
    remaining: int | None
    resets_at: int | None


class ReceiptIssuer(Protocol):
    """Signs receipts for charges, after they were committed."""

    def issue(self, entry: bytes, usage: UsageNote) -> str:
        """Returns the receipt of a charge, given by its entry, with what the caller is told about its use."""
        ...


def content_digest(request: Charge, *, map_dtype: str = "float32") -> str:
    """Returns the digest of all that a request asks for, but its id: equal requests have equal digests.

    Args:
        request: What is asked for.
        map_dtype: Type of the elements of the maps.
    """
    content: dict[str, object] = {
        "model": request.model_digest,
        "explainer": request.explainer,
        "target": request.target,
        "images": list(request.image_digests),
    }
    if request.explain_if is not None:
        content["explain_if"] = request.explain_if.said()
    if request.disclosure is not None:
        content["disclosure"] = request.disclosure.said()
    if map_dtype != "float32":
        content["map_dtype"] = map_dtype
    return digest_of(canonical_json(content))
