"""The messages a server answers with, read with suspicion: what makes no sense is a `BadAnswerError`."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from keylock.inference import inference_pb2 as oip
from keylock.v1 import admin_pb2, license_pb2
from keylock.v1 import explanation_pb2 as pb
from keylock_client._limits import RequestLimits
from keylock_client._maps import no_map, read_map, senseless
from keylock_client._sources import Source
from keylock_client.charges import Estimate, LicenseInfo, Quota, Receipt, Usage
from keylock_client.explanations import Explanation
from keylock_client.results import ClassScore, Explainer, Model, ModelInfo, Prediction

__all__ = [
    "estimate",
    "explanations",
    "labels",
    "license_info",
    "model_info",
    "predictions",
    "predictions_of",
    "quotas",
    "score_of",
]

TOP = 5
# No message of protobuf is larger, whatever a server says.
_LARGEST_BYTES = 2**31 - 1


def model_info(answer: pb.GetModelResponse) -> ModelInfo:
    """Read the description of a model."""
    # Pydantic takes longer to load than all else of a client, which is made before anything is asked.
    from keylock.imaging.preprocessing import Preprocessing

    told = answer.preprocessing
    try:
        preprocessing = Preprocessing.model_validate(
            {
                "size": (told.height, told.width),
                "channels": told.channels,
                "resize": told.resize,
                "mean": tuple(told.mean),
                "std": tuple(told.std),
                "bits": told.bits if told.HasField("bits") else None,
            }
        )
    except ValueError:
        senseless("the preprocessing of the model is unknown")
    if not answer.classes or not all(answer.classes) or len(set(answer.classes)) < len(answer.classes):
        senseless("the model has no classes, or not one name for each")
    if not answer.model.name or not all(one.name for one in answer.explainers):
        senseless("the model or an explainer has no name")
    return ModelInfo(
        model=_model(answer.model),
        classes=tuple(answer.classes),
        preprocessing=preprocessing,
        explainers=tuple(_explainer(one) for one in answer.explainers),
        key_available=answer.key_available,
        limits=_limits(answer),
        signs_receipts=answer.signs_receipts,
        computed_in=dict(answer.computed_in),
    )


def _limits(answer: pb.GetModelResponse) -> RequestLimits:
    """Read what a server takes; one that does not say takes what most do."""
    told, usual = answer.limits, RequestLimits()
    return RequestLimits(
        images=told.max_images or usual.images,
        image_bytes=min(told.max_image_bytes or usual.image_bytes, _LARGEST_BYTES),
        image_pixels=told.max_image_pixels or usual.image_pixels,
        message_bytes=min(told.max_message_bytes or usual.message_bytes, _LARGEST_BYTES),
    )


def license_info(answer: license_pb2.GetLicenseResponse | admin_pb2.LicenseState) -> LicenseInfo:
    """Read what a license grants."""
    told = answer.license
    if told.HasField("rate") and not 0 < told.rate.per_second < math.inf:
        senseless(f"a rate of {told.rate.per_second} images a second")
    return LicenseInfo(
        id=told.id,
        customer=told.customer,
        models=tuple(told.models),
        explainers=tuple(told.explainers),
        issued_at=_time(told.issued_at),
        not_before=_time(told.not_before),
        expires=_time(told.expires),
        max_images=told.max_images or None,
        max_pixels=told.max_pixels or None,
        rate=(told.rate.per_second, told.rate.burst) if told.HasField("rate") else None,
        similar_queries=told.similar_queries,
        disclosures_per_day=told.disclosure.per_day,
    )


def quotas(told: Iterable[pb.QuotaWindow]) -> tuple[Quota, ...]:
    """Read what a license may use and has used."""
    return tuple(
        Quota(
            period=one.period,
            limit=one.limit if one.HasField("limit") else None,
            used=one.used,
            resets_at=_time(one.resets_at) if one.HasField("resets_at") else None,
        )
        for one in told
    )


def estimate(answer: pb.EstimateExplainResponse) -> Estimate:
    """Read what a call would cost."""
    return Estimate(
        explainer=answer.explainer,
        units=answer.units,
        units_per_image=answer.units_per_image,
        fits=answer.fits,
        quotas=quotas(answer.quotas),
    )


def explanations(
    answer: pb.ExplainResponse,
    maps: Sequence[bytes | bytearray],
    *,
    sources: list[Source],
    info: ModelInfo,
    receipt: Receipt | None,
) -> list[Explanation]:
    """Read explanations.

    Args:
        answer: The answer to a call.
        maps: The elements of all maps; each is taken out of the answer once, because that copies it.
        sources: The images of the call, in order; each explanation keeps its own, to draw on.
        info: The model that has answered.
        receipt: The verified receipt of the call.

    Returns:
        One explanation for each image.
    """
    if len(answer.results) != len(sources):
        senseless(f"{len(answer.results)} explanations for {len(sources)} images")
    return [
        Explanation(
            map=saliency,
            received=received,
            prediction=_told_prediction(told.prediction, info.classes),
            target=_score(told.prediction if told.skipped else told.target, info.classes),
            explained=not told.skipped,
            explainer=_explainer(told.explainer),
            keyed=told.keyed,
            model=_model(answer.model),
            request_id=answer.request_id,
            usage=_usage(answer.usage),
            _preprocessing=info.preprocessing,
            _source=source,
            receipt=receipt,
        )
        for told, data, source in zip(answer.results, maps, sources, strict=True)
        for received, saliency in [no_map() if told.skipped else read_map(told, data)]
    ]


def predictions(answer: oip.ModelInferResponse, *, count: int, classes: tuple[str, ...]) -> list[Prediction]:
    """Read the logits of the Open Inference Protocol.

    Args:
        answer: The answer to a call.
        count: Images in the call.
        classes: Names of the classes.

    Returns:
        One prediction for each image.
    """
    shape = (count, len(classes))
    if [(one.name, one.datatype, tuple(one.shape)) for one in answer.outputs] != [("logits", "FP32", shape)]:
        senseless(f"no logits of {len(classes)} classes for {count} images")
    raw = answer.raw_output_contents
    data = raw[0] if raw else np.asarray(answer.outputs[0].contents.fp32_contents, "<f4").tobytes()
    return predictions_of(_floats(data, shape), classes)


def labels(answer: oip.ModelInferResponse, *, count: int, classes: tuple[str, ...]) -> list[str]:
    """Read the labels of the Open Inference Protocol; arguments and result are as of `predictions`."""
    if [(one.name, one.datatype, tuple(one.shape)) for one in answer.outputs] != [("label", "BYTES", (count,))]:
        senseless(f"no labels of {count} images")
    known = {name.encode(): name for name in classes}
    data, position, found = b"".join(answer.raw_output_contents), 0, list[str]()
    # Each is preceded by its length, 4 bytes, little-endian.
    for _ in range(count):
        begins = position + 4
        position = begins + int.from_bytes(data[position:begins], "little")
        found.append(known.get(data[begins:position], ""))
    if position != len(data) or not all(found):
        senseless("labels that are none of the classes, or not one for each image")
    return found


def predictions_of(logits: NDArray[np.float32], classes: tuple[str, ...]) -> list[Prediction]:
    """Read a prediction from each row of logits (count, classes)."""
    return [_prediction(row, classes) for row in logits]


def score_of(prediction: Prediction, index: int, classes: tuple[str, ...]) -> ClassScore:
    """Return how probable a prediction takes a class."""
    logits = np.asarray(prediction.logits, np.float64)
    powers = np.exp(logits - logits.max())
    return ClassScore(classes[index], index, float(powers[index] / powers.sum()))


def _prediction(logits: NDArray[np.float32], classes: tuple[str, ...]) -> Prediction:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    # Stable, so that of two equal classes the first one wins, as argmax has it on the server.
    order = np.argsort(-logits, kind="stable")[:TOP]
    top = tuple(ClassScore(classes[index], int(index), float(probabilities[index])) for index in order)
    best = top[0]
    return Prediction(best.label, best.index, best.probability, top, tuple(float(value) for value in logits))


def _usage(told: pb.Usage) -> Usage:
    return Usage(
        units=told.units,
        license_id=told.license_id,
        replayed=told.replayed,
        overage_units=told.overage_units,
        remaining=told.remaining if told.HasField("remaining") else None,
        resets_at=_time(told.resets_at) if told.HasField("resets_at") else None,
        charged_at=_time(told.charged_at) if told.HasField("charged_at") else None,
    )


def _model(told: pb.Model) -> Model:
    return Model(name=told.name, digest=told.digest)


def _told_prediction(told: pb.Prediction, classes: tuple[str, ...]) -> Prediction:
    """Read the prediction beside a map; what it says fits together and is about the classes of the model."""
    best = _score(told, classes)
    logits = np.asarray(told.logits, np.float32)
    if len(logits) not in (0, len(classes)) or not np.isfinite(logits).all():
        senseless(f"logits that are not {len(classes)} finite numbers")
    if len(told.top) > TOP:
        senseless(f"{len(told.top)} most probable classes")
    return Prediction(
        label=best.label,
        index=best.index,
        probability=best.probability,
        top=tuple(_score(one, classes) for one in told.top),
        logits=tuple(told.logits),
        keyed=told.keyed,
    )


def _score(told: pb.ClassScore | pb.Prediction, classes: tuple[str, ...]) -> ClassScore:
    if not 0 <= told.index < len(classes) or told.label != classes[told.index]:
        senseless(f"class {told.index} is {told.label[:80]!r}, which is not a class of the model")
    # Comparisons with NaN are false. A sum of single precision may be a little above 1.
    if not 0 <= told.probability <= 1 + 1e-5:
        senseless(f"a probability of {told.probability}")
    return ClassScore(label=told.label, index=told.index, probability=min(1.0, told.probability))


def _explainer(told: pb.Explainer) -> Explainer:
    try:
        parameters = MessageToDict(told.parameters)
    except ValueError:
        senseless("a parameter of an explainer is not a number")
    return Explainer(name=told.name, parameters=_integers(parameters))


def _integers(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Undo what a protobuf Struct does to integers: it keeps every number as a float."""
    if isinstance(value, dict):
        return {name: _integers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_integers(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _floats(data: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    # Python's integers, because a hostile shape overflows those of NumPy.
    expected = 4
    for side in shape:
        expected *= side
    if len(data) != expected or not expected:
        senseless(f"{len(data)} bytes for an array of shape {shape}")
    # An array over bytes is read-only, which is what a result should be.
    values = np.frombuffer(data, dtype="<f4").reshape(shape)
    if not np.isfinite(values).all():
        senseless("an array holds NaN or infinite values")
    return values


def _time(told: Timestamp) -> datetime:
    try:
        return told.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        senseless("an impossible time")
