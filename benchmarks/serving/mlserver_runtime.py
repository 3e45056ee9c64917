"""Captum as a custom runtime of MLServer: one model for each task, on one network."""

from functools import cache
from pathlib import Path

import numpy as np
from eager import Eager
from material import Material
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


@cache
def _network(folder: str, side: int, *, bfloat16: bool) -> Eager:
    return Eager(Material(Path(folder), side), bfloat16=bfloat16)


class CaptumRuntime(MLModel):
    """Answers the task that the model is named after."""

    async def load(self) -> bool:
        """Load the network, or take the one that another task has loaded."""
        parameters = self.settings.parameters
        bfloat16 = parameters.numbers == "bfloat16"
        self._model = _network(str(parameters.uri), int(parameters.side), bfloat16=bfloat16)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer the images of one batch."""
        images = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        logits, maps = self._model.answer(self.name, images)
        outputs = [NumpyCodec.encode_output("logits", logits)]
        if maps is not None:
            outputs.append(NumpyCodec.encode_output("map", np.ascontiguousarray(maps)))
        return InferenceResponse(model_name=self.name, outputs=outputs)
