"""Whether an answer is the one to what was asked, and whether its receipt covers all that it says.

Every field is compared by itself, under its name in the message, so that an error can say which one was changed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from keylock.errors import InputError, ReceiptError
from keylock.text.class_names import normalise_class_name
from keylock.v1 import explanation_pb2 as pb
from keylock_client._maps import DTYPES
from keylock_client.errors import BadAnswerError

if TYPE_CHECKING:
    from keylock.licensing import Charge
    from keylock.licensing.conditions import Condition
    from keylock.licensing.disclosures import Disclosure
    from keylock.licensing.receipts import Receipt as VerifiedReceipt

__all__ = ["Asked", "check_answer", "check_receipt"]

_VERSION_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked.

    Attributes:
        request_id: The id of the request.
        options: All of it but id and images.
        images: As they were sent.
        classes: Those of the model, which a condition is about; not needed without one.
        disclosure: Why it is one, and about whom; None where it is none.
    """

    request_id: str
    options: pb.ExplainRequest
    images: Sequence[pb.Image]
    classes: Sequence[str] = ()
    disclosure: "Disclosure | None" = None


_Compared = tuple[str, object, object]
"""A field, what it must be, and what it is."""


def check_answer(answer: pb.ExplainResponse, asked: Asked, *, licensed: bool, license_id: str | None) -> None:
    """Returns when an answer is the one to what was asked, as far as it says so itself.

    Args:
        answer: The answer; it may have no receipt.
        asked: What was asked.
        licensed: Whether with a license.
        license_id: Its id, where that is known.

    Raises:
        BadAnswerError: If it is the answer to something else; the message names the field.
    """
    name = _first_difference(_asked_and_answered(answer, asked, licensed=licensed, license_id=license_id))
    if name is not None:
        raise BadAnswerError(
            f"the answer is not the one to this request: its {name} is another than was asked for; do not rely on it",
            request_id=asked.request_id,
        )


def check_receipt(
    receipt: "VerifiedReceipt",
    answer: pb.ExplainResponse,
    maps: Sequence[bytes | bytearray],
    asked: Asked,
    *,
    license_id: str | None,
) -> None:
    """Returns when a receipt is for what was asked and covers all that the answer says.

    Args:
        receipt: Verified.
        answer: What came with it.
        maps: The elements of its maps.
        asked: What was asked.
        license_id: Of the caller's license, where that is known.

    Raises:
        ReceiptError: If it is for another; the message names the field.
    """
    name = _first_difference(_certified_and_asked(receipt.charge, asked, license_id=license_id))
    if name is not None:
        raise ReceiptError(f"the receipt is not for this request: its {name} is another; do not rely on the answer")
    name = _first_difference(_certified_and_answered(receipt, answer, maps))
    if name is not None:
        raise ReceiptError(f"the receipt is not for this answer: {name} was changed; do not rely on the answer")
    name = _first_difference(_asked_and_answered(answer, asked, licensed=True, license_id=license_id))
    if name is not None:
        raise ReceiptError(f"the answer is not the one to this request: {name} is another; do not rely on it")


def _first_difference(pairs: Iterator[_Compared]) -> str | None:
    return next((name for name, wanted, found in pairs if wanted != found), None)


def _certified_and_asked(charge: "Charge", asked: Asked, *, license_id: str | None) -> Iterator[_Compared]:
    from keylock.licensing import content_digest
    from keylock.licensing.answers import MAP_DTYPES, image_digest

    options = asked.options
    if license_id is not None:
        yield "license", license_id, charge.license_id
    yield "request_id", asked.request_id, charge.request_id
    yield "images", tuple(image_digest(image) for image in asked.images), charge.image_digests
    if options.model_name:
        yield "model.name", options.model_name, charge.model_name
    if options.model_version:
        yield "model.version", options.model_version, _version_of(charge.model_digest)
    if options.explainer:
        yield "explainer", options.explainer, charge.explainer
    used = _struct(charge.parameters).fields
    for name, value in options.parameters.fields.items():
        yield f"parameters.{name}", value, used.get(name)
    chosen = options.WhichOneof("target")
    if chosen != "target_label":  # What a label stands for is seen in the answer.
        yield "target", options.target_index if chosen else -1, charge.target
    else:
        yield "target", True, charge.target >= 0
    yield "disclosure", asked.disclosure, charge.disclosure
    if asked.disclosure is not None:
        yield "units", 0, charge.units
    yield "explain_if", _condition(asked), charge.explain_if
    dtype = MAP_DTYPES.get(options.answer.map_dtype, "float32")
    yield "request digest", content_digest(charge, map_dtype=dtype), charge.request_digest


def _certified_and_answered(
    receipt: "VerifiedReceipt", answer: pb.ExplainResponse, maps: Sequence[bytes | bytearray]
) -> Iterator[_Compared]:
    from keylock.licensing.answers import digests_of

    charge, told = receipt.charge, receipt.charge.answer
    yield "request_id", charge.request_id, answer.request_id
    yield "model.name", charge.model_name, answer.model.name
    yield "model.digest", charge.model_digest, answer.model.digest
    yield "model.version", _version_of(charge.model_digest), answer.model.version
    parts = (charge.image_digests, told.maps, told.scalings, told.predictions, told.targets)
    yield "results", [len(part) for part in parts], [len(answer.results)] * len(parts)
    parameters = _struct(charge.parameters)
    found = digests_of(answer.results, maps)
    for i, result in enumerate(answer.results):
        yield f"results[{i}].skipped", told.maps[i] is None, result.skipped
        yield f"results[{i}].keyed", charge.keyed and not result.skipped, result.keyed
        yield f"results[{i}].explainer.name", charge.explainer, result.explainer.name
        yield f"results[{i}].explainer.parameters", parameters, result.explainer.parameters
        yield f"results[{i}].map", told.maps[i], found.maps[i]
        yield f"results[{i}].scaling", told.scalings[i], found.scalings[i]
        yield f"results[{i}].prediction", told.predictions[i], found.predictions[i]
        yield f"results[{i}].target", told.targets[i], found.targets[i]
    usage, said = receipt.usage, answer.usage
    yield "usage.license_id", charge.license_id, said.license_id
    yield "usage.units", charge.units, said.units
    yield "usage.charged_at", charge.time, _time(said, "charged_at")
    yield "usage.replayed", usage.replayed, said.replayed
    yield "usage.overage_units", usage.overage_units, said.overage_units
    yield "usage.remaining", usage.remaining, said.remaining if said.HasField("remaining") else None
    resets_at = None if usage.resets_at is None else datetime.fromtimestamp(usage.resets_at, UTC)
    yield "usage.resets_at", resets_at, _time(said, "resets_at")
    # Who charges for an answer gives it as what was charged.
    if not usage.replayed:
        yield "usage.replayed", None, charge.repeats


def _asked_and_answered(
    answer: pb.ExplainResponse, asked: Asked, *, licensed: bool, license_id: str | None
) -> Iterator[_Compared]:
    options = asked.options
    if options.model_name:
        yield "model.name", options.model_name, answer.model.name
    if options.model_version:
        yield "model.version", options.model_version, answer.model.version
    condition = _condition(asked)
    for i, result in enumerate(answer.results):
        if condition is None:
            yield f"results[{i}].skipped", False, result.skipped
        elif not answer.usage.replayed:
            # A repeat has maps of the images that were charged, though a prediction may be another in its last bits.
            yield f"results[{i}].skipped", not condition.holds(result.prediction), result.skipped
        for name, wanted, found in _asked_and_explained(result, options, licensed):
            yield f"results[{i}].{name}", wanted, found
    if not licensed:
        yield "usage", pb.Usage(), answer.usage
    elif license_id is not None:
        yield "usage.license_id", license_id, answer.usage.license_id


def _asked_and_explained(result: pb.Explanation, options: pb.ExplainRequest, licensed: bool) -> Iterator[_Compared]:
    # With a license that is good every map is true, and without one none is.
    yield "keyed", licensed and not result.skipped, result.keyed
    if options.HasField("explain_if"):
        yield "prediction.keyed", False, result.prediction.keyed
    if options.prediction != pb.PREDICTION_KIND_UNSPECIFIED:
        yield "prediction.keyed", options.prediction == pb.PREDICTION_KIND_KEYED, result.prediction.keyed
    if options.explainer:
        yield "explainer.name", options.explainer, result.explainer.name
    for name, value in options.parameters.fields.items():
        yield f"explainer.parameters.{name}", value, result.explainer.parameters.fields.get(name)
    if result.skipped:
        for name in ("map", "scaling", "target"):
            yield name, False, result.HasField(name)  # type: ignore[arg-type]  # The names of its fields.
        return
    if result.map.dtype in DTYPES:  # Whatever is not a type makes no sense at all, which is said elsewhere.
        yield "map.dtype", options.answer.map_dtype or pb.DATA_TYPE_FLOAT32, result.map.dtype
    if options.WhichOneof("target") == "target_index":
        yield "target.index", options.target_index, result.target.index
    elif options.WhichOneof("target") == "target_label":
        yield "target.label", normalise_class_name(options.target_label), result.target.label


def _condition(asked: Asked) -> "Condition | None":
    """Returns the condition that was asked with; one about classes that the model does not have holds for no image."""
    if not asked.options.HasField("explain_if"):
        return None
    from keylock.licensing.conditions import Condition

    try:
        return Condition.of(asked.options.explain_if, asked.classes)
    except InputError:
        return Condition("predicted")


def _version_of(model_digest: str) -> str:
    return model_digest.removeprefix("sha256:")[:_VERSION_DIGITS]


def _struct(parameters: Any) -> Struct:  # noqa: ANN401 - any mapping that is JSON
    told = Struct()
    ParseDict(dict(parameters), told)
    return told


def _time(usage: pb.Usage, field: str) -> datetime | object | None:
    """Returns the time in a field, or the message itself where it is none to the second."""
    if not usage.HasField(field):  # type: ignore[arg-type]  # The name of one of its fields.
        return None
    told: Timestamp = getattr(usage, field)
    try:
        return told.ToDatetime(tzinfo=UTC) if not told.nanos else told
    except (ValueError, OverflowError):
        return told
