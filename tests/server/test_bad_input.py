"""Every bad call ends with the right status and details, the server goes on, and no secret is in any log."""

import base64
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image
from support import scrape

from keylock.crypto.signing import SigningKey
from keylock.inference import inference_pb2
from keylock.licensing import issue
from keylock.v1 import explanation_pb2 as pb

CODES = grpc.StatusCode
RNG = np.random.default_rng(5)


def encoded(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


NOISE = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
GOOD = pb.Image(encoded=encoded(NOISE))
FRAMES = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 100, 200)]


def tensor(array: np.ndarray, **changes: Any) -> pb.Image:
    kinds = {"uint8": pb.DATA_TYPE_UINT8, "float32": pb.DATA_TYPE_FLOAT32}
    fields = {"dtype": kinds.get(array.dtype.name, 0), "shape": array.shape, "data": array.tobytes()}
    return pb.Image(tensor=pb.Tensor(**(fields | changes)))


@dataclass(frozen=True)
class Case:
    """One bad call: what it does, and what must come back."""

    name: str
    call: Callable[[Any, Any], Any]
    code: grpc.StatusCode
    reason: str
    field: str = ""


def explain(name: str, *images: pb.Image, code: Any = CODES.INVALID_ARGUMENT, reason: str, field: str, **fields: Any):
    return Case(name, lambda calls, vendor: calls.explain(*images, **fields), code, reason, field)


def bad_image(name: str, data: bytes) -> Case:
    return explain(name, GOOD, pb.Image(encoded=data), reason="INVALID_IMAGE", field="images[1]")


def bad_tensor(name: str, image: pb.Image) -> Case:
    return explain(name, image, reason="INVALID_TENSOR", field="images[0]")


def bad_license(reason: str, make: Callable[[Any], str], *, name: str = "", code: Any = CODES.UNAUTHENTICATED) -> Case:
    name = name or reason.lower()
    return Case(name, lambda calls, vendor: calls.explain(GOOD, token=make(vendor)), code, reason)


def header(values: list[str | bytes]) -> Callable[[Any, Any], Any]:
    request = pb.ExplainRequest(images=[GOOD])
    return lambda calls, vendor: calls.explanation.Explain(request, metadata=[("authorization", v) for v in values])


def infer(name: str, /, *, reason: str, field: str, code: Any = CODES.INVALID_ARGUMENT, **changes: Any) -> Case:
    def call(calls: Any, vendor: Any) -> Any:
        images = np.zeros((1, 3, 8, 8), np.float32)
        values = {"name": "image", "datatype": "FP32", "shape": images.shape, "raw": [images.tobytes()]} | changes
        request = inference_pb2.ModelInferRequest(model_name=values.get("model", "tiny"))
        request.model_version = values.get("version", "")
        for _ in range(values.get("inputs", 1)):
            request.inputs.add(name=values["name"], datatype=values["datatype"], shape=values["shape"])
        request.raw_input_contents.extend(values["raw"])
        for output in values.get("outputs", ()):
            request.outputs.add(name=output)
        return calls.inference.ModelInfer(request)

    return Case(f"infer: {name}", call, code, reason, field)


def tampered(vendor: Any) -> str:
    head, payload, signature = vendor.grant().token.split(".")
    claims = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).replace(b"Acme", b"Evil")
    return ".".join([head, base64.urlsafe_b64encode(claims).rstrip(b"=").decode(), signature])


def impersonated(vendor: Any) -> str:
    """Signs with another key under the name of the issuer's."""
    own, other = vendor.grant(), SigningKey.generate()
    head, payload, _ = own.token.split(".")
    signature = base64.urlsafe_b64encode(other.sign(f"{head}.{payload}".encode())).rstrip(b"=").decode()
    return f"{head}.{payload}.{signature}"


def revoked(vendor: Any) -> str:
    granted = vendor.grant()
    vendor.store.revoke(granted.id, at=granted.license.issued_at)
    return granted.token


def foreign(vendor: Any) -> str:
    return issue(vendor.grant(record=False).license, SigningKey.generate())


def shifted(**days: float) -> Callable[[Any], str]:
    def make(vendor: Any) -> str:
        base = vendor.manifest.created
        return vendor.grant(**{name: base + timedelta(days=count) for name, count in days.items()}).token

    return make


FLOATS = RNG.normal(size=(3, 8, 8)).astype(np.float32)
WITH_NAN = np.where(np.arange(192).reshape(3, 8, 8) == 7, np.float32("nan"), FLOATS)

CASES = [
    # Images.
    bad_image("empty file", b""),
    bad_image("no image", b"just some text"),
    bad_image("truncated PNG", encoded(NOISE)[:2000]),
    bad_image("truncated JPEG", encoded(NOISE, "JPEG")[:700]),
    bad_image("corrupt PNG", encoded(NOISE)[:200] + b"\xff" * 50 + encoded(NOISE)[250:]),
    bad_image("bomb", png_header(50_000, 50_000)),
    bad_image("zero pixels", png_header(0, 8)),
    bad_image("animated GIF", encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])),
    bad_image("animated PNG", encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:])),
    explain("no source", pb.Image(), reason="INVALID_INPUT", field="images[0]"),
    explain("no images", reason="INVALID_INPUT", field="images"),
    explain("too many images", *[GOOD] * 33, reason="INVALID_INPUT", field="images"),
    # Tensors.
    bad_tensor("no dtype", tensor(FLOATS, dtype=pb.DATA_TYPE_UNSPECIFIED)),
    bad_tensor("unknown dtype", tensor(FLOATS, dtype=17)),
    bad_tensor("wrong type for its bytes", tensor(FLOATS, dtype=pb.DATA_TYPE_UINT8)),
    bad_tensor("wrong size", tensor(FLOATS[:, :7].copy())),
    bad_tensor("channels last", tensor(FLOATS.transpose(1, 2, 0).copy())),
    bad_tensor("batch", tensor(FLOATS[None])),
    bad_tensor("too few bytes", tensor(FLOATS, data=FLOATS.tobytes()[:-4])),
    bad_tensor("no bytes for a huge shape", tensor(FLOATS, shape=[2**62, 2**62, 8], data=b"")),
    bad_tensor("negative shape", tensor(FLOATS, shape=[-3, -8, 8])),
    bad_tensor("no bytes for a side of zero and huge ones", tensor(FLOATS, shape=[2**40, 0, 2**40], data=b"")),
    bad_tensor("twenty sides", tensor(FLOATS, shape=[1] * 20)),
    bad_tensor("NaN", tensor(WITH_NAN)),
    bad_tensor("infinity", tensor(np.full((3, 8, 8), np.inf, np.float32))),
    bad_tensor("pixels with four channels", tensor(np.zeros((8, 8, 4), np.uint8))),
    bad_tensor("zero pixels", tensor(np.zeros((0, 8, 3), np.uint8))),
    # Names.
    explain("unknown model", GOOD, code=CODES.NOT_FOUND, reason="UNKNOWN_NAME", field="model_name", model_name="x"),
    explain("unknown explainer", GOOD, code=CODES.NOT_FOUND, reason="UNKNOWN_NAME", field="explainer", explainer="x"),
    explain(
        "explainer without a graph",
        GOOD,
        code=CODES.NOT_FOUND,
        reason="NOT_SERVED",
        field="explainer",
        explainer="only_torch",
    ),
    explain("unknown label", GOOD, code=CODES.NOT_FOUND, reason="UNKNOWN_NAME", field="target_label", target_label="x"),
    explain("class beyond the last", GOOD, reason="INVALID_INPUT", field="target_index", target_index=4),
    explain("negative class", GOOD, reason="INVALID_INPUT", field="target_index", target_index=-1),
    explain("endless request id", GOOD, reason="INVALID_INPUT", field="request_id", request_id="x" * 129),
    Case(
        "other parameter value",
        lambda calls, vendor: calls.explain(GOOD, parameters={"layer": "other"}),
        CODES.INVALID_ARGUMENT,
        "INVALID_INPUT",
        "parameters.layer",
    ),
    Case(
        "unknown parameter",
        lambda calls, vendor: calls.explain(GOOD, parameters={"steps": 5}),
        CODES.NOT_FOUND,
        "UNKNOWN_NAME",
        "parameters.steps",
    ),
    *[
        Case(
            f"parameter with {value}",
            lambda calls, vendor, value=value: calls.explain(GOOD, parameters={"layer": value}),
            CODES.INVALID_ARGUMENT,
            "INVALID_INPUT",
            "parameters.layer",
        )
        for value in (float("nan"), float("inf"), [1, float("nan")], {"a": float("-inf")})
    ],
    # Licenses.
    bad_license("LICENSE_MALFORMED", lambda vendor: "no-token"),
    bad_license("LICENSE_MALFORMED", lambda vendor: "x" * 7000, name="long garbage"),
    bad_license("LICENSE_MALFORMED", lambda vendor: vendor.grant().token[:-5], name="cut token"),
    Case("no scheme", header(["lonely"]), CODES.UNAUTHENTICATED, "LICENSE_MALFORMED"),
    Case("other scheme", header(["Basic dXNlcjpwYXNz"]), CODES.UNAUTHENTICATED, "LICENSE_MALFORMED"),
    Case("empty token", header(["Bearer "]), CODES.UNAUTHENTICATED, "LICENSE_MALFORMED"),
    Case("two licenses", header(["Bearer a.b.c", "Bearer a.b.c"]), CODES.UNAUTHENTICATED, "LICENSE_MALFORMED"),
    bad_license("LICENSE_FORGED", tampered),
    bad_license("LICENSE_FORGED", impersonated, name="signed by somebody else"),
    bad_license("LICENSE_UNKNOWN_ISSUER", foreign),
    bad_license("LICENSE_UNKNOWN", lambda vendor: vendor.grant(record=False).token),
    bad_license("LICENSE_REVOKED", revoked),
    bad_license("LICENSE_NOT_YET_VALID", shifted(not_before=1, expires=2)),
    bad_license("LICENSE_EXPIRED", shifted(not_before=-9, expires=-1)),
    bad_license(
        "LICENSE_NOT_YET_VALID", shifted(not_before=31 / 86400, expires=2), name="clock skew beyond the leeway"
    ),
    bad_license(
        "LICENSE_WRONG_MODEL", lambda vendor: vendor.grant(models=("other",)).token, code=CODES.PERMISSION_DENIED
    ),
    bad_license(
        "LICENSE_WRONG_MODEL",
        lambda vendor: vendor.grant(models=("sha256:" + "0" * 64,)).token,
        name="license for another digest",
        code=CODES.PERMISSION_DENIED,
    ),
    bad_license(
        "LICENSE_WRONG_EXPLAINER",
        lambda vendor: vendor.grant(explainers=("coarse",)).token,
        code=CODES.PERMISSION_DENIED,
    ),
    # Predictions.
    infer("unknown model", model="x", reason="UNKNOWN_NAME", field="model_name", code=CODES.NOT_FOUND),
    infer("unknown version", version="9", reason="UNKNOWN_NAME", field="model_version", code=CODES.NOT_FOUND),
    infer("unknown input", name="x", reason="UNKNOWN_NAME", field="inputs[0]", code=CODES.NOT_FOUND),
    infer("unknown output", outputs=["map"], reason="UNKNOWN_NAME", field="outputs[0]", code=CODES.NOT_FOUND),
    infer("no input", inputs=0, raw=[], reason="INVALID_INPUT", field="inputs"),
    infer("two inputs", inputs=2, reason="INVALID_INPUT", field="inputs"),
    infer("two raw contents", raw=[b"", b""], reason="INVALID_INPUT", field="inputs"),
    infer("wrong datatype", datatype="FP64", reason="INVALID_TENSOR", field="inputs[0]"),
    infer("wrong shape", shape=[1, 8, 8, 3], reason="INVALID_TENSOR", field="inputs[0]"),
    infer("too few bytes", raw=[b"\0" * 12], reason="INVALID_TENSOR", field="inputs[0]"),
    infer("no images", shape=[0, 3, 8, 8], raw=[b""], reason="INVALID_INPUT", field="inputs[0].shape"),
    infer(
        "too many images",
        shape=[33, 3, 8, 8],
        raw=[bytes(33 * 192 * 4)],
        reason="INVALID_INPUT",
        field="inputs[0].shape",
    ),
    infer(
        "NaN",
        raw=[WITH_NAN.astype("<f4").tobytes()],
        reason="INVALID_TENSOR",
        field="inputs[0]",
    ),
    infer(
        "corrupt file",
        name="encoded",
        datatype="BYTES",
        shape=[1],
        raw=[b"\x04\0\0\0nope"],
        reason="INVALID_IMAGE",
        field="inputs[0][0]",
    ),
    infer(
        "lengths that do not add up",
        name="encoded",
        datatype="BYTES",
        shape=[1],
        raw=[b"\xff\xff\xff\xffnope"],
        reason="INVALID_TENSOR",
        field="inputs[0]",
    ),
    infer(
        "pixels with four channels",
        name="pixels",
        datatype="UINT8",
        shape=[1, 2, 2, 4],
        raw=[bytes(16)],
        reason="INVALID_TENSOR",
        field="inputs[0]",
    ),
]


def fails(case: Case, calls: Any, vendor: Any) -> tuple[grpc.RpcError, status_pb2.Status]:
    with pytest.raises(grpc.RpcError) as caught:
        case.call(calls, vendor)
    status = rpc_status.from_call(caught.value)
    assert status is not None, f"{case.name} has no details: {caught.value}"
    return caught.value, status


def unpacked(status: status_pb2.Status, kind: Any) -> Any:
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            packed.Unpack(message)
            return message
    return kind()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_call_gets_its_status_and_the_server_goes_on(calls, vendor, case):
    error, status = fails(case, calls, vendor)
    info = unpacked(status, error_details_pb2.ErrorInfo)
    violations = unpacked(status, error_details_pb2.BadRequest).field_violations
    assert (error.code(), info.reason, info.domain) == (case.code, case.reason, "keylock"), error.details()
    assert [violation.field for violation in violations] == ([case.field] if case.field else [])
    assert "Traceback" not in error.details()
    assert ".py" not in error.details()
    assert calls.explain(GOOD).results


def test_no_secret_is_in_any_log_metric_or_span(start_server, vendor, server_log, capfd):
    tokens: list[str] = []

    class Recorder:
        """Hands out what the vendor does, and remembers every token."""

        def __getattr__(self, name: str) -> Any:
            return getattr(vendor, name)

        def grant(self, **fields: Any) -> Any:
            granted = vendor.grant(**fields)
            tokens.append(granted.token)
            return granted

    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    calls = start_server(metrics_port=0, tracer_provider=provider)
    for case in CASES:
        fails(case, calls, Recorder())
    calls.explain(GOOD, token=Recorder().grant().token)
    with pytest.raises(grpc.RpcError):
        calls.channel.unary_unary("/keylock.v1.ExplanationService/Nothing")(b"")
    scraped = scrape(calls.server.metrics_port)
    calls.stop().result(timeout=30)

    traced = "\n".join(span.to_json() for span in spans.get_finished_spans())
    assert scraped.count("keylock_calls_total") > 10
    assert traced.count('"keylock.v1.ExplanationService/Explain"') > 40
    captured = capfd.readouterr()
    text = "\n".join(
        [scraped, traced, server_log.text, captured.out, captured.err]
        + [str(record.__dict__) for record in server_log.records]
    )
    assert text.count("/keylock.v1.ExplanationService/Explain") > 40
    seed = vendor.seed.reveal()
    secrets = [seed.hex(), base64.b64encode(seed).decode(), base64.urlsafe_b64encode(seed).decode().rstrip("=")]
    secrets += [repr(seed)[2:-1], vendor.key_file.read_text().strip()]
    secrets += [part for token in tokens for part in (token, *token.split(".")[1:])]
    offset = vendor.key.reveal()
    secrets += [offset.tobytes().hex(), base64.b64encode(offset.tobytes()).decode()]
    secrets += [np.array2string(offset[0, 0], separator=sep)[1:-1] for sep in (" ", ", ")]
    assert len(tokens) > 10
    assert [secret for secret in secrets if secret in text] == []
    assert "Traceback" not in text
