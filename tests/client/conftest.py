"""A small gRPC server that does what a test tells it to, and both clients behind one face.

The server is real and speaks the real protocol; it stands in for servers that misbehave, which a keylock server does
not do on request.
"""

import inspect
import io
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from PIL import Image

from keylock.inference import inference_pb2 as oip
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2
from keylock_client import AsyncClient, Client

SERVICE = "/keylock.v1.ExplanationService/"
METHODS = {
    SERVICE + "Explain": pb.ExplainRequest,
    SERVICE + "GetModel": pb.GetModelRequest,
    SERVICE + "EstimateExplain": pb.EstimateExplainRequest,
    "/keylock.v1.LicenseService/GetLicense": license_pb2.GetLicenseRequest,
    "/keylock.v1.LicenseService/GetUsage": license_pb2.GetUsageRequest,
    "/keylock.v1.LicenseService/ExchangeToken": license_pb2.ExchangeTokenRequest,
    "/keylock.v1.LicenseService/GetReceiptRevocations": license_pb2.GetReceiptRevocationsRequest,
    "/inference.GRPCInferenceService/ModelInfer": oip.ModelInferRequest,
}
# The form of a token, and nothing more: nobody in these tests checks it.
TOKEN = "eyJhbGciOiJFZDI1NTE5In0.eyJqdGkiOiJub3RoaW5nIn0.c2VjcmV0LXNpZ25hdHVyZQ"
DIGEST = "sha256:" + "0123456789ab" + "c" * 52
CLASSES = ("circle", "square", "star")


class Scripted:
    """A server whose answers a test sets, method by method; it keeps what it was asked and with which metadata."""

    def __init__(self, address="localhost:0", credentials=None):
        self.answers = {
            "GetModel": describe,
            "Explain": explain,
            "ExplainStream": explain_stream,
            "ModelInfer": infer,
            "GetLicense": grant,
            "ExchangeToken": lambda request, context: license_pb2.ExchangeTokenResponse(access_token="ey.access.token"),
        }
        self.calls = []
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(
            self._pool,
            handlers=(self,),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self.target = f"localhost:{self.port}"
        self._server.start()

    def service(self, details):
        name = details.method.rpartition("/")[2]
        if details.method == SERVICE + "ExplainStream" and self.answers.get(name) is not None:
            # What it yields: messages, or their bytes.
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: self.answers[name](requests, context),
                pb.ExplainStreamRequest.FromString,
                lambda answer: answer if isinstance(answer, bytes) else answer.SerializeToString(),
            )
        if details.method not in METHODS or self.answers.get(name) is None:
            return None

        def handle(request, context):
            self.calls.append((name, request, dict(context.invocation_metadata())))
            return self.answers[name](request, context)

        def encode(answer):
            return answer if isinstance(answer, bytes) else answer.SerializeToString()

        return grpc.unary_unary_rpc_method_handler(handle, METHODS[details.method].FromString, encode)

    def asked(self, name):
        return [request for method, request, _ in self.calls if method == name]

    def metadata(self, name):
        return [metadata for method, _, metadata in self.calls if method == name]

    def stop(self):
        self._server.stop(None).wait()
        self._pool.shutdown()


def describe(request, context):
    return pb.GetModelResponse(
        model=pb.Model(name="shapes", digest=DIGEST),
        classes=CLASSES,
        preprocessing=pb.Preprocessing(
            height=8, width=8, channels=3, resize="shorter_side_crop", mean=[0.5] * 3, std=[0.25] * 3
        ),
        explainers=[pb.Explainer(name="grad_cam")],
        key_available=True,
    )


def explain(request, context):
    keyed = any(key == "authorization" for key, _ in context.invocation_metadata())
    about = {"target_index": request.target_index, None: 2}.get(request.WhichOneof("target"))
    about = CLASSES.index(request.target_label) if about is None else about
    result = pb.Explanation(
        prediction=pb.Prediction(
            index=2, label="star", probability=0.75, logits=[0, 0, 2], top=[pb.ClassScore(index=2, label="star")]
        ),
        map=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[2, 3], data=np.arange(6, dtype="<f4").tobytes()),
        explainer=pb.Explainer(name=request.explainer or "grad_cam"),
        keyed=keyed,
        target=pb.ClassScore(index=about, label=CLASSES[about], probability=0.75),
    )
    result.explainer.parameters.update({"layer": "last", "steps": 8, "scale": 0.5, "sizes": [1, 2.5]})
    return pb.ExplainResponse(
        request_id=request.request_id,
        model=pb.Model(name="shapes", digest=DIGEST),
        results=[result] * len(request.images),
    )


def explain_stream(requests, context):
    start = next(requests).start
    for request in requests:
        alone = pb.ExplainRequest(request_id=f"{start.options.request_id}/{request.image.number}")
        alone.images.append(request.image.image)
        yield pb.ExplainStreamResponse(number=request.image.number, answer=explain(alone, context))


def infer(request, context):
    count = request.inputs[0].shape[0]
    logits = np.tile(np.array([0, 3, 1], dtype="<f4"), (count, 1))
    answer = oip.ModelInferResponse(model_name="shapes", model_version="0123456789ab", id=request.id)
    answer.outputs.add(name="logits", datatype="FP32", shape=[count, 3])
    answer.raw_output_contents.append(logits.tobytes())
    return answer


def grant(request, context):
    answer = license_pb2.GetLicenseResponse()
    answer.license.id, answer.license.customer = "L1", "Acme"
    answer.license.models.append("*")
    answer.license.explainers.append("grad_cam")
    answer.license.expires.FromJsonString("2030-01-02T03:04:05Z")
    return answer


def refuse(code, message, *details):
    """Make an answer that is an error with rich details."""

    def answer(request, context):
        status = status_pb2.Status(code=code.value[0], message=message)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
        context.abort(code, message)

    return answer


def reason(text, **facts):
    return error_details_pb2.ErrorInfo(reason=text, domain="keylock", metadata=facts)


class Waiting:
    """An `AsyncClient` whose calls are waited for, so that one test serves both clients."""

    def __init__(self, loop_thread, client):
        self._loop_thread, self._client = loop_thread, client

    def __getattr__(self, name):
        found = getattr(self._client, name)
        if name == "explain_many":
            return self._iterate
        if not inspect.iscoroutinefunction(found):
            return found
        return lambda *args, **kwargs: self._loop_thread.run(found(*args, **kwargs))

    def _iterate(self, *args, **kwargs):
        async def make():
            return self._client.explain_many(*args, **kwargs)

        async def following():
            return await anext(made, None)

        made = self._loop_thread.run(make())
        try:
            while (result := self._loop_thread.run(following())) is not None:
                yield result
        finally:
            self._loop_thread.run(made.aclose())

    def __repr__(self):
        return repr(self._client)


@pytest.fixture
def toolbox():
    """What tests need from this file; test modules cannot import it."""
    return type(
        "Toolbox",
        (),
        {
            "refuse": staticmethod(refuse),
            "reason": staticmethod(reason),
            "Scripted": Scripted,
            "explain": staticmethod(explain),
        },
    )


@pytest.fixture
def server():
    scripted = Scripted()
    yield scripted
    scripted.stop()


@pytest.fixture(params=["sync", "async"])
def connect(request, loop_thread):
    """Make a client of either kind; it is closed after the test."""
    clients = []

    def make(*args, **kwargs):
        if request.param == "sync":
            clients.append(Client(*args, **kwargs))
        else:
            clients.append(Waiting(loop_thread, AsyncClient(*args, **kwargs)))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def token():
    return TOKEN


@pytest.fixture
def png():
    """Make the bytes of a PNG file of a size and a colour."""

    def make(width=12, height=8, colour=(200, 30, 60)):
        buffer = io.BytesIO()
        Image.new("RGB", (width, height), colour).save(buffer, "PNG")
        return buffer.getvalue()

    return make
