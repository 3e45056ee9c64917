"""Puts tensors in the place of inputs of a graph in memory, so that runtimes prepare them as they do weights.

A graph in a file takes the weights that a lock seals as inputs, because the opened ones may not stand in a file.
Weights that come as inputs are slow, though: only what is constant is laid out for the processor and joined with its
neighbours when a graph is opened. So a copy of the graph that never leaves the memory of this process gets them as
constants: with their values, or with a note that these are elsewhere in memory, which saves copying them twice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keylock.graphs.messages import (
    GRAPH,
    INITIALIZER,
    INPUT,
    NAME,
    NODE,
    NODE_ATTRIBUTE,
    NODE_INPUT,
    OUTPUT,
    SUBGRAPHS,
    TENSOR_NAME,
    VARINT,
    field,
    fields_of,
    first,
    header,
    number_of,
    text_of,
    varint,
)

__all__ = ["bind", "bind_elsewhere", "inputs_of", "names_read", "outputs_of"]

Array = NDArray[Any]

_TYPE, _TENSOR, _SHAPE, _DIMENSION, _SIZE = 2, 1, 2, 1, 1
_DIMS, _DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 9, 13, 14
_KEY, _VALUE, _EXTERNAL = 1, 2, 1
_KINDS: Final = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10}


def inputs_of(model: bytes) -> dict[str, tuple[int, ...]]:
    """Returns the inputs of a graph by name, with their shapes; a size that is not fixed is 0.

    Args:
        model: A serialised `ModelProto`.

    Raises:
        ValueError: It is none.
    """
    found = {}
    for number, _, content, _ in fields_of(first(memoryview(model), GRAPH)):
        if number == INPUT:
            shape = first(first(first(content, _TYPE), _TENSOR), _SHAPE)
            sizes = [entry.content for entry in fields_of(shape) if entry.number == _DIMENSION]
            found[text_of(content, NAME)] = tuple(_size(dimension) for dimension in sizes)
    return found


def outputs_of(model: bytes) -> frozenset[str]:
    """Returns the names of the outputs of a graph.

    Args:
        model: A serialised `ModelProto`.

    Raises:
        ValueError: It is none.
    """
    graph = first(memoryview(model), GRAPH)
    return frozenset(text_of(entry.content, NAME) for entry in fields_of(graph) if entry.number == OUTPUT)


def names_read(model: bytes) -> frozenset[str]:
    """Returns the names of everything that the nodes of a graph read, also those of graphs within it.

    Args:
        model: A serialised `ModelProto`.

    Raises:
        ValueError: It is none.
    """
    return frozenset(_read_in(first(memoryview(model), GRAPH)))


def bind(model: bytes, tensors: Mapping[str, Array]) -> bytes:
    """Returns a graph that has tensors as constants which were inputs before, or which it lacked.

    Args:
        model: A serialised `ModelProto`.
        tensors: By name, of float32, float16 or whole numbers.

    Raises:
        ValueError: It is not a graph.
    """
    return _with_constants(model, tensors, _values)


def bind_elsewhere(model: bytes, tensors: Mapping[str, Array]) -> bytes:
    """Does what `bind` does, but the values stay out of the graph: a runtime is handed them beside it.

    Args:
        model: A serialised `ModelProto`.
        tensors: By name, as for `bind`; what is handed to the runtime has to be of the same shapes. ONNX Runtime
            refuses those that no node reads.

    Raises:
        ValueError: It is not a graph.
    """
    return _with_constants(model, tensors, _note)


def _read_in(graph: memoryview) -> Iterator[str]:
    for node in (entry.content for entry in fields_of(graph) if entry.number == NODE):
        for entry in fields_of(node):
            if entry.number == NODE_INPUT:
                yield bytes(entry.content).decode()
            elif entry.number == NODE_ATTRIBUTE:
                for inside in (part.content for part in fields_of(entry.content) if part.number in SUBGRAPHS):
                    yield from _read_in(inside)


def _with_constants(
    model: bytes, tensors: Mapping[str, Array], write: Callable[[Array], Sequence[bytes | memoryview]]
) -> bytes:
    if not tensors:
        return model
    parts: list[bytes | memoryview] = []
    for number, _, content, whole in fields_of(memoryview(model)):
        if number != GRAPH:
            parts.append(whole)
            continue
        body: list[bytes | memoryview] = [
            entry.whole
            for entry in fields_of(content)
            if entry.number != INPUT or text_of(entry.content, NAME) not in tensors
        ]
        for name, array in tensors.items():
            tensor = [_about(name, array), *write(array)]
            body += [header(INITIALIZER, _length(tensor)), *tensor]
        # Everything is copied once, here: weights are most of a graph.
        parts += [header(GRAPH, _length(body)), *body]
    return b"".join(parts)


def _length(parts: Sequence[bytes | memoryview]) -> int:
    return sum(len(part) for part in parts)


def _about(name: str, array: Array) -> bytes:
    """Writes shape, kind and name of a `TensorProto`."""
    dims = b"".join(varint(_DIMS << 3 | VARINT) + varint(size) for size in array.shape)
    kind = varint(_DATA_TYPE << 3 | VARINT) + varint(_KINDS[array.dtype.name])
    return dims + kind + field(TENSOR_NAME, name.encode())


def _values(array: Array) -> Sequence[bytes | memoryview]:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return header(_RAW_DATA, little.nbytes), little.reshape(-1).view(np.uint8).data


def _note(array: Array) -> Sequence[bytes | memoryview]:
    """Says that values are elsewhere. Runtimes want a place to be named, and do not look there when handed them."""
    entries = {"location": "memory", "offset": "0", "length": str(array.nbytes)}
    noted = [
        field(_EXTERNAL_DATA, field(_KEY, key.encode()) + field(_VALUE, value.encode()))
        for key, value in entries.items()
    ]
    return *noted, varint(_DATA_LOCATION << 3 | VARINT) + varint(_EXTERNAL)


def _size(dimension: memoryview) -> int:
    return next((number_of(entry.content) for entry in fields_of(dimension) if entry.number == _SIZE), 0)
