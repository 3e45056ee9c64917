"""Requests of the Open Inference Protocol, which MLServer and keylock speak alike."""

import numpy as np
from numpy.typing import NDArray

from keylock.inference import inference_pb2 as pb

__all__ = ["ask_about", "read_output"]


def ask_about(image: NDArray[np.float32], *, model: str, tensor: str) -> pb.ModelInferRequest:
    """Return a request about one image, as raw bytes."""
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[image.tobytes()])
    request.inputs.add(name=tensor, datatype="FP32", shape=[1, *image.shape])
    return request


def read_output(answer: pb.ModelInferResponse, name: str) -> NDArray[np.float32]:
    """Read an output of an answer, raw or typed, as float32 in its shape."""
    place = [output.name for output in answer.outputs].index(name)
    output = answer.outputs[place]
    if answer.raw_output_contents:
        return np.frombuffer(answer.raw_output_contents[place], np.float32).reshape(tuple(output.shape))
    return np.array(output.contents.fp32_contents, np.float32).reshape(tuple(output.shape))
