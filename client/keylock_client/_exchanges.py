"""What is asked of a server and in which order, without any input or output.

An exchange is a generator: it yields the calls to make, is sent the answer of each, and returns the result. `Client`
and `AsyncClient` differ only in how they make the calls of one and the same exchange.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import Message

from keylock.errors import InputError, LicenseError, LicenseReason
from keylock.inference import inference_pb2 as oip
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2
from keylock_client import _answers as answers
from keylock_client._budget import Budget, check_max_units
from keylock_client._calls import Call, Exchange, Memory, Method
from keylock_client._checks import Asked
from keylock_client._limits import RequestLimits
from keylock_client._maps import senseless
from keylock_client._receipts import newer, question, read_proof, read_receipt
from keylock_client._requests import chunks, explain_request, infer_request
from keylock_client._settings import Token
from keylock_client._sources import ImageLike, Source, read_sources
from keylock_client.charges import Estimate, LicenseInfo, Proof, Quota, Receipt
from keylock_client.errors import (
    ClientError,
    LicenseRefusedError,
    RequestIdReusedError,
    RequestRefusedError,
    SimilarQueriesError,
    TooLargeError,
    Violation,
)
from keylock_client.explanations import Explanation
from keylock_client.results import ModelInfo, Prediction

__all__ = [
    "access",
    "catch_up",
    "describe",
    "estimate",
    "explain",
    "explain_options",
    "label",
    "license_info",
    "name_row",
    "predict",
    "prove",
    "rename_images",
    "usage",
]

T = TypeVar("T")

# For how long access tokens are asked for, and which share of that time they are used.
_LIFETIME_S = 600
_USED_SHARE = 0.8
# How often a client asks which receipt keys were taken back.
_REVOCATIONS_S = 300

# What can be sent as `Bearer` (RFC 6750, section 2.1), and no more of it than a server takes of a license.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,8192}=*", re.ASCII)


def describe(memory: Memory, *, refresh: bool = False) -> Exchange[ModelInfo]:
    """Ask what the served model is, unless that is known."""
    known = memory.info
    if known is not None and not refresh:
        return known
    answer: pb.GetModelResponse = yield Call(
        Method.GET_MODEL, pb.GetModelRequest(model_name=memory.model_name, model_version=memory.model_version)
    )
    memory.info = found = answers.model_info(answer)
    memory.signs_receipts |= found.signs_receipts
    return found


def licensed(memory: Memory, call: Call) -> Exchange[Any]:
    """Make a call that needs a license: with an access token, where the license is exchanged for such.

    A server that was started again does not know the token of its predecessor: it is exchanged anew, once.
    """
    if not memory.exchanges:
        return (yield call)
    token = yield from access(memory, begins_anew=call.begins_anew)
    try:
        return (yield replace(call, access=token))
    except LicenseRefusedError:
        memory.access = None
    token = yield from access(memory)
    return (yield replace(call, access=token, begins_anew=False))


def license_info(memory: Memory) -> Exchange[LicenseInfo]:
    """Ask what the caller's license grants."""
    call = Call(Method.GET_LICENSE, license_pb2.GetLicenseRequest(), licensed=True)
    answer: license_pb2.GetLicenseResponse = yield from licensed(memory, call)
    return answers.license_info(answer)


def usage(memory: Memory) -> Exchange[tuple[Quota, ...]]:
    """Ask what the caller's license has used."""
    call = Call(Method.GET_USAGE, license_pb2.GetUsageRequest(), licensed=True)
    answer: license_pb2.GetUsageResponse = yield from licensed(memory, call)
    return answers.quotas(answer.quotas)


def estimate(memory: Memory, images: int, *, explainer: str | None) -> Exchange[Estimate]:
    """Ask what a call would cost."""
    request = pb.EstimateExplainRequest(
        model_name=memory.model_name, model_version=memory.model_version, explainer=explainer or "", images=images
    )
    answer: pb.EstimateExplainResponse = yield from licensed(memory, Call(Method.ESTIMATE, request, licensed=True))
    return answers.estimate(answer)


def budget(memory: Memory, max_units: int, *, explainer: str) -> Exchange[Budget | None]:
    """Ask for the price of an image, to spend no more than some units; None where nothing costs anything."""
    if not memory.licensed:
        return None
    told = yield from estimate(memory, 1, explainer=explainer)
    return Budget(max_units, told.units_per_image)


def prove(memory: Memory, receipt: Receipt | str, *, since: str | None) -> Exchange[Proof]:
    """Ask for the proof that a receipt is in the log, and verify it."""
    yield from _learn_revocations(memory)
    asked = question(receipt, memory.trust, since=since, revoked=memory.revoked)
    request = license_pb2.ProveReceiptRequest(
        leaf_hash=asked.leaf, since_size=0 if asked.since is None else asked.since.size
    )
    answer: license_pb2.ProveReceiptResponse = yield from licensed(
        memory, Call(Method.PROVE_RECEIPT, request, licensed=True)
    )
    return read_proof(
        asked,
        inclusion=answer.inclusion_proof,
        consistency=answer.consistency_proof,
        trust=memory.trust,
        revoked=memory.revoked,
    )


def _learn_revocations(memory: Memory) -> Exchange[None]:
    """Ask which receipt keys were taken back, now and then. Where no list can be had, the one that is known holds."""
    if memory.clock() < memory.revocations_until:
        return
    memory.revocations_until = memory.clock() + _REVOCATIONS_S
    call = Call(Method.GET_RECEIPT_REVOCATIONS, license_pb2.GetReceiptRevocationsRequest())
    try:
        answer: license_pb2.GetReceiptRevocationsResponse = yield call
    except ClientError:
        return
    memory.revocations = newer(memory.revocations, answer.revocations, memory.trust)


def access(memory: Memory, *, begins_anew: bool = False) -> Exchange[Token]:
    """Get an access token for the license, unless there is one that holds still."""
    known = memory.access
    if known is not None and memory.clock() < known[1]:
        return known[0]
    request = license_pb2.ExchangeTokenRequest(lifetime_s=_LIFETIME_S, bind_certificate=memory.binds)
    answer: license_pb2.ExchangeTokenResponse = yield Call(
        Method.EXCHANGE_TOKEN, request, licensed=True, begins_anew=begins_anew
    )
    if not _TOKEN.fullmatch(answer.access_token):
        senseless("an access token that is malformed")
    token = Token(answer.access_token)
    memory.access = token, memory.clock() + _LIFETIME_S * _USED_SHARE
    return token


def predict(
    memory: Memory, images: ImageLike | Sequence[ImageLike], *, bits: int | None = None
) -> Exchange[Prediction | list[Prediction]]:
    """Classify images over the Open Inference Protocol, in as many calls as it takes."""
    found, single = yield from _infer(memory, images, bits=bits, output="logits", read=answers.predictions)
    return found[0] if single else found


def label(
    memory: Memory, images: ImageLike | Sequence[ImageLike], *, bits: int | None = None
) -> Exchange[str | list[str]]:
    """Ask for the labels of images and nothing else, as `predict` does."""
    found, single = yield from _infer(memory, images, bits=bits, output="label", read=answers.labels)
    return found[0] if single else found


def _infer(
    memory: Memory,
    images: ImageLike | Sequence[ImageLike],
    *,
    bits: int | None,
    output: str,
    read: Callable[..., list[T]],
) -> Exchange[tuple[list[T], bool]]:
    sources, single = yield from _read_images(memory, images, bits=bits)
    info = yield from describe(memory)
    found: list[T] = []
    for call_id, first, chunk in chunks(sources, None, most=info.limits.images):
        request = infer_request(
            chunk, model=info.model.name, version=memory.model_version, request_id=call_id, output=output
        )
        call = Call(Method.MODEL_INFER, request, request_id=call_id, begins_anew=first > 0)
        try:
            answer: oip.ModelInferResponse = yield from _guarded(memory, call)
        except RequestRefusedError as error:
            _refuse(error, memory=memory, first=first, sources=sources)
        except SimilarQueriesError as error:
            raise name_row(error, [source.name for source in sources], first=first) from None
        # The version is the beginning of the digest: another one means that the server has a new model by now.
        if answer.model_version not in info.model.digest:
            info = yield from describe(memory, refresh=True)
        found += read(answer, count=len(chunk), classes=info.classes)
    return found, single


def _guarded(memory: Memory, call: Call) -> Exchange[Any]:
    """Make a call for predictions, and show the license where the server's query guard refuses it without one."""
    if memory.licenses_predictions:
        return (yield from licensed(memory, replace(call, licensed=True)))
    try:
        return (yield call)
    except SimilarQueriesError:
        if not memory.licensed:
            raise
    answer = yield from licensed(memory, replace(call, licensed=True, begins_anew=False))
    memory.licenses_predictions = True
    return answer


def _read_images(
    memory: Memory, images: ImageLike | Sequence[ImageLike], *, bits: int | None
) -> Exchange[tuple[list[Source], bool]]:
    """Read images, none of which is larger than the server takes."""
    limits = RequestLimits() if memory.info is None else memory.info.limits
    try:
        return read_sources(images, limits, bits=bits)
    except TooLargeError:
        # This server may take more than most do, or more than it did.
        info = yield from describe(memory, refresh=True)
        if info.limits == limits:
            raise
        return read_sources(images, info.limits, bits=bits)


def explain_options(memory: Memory, **options: Any) -> pb.ExplainRequest:  # noqa: ANN401 - those of explain_request
    """Write what holds for every image of a call, or of a stream."""
    return explain_request(memory.model_name, memory.model_version, compression=memory.compression, **options)


def explain(
    memory: Memory,
    images: ImageLike | Sequence[ImageLike],
    *,
    request_id: str | None,
    bits: int | None = None,
    max_units: int | None = None,
    **options: Any,  # noqa: ANN401 - those of explain_request
) -> Exchange[Explanation | list[Explanation]]:
    """Explain images, in as many calls as it takes."""
    sources, single = yield from _read_images(memory, images, bits=bits)
    written = explain_options(memory, **options)
    if check_max_units(max_units) is not None:
        allowed = yield from budget(memory, max_units or 0, explainer=written.explainer)
        if allowed is not None:
            allowed.check(len(sources))
    info = yield from describe(memory)
    found: list[Explanation] = []
    for call_id, first, chunk in chunks(sources, request_id, most=info.limits.images):
        request = pb.ExplainRequest(request_id=call_id, images=[source.message() for source in chunk])
        request.MergeFrom(written)
        try:
            answer: pb.ExplainResponse = yield from licensed(
                memory,
                Call(Method.EXPLAIN, request, request_id=call_id, licensed=True, begins_anew=first > 0),
            )
        except RequestRefusedError as error:
            _refuse(error, memory=memory, first=first, sources=sources)
        except SimilarQueriesError as error:
            raise name_row(error, [source.name for source in sources], first=first) from None
        if answer.model.digest != info.model.digest:
            info = yield from describe(memory, refresh=True)
        if answer.receipt:
            yield from _learn_revocations(memory)
        maps = [b"" if one.skipped else one.map.data for one in answer.results]
        receipt = read_receipt(
            answer,
            maps,
            Asked(call_id, written, request.images, info.classes),
            memory.trust,
            revoked=memory.revoked,
            expected=memory.signs_receipts,
        )
        found += answers.explanations(answer, maps, sources=chunk, info=info, receipt=receipt)
    return found[0] if single else found


def disclose(
    memory: Memory,
    image: ImageLike,
    *,
    reason: str,
    subject: str,
    request_id: str | None,
    bits: int | None,
    **options: Any,  # noqa: ANN401 - those of explain_request
) -> Exchange[Explanation]:
    """Ask for an explanation that somebody has a right to."""
    from keylock.licensing.disclosures import Disclosure, reason_of, subject_digest

    number = reason_of(reason)
    license_id = memory.trust.license_id
    if license_id is None:
        raise LicenseError(LicenseReason.MISSING, "a disclosure needs a license: give it with license=")
    digest = subject_digest(subject, license_id=license_id)
    sources, single = yield from _read_images(memory, image, bits=bits)
    if not single:
        raise InputError("a disclosure is about one image: give one")
    written = explain_options(memory, parameters=None, map_dtype=None, prediction="public", **options)
    info = yield from describe(memory)
    [(call_id, _, chunk)] = chunks(sources, request_id)
    request = pb.DiscloseRequest(
        request_id=call_id,
        model_name=written.model_name,
        model_version=written.model_version,
        image=chunk[0].message(),
        explainer=written.explainer,
        reason=number,
        subject_digest=digest,
    )
    if written.WhichOneof("target") == "target_index":
        request.target_index = written.target_index
    elif written.WhichOneof("target") == "target_label":
        request.target_label = written.target_label
    # The license itself, also where it is exchanged otherwise: one that is suspended is exchanged for nothing.
    told: pb.DiscloseResponse = yield Call(Method.DISCLOSE, request, request_id=call_id, licensed=True)
    answer = told.answer
    if answer.model.digest != info.model.digest:
        info = yield from describe(memory, refresh=True)
    if answer.receipt:
        yield from _learn_revocations(memory)
    maps = [one.map.data for one in answer.results]
    asked = Asked(call_id, written, [request.image], info.classes, Disclosure.of(request))
    receipt = read_receipt(answer, maps, asked, memory.trust, revoked=memory.revoked, expected=memory.signs_receipts)
    [explanation] = answers.explanations(answer, maps, sources=chunk, info=info, receipt=receipt)
    return explanation


def _refuse(error: RequestRefusedError, *, memory: Memory, first: int, sources: list[Source]) -> NoReturn:
    """Raise a refusal with images called by their names instead of by their places in one of several calls."""
    if isinstance(error, RequestIdReusedError):
        raise error from None
    # The model may have been replaced by one that takes other images: ask again next time.
    memory.info = None
    raise rename_images(error, [source.name for source in sources], first=first) from None


def catch_up(memory: Memory, message: Message | None, info: ModelInfo) -> Exchange[ModelInfo]:
    """Ask for what it takes to read a message of a stream: the model, if it was replaced, and keys taken back.

    Returns:
        The description of the model that has answered.
    """
    if not isinstance(message, pb.ExplainStreamResponse) or not message.HasField("answer"):
        return info
    if message.answer.receipt:
        yield from _learn_revocations(memory)
    if message.answer.model.digest == info.model.digest:
        return info
    return (yield from describe(memory, refresh=True))


def rename_images(error: RequestRefusedError, names: Sequence[str], *, first: int = 0) -> RequestRefusedError:
    """Return a refusal with images called by their names instead of by their places.

    Args:
        error: The refusal.
        names: Of all images.
        first: Which of them the first image of the call was.
    """
    message = _with_names(error.message, names, first)
    violations = tuple(Violation(_with_names(v.field, names, first), v.description) for v in error.violations)
    # A field that was renamed is an image; unless it was the only one, the message has to say which.
    named = next((new.field for old, new in zip(error.violations, violations, strict=True) if old != new), "")
    if named and len(names) > 1 and named not in message:
        message = f"{named}: {message}"
    return RequestRefusedError(message, violations=violations, code=error.code, request_id=error.request_id)


def name_row(error: SimilarQueriesError, names: Sequence[str], *, first: int = 0) -> SimilarQueriesError:
    """Return a refusal of near copies with the image called by its name; the arguments are those of `rename_images`."""
    return SimilarQueriesError(
        _with_names(error.message, names, first),
        retry_after_s=error.retry_after_s,
        labels_left=error.labels_left,
        row=first + error.row,
        code=error.code,
        request_id=error.request_id,
    )


def _with_names(text: str, names: Sequence[str], first: int) -> str:
    def rename(match: re.Match[str]) -> str:
        place = first + int(match[1])
        return names[place] if place < len(names) else match[0]

    return re.sub(r"\b(?:images|inputs\[0\])\[(\d{1,6})\]", rename, text)
