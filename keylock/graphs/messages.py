"""Serialised graphs on the level of protobuf fields: few of them are looked at, by their numbers in `onnx.proto`.

The `onnx` package would be one more dependency of every server for this alone.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = [
    "GRAPH",
    "INITIALIZER",
    "INPUT",
    "LENGTH",
    "NAME",
    "NODE",
    "NODE_ATTRIBUTE",
    "NODE_INPUT",
    "OUTPUT",
    "SUBGRAPHS",
    "TENSOR_NAME",
    "VARINT",
    "Field",
    "field",
    "fields_of",
    "first",
    "header",
    "number_of",
    "text_of",
    "varint",
]

VARINT: Final = 0
_DOUBLE: Final = 1
LENGTH: Final = 2
_FLOAT: Final = 5

GRAPH: Final = 7
"""Of a model."""

NODE: Final = 1
INITIALIZER: Final = 5
INPUT: Final = 11
OUTPUT: Final = 12
"""Of a graph."""

NODE_INPUT: Final = 1
NODE_ATTRIBUTE: Final = 5
"""Of a node."""

SUBGRAPHS: Final = (6, 11)
"""Of an attribute: the graph, or the graphs, that it is."""

NAME: Final = 1
"""Of an input or output."""

TENSOR_NAME: Final = 8
"""Of an initializer."""

Part = bytes | memoryview


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: Which.
        kind: How it is written: `VARINT`, `LENGTH` or a number of fixed size.
        content: What it holds.
        whole: All of it, its number included.
    """

    number: int
    kind: int
    content: memoryview
    whole: memoryview


def fields_of(message: memoryview) -> Iterator[Field]:
    """Yields the fields of a message.

    Raises:
        ValueError: It is cut, or no message.
    """
    place = 0
    while place < len(message):
        begun = place
        key, place = _read_varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            end = _read_varint(message, place)[1]
        elif kind == LENGTH:
            length, place = _read_varint(message, place)
            end = place + length
        elif kind in (_DOUBLE, _FLOAT):
            end = place + (8 if kind == _DOUBLE else 4)
        else:
            raise ValueError("no protobuf message")
        if end > len(message):
            raise ValueError("the message is cut")
        yield Field(number, kind, message[place:end], message[begun:end])
        place = end


def first(message: memoryview, number: int) -> memoryview:
    """Returns the content of a field; that of a message that was left out is empty."""
    return next((found.content for found in fields_of(message) if found.number == number), message[:0])


def text_of(message: memoryview, number: int) -> str:
    """Returns the text in a field, empty where it was left out."""
    return bytes(first(message, number)).decode()


def number_of(content: memoryview) -> int:
    """Returns the number in the content of a field."""
    return _read_varint(content, 0)[0]


def field(number: int, content: Part) -> bytes:
    """Returns a field that holds bytes."""
    return header(number, len(content)) + content


def header(number: int, length: int) -> bytes:
    """Returns what stands before so many bytes of a field."""
    return varint(number << 3 | LENGTH) + varint(length)


def varint(value: int) -> bytes:
    """Returns a number as it is written."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message):
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    raise ValueError("the message is cut")
