"""`inference.GRPCInferenceService`: the Open Inference Protocol, version 2, for predictions and nothing else.

The service is given no key and calls `Admission.predict`, which uses none: no parameter and no metadata of a request
can change that. `docs/protocol.md` lists the inputs and outputs.
"""

import asyncio
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from keylock.errors import InputError
from keylock.inference import inference_pb2 as pb
from keylock_server.auth.authentication import Caller
from keylock_server.inference.runtime import ServedModel
from keylock_server.scheduling.decoding import Step
from keylock_server.services.explanation_answers import softmax
from keylock_server.services.inventory import Inventory
from keylock_server.services.parts import Parts
from keylock_server.services.tensors import LABEL, read_images, wanted_outputs, write
from keylock_server.transport.calls import describe_call
from keylock_server.transport.fields import at_field
from keylock_server.transport.statuses import DeadlineError

__all__ = ["PredictionService"]

_Context = grpc.aio.ServicerContext[Any, Any]


class PredictionService(Inventory):
    """Answers everybody with keyless predictions."""

    def __init__(self, parts: Parts) -> None:
        """Takes what it works with."""
        super().__init__(parts.models)
        self._parts = parts

    def is_ready(self) -> bool:
        """Tells whether calls are taken; not any more while the server drains."""
        return not self._parts.running.leaving.is_set()

    async def ModelInfer(self, request: pb.ModelInferRequest, context: _Context) -> pb.ModelInferResponse:  # noqa: N802
        """Predicts one batch."""
        limit_s = _timeout(request)
        with self._models.use(request.model_name, request.model_version) as model:
            try:
                async with asyncio.timeout(limit_s) as limit:
                    return await self._predict(model, request, Caller.of(context))
            except TimeoutError:
                if limit_s is not None and limit.expired():
                    raise DeadlineError(limit_s, limit="its parameter timeout") from None
                raise

    async def _predict(
        self, model: ServedModel, request: pb.ModelInferRequest, caller: Caller
    ) -> pb.ModelInferResponse:
        parts, most = self._parts, self._parts.settings.max_images
        wanted = wanted_outputs(request)

        def plan() -> list[Step]:
            preprocessing, limits = model.manifest.preprocessing, parts.limits_for(model)
            return read_images(request, preprocessing=preprocessing, limits=limits, max_images=most)

        with parts.batchers.of(model).admit(_row_count(request, most=most)) as admitted:
            images = await parts.decoder.run(plan)
            labels_only = wanted == [LABEL]
            counted = await parts.gate.admit(images, model.manifest, labels_only=labels_only, caller=caller)
            logits = await admitted.predict(images)
            parts.gate.hear(counted, logits)
        describe_call(model=model.manifest.name, images=len(logits))
        answers: dict[str, NDArray[np.float32] | list[bytes]] = {
            "logits": logits,
            "probabilities": softmax(logits),
            LABEL: [model.manifest.classes[index].encode() for index in logits.argmax(axis=1)],
        }
        response = pb.ModelInferResponse(model_name=model.manifest.name, model_version=model.version, id=request.id)
        write(response, {name: answers[name] for name in wanted}, raw=bool(request.raw_input_contents))
        return response


def _row_count(request: pb.ModelInferRequest, *, most: int) -> int:
    """Returns how many images a request says it has; what it says is checked when they are decoded."""
    said = [tensor.shape[0] for tensor in request.inputs if tensor.shape]
    return min(max([1, *said]), most)


def _timeout(request: pb.ModelInferRequest) -> float | None:
    """Returns how long a request says that it may take, in seconds; None where it says nothing."""
    if "timeout" not in request.parameters:
        return None
    with at_field("parameters.timeout"):
        given = request.parameters["timeout"]
        microseconds = getattr(given, given.WhichOneof("parameter_choice") or "", 0)
        if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds <= 0:
            raise InputError("the parameter timeout is a number of microseconds above 0: send such a one, or none")
    return microseconds / 1e6
