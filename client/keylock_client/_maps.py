"""The maps in an answer: from the bytes that a server sent to values, in little more memory than these take."""

import math
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from keylock.v1 import explanation_pb2 as pb
from keylock_client._requests import MAX_ANSWER_BYTES
from keylock_client.errors import BadAnswerError

__all__ = ["DTYPES", "no_map", "read_map", "senseless", "size_of_map"]

DTYPES: dict[int, str] = {
    pb.DATA_TYPE_FLOAT32: "float32",
    pb.DATA_TYPE_FLOAT16: "float16",
    pb.DATA_TYPE_UINT8: "uint8",
}
# How many elements are worked on at once.
_BLOCK = 1 << 20


def size_of_map(told: pb.Tensor) -> int:
    """Return how many bytes the whole of a map has.

    Raises:
        BadAnswerError: It is none, or its values would take more memory than an answer may have bytes.
    """
    shape = tuple(told.shape)
    if told.dtype not in DTYPES or len(shape) != 2 or min(shape) < 1:
        senseless(f"a map of type {told.dtype} and shape {shape}")
    # Python's integers, because a hostile shape overflows those of NumPy.
    elements = shape[0] * shape[1]
    if elements * np.dtype(np.float32).itemsize > MAX_ANSWER_BYTES:
        senseless(f"a map of {elements} elements")
    return elements * np.dtype(DTYPES[told.dtype]).itemsize


def read_map(told: pb.Explanation, data: bytes | bytearray) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return a map as it was sent, and its values, both read-only.

    Args:
        told: The explanation; the elements in it are not looked at.
        data: All elements of its map.

    Raises:
        BadAnswerError: They do not fit the shape, or the values are no map.
    """
    if len(data) != size_of_map(told.map):
        senseless(f"{len(data)} bytes for a map of shape {tuple(told.map.shape)}")
    dtype = DTYPES[told.map.dtype]
    received = np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(tuple(told.map.shape))
    received.flags.writeable = False
    if dtype == "float32" and not told.HasField("scaling"):
        values = received
    else:
        values = _scaled(received, scale=told.scaling.scale, offset=told.scaling.offset)
    for block in _blocks(values):
        if not np.isfinite(block).all():
            senseless("a map holds NaN or infinite values")
        if block.min() < 0:
            senseless("a map holds negative values")
    return received, values


def no_map() -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return what stands in the place of a map, and of its values, where an image was not explained."""
    nothing = np.empty((0, 0), np.float32)
    nothing.flags.writeable = False
    return nothing, nothing


def _scaled(received: NDArray[Any], *, scale: float, offset: float) -> NDArray[np.float32]:
    if not (math.isfinite(scale) and math.isfinite(offset) and scale >= 0):
        senseless(f"a map that is scaled by {scale} and moved by {offset}")
    values = np.empty(received.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for block, into in zip(_blocks(received), _blocks(values), strict=True):
            into[:] = offset + scale * block.astype(np.float64)
    values.flags.writeable = False
    return values


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    flat = array.reshape(-1)
    return (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))


def senseless(what: str) -> NoReturn:
    """Raise the error for an answer that makes no sense."""
    raise BadAnswerError(f"the server's answer makes no sense ({what}): check that client and server fit together")
