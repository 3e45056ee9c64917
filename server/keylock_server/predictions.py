"""`inference.GRPCInferenceService`: the Open Inference Protocol, version 2, for predictions and nothing else.

The service is given no key and calls `Admission.predict`, which uses none: no parameter and no metadata of a request
can change that. `docs/protocol.md` lists the inputs and outputs.
"""

import struct
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from keylock import __version__
from keylock.errors import InputError, TensorError, UnknownNameError
from keylock.images import ImageLimits, decode
from keylock.inference import inference_pb2 as pb
from keylock.inference import inference_pb2_grpc as pb_grpc
from keylock.preprocessing import Preprocessing
from keylock_server.batcher import Batchers
from keylock_server.calls import describe_call
from keylock_server.explanations import softmax
from keylock_server.models import Models
from keylock_server.requests import at_field, check_count, shaped, stop_if
from keylock_server.runtime import ServedModel
from keylock_server.workers import Workers

__all__ = ["PredictionService"]

_Input = pb.ModelInferRequest.InferInputTensor
_Context = grpc.aio.ServicerContext[Any, Any]
_Metadata = pb.ModelMetadataResponse.TensorMetadata

_PLATFORM: Final = "onnxruntime_onnx"
_INPUTS: Final = {"image": "FP32", "pixels": "UINT8", "encoded": "BYTES"}
_OUTPUTS: Final = ("logits", "probabilities", "label")


class PredictionService(pb_grpc.GRPCInferenceServiceServicer):
    """Answers everybody with keyless predictions."""

    def __init__(
        self, models: Models, *, batchers: Batchers, workers: Workers, limits: ImageLimits, max_images: int
    ) -> None:
        """Makes the service.

        Args:
            models: What is served.
            batchers: Run it.
            workers: Where images are decoded.
            limits: What one image may cost.
            max_images: Most images in one request.
        """
        self._models = models
        self._batchers = batchers
        self._workers = workers
        self._limits = limits
        self._max_images = max_images
        self.ready = True

    async def ServerLive(self, request: pb.ServerLiveRequest, context: _Context) -> pb.ServerLiveResponse:  # noqa: N802
        """Says that the process runs."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: _Context) -> pb.ServerReadyResponse:  # noqa: N802
        """Says whether calls are taken; not any more while the server drains."""
        return pb.ServerReadyResponse(ready=self.ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: _Context) -> pb.ModelReadyResponse:  # noqa: N802
        """Says whether the model of a name is served; of another name it is not."""
        known = {
            name for one in self._models.served for name in ((one.manifest.name, ""), (one.manifest.name, one.version))
        }
        return pb.ModelReadyResponse(ready=self.ready and (request.name, request.version) in known)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: _Context) -> pb.ServerMetadataResponse:  # noqa: N802
        """Names the server."""
        return pb.ServerMetadataResponse(name="keylock", version=__version__)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: _Context) -> pb.ModelMetadataResponse:  # noqa: N802
        """Lists inputs and outputs."""
        with self._models.use(request.name, request.version, name_field="name", version_field="version") as model:
            return self._describe(model)

    def _describe(self, model: ServedModel) -> pb.ModelMetadataResponse:
        manifest = model.manifest
        classes = len(manifest.classes)
        return pb.ModelMetadataResponse(
            name=manifest.name,
            versions=[one.version for one in self._models.served if one.manifest.name == manifest.name],
            platform=_PLATFORM,
            inputs=[
                _Metadata(name="image", datatype="FP32", shape=[-1, *manifest.preprocessing.shape]),
                _Metadata(name="pixels", datatype="UINT8", shape=[-1, -1, -1, 3]),
                _Metadata(name="encoded", datatype="BYTES", shape=[-1]),
            ],
            outputs=[
                _Metadata(name="logits", datatype="FP32", shape=[-1, classes]),
                _Metadata(name="probabilities", datatype="FP32", shape=[-1, classes]),
                _Metadata(name="label", datatype="BYTES", shape=[-1]),
            ],
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: _Context) -> pb.ModelInferResponse:  # noqa: N802
        """Predicts one batch."""
        with self._models.use(request.model_name, request.model_version) as model:
            return await self._predict(model, request)

    async def _predict(self, model: ServedModel, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        wanted = _wanted_outputs(request)
        preprocessing = model.manifest.preprocessing
        with self._batchers.of(model).admit(_row_count(request, most=self._max_images)) as admitted:
            images = await self._workers.run(lambda abandoned: self._images(request, preprocessing, abandoned))
            logits = await admitted.predict(images)
        describe_call(model=model.manifest.name, images=len(logits))
        probabilities = softmax(logits)
        labels = [model.manifest.classes[index].encode() for index in logits.argmax(axis=1)]
        answers: dict[str, NDArray[np.float32] | list[bytes]] = {
            "logits": logits,
            "probabilities": probabilities,
            "label": labels,
        }
        response = pb.ModelInferResponse(model_name=model.manifest.name, model_version=model.version, id=request.id)
        _encode(response, {name: answers[name] for name in wanted}, raw=bool(request.raw_input_contents))
        return response

    def _images(
        self, request: pb.ModelInferRequest, preprocessing: Preprocessing, abandoned: threading.Event
    ) -> NDArray[np.float32]:
        """Decodes the one input of a request into preprocessed images `(batch, channels, height, width)`."""
        with at_field("inputs"):
            if len(request.inputs) != 1:
                raise InputError(f"the request has {len(request.inputs)} inputs: send exactly one of {_names(_INPUTS)}")
            if request.raw_input_contents and len(request.raw_input_contents) != 1:
                raise InputError("raw_input_contents must have one entry for each input")
        tensor = request.inputs[0]
        with at_field("inputs[0]"):
            if tensor.name not in _INPUTS:
                raise UnknownNameError("input", tensor.name, _INPUTS)
            if tensor.datatype != _INPUTS[tensor.name]:
                raise TensorError(
                    f"the input {tensor.name} has the datatype {_INPUTS[tensor.name]}, not {tensor.datatype or 'none'}"
                )
            raw = request.raw_input_contents[0] if request.raw_input_contents else None
            if tensor.name == "image":
                return self._preprocessed(tensor, raw, preprocessing)
            if tensor.name == "pixels":
                return self._from_pixels(tensor, raw, preprocessing)
            return self._from_files(tensor, raw, preprocessing, abandoned)

    def _preprocessed(self, tensor: _Input, raw: bytes | None, preprocessing: Preprocessing) -> NDArray[np.float32]:
        data = np.array(tensor.contents.fp32_contents, "<f4").tobytes() if raw is None else raw
        if len(tensor.shape) != 4 or tuple(tensor.shape[1:]) != preprocessing.shape:
            wanted = ", ".join(map(str, preprocessing.shape))
            raise TensorError(f"the input image has the shape [N, {wanted}], not {list(tensor.shape)[:8]}")
        images = shaped(data, shape=tensor.shape, dtype=np.dtype("<f4")).astype(np.float32, copy=False)
        check_count(len(images), limit=self._max_images, field="inputs[0].shape")
        for image in images:
            preprocessing.check(image)
        return images

    def _from_pixels(self, tensor: _Input, raw: bytes | None, preprocessing: Preprocessing) -> NDArray[np.float32]:
        try:
            data = bytes(tensor.contents.uint_contents) if raw is None else raw
        except ValueError:
            raise TensorError("the input pixels has values above 255: send UINT8 values") from None
        if len(tensor.shape) != 4 or tensor.shape[3] != 3:
            raise TensorError(f"the input pixels has the shape [N, height, width, 3], not {list(tensor.shape)[:8]}")
        images = shaped(data, shape=tensor.shape, dtype=np.dtype("u1")).view(np.uint8)
        check_count(len(images), limit=self._max_images, field="inputs[0].shape")
        return np.stack([preprocessing(image) for image in images])

    def _from_files(
        self, tensor: _Input, raw: bytes | None, preprocessing: Preprocessing, abandoned: threading.Event
    ) -> NDArray[np.float32]:
        files = tensor.contents.bytes_contents if raw is None else split_bytes(raw)
        if list(tensor.shape) not in ([len(files)], [len(files), 1]):
            raise TensorError(f"the input encoded has {len(files)} files and the shape {list(tensor.shape)[:8]}")
        check_count(len(files), limit=self._max_images, field="inputs[0].shape")
        batch = []
        for i, file in enumerate(files):
            stop_if(abandoned)
            with at_field(f"inputs[0][{i}]"):
                batch.append(preprocessing(decode(file, limits=self._limits)))
        return np.stack(batch)


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


def _row_count(request: pb.ModelInferRequest, *, most: int) -> int:
    """Returns how many images a request says it has; what it says is checked when they are decoded."""
    said = [tensor.shape[0] for tensor in request.inputs if tensor.shape]
    return min(max([1, *said]), most)


def _wanted_outputs(request: pb.ModelInferRequest) -> list[str]:
    for i, output in enumerate(request.outputs):
        with at_field(f"outputs[{i}]"):
            if output.name not in _OUTPUTS:
                raise UnknownNameError("output", output.name, _OUTPUTS)
            if "classification" in output.parameters:
                raise InputError("the classification extension is not offered: ask for the output label")
    return list(dict.fromkeys(output.name for output in request.outputs)) or list(_OUTPUTS)


def _encode(
    response: pb.ModelInferResponse, answers: Mapping[str, NDArray[np.float32] | list[bytes]], *, raw: bool
) -> None:
    for name, values in answers.items():
        if isinstance(values, list):
            output = response.outputs.add(name=name, datatype="BYTES", shape=[len(values)])
            if raw:
                response.raw_output_contents.append(b"".join(struct.pack("<I", len(v)) + v for v in values))
            else:
                output.contents.bytes_contents.extend(values)
            continue
        output = response.outputs.add(name=name, datatype="FP32", shape=values.shape)
        if raw:
            response.raw_output_contents.append(np.ascontiguousarray(values, "<f4").tobytes())
        else:
            output.contents.fp32_contents.extend(values.ravel().tolist())


def _names(names: Mapping[str, str] | Sequence[str]) -> str:
    return ", ".join(names)
