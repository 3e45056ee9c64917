"""How every RPC of a server is asked: one row for each, with a good request and what is wrong in bad ones.

The RPCs are found in the descriptors of the services. `tests/server/services/test_every_rpc.py` says what holds for all
of them, and which row is missing.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from keylock.inference import inference_pb2
from keylock.v1 import admin_pb2, license_pb2
from keylock.v1 import explanation_pb2 as pb
from keylock_server.services.registry import SERVICES

__all__ = ["CASES", "IMAGE", "PIXELS", "PORTS", "ROWS", "Case", "Row", "stream"]

PORTS: Mapping[str, list[ServiceDescriptor]] = {
    "public": [service.descriptor for service in SERVICES],
    "operators": [
        admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
        inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    ],
}

PIXELS = np.random.default_rng(7).integers(0, 256, (8, 8, 3), dtype=np.uint8)
IMAGE = pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=PIXELS.shape, data=PIXELS.tobytes()))


@dataclass(frozen=True)
class Row:
    """How an RPC is asked.

    Attributes:
        good: Makes a request that is answered, of a stream its messages; given the server it is for.
        bad: Requests that are refused, by the field that the refusal names.
        free: Fields of the request that take whatever is sent.
        inside: Fields whose faults are named by another one, which is in `bad`.
        license: Whether a license is `ignored`, `read` or `needed`.
        works: Where a call can be held: in the event `loop`, in a `thread`, in the `model`.
        units: What a good request with a license is charged.
        without_store: Why a good request with a license is refused by a server without a store.
        refused_on: Why every request is refused, by the port where nobody may ask.
        ends_the_server: Whether a good request does.
    """

    good: Callable[[Any], Any]
    bad: Mapping[str, Any] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    inside: Mapping[str, str] = field(default_factory=dict)
    license: str = "ignored"
    works: tuple[str, ...] = ("loop",)
    units: int = 0
    without_store: str = ""
    refused_on: Mapping[str, str] = field(default_factory=dict)
    ends_the_server: bool = False


def explain(**changes: Any) -> pb.ExplainRequest:
    return pb.ExplainRequest(**({"images": [IMAGE]} | changes))


def stream(options: pb.ExplainRequest | None = None, **image: Any) -> list[pb.ExplainStreamRequest]:
    start = pb.ExplainStreamStart(options=options or pb.ExplainRequest())
    sent = pb.ExplainStreamImage(**({"number": 1, "image": IMAGE} | image))
    return [pb.ExplainStreamRequest(start=start), pb.ExplainStreamRequest(image=sent)]


def without_images(request: pb.ExplainRequest) -> pb.ExplainRequest:
    made = pb.ExplainRequest()
    made.CopyFrom(request)
    made.ClearField("images")
    return made


def infer(**changes: Any) -> inference_pb2.ModelInferRequest:
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="pixels", datatype="UINT8", shape=[1, 8, 8, 3])
    return inference_pb2.ModelInferRequest(**({"inputs": [tensor], "raw_input_contents": [PIXELS.tobytes()]} | changes))


def parameter(**value: Any) -> Any:
    return {"timeout": inference_pb2.InferParameter(**value)}


def revoke(seconds: int | None = None, **fields: Any) -> admin_pb2.RevokeLicenseRequest:
    made = admin_pb2.RevokeLicenseRequest(**fields)
    if seconds is not None:
        made.issued_before.seconds = seconds
    return made


def repository(kind: Any) -> dict[str, Any]:
    setting = {"config": inference_pb2.ModelRepositoryParameter(string_param="{}")}
    return {
        "repository_name": kind(repository_name="none", model_name="tiny"),
        "model_name": kind(model_name="none"),
        "parameters": kind(model_name="tiny", parameters=setting),
    }


EXPLAIN_BAD = {
    "request_id": explain(request_id="two words"),
    "model_name": explain(model_name="none"),
    "model_version": explain(model_version="none"),
    "images": explain(images=[]),
    "images[1]": explain(images=[IMAGE, pb.Image(encoded=b"\x89PNG\r\n\x1a\n" + PIXELS.tobytes())]),
    "explainer": explain(explainer="none"),
    "target_index": explain(target_index=4),
    "target_label": explain(target_label="none"),
    "parameters.layer": explain(parameters={"layer": "none"}),
    "answer.map_dtype": explain(answer=pb.AnswerOptions(map_dtype=9)),
    "answer.compression": explain(answer=pb.AnswerOptions(compression=9)),
    "answer.max_bytes": explain(answer=pb.AnswerOptions(max_bytes=1)),
    "prediction": explain(prediction=9),
    "explain_if": explain(explain_if=pb.ExplainIf()),
    "explain_if.probability_below": explain(explain_if=pb.ExplainIf(probability_below=0.0)),
    "explain_if.margin_below": explain(explain_if=pb.ExplainIf(margin_below=math.nan)),
    "explain_if.predicted": explain(explain_if=pb.ExplainIf(predicted=pb.ClassSet())),
    "explain_if.predicted.labels": explain(explain_if=pb.ExplainIf(predicted=pb.ClassSet(labels=["none"]))),
    "explain_if.predicted.indices": explain(explain_if=pb.ExplainIf(predicted=pb.ClassSet(indices=[4]))),
}
SUBJECT = "sha256:" + "0" * 64


def disclose(**changes: Any) -> pb.DiscloseRequest:
    good = {"image": IMAGE, "reason": pb.DISCLOSURE_REASON_AFFECTED_PERSON, "subject_digest": SUBJECT}
    return pb.DiscloseRequest(**(good | changes))


STREAM_BAD = {
    "start": stream()[1:],
    "start.options.images": stream(explain()),
    "image": stream()[:1] * 2,
    "image.number": [*stream(number=1), *stream(number=1)[1:]],
} | {
    f"start.options.{path}": stream(without_images(request))
    for path, request in EXPLAIN_BAD.items()
    if not path.startswith("images")
}

ROWS = {
    "keylock.v1.ExplanationService.Explain": Row(
        lambda world: explain(), EXPLAIN_BAD, license="read", works=("thread", "model"), units=1
    ),
    "keylock.v1.ExplanationService.ExplainStream": Row(
        lambda world: stream(), STREAM_BAD, license="read", works=("thread", "model"), units=1
    ),
    "keylock.v1.ExplanationService.Disclose": Row(
        lambda world: disclose(),
        {
            "request_id": disclose(request_id="two words"),
            "model_name": disclose(model_name="none"),
            "model_version": disclose(model_version="none"),
            "image": disclose(image=pb.Image()),
            "explainer": disclose(explainer="none"),
            "target_index": disclose(target_index=4),
            "target_label": disclose(target_label="none"),
            "reason": disclose(reason=pb.DISCLOSURE_REASON_UNSPECIFIED),
            "subject_digest": disclose(subject_digest="Jane Doe"),
        },
        license="needed",
        works=("thread", "model"),
        without_store="NO_METERING",
    ),
    "keylock.v1.ExplanationService.EstimateExplain": Row(
        lambda world: pb.EstimateExplainRequest(images=1),
        {
            "model_name": pb.EstimateExplainRequest(images=1, model_name="none"),
            "model_version": pb.EstimateExplainRequest(images=1, model_version="none"),
            "explainer": pb.EstimateExplainRequest(images=1, explainer="none"),
            "images": pb.EstimateExplainRequest(),
        },
        license="read",
        works=("thread",),
        without_store="NO_METERING",
    ),
    "keylock.v1.ExplanationService.GetModel": Row(
        lambda world: pb.GetModelRequest(),
        {
            "model_name": pb.GetModelRequest(model_name="none"),
            "model_version": pb.GetModelRequest(model_version="none"),
        },
    ),
    "keylock.v1.LicenseService.GetLicense": Row(
        lambda world: license_pb2.GetLicenseRequest(), license="needed", works=("thread",)
    ),
    "keylock.v1.LicenseService.GetUsage": Row(
        lambda world: license_pb2.GetUsageRequest(), license="needed", works=("thread",), without_store="NO_METERING"
    ),
    "keylock.v1.LicenseService.ExchangeToken": Row(
        lambda world: license_pb2.ExchangeTokenRequest(),
        {
            "lifetime_s": license_pb2.ExchangeTokenRequest(lifetime_s=5),
            "bind_certificate": license_pb2.ExchangeTokenRequest(bind_certificate=True),
        },
        license="needed",
        works=("thread",),
    ),
    "keylock.v1.LicenseService.ProveReceipt": Row(
        lambda world: license_pb2.ProveReceiptRequest(leaf_hash=world.leaf),
        {
            "leaf_hash": license_pb2.ProveReceiptRequest(leaf_hash=PIXELS.tobytes()),
            "since_size": lambda world: license_pb2.ProveReceiptRequest(leaf_hash=world.leaf, since_size=10**9),
        },
        license="needed",
        works=("thread",),
        without_store="NO_PROOF",
    ),
    "keylock.v1.LicenseService.GetReceiptRevocations": Row(
        lambda world: license_pb2.GetReceiptRevocationsRequest(), works=("thread",)
    ),
    "keylock.v1.AdminService.GetStatus": Row(lambda world: admin_pb2.GetStatusRequest()),
    "keylock.v1.AdminService.RevokeLicense": Row(
        lambda world: revoke(license_id=world.grant().id),
        {
            "license_id": revoke(license_id="none"),
            "token_id": revoke(token_id="eyJhbGciOiJFZERTQSJ9.e30.c2lnbmF0dXJl"),
            "issued_before": revoke(-(10**15), all_licenses=True),
            "all_licenses": revoke(1_600_000_000),
            "why": revoke(license_id="none", why="x" * 201),
        },
        works=("thread",),
        without_store="NO_STORE",
    ),
    "keylock.v1.AdminService.SuspendLicense": Row(
        lambda world: admin_pb2.SuspendLicenseRequest(license_id=world.grant().id),
        {
            "license_id": admin_pb2.SuspendLicenseRequest(license_id="none"),
            "why": admin_pb2.SuspendLicenseRequest(license_id="none", why="x" * 201),
        },
        free=("unpaid",),
        works=("thread",),
        without_store="NO_STORE",
    ),
    "keylock.v1.AdminService.ReinstateLicense": Row(
        lambda world: admin_pb2.ReinstateLicenseRequest(license_id=world.grant().id),
        {"license_id": admin_pb2.ReinstateLicenseRequest(license_id="none")},
        works=("thread",),
        without_store="NO_STORE",
    ),
    "keylock.v1.AdminService.GetUsage": Row(
        lambda world: admin_pb2.AdminServiceGetUsageRequest(license_id=world.grant().id),
        {"license_id": admin_pb2.AdminServiceGetUsageRequest(license_id="none")},
        works=("thread",),
        without_store="NO_STORE",
    ),
    "keylock.v1.AdminService.Drain": Row(lambda world: admin_pb2.DrainRequest(), ends_the_server=True),
    "inference.GRPCInferenceService.ServerLive": Row(lambda world: inference_pb2.ServerLiveRequest()),
    "inference.GRPCInferenceService.ServerReady": Row(lambda world: inference_pb2.ServerReadyRequest()),
    "inference.GRPCInferenceService.ModelReady": Row(
        lambda world: inference_pb2.ModelReadyRequest(name="tiny"), free=("name", "version")
    ),
    "inference.GRPCInferenceService.ServerMetadata": Row(lambda world: inference_pb2.ServerMetadataRequest()),
    "inference.GRPCInferenceService.ModelMetadata": Row(
        lambda world: inference_pb2.ModelMetadataRequest(name="tiny"),
        {
            "name": inference_pb2.ModelMetadataRequest(name="none"),
            "version": inference_pb2.ModelMetadataRequest(name="tiny", version="none"),
        },
    ),
    "inference.GRPCInferenceService.ModelInfer": Row(
        lambda world: infer(),
        {
            "model_name": infer(model_name="none"),
            "model_version": infer(model_version="none"),
            "parameters.timeout": infer(parameters=parameter(int64_param=0)),
            "inputs": infer(inputs=[]),
            "inputs[0]": infer(raw_input_contents=[PIXELS.tobytes()[1:]]),
            "outputs[0]": infer(outputs=[inference_pb2.ModelInferRequest.InferRequestedOutputTensor(name="none")]),
        },
        free=("id",),
        inside={"raw_input_contents": "inputs"},
        works=("loop", "model"),
        refused_on={"operators": "INVALID_INPUT"},
    ),
    "inference.GRPCInferenceService.RepositoryIndex": Row(
        lambda world: inference_pb2.RepositoryIndexRequest(),
        {"repository_name": inference_pb2.RepositoryIndexRequest(repository_name="none")},
        free=("ready",),
    ),
    "inference.GRPCInferenceService.RepositoryModelLoad": Row(
        lambda world: inference_pb2.RepositoryModelLoadRequest(model_name="tiny"),
        repository(inference_pb2.RepositoryModelLoadRequest),
        works=("loop", "thread"),
        refused_on={"public": "OPERATORS_ONLY"},
    ),
    "inference.GRPCInferenceService.RepositoryModelUnload": Row(
        lambda world: inference_pb2.RepositoryModelUnloadRequest(model_name="tiny"),
        repository(inference_pb2.RepositoryModelUnloadRequest),
        refused_on={"public": "OPERATORS_ONLY"},
    ),
}


@dataclass(frozen=True)
class Case:
    """An RPC on one of the ports."""

    port: str
    method: MethodDescriptor

    def __str__(self) -> str:
        return f"{self.method.containing_service.name}/{self.method.name} ({self.port})"

    @property
    def path(self) -> str:
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def row(self) -> Row:
        return ROWS[self.method.full_name]

    @property
    def is_refused(self) -> bool:
        return self.port in self.row.refused_on


# One without a row is the business of the first test alone.
CASES = [
    Case(port, method)
    for port, services in PORTS.items()
    for service in services
    for method in service.methods
    if method.full_name in ROWS
]
