"""The messages a server answers with, read with suspicion: what makes no sense is a `BadAnswerError`."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NoReturn

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from keylock.inference import inference_pb2 as oip
from keylock.preprocessing import Preprocessing
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2
from keylock_client._requests import MAX_ANSWER_BYTES
from keylock_client._sources import Source
from keylock_client.errors import BadAnswerError
from keylock_client.results import (
    ClassScore,
    Estimate,
    Explainer,
    Explanation,
    LicenseInfo,
    Model,
    ModelInfo,
    Prediction,
    Quota,
    Receipt,
    RequestLimits,
    Usage,
)

__all__ = [
    "DTYPES",
    "estimate",
    "explanations",
    "license_info",
    "model_info",
    "predictions",
    "quotas",
    "size_of_map",
]

TOP = 5
# No message of protobuf is larger, whatever a server says.
_LARGEST_BYTES = 2**31 - 1
DTYPES: dict[int, str] = {
    pb.DATA_TYPE_FLOAT32: "float32",
    pb.DATA_TYPE_FLOAT16: "float16",
    pb.DATA_TYPE_UINT8: "uint8",
}


def model_info(answer: pb.GetModelResponse) -> ModelInfo:
    """Read the description of a model."""
    told = answer.preprocessing
    try:
        preprocessing = Preprocessing.model_validate(
            {
                "size": (told.height, told.width),
                "channels": told.channels,
                "resize": told.resize,
                "mean": tuple(told.mean),
                "std": tuple(told.std),
            }
        )
    except ValueError:
        _senseless("the preprocessing of the model is unknown")
    return ModelInfo(
        model=_model(answer.model),
        classes=tuple(answer.classes),
        preprocessing=preprocessing,
        explainers=tuple(_explainer(one) for one in answer.explainers),
        key_available=answer.key_available,
        limits=_limits(answer),
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


def license_info(answer: license_pb2.GetLicenseResponse) -> LicenseInfo:
    """Read what a license grants."""
    told = answer.license
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
    answer: pb.ExplainResponse, *, sources: list[Source], preprocessing: Preprocessing, receipt: Receipt | None
) -> list[Explanation]:
    """Read explanations.

    Args:
        answer: The answer to a call.
        sources: The images of the call, in order; each explanation keeps its own, to draw on.
        preprocessing: That of the model.
        receipt: The verified receipt of the call.

    Returns:
        One explanation for each image.
    """
    if len(answer.results) != len(sources):
        _senseless(f"{len(answer.results)} explanations for {len(sources)} images")
    return [
        Explanation(
            map=saliency,
            received=received,
            prediction=Prediction(
                label=told.prediction.label,
                index=told.prediction.index,
                probability=told.prediction.probability,
                top=tuple(_score(one) for one in told.prediction.top),
                logits=tuple(told.prediction.logits),
                keyed=told.prediction.keyed,
            ),
            target=_score(told.target),
            explainer=_explainer(told.explainer),
            keyed=told.keyed,
            model=_model(answer.model),
            request_id=answer.request_id,
            usage=_usage(answer.usage),
            _preprocessing=preprocessing,
            _source=source,
            receipt=receipt,
        )
        for told, source in zip(answer.results, sources, strict=True)
        for received, saliency in [_map(told)]
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
        _senseless(f"no logits of {len(classes)} classes for {count} images")
    raw = answer.raw_output_contents
    data = raw[0] if raw else np.asarray(answer.outputs[0].contents.fp32_contents, "<f4").tobytes()
    return [_prediction(logits, classes) for logits in _floats(data, shape)]


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


def _score(told: pb.ClassScore) -> ClassScore:
    return ClassScore(label=told.label, index=told.index, probability=told.probability)


def _explainer(told: pb.Explainer) -> Explainer:
    return Explainer(name=told.name, parameters=_integers(MessageToDict(told.parameters)))


def _integers(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Undo what a protobuf Struct does to integers: it keeps every number as a float."""
    if isinstance(value, dict):
        return {name: _integers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_integers(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def size_of_map(told: pb.Tensor) -> int:
    """Return how many bytes the whole of a map has; never more than an answer may have."""
    shape = tuple(told.shape)
    if told.dtype not in DTYPES or len(shape) != 2 or min(shape) < 1:
        _senseless(f"a map of type {told.dtype} and shape {shape}")
    # Python's integers, because a hostile shape overflows those of NumPy.
    size = shape[0] * shape[1] * np.dtype(DTYPES[told.dtype]).itemsize
    if size > MAX_ANSWER_BYTES:
        _senseless(f"a map of {size} bytes")
    return size


def _map(told: pb.Explanation) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return a map as it was sent, and its values."""
    if len(told.map.data) != size_of_map(told.map):
        _senseless(f"{len(told.map.data)} bytes for a map of shape {tuple(told.map.shape)}")
    dtype = DTYPES[told.map.dtype]
    # An array over bytes is read-only, which is what a result should be.
    received = np.frombuffer(told.map.data, np.dtype(dtype).newbyteorder("<")).reshape(tuple(told.map.shape))
    if dtype == "float32" and not told.HasField("scaling"):
        values = received
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            exact = told.scaling.offset + told.scaling.scale * received.astype(np.float64)
            values = exact.astype(np.float32)
        values.flags.writeable = False
    if not np.isfinite(values).all():
        _senseless("a map holds NaN or infinite values")
    return received, values


def _floats(data: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    # Python's integers, because a hostile shape overflows those of NumPy.
    expected = 4
    for side in shape:
        expected *= side
    if len(data) != expected or not expected:
        _senseless(f"{len(data)} bytes for an array of shape {shape}")
    # An array over bytes is read-only, which is what a result should be.
    values = np.frombuffer(data, dtype="<f4").reshape(shape)
    if not np.isfinite(values).all():
        _senseless("an array holds NaN or infinite values")
    return values


def _time(told: Timestamp) -> datetime:
    try:
        return told.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        _senseless("a time in it is none")


def _senseless(what: str) -> NoReturn:
    raise BadAnswerError(f"the server's answer makes no sense ({what}): check that client and server fit together")
