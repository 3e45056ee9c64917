"""What a graph in eight bits makes of its weights, computed once before a runtime opens the graph.

OpenVINO takes two seconds of a core to find it out by itself for a ResNet-18, ONNX Runtime a hundredth of that.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from keylock.graphs.weight_part import take_apart

__all__ = ["rounded"]

_ERRORS_ONLY: Final = 3


def rounded(model: bytes, given: Mapping[str, NDArray[np.float32]]) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """Returns a graph that computes the same, and what is to be bound to it.

    Args:
        model: A graph that rounds weights, or none of that kind, which stays as it is.
        given: The weights that are to be bound to it, by name. What is made of them stays in memory.

    Raises:
        Exception: Whatever ONNX Runtime raises, if it cannot compute the graph.
    """
    parts = take_apart(model, given)
    if parts is None:
        return model, dict(given)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    session = onnxruntime.InferenceSession(parts.of_weights, options, providers=["CPUExecutionProvider"])
    taken = {entry.name: given[entry.name] for entry in session.get_inputs()}
    made = dict(zip(parts.made, session.run(list(parts.made), taken), strict=True))
    return parts.rest, {**{name: given[name] for name in parts.weights}, **made}
