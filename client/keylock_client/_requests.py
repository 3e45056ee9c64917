"""The messages a client sends: images cut into calls that no server finds too large, and the options of a call."""

import uuid
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import numpy as np

from keylock.errors import InputError
from keylock.inference import inference_pb2 as oip
from keylock.text.conditions import CONDITION_FORMS, check_public, parse_condition
from keylock.v1 import explanation_pb2 as pb
from keylock_client._sources import Source

__all__ = [
    "COMPRESSIONS",
    "MAX_ANSWER_BYTES",
    "MAX_BYTES",
    "MAX_IMAGES",
    "MAX_MESSAGE_BYTES",
    "MAX_STREAM_BYTES",
    "ExplainOptions",
    "check_request_id",
    "chunks",
    "explain_request",
    "infer_request",
]

# A server takes at most 32 images a call unless it is set otherwise; gRPC servers take 4 MiB unless they are.
MAX_IMAGES = 16
MAX_BYTES = 3 * 1024 * 1024
# A server takes 128 characters; the rest is for the number of the call.
MAX_REQUEST_ID = 120
# The largest map, and so the largest answer: it comes over a stream, in parts.
MAX_ANSWER_BYTES = 256 * 1024 * 1024
# The largest answer in one message. gRPC takes up to four times the memory of a message to receive it, and that shall
# be no more than twice the largest answer.
MAX_MESSAGE_BYTES = 96 * 1024 * 1024
# One message of a stream: larger maps come in parts, so that an answer is never there whole and in parts at once.
MAX_STREAM_BYTES = 8 * 1024 * 1024
COMPRESSIONS: dict[str | None, pb.Compression.ValueType] = {
    None: pb.COMPRESSION_UNSPECIFIED,
    "none": pb.COMPRESSION_NONE,
    "gzip": pb.COMPRESSION_GZIP,
    "deflate": pb.COMPRESSION_DEFLATE,
}
_PREDICTIONS = {"public": pb.PREDICTION_KIND_PUBLIC, "keyed": pb.PREDICTION_KIND_KEYED}
_DTYPES = {"float32": pb.DATA_TYPE_FLOAT32, "float16": pb.DATA_TYPE_FLOAT16, "uint8": pb.DATA_TYPE_UINT8}


class ExplainOptions(TypedDict, total=False):
    """What `explain` takes beside the images, as `Client.explain` says."""

    explainer: str | None
    target: int | str | None
    parameters: Mapping[str, Any] | None
    map_dtype: str | None
    prediction: str
    explain_if: str | None
    bits: int | None
    request_id: str | None
    max_units: int | None
    timeout_s: float | None


def chunks(
    sources: list[Source], request_id: str | None, *, most: int = MAX_IMAGES
) -> Iterator[tuple[str, int, list[Source]]]:
    """Cut images into calls: at most `MAX_IMAGES` and, unless one image alone is larger, `MAX_BYTES` each.

    Files and tensors never share a call, because the Open Inference Protocol takes one kind of input at a time.

    Args:
        sources: The images.
        request_id: The id of the first call; the others get ids that begin with it. Random if left out.
        most: Images that the server takes in a call.

    Yields:
        The request id of the call, the place of its first image, and its images.

    Raises:
        InputError: The request id is empty or too long, or has other characters than visible ones of ASCII.
    """
    base = uuid.uuid4().hex if request_id is None else request_id
    check_request_id(base, longest=MAX_REQUEST_ID)
    first, number = 0, 0
    while first < len(sources):
        end, size = first + 1, sources[first].size
        while end < len(sources) and end - first < min(most, MAX_IMAGES) and sources[end].kind == sources[first].kind:
            size += sources[end].size
            if size > MAX_BYTES:
                break
            end += 1
        yield (f"{base}/{number}" if number else base), first, sources[first:end]
        first, number = end, number + 1


def check_request_id(text: str, *, longest: int) -> None:
    """Return when a text can be the id of a request.

    Raises:
        InputError: It is empty or too long, or has other characters than visible ones of ASCII.
    """
    if not (0 < len(text) <= longest and all("!" <= character <= "~" for character in text)):
        raise InputError(f"a request id has 1 to {longest} visible ASCII characters and no spaces")


def explain_request(
    model: str,
    version: str,
    *,
    explainer: str | None,
    target: int | str | None,
    parameters: Mapping[str, Any] | None,
    map_dtype: str | None,
    prediction: str,
    compression: str | None,
    explain_if: str | None = None,
) -> pb.ExplainRequest:
    """Write the options of `explain` into a request without images.

    Raises:
        InputError: The target is neither a label nor an index, a parameter has no JSON form, maps have no such type,
            there is no such prediction, or the condition is none.
    """
    if prediction not in _PREDICTIONS:
        raise InputError(f"prediction is {prediction!r}: give {' or '.join(_PREDICTIONS)}")
    if map_dtype is not None and map_dtype not in _DTYPES:
        raise InputError(f"map_dtype is {map_dtype!r}: give one of {', '.join(_DTYPES)}")
    form = pb.AnswerOptions(
        map_dtype=pb.DATA_TYPE_UNSPECIFIED if map_dtype is None else _DTYPES[map_dtype],
        compression=COMPRESSIONS[compression],
        max_bytes=MAX_MESSAGE_BYTES,
    )
    request = pb.ExplainRequest(model_name=model, model_version=version, explainer=explainer or "", answer=form)
    request.prediction = _PREDICTIONS[prediction]
    if explain_if is not None:
        if not isinstance(explain_if, str):
            raise InputError(f"explain_if is a {type(explain_if).__name__}: write {CONDITION_FORMS}")
        check_public(prediction)
        request.explain_if.CopyFrom(parse_condition(explain_if))
    if isinstance(target, str):
        request.target_label = target
    elif target is not None:
        request.target_index = _class_index(target)
    try:
        request.parameters.update(parameters or {})
    except (TypeError, ValueError) as error:
        raise InputError(f"the parameters of an explainer are numbers, texts, lists and mappings: {error}") from None
    return request


def infer_request(
    sources: list[Source], *, model: str, version: str, request_id: str, output: str = "logits"
) -> oip.ModelInferRequest:
    """Write images of one kind into a request of the Open Inference Protocol, for one of the outputs.

    Raises:
        InputError: Tensors differ in shape.
    """
    images = [source.message() for source in sources]
    if images[0].HasField("tensor"):
        shapes = {tuple(image.tensor.shape) for image in images}
        if len(shapes) > 1:
            raise InputError(f"the arrays have different shapes ({sorted(shapes)}): give images of one shape")
        name, datatype, shape = "image", "FP32", [len(images), *shapes.pop()]
        content = b"".join(image.tensor.data for image in images)
    else:
        name, datatype, shape = "encoded", "BYTES", [len(images)]
        content = b"".join(len(image.encoded).to_bytes(4, "little") + image.encoded for image in images)
    return oip.ModelInferRequest(
        id=request_id,
        model_name=model,
        model_version=version,
        inputs=[oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)],
        outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name=output)],
        raw_input_contents=[content],
    )


def _class_index(target: object) -> int:
    # NumPy integers count, being what argmax returns; booleans do not.
    if isinstance(target, (int, np.integer)) and not isinstance(target, bool) and 0 <= target < 2**31:
        return int(target)
    raise InputError(f"the target is {target!r}: give the label or the index of a class")
