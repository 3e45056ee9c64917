"""Messages of protobuf from JSON and to JSON.

What is read is the JSON of protobuf. What is written is that too, but integers of 64 bits are numbers and not texts,
and fields that have their default are there.
"""

import base64
import json
import math
from collections.abc import Collection
from typing import Any, Final

import numpy as np
from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from keylock.licensing.answers import MAP_DTYPES
from keylock.v1 import explanation_pb2
from keylock_server.metering.response_padding import CallTimes
from keylock_server.transport.statuses import RequestError

__all__ = ["dump", "dump_explanations", "from_plain", "to_plain", "with_lists"]

_MAX_QUOTED: Final = 200
_CHARGED: Final = frozenset({"usage", "receipt"})
_UNCHARGED: Final = frozenset(explanation_pb2.ExplainResponse.DESCRIPTOR.fields_by_name) - _CHARGED


def from_plain(plain: Any, message: Any) -> Any:  # noqa: ANN401
    """Fills a message from JSON that was parsed, and returns it.

    Raises:
        RequestError: If the JSON is none of this message.
    """
    name = message.DESCRIPTOR.full_name
    if not isinstance(plain, dict):
        raise RequestError(400, f"the body is no JSON object: send the fields of {name}")
    try:
        json_format.ParseDict(plain, message, max_recursion_depth=20)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        why = " ".join(str(error).split())[:_MAX_QUOTED]
        raise RequestError(400, f"the body is not the JSON of {name}: {why}") from None
    return message


def to_plain(message: Message, *, without: Collection[str] = ()) -> dict[str, Any]:
    """Writes a message in values that JSON has, without some of its fields."""
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.name in without:
            continue
        value = getattr(message, field.name)
        if field.is_repeated:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                plain[field.name] = dict(value)
            else:
                plain[field.name] = [_plain(field, one) for one in value]
        elif not field.has_presence or message.HasField(field.name):
            plain[field.name] = _plain(field, value)
    return plain


def with_lists(answer: explanation_pb2.ExplainResponse, *, without: Collection[str] = ()) -> dict[str, Any]:
    """Writes explanations whose maps are nested lists of their values, in place of elements in Base64.

    Args:
        answer: The explanations.
        without: Fields to leave out, none of which are the results.
    """
    plain = to_plain(answer, without=without)
    for written, result in zip(plain["results"], answer.results, strict=True):
        if not result.HasField("map"):
            continue
        dtype = np.dtype(MAP_DTYPES[result.map.dtype]).newbyteorder("<")
        elements = np.frombuffer(result.map.data, dtype).reshape(result.map.shape)
        values = elements.astype(np.float64)
        if result.HasField("scaling"):
            values = result.scaling.offset + result.scaling.scale * values
            del written["scaling"]
        written["map"] = {"shape": list(result.map.shape), "values": values.tolist()}
    return plain


def dump_explanations(answer: explanation_pb2.ExplainResponse, times: CallTimes, *, lists: bool = False) -> bytes:
    """Writes explanations as JSON.

    Args:
        answer: The explanations.
        times: Of the call, in whose work this is; what only licensed answers have is left out of it.
        lists: Whether maps are nested lists.
    """
    everyone = dump(with_lists(answer, without=_CHARGED) if lists else to_plain(answer, without=_CHARGED))
    with times.charging():
        # The last fields there are, so that the JSON is as if it were written at once.
        return everyone[:-1] + b"," + dump(to_plain(answer, without=_UNCHARGED))[1:]


def dump(plain: Any) -> bytes:  # noqa: ANN401
    """Writes JSON."""
    return json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _plain(field: Any, value: Any) -> Any:  # noqa: ANN401
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        if isinstance(value, timestamp_pb2.Timestamp):
            return value.ToJsonString()
        if isinstance(value, struct_pb2.Struct):
            return json_format.MessageToDict(value)
        return to_plain(value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode("ascii")
    if field.type == FieldDescriptor.TYPE_ENUM:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    # As in the JSON of protobuf.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
