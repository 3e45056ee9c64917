"""What is asked of a server and in which order, without any input or output.

An exchange is a generator: it yields the calls to make, is sent the answer of each, and returns the result. `Client`
and `AsyncClient` differ only in how they make the calls of one and the same exchange.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn, TypeAlias, TypeVar

from google.protobuf.message import Message

from keylock.inference import inference_pb2 as oip
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2
from keylock_client import _answers as answers
from keylock_client._receipts import Trust, read_receipt
from keylock_client._requests import chunks, explain_request, infer_request
from keylock_client._sources import ImageLike, Source, read_sources
from keylock_client.errors import RequestRefusedError, Violation
from keylock_client.results import Explanation, LicenseInfo, ModelInfo, Prediction

__all__ = ["Call", "Exchange", "Memory", "Method", "describe", "explain", "license_info", "predict"]

T = TypeVar("T")


class Method(StrEnum):
    """The methods a client calls, by the full name gRPC knows them by."""

    EXPLAIN = "/keylock.v1.ExplanationService/Explain"
    GET_MODEL = "/keylock.v1.ExplanationService/GetModel"
    GET_LICENSE = "/keylock.v1.LicenseService/GetLicense"
    MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"

    @property
    def answer(self) -> type[Message]:
        """The type of the answer."""
        return _ANSWERS[self]


_ANSWERS: dict[Method, type[Message]] = {
    Method.EXPLAIN: pb.ExplainResponse,
    Method.GET_MODEL: pb.GetModelResponse,
    Method.GET_LICENSE: license_pb2.GetLicenseResponse,
    Method.MODEL_INFER: oip.ModelInferResponse,
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call to make.

    Attributes:
        method: Which.
        request: The message to send.
        request_id: The id in the message, if it has one.
        licensed: Whether the license goes along. Predictions need none, so they are shown none.
    """

    method: Method
    request: Message
    request_id: str = ""
    licensed: bool = False


Exchange: TypeAlias = Generator[Call, Any, T]
"""A conversation with the server that ends in a `T`."""


@dataclass(slots=True)
class Memory:
    """What a client remembers about the server between calls; assignment is atomic, so threads may share it.

    Attributes:
        model_name: The model to ask for; empty for the one that is served.
        info: The description of the model, once it was asked for.
        trust: Whose receipts to trust.
    """

    model_name: str = ""
    info: ModelInfo | None = None
    trust: Trust = field(default_factory=Trust)


def describe(memory: Memory, *, refresh: bool = False) -> Exchange[ModelInfo]:
    """Ask what the served model is, unless that is known."""
    known = memory.info
    if known is not None and not refresh:
        return known
    answer: pb.GetModelResponse = yield Call(Method.GET_MODEL, pb.GetModelRequest(model_name=memory.model_name))
    memory.info = found = answers.model_info(answer)
    return found


def license_info() -> Exchange[LicenseInfo]:
    """Ask what the caller's license grants."""
    call = Call(Method.GET_LICENSE, license_pb2.GetLicenseRequest(), licensed=True)
    answer: license_pb2.GetLicenseResponse = yield call
    return answers.license_info(answer)


def predict(memory: Memory, images: ImageLike | Sequence[ImageLike]) -> Exchange[Prediction | list[Prediction]]:
    """Classify images over the Open Inference Protocol, in as many calls as it takes."""
    sources, single = read_sources(images)
    info = yield from describe(memory)
    found: list[Prediction] = []
    for call_id, first, chunk in chunks(sources, None):
        request = infer_request(chunk, model=info.model.name, request_id=call_id)
        try:
            answer: oip.ModelInferResponse = yield Call(Method.MODEL_INFER, request, request_id=call_id)
        except RequestRefusedError as error:
            _refuse(error, memory=memory, first=first, sources=sources)
        # The version is the beginning of the digest: another one means that the server has a new model by now.
        if answer.model_version not in info.model.digest:
            info = yield from describe(memory, refresh=True)
        found += answers.predictions(answer, count=len(chunk), classes=info.classes)
    return found[0] if single else found


def explain(
    memory: Memory,
    images: ImageLike | Sequence[ImageLike],
    *,
    explainer: str | None,
    target: int | str | None,
    parameters: Mapping[str, Any] | None,
    request_id: str | None,
) -> Exchange[Explanation | list[Explanation]]:
    """Explain images, in as many calls as it takes."""
    sources, single = read_sources(images)
    options = explain_request(memory.model_name, explainer=explainer, target=target, parameters=parameters)
    info = yield from describe(memory)
    found: list[Explanation] = []
    for call_id, first, chunk in chunks(sources, request_id):
        request = pb.ExplainRequest(request_id=call_id, images=[source.message() for source in chunk])
        request.MergeFrom(options)
        try:
            answer: pb.ExplainResponse = yield Call(Method.EXPLAIN, request, request_id=call_id, licensed=True)
        except RequestRefusedError as error:
            _refuse(error, memory=memory, first=first, sources=sources)
        if answer.model.digest != info.model.digest:
            info = yield from describe(memory, refresh=True)
        receipt = read_receipt(answer, request.images, memory.trust)
        found += answers.explanations(answer, sources=chunk, preprocessing=info.preprocessing, receipt=receipt)
    return found[0] if single else found


def _refuse(error: RequestRefusedError, *, memory: Memory, first: int, sources: list[Source]) -> NoReturn:
    """Raise a refusal with images called by their names instead of by their places in one of several calls."""
    # The model may have been replaced by one that takes other images: ask again next time.
    memory.info = None

    def rename(match: re.Match[str]) -> str:
        place = first + int(match[1])
        return sources[place].name if place < len(sources) else match[0]

    places = re.compile(r"\b(?:images|inputs\[0\])\[(\d{1,6})\]")
    message = places.sub(rename, error.message)
    violations = tuple(Violation(places.sub(rename, v.field), v.description) for v in error.violations)
    # A field that was renamed is an image; unless it was the only one, the message has to say which.
    named = next((new.field for old, new in zip(error.violations, violations, strict=True) if old != new), "")
    if named and len(sources) > 1 and named not in message:
        message = f"{named}: {message}"
    raise RequestRefusedError(message, violations=violations, code=error.code, request_id=error.request_id) from None
