"""Answers that somebody changes on the way: whatever field it is, the client notices and says which one.

The fields are enumerated from the descriptor of the message, so that a field which is added to the protocol and not
covered by the receipt fails here.
"""

import copy
import re
from concurrent import futures
from datetime import timedelta

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.struct_pb2 import Struct

from keylock.errors import ServiceError
from keylock.licensing import Quota
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.store import LicenseStore
from keylock.v1 import explanation_pb2 as pb
from keylock_client import AsyncClient, BadReceiptError, Client

YEAR = timedelta(days=365)
EXPLAIN = "/keylock.v1.ExplanationService/Explain"
STREAM = "/keylock.v1.ExplanationService/ExplainStream"

# Fields that may be changed without the client noticing, each with the reason why it cannot mislead: none.
HARMLESS: dict[str, str] = {}


class Hostile(grpc.GenericRpcHandler):
    """Stands between client and server, and changes the answers to explanations with `change`."""

    def __init__(self, upstream):
        self.upstream, self.change, self.same = upstream, None, False

    def service(self, details):
        method, channel = details.method, self.upstream
        if method == STREAM:
            return grpc.stream_stream_rpc_method_handler(
                lambda sent, context: map(self._part, channel.stream_stream(method)(sent, metadata=_told(context)))
            )
        call = channel.unary_unary(method)

        def answer(sent, context):
            came = call(sent, metadata=_told(context))
            return self._whole(came) if method == EXPLAIN else came

        return grpc.unary_unary_rpc_method_handler(answer)

    def _whole(self, data):
        message = pb.ExplainResponse.FromString(data)
        self.apply(message)
        return message.SerializeToString()

    def _part(self, data):
        message = pb.ExplainStreamResponse.FromString(data)
        self.apply(message.answer)
        return message.SerializeToString()

    def apply(self, message):
        if self.change is not None:
            before = message.SerializeToString(deterministic=True)
            self.change(message)
            self.same = message.SerializeToString(deterministic=True) == before


def _told(context):
    return [(key, value) for key, value in context.invocation_metadata() if key == "authorization"]


@pytest.fixture(scope="module")
def signing(start_server, vendor, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signing")
    ReceiptKey.create(folder / "receipts.pem", vendor.signing_key, not_before=tiny.now - YEAR, expires=tiny.now + YEAR)
    url = f"sqlite:///{folder / 'store.db'}"
    calls = start_server(receipt_key=folder / "receipts.pem", license_store=url)
    with LicenseStore(url) as store:
        calls.licenses = [vendor.grant(store=store, quota=Quota(day=10**6)) for _ in range(2)]
    return calls


@pytest.fixture(scope="module")
def hostile(signing):
    with grpc.insecure_channel(signing.server.target) as upstream:
        server = grpc.server(futures.ThreadPoolExecutor(8))
        handler = Hostile(upstream)
        server.add_generic_rpc_handlers((handler,))
        handler.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield handler
        server.stop(0).wait()


@pytest.fixture(autouse=True)
def honest_again(hostile):
    yield
    hostile.change = None


def other_value(field, value):
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return not value
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1]) if value else b"x"
    if isinstance(value, str):
        return value[:-1] + chr(ord(value[-1]) ^ 1) if value else "x"
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return next(number for number in field.enum_type.values_by_number if number != value)
    return value + (0.25 if isinstance(value, float) else 1)


def changes(message, path="", reach=lambda root: root):
    """Yields the name of each change of a message, recursively, and what makes it in another like it."""
    if isinstance(message, Struct):
        # One of each kind, so that every change is one.
        kinds = {value.WhichOneof("kind"): name for name, value in sorted(message.fields.items())}
        number, text = kinds["number_value"], kinds["string_value"]
        yield f"{path} added", lambda root: reach(root).update({"added": 1})
        yield f"{path} emptied", lambda root: reach(root).Clear()
        yield f"{path} one less", lambda root: reach(root).fields.pop(number)
        yield f"{path} number", lambda root: reach(root).update({number: reach(root)[number] + 1})
        yield f"{path} as text", lambda root: reach(root).update({number: str(reach(root)[number])})
        yield f"{path} as a truth", lambda root: reach(root).update({number: bool(reach(root)[number])})
        yield f"{path} NaN", lambda root: reach(root).update({number: float("nan")})
        yield f"{path} text", lambda root: reach(root).update({text: reach(root)[text] + "x"})
        return
    for field in message.DESCRIPTOR.fields:
        yield from changes_of_field(message, field, f"{path}.{field.name}".lstrip("."), reach)


def changes_of_field(message, field, path, reach):
    name = field.name

    def at(root):
        return getattr(reach(root), name)

    if field.is_repeated:
        assert len(getattr(message, name)), f"the example has no {path}: nothing shows that it is covered"
        yield f"{path} one less", lambda root: at(root).pop()
        yield f"{path} one more", lambda root: at(root).append(copy.deepcopy(at(root)[-1]))
        yield f"{path} turned round", lambda root: turn_round(at(root))
        if field.message_type:
            yield from changes(getattr(message, name)[0], f"{path}[0]", lambda root: at(root)[0])
            return
        yield f"{path}[0]", lambda root: at(root).__setitem__(0, other_value(field, at(root)[0]))
        return
    if field.has_presence and message.HasField(name):
        yield f"{path} cleared", lambda root: reach(root).ClearField(name)
    if field.message_type:
        if not message.HasField(name):
            yield f"{path} set", lambda root: at(root).SetInParent()
        yield from changes(getattr(message, name), path, at)
        return
    yield path, lambda root: setattr(reach(root), name, other_value(field, at(root)))
    if getattr(message, name) != field.default_value:
        yield f"{path} cleared", lambda root: reach(root).ClearField(name)


def turn_round(values):
    turned = list(copy.deepcopy(values))[::-1]
    if len(turned) < 2 or turned[0] == turned[-1]:
        turned *= 2
    del values[:]
    values.extend(turned)


def name_in(error):
    """Returns which field an error names."""
    found = re.search(r"(?:: |its )([a-z_0-9.\[\]]+) (?:was|is)", str(error))
    return "receipt" if found is None else found[1]


def named(change, error):
    """Tells whether an error names what was changed: the field, or one that holds it or is a part of it."""
    field, said = change.split()[0], name_in(error)
    if field.startswith("results") and change.split()[0] == "results":
        return said.startswith("results")
    return field.startswith(said) or said.startswith(field)


WAYS = {}


def way(function):
    WAYS[function.__name__] = function
    return function


@way
def once(target, license, images, loop_thread, **options):
    with Client(target, license=license) as client:
        return client.explain(images, **options)


@way
def asynchronously(target, license, images, loop_thread, **options):
    async def ask():
        async with AsyncClient(target, license=license) as client:
            return await client.explain(images, **options)

    return loop_thread.submit(ask()).result(timeout=30)


@way
def as_a_stream(target, license, images, loop_thread, **options):
    with Client(target, license=license, timeout_s=5) as client:
        return [one.explanation for one in client.explain_many(images[:1], **options)]


@way
def as_an_asynchronous_stream(target, license, images, loop_thread, **options):
    async def ask():
        async with AsyncClient(target, license=license, timeout_s=5) as client:
            return [one.explanation async for one in client.explain_many(images[:1], **options)]

    return loop_thread.submit(ask()).result(timeout=30)


# A stream knows from these how much of an answer is to come, so it finds out before there is a whole one to compare.
_SHAPES_A_STREAM = ("results one", "results turned", "results[0].map", "results cleared")


@pytest.mark.parametrize("map_dtype", ["float32", "uint8"])
@pytest.mark.parametrize("way", WAYS)
def test_no_field_of_an_answer_is_changed_unnoticed(way, map_dtype, hostile, signing, tiny, loop_thread):
    license, images = signing.licenses[0].token, list(tiny.images(2))
    options = {"map_dtype": map_dtype, "explainer": "brightness"}
    kept = []
    hostile.change = lambda answer: (kept.append(copy.deepcopy(answer)), setattr(answer, "request_id", "x"))
    with pytest.raises(BadReceiptError, match="request_id"):
        WAYS[way](hostile.target, license, images, loop_thread, **options)
    hostile.change = None
    assert all(one.receipt for one in WAYS[way](hostile.target, license, images, loop_thread, **options))
    tried, unnoticed, unnamed = 0, [], []
    for name, change in changes(kept[0]):
        hostile.change = change
        tried += 1
        try:
            hostile.same = False
            WAYS[way](hostile.target, license, images, loop_thread, **options)
        except BadReceiptError as error:
            assert not hostile.same, f"{name} changes nothing"
            if not named(name, error):
                unnamed.append((name, str(error)))
        except ServiceError:
            if "stream" not in way or not name.startswith(_SHAPES_A_STREAM):
                raise
        else:
            unnoticed.append((name, hostile.same))
    assert (sorted({name.split()[0] for name, _ in unnoticed}), unnamed) == (sorted(HARMLESS), []), unnoticed
    assert tried > 70
