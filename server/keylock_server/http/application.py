"""The ASGI application: which path asks which RPC, in what form, and how that is answered."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router

from keylock.errors import InputError
from keylock.inference import inference_pb2
from keylock.text.conditions import parse_condition
from keylock.v1 import explanation_pb2 as pb
from keylock_server.http.bodies import GoneError, media_type, parse_json, read_body, read_query
from keylock_server.http.context import Aborted, HttpContext
from keylock_server.http.failures import Failure
from keylock_server.http.inference import LENGTH, read_request, write_answer
from keylock_server.http.messages import dump, dump_explanations, from_plain, to_plain
from keylock_server.http.page import Page
from keylock_server.http.rpcs import Rpcs
from keylock_server.metering.early_writing import set_writer
from keylock_server.metering.response_padding import CallTimes
from keylock_server.services.parts import Parts
from keylock_server.services.registry import SERVICES
from keylock_server.transport.calls import is_request_id, new_request_id
from keylock_server.transport.logs import log_fault
from keylock_server.transport.statuses import RequestError

__all__ = ["make_application"]

_EXPLANATION: Final = "/keylock.v1.ExplanationService"
_LICENSE: Final = "/keylock.v1.LicenseService"
_INFERENCE: Final = "/inference.GRPCInferenceService"
_JSON, _BINARY, _PROTOBUF = b"application/json", b"application/octet-stream", b"application/x-protobuf"
_PROTOBUFS: Final = ("application/x-protobuf", "application/proto", "application/protobuf")
# Beyond it, JSON is parsed in a thread, so that the event loop goes on meanwhile.
_QUICK_BYTES: Final = 64 * 1024
_ALWAYS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
)
_NOTHING: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_EXPOSED: Final = ("x-request-id", "inference-header-content-length", "retry-after")
_ASKED: Final = ("authorization", "content-type", "x-request-id", "inference-header-content-length")

Application = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(slots=True)
class _Request:
    """A request whose body has come.

    Attributes:
        body: As it was sent.
        headers: By their names in small letters; of several with one name, the last.
        query: What was allowed in the query.
        path: What the path names.
    """

    body: bytes
    headers: Mapping[bytes, bytes]
    query: Mapping[str, str]
    path: Mapping[str, str]


class _Reply(NamedTuple):
    """What is answered where nothing failed."""

    body: bytes
    media: bytes = _JSON
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()


Write = Callable[[Any, CallTimes], _Reply]
Read = Callable[[_Request], tuple[Message, Write]]


@dataclass(frozen=True, slots=True)
class _Way:
    """How one method of HTTP on a path asks an RPC.

    Attributes:
        rpc: Its name.
        read: Makes the message and what writes the answer; raises where the request is wrong.
        query: Which parameters there are in the query.
        inference: Whether failures have the form of the Open Inference Protocol.
    """

    rpc: str
    read: Read
    query: tuple[str, ...] = ()
    inference: bool = False


@dataclass(eq=False)
class _Front:
    """What all resources work with."""

    rpcs: Rpcs
    parts: Parts
    is_well: Callable[[], bool]
    methods: Mapping[str, MethodDescriptor] = field(default_factory=dict)


class _Resource:
    """One path: an ASGI application that asks the RPC of the method."""

    def __init__(self, front: _Front, ways: Mapping[str, _Way]) -> None:
        self._front, self._ways = front, dict(ways)
        if "GET" in self._ways:
            self._ways["HEAD"] = self._ways["GET"]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        way = self._ways.get(scope["method"])
        inference = next(iter(self._ways.values())).inference
        if way is None:
            allowed = ", ".join(sorted(self._ways))
            error = RequestError(405, f"this path takes {allowed} alone", headers={"allow": allowed})
            await _refuse(error, scope, send, inference=inference)
            return
        wrong: list[RequestError] = []
        request = None
        settings = self._front.parts.settings
        headers = dict(scope["headers"])
        try:
            query = read_query(scope["query_string"], way.query)
            body = await read_body(headers, receive, most=settings.max_message_bytes, patience_s=settings.deadline_s)
            request = _Request(body, headers, query, scope.get("path_params", {}))
        except RequestError as error:
            wrong.append(error)
        except GoneError:
            return
        read = await self._read(way, request, wrong)
        writers: list[Write] = []

        def make() -> Message:
            if wrong:
                raise wrong[0]
            message, write = read()
            writers.append(write)
            return message

        replies: list[_Reply] = []
        set_writer(lambda message, times: replies.append(writers[0](message, times)))
        try:
            answer = await self._front.rpcs.call(way.rpc, make, HttpContext(scope))
        except Aborted as aborted:
            failure = Failure.of_call(aborted, error=wrong[0] if wrong else None)
            await _fail(failure, send, inference=way.inference)
            return
        reply = replies[0] if replies else writers[0](answer.message, CallTimes())
        await _send(send, reply, request_id=answer.request_id)

    async def _read(
        self, way: _Way, request: _Request | None, wrong: list[RequestError]
    ) -> Callable[[], tuple[Message, Write]]:
        """Returns what makes the message; one that is large is made here already, in a thread."""

        def read() -> tuple[Message, Write]:
            assert request is not None  # noqa: S101 - otherwise the request was wrong
            try:
                return way.read(request)
            except RequestError as error:
                wrong.append(error)
                raise

        if request is None or len(request.body) <= _QUICK_BYTES or LENGTH in request.headers:
            return read
        try:
            made = await asyncio.to_thread(read)
        except RequestError:
            return read
        return lambda: made


class _Guarded:
    """The whole application: whatever fails beside the RPCs is answered, and nothing of it is logged as text."""

    def __init__(self, inner: Application) -> None:
        self._inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        leave = scope.get("extensions", {}).get("keylock.leave")
        task = asyncio.current_task()
        if leave is not None and task is not None:
            leave.append(task.cancel)
        try:
            if scope.get("extensions", {}).get("keylock.full"):
                await _fail(_too_many(), send, inference=_is_inference(scope))
                return
            await self._inner(scope, receive, send)
        except asyncio.CancelledError:
            # The caller has gone, or the server goes: there is nobody to answer.
            return
        except Exception as error:  # Whatever it is, its text stays here.
            error_id = new_request_id()[:12]
            log_fault(error, f"error {error_id}")
            message = f"the server failed; quote the id {error_id} to its operator"
            failure = Failure(500, message, reason="INTERNAL", code="INTERNAL", headers={"connection": "close"})
            await _fail(failure, send, inference=False)
        finally:
            if leave is not None:
                leave.clear()


def make_application(rpcs: Rpcs, parts: Parts, *, is_well: Callable[[], bool]) -> Application:
    """Makes the application.

    Args:
        rpcs: The RPCs of the public port.
        parts: What their services work with.
        is_well: Tells whether the server is well and takes calls.
    """
    front = _Front(rpcs, parts, is_well)
    routes = [
        Route(path, endpoint=_Resource(front, ways))
        for path, ways in {**_inference_paths(front), **_own_paths()}.items()
    ]
    for service in SERVICES:
        for method in service.descriptor.methods:
            path = f"/{service.name}/{method.name}"
            endpoint = _refuse_stream if method.client_streaming else _Resource(front, {"POST": _rpc_way(path, method)})
            routes.append(Route(path, endpoint=_Plain(endpoint)))
    if parts.settings.http_page:
        page = Page.load()
        routes.append(Route("/", endpoint=_Plain(lambda scope, receive, send: _send_page(page, scope, send))))
    application: Application = Router(routes, redirect_slashes=False, default=_refuse_path)
    origins = parts.settings.http_cors_origins
    if origins:
        application = CORSMiddleware(
            application,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=_ASKED,
            expose_headers=_EXPOSED,
            max_age=600,
        )
    return _Guarded(application)


class _Plain:
    """An ASGI application that routes take as one."""

    def __init__(self, inner: Application) -> None:
        self._inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        await self._inner(scope, receive, send)


def _own_paths() -> dict[str, dict[str, _Way]]:
    """The paths of keylock itself."""
    explain = _Way(f"{_EXPLANATION}/Explain", _read_explain, (*_IMAGE_QUERY, "maps"))
    listed = _Way(f"{_INFERENCE}/RepositoryIndex", lambda _: (inference_pb2.RepositoryIndexRequest(), _reply))

    def read_model(request: _Request) -> tuple[Message, Write]:
        version = request.query.get("version", "")
        return pb.GetModelRequest(model_name=request.path["model"], model_version=version), _reply

    return {
        "/v1/explain": {"POST": explain},
        "/v1/disclose": {"POST": _json_way(f"{_EXPLANATION}/Disclose")},
        "/v1/estimate": {"POST": _json_way(f"{_EXPLANATION}/EstimateExplain")},
        "/v1/models": {"GET": listed},
        "/v1/models/{model}": {"GET": _Way(f"{_EXPLANATION}/GetModel", read_model, ("version",))},
        "/v1/license": {"GET": _empty_way(f"{_LICENSE}/GetLicense")},
        "/v1/usage": {"GET": _empty_way(f"{_LICENSE}/GetUsage")},
        "/v1/token": {"POST": _json_way(f"{_LICENSE}/ExchangeToken")},
    }


def _inference_paths(front: _Front) -> dict[str, dict[str, _Way]]:
    """The paths of the Open Inference Protocol, and those of its repository."""

    def way(name: str, read: Read) -> _Way:
        return _Way(f"{_INFERENCE}/{name}", read, inference=True)

    def read_ready(request: _Request) -> tuple[Message, Write]:
        return inference_pb2.ServerReadyRequest(), lambda answer, _: _ready(answer.ready and front.is_well())

    def read_model_ready(request: _Request) -> tuple[Message, Write]:
        name, version = request.path["model"], request.path.get("version", "")
        message = inference_pb2.ModelReadyRequest(name=name, version=version)
        return message, lambda answer, _: _ready(answer.ready, name=name)

    def read_model(request: _Request) -> tuple[Message, Write]:
        name, version = request.path["model"], request.path.get("version", "")
        return inference_pb2.ModelMetadataRequest(name=name, version=version), _reply

    def read_infer(request: _Request) -> tuple[Message, Write]:
        message, wanted = read_request(
            request.body, request.headers, model=request.path["model"], version=request.path.get("version", "")
        )

        def write(answer: Any, _times: CallTimes) -> _Reply:  # noqa: ANN401
            body, length = write_answer(answer, wanted)
            if length is None:
                return _Reply(body)
            return _Reply(body, _BINARY, headers=((LENGTH, str(length).encode("ascii")),))

        return message, write

    def read_index(request: _Request) -> tuple[Message, Write]:
        plain = parse_json(request.body) if request.body else {}
        message = from_plain(plain, inference_pb2.RepositoryIndexRequest())
        return message, lambda answer, _: _Reply(dump(to_plain(answer)["models"]))

    def read_change(kind: Any) -> Read:  # noqa: ANN401
        return lambda request: (kind(model_name=request.path["model"]), lambda *_: _Reply(b"{}"))

    index = way("RepositoryIndex", read_index)
    paths = {
        "/v2": {"GET": way("ServerMetadata", lambda _: (inference_pb2.ServerMetadataRequest(), _server_metadata))},
        "/v2/health/live": {"GET": way("ServerLive", lambda _: (inference_pb2.ServerLiveRequest(), _reply))},
        "/v2/health/ready": {"GET": way("ServerReady", read_ready)},
        "/v2/repository/index": {"GET": index, "POST": index},
    }
    for change, kind in (
        ("Load", inference_pb2.RepositoryModelLoadRequest),
        ("Unload", inference_pb2.RepositoryModelUnloadRequest),
    ):
        path = f"/v2/repository/models/{{model}}/{change.lower()}"
        paths[path] = {"POST": way(f"RepositoryModel{change}", read_change(kind))}
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        paths[model] = {"GET": way("ModelMetadata", read_model)}
        paths[f"{model}/ready"] = {"GET": way("ModelReady", read_model_ready)}
        paths[f"{model}/infer"] = {"POST": way("ModelInfer", read_infer)}
    return paths


_IMAGE_QUERY: Final = (
    "request_id",
    "model_name",
    "model_version",
    "explainer",
    "target_index",
    "target_label",
    "prediction",
    "map_dtype",
    "explain_if",
)
"""What the query says of a request whose body is an image file."""


def _read_explain(request: _Request) -> tuple[Message, Write]:
    """Reads a request of images in JSON, or of one image file with everything else in the query."""
    query = dict(request.query)
    maps = query.pop("maps", "base64")
    if maps not in ("base64", "lists"):
        raise RequestError(400, f"maps has no form {maps[:64]!r}: ask for base64 or lists", field="maps")
    media = media_type(dict(request.headers))
    if media.startswith("image/"):
        answer = {"map_dtype": query.pop("map_dtype")} if "map_dtype" in query else {}
        condition = query.pop("explain_if", None)
        message = from_plain({**query, "answer": answer}, pb.ExplainRequest())
        if condition is not None:
            try:
                message.explain_if.CopyFrom(parse_condition(condition))
            except InputError as error:
                raise RequestError(400, error.message, field="explain_if") from None
        message.images.add(encoded=request.body)
    elif query:
        raise RequestError(
            400, f"{min(query)} is for bodies that are an image file: put it into the JSON", field=min(query)
        )
    else:
        plain = _json_body(request, otherwise=", or an image file with 'Content-Type: image/png' or another image type")
        if isinstance(plain, dict) and isinstance(plain.get("images"), list):
            images = [{"encoded": image} if isinstance(image, str) else image for image in plain["images"]]
            plain = {**plain, "images": images}
        message = from_plain(plain, pb.ExplainRequest())
    if not message.answer.max_bytes:
        # The limit of gRPC's clients is none of HTTP's.
        message.answer.max_bytes = 2**31 - 1
    lists = maps == "lists"
    return message, lambda answer, times: _Reply(dump_explanations(answer, times, lists=lists))


def _json_body(request: _Request, *, otherwise: str = "") -> Any:  # noqa: ANN401
    media = media_type(dict(request.headers))
    if media != "application/json":
        said = f"not {media[:64]!r}" if media else "and the request has none"
        wanted = f"the body is JSON with the header 'Content-Type: application/json'{otherwise}"
        raise RequestError(415, f"{wanted}, {said}")
    return parse_json(request.body)


def _kind_of(rpc: str) -> Any:  # noqa: ANN401
    service, _, name = rpc.removeprefix("/").partition("/")
    (descriptor,) = (one.descriptor for one in SERVICES if one.name == service)
    return message_factory.GetMessageClass(descriptor.methods_by_name[name].input_type)


def _json_way(rpc: str) -> _Way:
    kind = _kind_of(rpc)
    return _Way(rpc, lambda request: (from_plain(_json_body(request), kind()), _reply))


def _empty_way(rpc: str) -> _Way:
    kind = _kind_of(rpc)
    return _Way(rpc, lambda _: (kind(), _reply))


def _rpc_way(path: str, method: MethodDescriptor) -> _Way:
    """Every RPC by its own name, its message in protobuf or in the JSON of it."""
    kind = message_factory.GetMessageClass(method.input_type)

    def read(request: _Request) -> tuple[Message, Write]:
        if media_type(dict(request.headers)) not in _PROTOBUFS:
            return from_plain(_json_body(request), kind()), _reply
        try:
            message = kind.FromString(request.body)
        except DecodeError:
            raise RequestError(400, f"the body is no {method.input_type.full_name}: compare the protos") from None
        return message, lambda answer, _: _Reply(answer.SerializeToString(), _PROTOBUF)

    return _Way(path, read)


def _reply(answer: Any, times: CallTimes) -> _Reply:  # noqa: ANN401
    if isinstance(answer, pb.ExplainResponse):
        return _Reply(dump_explanations(answer, times))
    return _Reply(dump(to_plain(answer)))


def _server_metadata(answer: inference_pb2.ServerMetadataResponse, _times: CallTimes) -> _Reply:
    plain = to_plain(answer)
    return _Reply(dump({**plain, "extensions": [*plain["extensions"], "binary_tensor_data"]}))


def _ready(ready: bool, **more: str) -> _Reply:
    # Some clients look at the status alone, others at the body.
    return _Reply(dump({**more, "ready": ready}), status=200 if ready else 503)


def _is_inference(scope: Any) -> bool:  # noqa: ANN401
    path: str = scope.get("path", "")
    return path.startswith("/v2")


def _too_many() -> Failure:
    """Describes what is not answered because there are too many connections."""
    headers = {"retry-after": "1", "connection": "close"}
    message = "the server has as many connections as it takes: try again a little later"
    return Failure(503, message, reason="OVERLOADED", code="UNAVAILABLE", headers=headers)


async def _refuse_path(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
    error = RequestError(404, "there is no such path: docs/http.md lists those there are")
    await _refuse(error, scope, send, inference=_is_inference(scope))


async def _refuse_stream(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
    error = RequestError(501, "streams are for gRPC: ask by it, or explain a few images at once by /v1/explain")
    await _refuse(error, scope, send, inference=False)


async def _refuse(error: RequestError, scope: Any, send: Any, *, inference: bool) -> None:  # noqa: ANN401
    """Answers a request that is for no RPC."""
    sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"]
    request_id = sent[0] if len(sent) == 1 and is_request_id(sent[0]) else new_request_id()
    error.headers.setdefault("connection", "close")
    await _fail(Failure.of_request(error, request_id=request_id), send, inference=inference)


async def _fail(failure: Failure, send: Any, *, inference: bool) -> None:  # noqa: ANN401
    media, body = failure.as_inference_error() if inference else failure.as_problem()
    headers = tuple((name.encode("ascii"), value.encode("ascii")) for name, value in failure.headers.items())
    await _send(send, _Reply(body, media, failure.status, headers), request_id=failure.request_id)


async def _send_page(page: Page, scope: Any, send: Any) -> None:  # noqa: ANN401
    if scope["method"] not in ("GET", "HEAD"):
        await _refuse(
            RequestError(405, "this path takes GET, HEAD alone", headers={"allow": "GET, HEAD"}),
            scope,
            send,
            inference=False,
        )
        return
    try:
        read_query(scope["query_string"], ())
    except RequestError as error:
        await _refuse(error, scope, send, inference=False)
        return
    reply = _Reply(page.body, b"text/html; charset=utf-8", headers=page.headers)
    await _send(send, reply, request_id="")


async def _send(send: Any, reply: _Reply, *, request_id: str) -> None:  # noqa: ANN401
    headers = [
        (b"content-type", reply.media),
        (b"content-length", str(len(reply.body)).encode("ascii")),
        *_ALWAYS,
        *reply.headers,
    ]
    if not any(name == b"content-security-policy" for name, _ in reply.headers):
        headers.append(_NOTHING)
    if request_id:
        headers.append((b"x-request-id", request_id.encode("ascii")))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
