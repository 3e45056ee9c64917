"""Graphs of a sealed lock, made from those of a network without one."""

import onnx

__all__ = ["taking_weights"]


def taking_weights(graph: bytes) -> bytes:
    """Makes the weights of a graph one of its inputs, as in a bundle with a sealed delta."""
    model = onnx.load_from_string(graph)
    (place,) = (index for index, tensor in enumerate(model.graph.initializer) if tensor.name == "weights")
    shape = list(model.graph.initializer[place].dims)
    del model.graph.initializer[place]
    model.graph.input.append(onnx.helper.make_tensor_value_info("weights", onnx.TensorProto.FLOAT, shape))
    return model.SerializeToString()
