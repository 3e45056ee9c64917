"""Tensors of the Open Inference Protocol: from the one input of a request to images, and from results to outputs.

A tensor travels in raw form, in `raw_input_contents` beside the inputs, or in typed form, in the field of `contents`
that belongs to its datatype. What a request has in both forms, in neither, or in another field is refused.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keylock.errors import InputError, TensorError, UnknownNameError
from keylock.imaging.decoding import ImageLimits
from keylock.imaging.preprocessing import Preprocessing
from keylock.inference import inference_pb2 as pb
from keylock_server.scheduling.decoding import Claim, Step
from keylock_server.services.requests import check_count, decode_encoded, shaped
from keylock_server.transport.fields import at_field

__all__ = [
    "LABEL",
    "OUTPUTS",
    "describe_inputs",
    "describe_outputs",
    "read_images",
    "split_bytes",
    "wanted_outputs",
    "write",
]

_Input = pb.ModelInferRequest.InferInputTensor
_Metadata = pb.ModelMetadataResponse.TensorMetadata

# Datatype of each input, and the field of `contents` that belongs to each datatype.
_INPUTS: Final = {"image": "FP32", "pixels": "UINT8", "encoded": "BYTES"}
_FIELDS: Final = {"FP32": "fp32_contents", "UINT8": "uint_contents", "BYTES": "bytes_contents"}
LABEL: Final = "label"
OUTPUTS: Final = ("logits", "probabilities", LABEL)

# Parameters that change what a request means, so that it must not be answered without them.
_SHARED_MEMORY: Final = "tensors in shared memory are not offered: send them in the request"
_REFUSED_IN_REQUEST: Final = dict.fromkeys(
    ("sequence_id", "sequence_start", "sequence_end"), "sequences of requests are not offered: leave the parameter out"
)
_REFUSED_IN_INPUT: Final = {"shared_memory_region": _SHARED_MEMORY}
_REFUSED_IN_OUTPUT: Final = {
    "shared_memory_region": _SHARED_MEMORY,
    "classification": "the classification extension is not offered: ask for the output label",
}


def describe_inputs(preprocessing: Preprocessing) -> list[_Metadata]:
    """Returns the inputs of a model, of which a request has one."""
    return [
        _Metadata(name="image", datatype="FP32", shape=[-1, *preprocessing.shape]),
        _Metadata(name="pixels", datatype="UINT8", shape=[-1, -1, -1, 3]),
        _Metadata(name="encoded", datatype="BYTES", shape=[-1]),
    ]


def describe_outputs(classes: int) -> list[_Metadata]:
    """Returns the outputs of a model with a number of classes."""
    return [
        _Metadata(name="logits", datatype="FP32", shape=[-1, classes]),
        _Metadata(name="probabilities", datatype="FP32", shape=[-1, classes]),
        _Metadata(name=LABEL, datatype="BYTES", shape=[-1]),
    ]


def read_images(
    request: pb.ModelInferRequest,
    *,
    preprocessing: Preprocessing,
    limits: ImageLimits,
    max_images: int,
) -> list[Step]:
    """Says how images are made of the one input of a request.

    Args:
        request: The request.
        preprocessing: That of the model.
        limits: What one image may cost.
        max_images: Most images in one request.

    Returns:
        The steps that decode them. A step raises `InputError`, which names the file, if that cannot be used.

    Raises:
        InputError: If the request has no such input, or the input cannot be used; the error names the field.
    """
    with at_field("parameters"):
        _refuse(request.parameters, _REFUSED_IN_REQUEST)
    with at_field("inputs"):
        if len(request.inputs) != 1:
            raise InputError(f"the request has {len(request.inputs)} inputs: send exactly one of {', '.join(_INPUTS)}")
    tensor = request.inputs[0]
    with at_field("inputs[0]"):
        if tensor.name not in _INPUTS:
            raise UnknownNameError("input", tensor.name, _INPUTS)
        if tensor.datatype != _INPUTS[tensor.name]:
            raise TensorError(
                f"the input {tensor.name} has the datatype {_INPUTS[tensor.name]}, not {tensor.datatype or 'none'}"
            )
        _refuse(tensor.parameters, _REFUSED_IN_INPUT)
    raw = _raw_contents(request, tensor)
    with at_field("inputs[0]"):
        if tensor.name == "image":
            images = _preprocessed(tensor, raw, preprocessing, max_images=max_images)
            return [lambda _: images]
        if tensor.name == "pixels":
            framed = _from_pixels(tensor, raw, preprocessing, max_images=max_images)
            return [lambda _: framed]
        files = tensor.contents.bytes_contents if raw is None else split_bytes(raw)
        if list(tensor.shape) not in ([len(files)], [len(files), 1]):
            raise TensorError(f"the input encoded has {len(files)} files and the shape {list(tensor.shape)[:8]}")
    check_count(len(files), limit=max_images, field="inputs[0].shape")
    return [partial(_decode, f"inputs[0][{i}]", file, preprocessing, limits) for i, file in enumerate(files)]


def _decode(
    field: str, file: bytes, preprocessing: Preprocessing, limits: ImageLimits, claim: Claim
) -> NDArray[np.float32]:
    with at_field(field):
        return decode_encoded(file, preprocessing=preprocessing, limits=limits, claim=claim)


def split_bytes(raw: bytes) -> list[bytes]:
    """Splits the raw form of a BYTES tensor: each element is preceded by its length, 4 bytes, little-endian.

    Raises:
        TensorError: If the lengths do not add up.
    """
    elements, position = [], 0
    while position < len(raw):
        if position + 4 > len(raw):
            raise TensorError("the BYTES tensor ends within a length: send 4 bytes of length before each element")
        (length,) = struct.unpack_from("<I", raw, position)
        position += 4
        if position + length > len(raw):
            raise TensorError("the BYTES tensor ends within an element: send 4 bytes of length before each element")
        elements.append(raw[position : position + length])
        position += length
    return elements


def wanted_outputs(request: pb.ModelInferRequest) -> list[str]:
    """Returns the names of the outputs a request asks for, each once; all where it names none.

    Raises:
        UnknownNameError: If there is no such output.
        InputError: If it is asked for in a form that is not offered.
    """
    for i, output in enumerate(request.outputs):
        with at_field(f"outputs[{i}]"):
            if output.name not in OUTPUTS:
                raise UnknownNameError("output", output.name, OUTPUTS)
            _refuse(output.parameters, _REFUSED_IN_OUTPUT)
    return list(dict.fromkeys(output.name for output in request.outputs)) or list(OUTPUTS)


def write(
    response: pb.ModelInferResponse, answers: Mapping[str, NDArray[np.float32] | Sequence[bytes]], *, raw: bool
) -> None:
    """Writes outputs into a response.

    Args:
        response: It gets them.
        answers: By name: arrays, which become FP32, or byte strings, which become BYTES.
        raw: Whether in raw form.
    """
    for name, values in answers.items():
        if isinstance(values, np.ndarray):
            output = response.outputs.add(name=name, datatype="FP32", shape=values.shape)
            if raw:
                response.raw_output_contents.append(np.ascontiguousarray(values, "<f4").tobytes())
            else:
                output.contents.fp32_contents.extend(values.ravel().tolist())
            continue
        output = response.outputs.add(name=name, datatype="BYTES", shape=[len(values)])
        if raw:
            response.raw_output_contents.append(b"".join(struct.pack("<I", len(value)) + value for value in values))
        else:
            output.contents.bytes_contents.extend(values)


def _refuse(parameters: Iterable[str], refused: Mapping[str, str]) -> None:
    for name in parameters:
        if name in refused:
            raise InputError(refused[name])


def _raw_contents(request: pb.ModelInferRequest, tensor: _Input) -> bytes | None:
    """Returns the data of the input in raw form, or None where it is in the typed one."""
    used = [field.name for field, _ in tensor.contents.ListFields()]
    if request.raw_input_contents:
        with at_field("inputs"):
            if len(request.raw_input_contents) != 1:
                raise InputError(
                    f"raw_input_contents has {len(request.raw_input_contents)} entries: send one for each input"
                )
            if used:
                raise TensorError(
                    f"the input {tensor.name} has data in raw_input_contents and in contents: send one of them"
                )
        return request.raw_input_contents[0]
    wanted = _FIELDS[tensor.datatype]
    if used != [wanted]:
        with at_field("inputs[0].contents"):
            found = " and ".join(used) or "neither there nor in raw_input_contents"
            raise TensorError(
                f"data of the datatype {tensor.datatype} goes into contents.{wanted}, and this is {found}"
            )
    return None


def _preprocessed(
    tensor: _Input, raw: bytes | None, preprocessing: Preprocessing, *, max_images: int
) -> NDArray[np.float32]:
    if len(tensor.shape) != 4 or tuple(tensor.shape[1:]) != preprocessing.shape:
        wanted = ", ".join(map(str, preprocessing.shape))
        raise TensorError(f"the input image has the shape [N, {wanted}], not {list(tensor.shape)[:8]}")
    data = np.array(tensor.contents.fp32_contents, "<f4").tobytes() if raw is None else raw
    images = shaped(data, shape=tensor.shape, dtype=np.dtype("<f4")).astype(np.float32, copy=False)
    check_count(len(images), limit=max_images, field="inputs[0].shape")
    for image in images:
        preprocessing.check(image)
    return images


def _from_pixels(
    tensor: _Input, raw: bytes | None, preprocessing: Preprocessing, *, max_images: int
) -> NDArray[np.float32]:
    if len(tensor.shape) != 4 or tensor.shape[3] != 3:
        raise TensorError(f"the input pixels has the shape [N, height, width, 3], not {list(tensor.shape)[:8]}")
    try:
        data = bytes(tensor.contents.uint_contents) if raw is None else raw
    except ValueError:
        raise TensorError("the input pixels has values above 255: send UINT8 values") from None
    images = shaped(data, shape=tensor.shape, dtype=np.dtype("u1")).view(np.uint8)
    check_count(len(images), limit=max_images, field="inputs[0].shape")
    return np.stack([preprocessing(image) for image in images])
