"""Edges of the value range in every field of every method of every service, found by walking the descriptors.

A field or method that is added to `proto/` is covered by itself. What a call answers may differ (OK or a refusal); it
is never an error of the server's own and never a wait.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from keylock.inference import inference_pb2
from keylock.v1 import admin_pb2, explanation_pb2, license_pb2

FILES = (explanation_pb2, license_pb2, admin_pb2, inference_pb2)
METHODS = [
    method for file in FILES for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods
]
FAULTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
}
DEEPEST = 6

SIGNED_64 = (0, -1, 1, 2**40, 2**62, 2**63 - 1, -(2**63))
UNSIGNED_64 = (0, 1, 2**32, 2**63, 2**64 - 1)
SIGNED_32 = (0, -1, 17, 2**31 - 1, -(2**31))
UNSIGNED_32 = (0, 1, 2**31, 2**32 - 1)
DOUBLES = (0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 5e-324, 1.8e308 / 2, -1e300)
FLOATS = (0.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 3.4e38, -3.4e38)
TEXTS = ("", "\0", "-1", "nan", "x" * 10_000, "‮\x1b[31m", "9" * 400)
EDGES: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.TYPE_INT64: SIGNED_64,
    FieldDescriptor.TYPE_UINT64: UNSIGNED_64,
    FieldDescriptor.TYPE_INT32: SIGNED_32,
    FieldDescriptor.TYPE_UINT32: UNSIGNED_32,
    FieldDescriptor.TYPE_ENUM: SIGNED_32,
    FieldDescriptor.TYPE_DOUBLE: DOUBLES,
    FieldDescriptor.TYPE_FLOAT: FLOATS,
    FieldDescriptor.TYPE_BOOL: (False, True),
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: (b"", b"\0", b"\xff" * 100, b"\x89PNG\r\n\x1a\n"),
}


def copy_of(message: Message) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def variants(message: Message, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields copies of a message, each with one field at an edge, and where in it."""
    for field in message.DESCRIPTOR.fields:
        name = f"{path}{field.name}"
        changed = copy_of(message)
        changed.ClearField(field.name)
        yield f"{name} unset", changed
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from maps(message, field, name, depth)
        elif field.is_repeated:
            yield from repeated(message, field, name, depth)
        elif field.message_type is None:
            for edge in EDGES[field.type]:
                changed = copy_of(message)
                setattr(changed, field.name, edge)
                yield f"{name}={edge!r:.30}", changed
        elif depth < DEEPEST:
            changed = copy_of(message)
            getattr(changed, field.name).SetInParent()
            yield f"{name} empty", changed
            for inner, sub in variants(getattr(message, field.name), f"{name}.", depth + 1):
                changed = copy_of(message)
                getattr(changed, field.name).CopyFrom(sub)
                yield inner, changed


def repeated(message: Message, field: FieldDescriptor, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    given = list(getattr(message, field.name))
    if field.message_type is not None:
        kind = message_factory.GetMessageClass(field.message_type)
        found = [(f"{name} twice", [*given, *given]), (f"{name} empty", [kind()])]
        if depth < DEEPEST:
            for inner, sub in variants(given[0] if given else kind(), f"{name}[0].", depth + 1):
                found.append((inner, [sub, *given[1:]]))
    else:
        edges = EDGES[field.type]
        found = [(f"{name} 1,000 times", [edges[0]] * 1000), (f"{name} twice", [*given, *given])]
        found += [(f"{name}=[{edge!r:.30}]", [edge]) for edge in edges]
        for place in range(len(given)):
            for edge in edges:
                # Alone, and beside each side of zero: no elements of a huge shape.
                found.append((f"{name}[{place}]={edge!r:.30}", [*given[:place], edge, *given[place + 1 :]]))
                for zero in range(len(given)):
                    if zero != place and isinstance(edge, int):
                        sides = [edge if i == place else 0 if i == zero else edge for i in range(len(given))]
                        found.append((f"{name}={sides}", sides))
    for what, values in found:
        changed = copy_of(message)
        changed.ClearField(field.name)
        getattr(changed, field.name).extend(values)
        yield what, changed


def maps(message: Message, field: FieldDescriptor, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth >= DEEPEST:
        return
    entry = field.message_type.fields_by_name["value"]
    for key in ("", "x" * 1000, *getattr(message, field.name), "timeout"):
        values: list[tuple[str, Any]]
        if entry.message_type is None:
            values = [(f"{edge!r:.30}", edge) for edge in EDGES[entry.type]]
        else:
            values = list(variants(message_factory.GetMessageClass(entry.message_type)(), "", depth + 2))
        for what, value in values:
            changed = copy_of(message)
            place = getattr(changed, field.name)
            if entry.message_type is None:
                place[key] = value
            else:
                place[key].CopyFrom(value)
            yield f"{name}[{key:.12}]: {what}", changed


def array_bytes(*shape: int, kind: str = "<f4") -> bytes:
    return np.ones(shape, kind).tobytes()


def image_tensor(dtype: int, shape: tuple[int, ...]) -> explanation_pb2.Image:
    data = b"" if 0 in shape else array_bytes(*shape, kind="u1" if dtype == 1 else "<f4")
    return explanation_pb2.Image(tensor=explanation_pb2.Tensor(dtype=dtype, shape=shape, data=data))


def explain_requests() -> list[explanation_pb2.ExplainRequest]:
    """Good requests with pixels and with a preprocessed image, and one whose shape needs no bytes."""
    images = [image_tensor(1, (8, 8, 3)), image_tensor(2, (3, 8, 8)), image_tensor(1, (0, 8, 3))]
    made = [explanation_pb2.ExplainRequest(images=[image]) for image in images]
    for request in made:
        request.parameters["layer"] = "stem"
        request.parameters["power"] = 1
    return made


def infer_requests() -> list[inference_pb2.ModelInferRequest]:
    made = []
    shapes = {
        "image": ("FP32", (1, 3, 8, 8), "<f4"),
        "pixels": ("UINT8", (1, 8, 8, 3), "u1"),
        "encoded": ("BYTES", (1,), "u1"),
    }
    for name, (datatype, shape, kind) in shapes.items():
        raw = array_bytes(*shape, kind=kind)
        request = inference_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[raw])
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        made.append(request)
        nothing = copy_of(request)
        nothing.raw_input_contents[0] = b""
        made.append(nothing)
        typed = copy_of(request)
        typed.ClearField("raw_input_contents")
        contents = typed.inputs[0].contents
        if name == "image":
            contents.fp32_contents.extend([1.0] * 192)
            del contents.fp32_contents[2:]
        elif name == "pixels":
            contents.uint_contents.extend([1, 2])
        else:
            contents.bytes_contents.append(b"x")
        made.append(typed)
    return made


def stream_requests() -> list[Any]:
    kind = explanation_pb2.ExplainStreamRequest
    options = explanation_pb2.ExplainRequest()
    options.parameters["power"] = 1
    start = kind(start=explanation_pb2.ExplainStreamStart(options=options, total=1))
    image = kind(image=explanation_pb2.ExplainStreamImage(number=1, image=image_tensor(1, (8, 8, 3))))
    return [start, image]


def requests_of(method: MethodDescriptor) -> list[Any]:
    """Returns requests to begin with; of a method that nobody named here, an empty one."""
    known = {"ExplainRequest": explain_requests, "ModelInferRequest": infer_requests}
    make = known.get(method.input_type.name)
    return [message_factory.GetMessageClass(method.input_type)()] if make is None else make()


def edges_of(method: MethodDescriptor) -> Iterator[tuple[str, list[Any]]]:
    """Yields what to send to a method: one message, or those of a stream."""
    if not method.client_streaming:
        first, *others = requests_of(method)
        yield from ((what, [changed]) for what, changed in variants(first))
        for request in others:
            same = {name for name in first.DESCRIPTOR.fields_by_name if getattr(request, name) == getattr(first, name)}
            for what, changed in variants(request):
                if re.split(r"\W", what)[0] not in same:
                    yield what, [changed]
        return
    sent = stream_requests()
    for place, message in enumerate(sent):
        for what, changed in variants(message):
            yield f"message {place}: {what}", [*sent[:place], changed, *sent[place + 1 :]]


def status_of(channel: grpc.Channel, method: MethodDescriptor, messages: list[Any], metadata: Any) -> grpc.StatusCode:
    path = f"/{method.containing_service.full_name}/{method.name}"
    answer = message_factory.GetMessageClass(method.output_type).FromString
    serialize = type(messages[0]).SerializeToString
    try:
        if method.client_streaming:
            call = channel.stream_stream(path, serialize, answer)
            list(call(iter(messages), metadata=metadata, timeout=10))
        else:
            channel.unary_unary(path, serialize, answer)(messages[0], metadata=metadata, timeout=10)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.fixture(scope="module")
def channels(start_server, tls_files) -> Iterator[dict[str, grpc.Channel]]:
    """The port for everybody and the one for operators, of one server."""
    calls = start_server(
        admin_port=0,
        admin_certificate=tls_files / "server.pem",
        admin_key=tls_files / "server.key",
        admin_client_ca=tls_files / "client.pem",
    )
    files = [(tls_files / name).read_bytes() for name in ("server.pem", "client.key", "client.pem")]
    with grpc.secure_channel(f"localhost:{calls.server.admin_port}", grpc.ssl_channel_credentials(*files)) as operators:
        yield {"everybody": calls.channel, "operators": operators}


# What a license changes nothing about is called without one.
CALLS = [
    pytest.param(method, port, licensed, id=f"{method.full_name}, {port}, {'licensed' if licensed else 'unlicensed'}")
    for method in METHODS
    for port in ("everybody", "operators")
    for licensed in (False, True)
    if (port == "operators") == (method.containing_service.name == "AdminService" or method.name.startswith("Repos"))
    and not (licensed and (port == "operators" or method.containing_service.file.package == "inference"))
]


@pytest.mark.parametrize(("method", "port", "licensed"), CALLS)
def test_no_edge_of_any_field_is_a_fault_of_the_server(channels, vendor, method, port, licensed):
    metadata = [("authorization", f"Bearer {vendor.grant().token}")] if licensed else []
    faults = []
    for what, messages in edges_of(method):
        code = status_of(channels[port], method, messages, metadata)
        # A caller of the Open Inference Protocol may say that a microsecond is all it has.
        if code in FAULTS and not (code == grpc.StatusCode.DEADLINE_EXCEEDED and "[timeout]" in what):
            faults.append(f"{what}: {code.name}")
    assert not faults


def test_every_method_is_called():
    assert {case.values[0].full_name for case in CALLS} == {method.full_name for method in METHODS}


def test_the_edges_reach_every_field_of_every_request():
    """Walks the descriptors a second time, and looks whether each field of a request was at an edge."""

    def names(descriptor: Any, path: str, depth: int) -> Iterator[str]:
        for field in descriptor.fields:
            yield f"{path}{field.name}"
            inner = field.message_type
            if inner is not None and not inner.GetOptions().map_entry and depth < 3:
                mark = "[0]" if field.is_repeated else ""
                yield from names(inner, f"{path}{field.name}{mark}.", depth + 1)

    for method in METHODS:
        reached = [what for what, _ in edges_of(method)]
        for name in names(method.input_type, "", 0):
            assert any(name in what for what in reached), f"{method.full_name}: {name}"
