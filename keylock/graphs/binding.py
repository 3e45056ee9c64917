"""Puts tensors in the place of inputs of a graph in memory, so that ONNX Runtime prepares them as it does weights.

A graph in a file takes the weights that a lock seals as inputs, because the opened ones may not stand in a file.
Weights that come as inputs are slow, though: only what is constant is laid out for the processor and joined with its
neighbours when a session is made. So a copy of the graph that never leaves the memory of this process gets them as
constants.

The `onnx` package is not needed for this: few fields are looked at, by their numbers in `onnx.proto`.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["bind", "inputs_of", "outputs_of"]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_GRAPH = 7
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12
_NAME = 1
_TYPE, _TENSOR, _SHAPE, _DIMENSION, _SIZE = 2, 1, 2, 1, 1
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT = 1

_Field = tuple[int, int, memoryview, memoryview]
"""A field's number, its kind, its content, and the whole of it."""


def inputs_of(model: bytes) -> dict[str, tuple[int, ...]]:
    """Returns the inputs of a graph by name, with their shapes; a size that is not fixed is 0.

    Args:
        model: A serialised `ModelProto`.

    Raises:
        ValueError: It is none.
    """
    found = {}
    for number, _, content, _ in _fields(_one(memoryview(model), _GRAPH)):
        if number == _INPUT:
            shape = _one(_one(_one(content, _TYPE), _TENSOR), _SHAPE)
            sizes = [dimension for number, _, dimension, _ in _fields(shape) if number == _DIMENSION]
            found[_name_of(content)] = tuple(_size(dimension) for dimension in sizes)
    return found


def outputs_of(model: bytes) -> frozenset[str]:
    """Returns the names of the outputs of a graph.

    Args:
        model: A serialised `ModelProto`.

    Raises:
        ValueError: It is none.
    """
    graph = _one(memoryview(model), _GRAPH)
    return frozenset(_name_of(content) for number, _, content, _ in _fields(graph) if number == _OUTPUT)


def bind(model: bytes, tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Returns a graph that has tensors as constants which were inputs before.

    Args:
        model: A serialised `ModelProto`.
        tensors: By the names of the inputs.

    Raises:
        ValueError: It is not a graph.
    """
    if not tensors:
        return model
    parts: list[bytes | memoryview] = []
    for number, kind, content, whole in _fields(memoryview(model)):
        if number != _GRAPH:
            parts.append(whole)
            continue
        inside = [
            entry for field, _, value, entry in _fields(content) if field != _INPUT or _name_of(value) not in tensors
        ]
        constants = [_field(_INITIALIZER, _tensor(name, array)) for name, array in tensors.items()]
        body = b"".join([*inside, *constants])
        parts += [_varint(number << 3 | kind), _varint(len(body)), body]
    return b"".join(parts)


def _tensor(name: str, array: NDArray[np.float32]) -> bytes:
    """Writes a `TensorProto` of float32."""
    dims = b"".join(_varint(_DIMS << 3 | _VARINT) + _varint(size) for size in array.shape)
    kind = _varint(_DATA_TYPE << 3 | _VARINT) + _varint(_FLOAT)
    data = np.ascontiguousarray(array, "<f4").tobytes()
    return dims + kind + _field(_TENSOR_NAME, name.encode()) + _field(_RAW_DATA, data)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _fields(message: memoryview) -> Iterator[_Field]:
    """Yields the fields of a message.

    Raises:
        ValueError: It is cut, or no message.
    """
    place = 0
    while place < len(message):
        begun = place
        key, place = _read_varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            end = _read_varint(message, place)[1]
        elif kind == _LENGTH:
            length, place = _read_varint(message, place)
            end = place + length
        elif kind in (_FIXED64, _FIXED32):
            end = place + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError("no protobuf message")
        if end > len(message):
            raise ValueError("the message is cut")
        yield number, kind, message[place:end], message[begun:end]
        place = end


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message):
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    raise ValueError("the message is cut")


def _one(message: memoryview, number: int) -> memoryview:
    """Returns the content of a field; that of a message that was left out is empty."""
    return next((content for field, _, content, _ in _fields(message) if field == number), message[:0])


def _name_of(value: memoryview) -> str:
    return bytes(_one(value, _NAME)).decode()


def _size(dimension: memoryview) -> int:
    return next((_read_varint(content, 0)[0] for field, _, content, _ in _fields(dimension) if field == _SIZE), 0)
