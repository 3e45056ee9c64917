"""The calls that a client makes, and what it remembers between them."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from google.protobuf.message import Message

from keylock.inference import inference_pb2 as oip
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2
from keylock_client._receipts import Trust
from keylock_client._settings import Token
from keylock_client.results import ModelInfo

if TYPE_CHECKING:
    from keylock.licensing.revocations import Revocations

__all__ = ["Call", "Exchange", "Memory", "Method"]

T = TypeVar("T")


class Method(StrEnum):
    """The methods a client calls, by the full name gRPC knows them by."""

    EXPLAIN = "/keylock.v1.ExplanationService/Explain"
    EXPLAIN_STREAM = "/keylock.v1.ExplanationService/ExplainStream"
    DISCLOSE = "/keylock.v1.ExplanationService/Disclose"
    GET_MODEL = "/keylock.v1.ExplanationService/GetModel"
    ESTIMATE = "/keylock.v1.ExplanationService/EstimateExplain"
    GET_LICENSE = "/keylock.v1.LicenseService/GetLicense"
    GET_USAGE = "/keylock.v1.LicenseService/GetUsage"
    PROVE_RECEIPT = "/keylock.v1.LicenseService/ProveReceipt"
    GET_RECEIPT_REVOCATIONS = "/keylock.v1.LicenseService/GetReceiptRevocations"
    EXCHANGE_TOKEN = "/keylock.v1.LicenseService/ExchangeToken"  # noqa: S105 - the name of a method
    MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"

    @property
    def answer(self) -> type[Message]:
        """The type of the answer."""
        return _ANSWERS[self]


_ANSWERS: dict[Method, type[Message]] = {
    Method.EXPLAIN: pb.ExplainResponse,
    Method.EXPLAIN_STREAM: pb.ExplainStreamResponse,
    Method.DISCLOSE: pb.DiscloseResponse,
    Method.GET_MODEL: pb.GetModelResponse,
    Method.ESTIMATE: pb.EstimateExplainResponse,
    Method.GET_LICENSE: license_pb2.GetLicenseResponse,
    Method.GET_USAGE: license_pb2.GetUsageResponse,
    Method.PROVE_RECEIPT: license_pb2.ProveReceiptResponse,
    Method.GET_RECEIPT_REVOCATIONS: license_pb2.GetReceiptRevocationsResponse,
    Method.EXCHANGE_TOKEN: license_pb2.ExchangeTokenResponse,
    Method.MODEL_INFER: oip.ModelInferResponse,
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call to make.

    Attributes:
        method: Which.
        request: The message to send.
        request_id: The id in the message, if it has one.
        licensed: Whether the license goes along. Predictions need none, and are shown one only where the server's query
            guard has asked for it.
        access: The access token that goes in its place, if there is one.
        begins_anew: Whether it has as long as the whole exchange before it: the next images of a long list.
    """

    method: Method
    request: Message
    request_id: str = ""
    licensed: bool = False
    access: Token | None = None
    begins_anew: bool = False


Exchange: TypeAlias = Generator[Call, Any, T]
"""A conversation with the server that ends in a `T`."""


@dataclass(slots=True)
class Memory:
    """What a client remembers about the server between calls; assignment is atomic, so threads may share it.

    Attributes:
        model_name: The model to ask for; empty for the one that is served.
        model_version: Its version; empty for the newest one.
        compression: How explanations are compressed; None for what the server is set to.
        info: The description of the model, once it was asked for.
        trust: Whose receipts to trust.
        licensed: Whether there is a license.
        licenses_predictions: Whether it has helped predictions past the server's query guard.
        exchanges: Whether the license is exchanged for access tokens.
        binds: Whether they are bound to the client's certificate.
        access: The access token, and until when it is used.
        revocations: Which receipt keys were taken back; None until a list was read.
        revocations_until: When to ask again.
        signs_receipts: Whether the server has ever said that it signs receipts; then an answer without one is refused.
        clock: Seconds, for how long an access token is used.
    """

    model_name: str = ""
    model_version: str = ""
    compression: str | None = None
    info: ModelInfo | None = None
    trust: Trust = field(default_factory=Trust)
    licensed: bool = False
    licenses_predictions: bool = False
    exchanges: bool = False
    binds: bool = False
    access: tuple[Token, float] | None = None
    revocations: "Revocations | None" = None
    revocations_until: float = float("-inf")
    signs_receipts: bool = False
    clock: Callable[[], float] = time.monotonic

    @property
    def revoked(self) -> frozenset[str]:
        """Ids of receipt keys that were taken back, as far as is known."""
        return frozenset() if self.revocations is None else self.revocations.keys
