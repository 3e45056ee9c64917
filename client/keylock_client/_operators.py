"""The client of operators: the admin service of a server, over TLS with certificates on both sides."""

from datetime import datetime
from types import TracebackType
from typing import Final, Self, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from keylock.v1 import admin_pb2 as pb
from keylock_client._admin_answers import check_drain, check_revoked, check_state, check_status, check_usage
from keylock_client._failures import translate
from keylock_client._settings import Settings, Tls, check_timeout
from keylock_client.errors import BadAnswerError, ClientError

__all__ = ["DEFAULT_ADMIN_TARGET", "AdminClient"]

DEFAULT_ADMIN_TARGET: Final = "localhost:8471"

_SERVICE: Final = "/keylock.v1.AdminService/"
_Answer = TypeVar("_Answer", bound=Message)


class AdminClient:
    """Shows how a server is, takes licenses back on it and drains it. Threads may share one client.

    Answers are the messages of `keylock.v1.admin_pb2`, which `proto/keylock/v1/admin.proto` describes. One that makes
    no sense, or is about another license than was asked for, is a `BadAnswerError`.
    """

    def __init__(self, target: str = DEFAULT_ADMIN_TARGET, *, tls: Tls, timeout_s: float = 30.0) -> None:
        """Make a client. Nothing is sent before the first call.

        Args:
            target: Address of the server's admin port, `host:port`.
            tls: The authority that signed the server's certificate, and the operator's own certificate with its key.
            timeout_s: Seconds each call may take.

        Raises:
            InputError: The target, the timeout or a file is unusable.
        """
        self._settings = Settings.make(target=target, license=None, timeout_s=timeout_s, tls=tls, model=None)
        self._timeout_s = check_timeout(timeout_s)
        credentials = self._settings.channel_credentials() or grpc.ssl_channel_credentials()
        self._channel = grpc.secure_channel(self._settings.target, credentials, options=self._settings.channel_options)

    def status(self) -> pb.GetStatusResponse:
        """Ask how the server is.

        Raises:
            ClientError: The server cannot be reached, refuses, or answers what makes no sense.
        """
        answer = self._call(pb.GetStatusResponse, "GetStatus", pb.GetStatusRequest())
        check_status(answer)
        return answer

    def usage(self, license_id: str) -> pb.AdminServiceGetUsageResponse:
        """Ask what a license has used.

        Raises:
            ClientError: The server cannot be reached, does not know the license, or answers what makes no sense.
        """
        request = pb.AdminServiceGetUsageRequest(license_id=license_id)
        answer = self._call(pb.AdminServiceGetUsageResponse, "GetUsage", request)
        check_usage(answer, license_id)
        return answer

    def revoke(
        self,
        license_id: str = "",
        *,
        token_id: str = "",
        issued_before: datetime | None = None,
        all_licenses: bool = False,
        why: str = "",
    ) -> pb.RevokeLicenseResponse:
        """Revoke a license for good, one access token, or what was issued before a time.

        Args:
            license_id: The license; empty for a token, or for all licenses.
            token_id: One access token instead, by the id in it.
            issued_before: Only what was issued before this time, with its zone.
            all_licenses: Must be true where `issued_before` is meant for every license.
            why: A note for the vendor.

        Raises:
            ClientError: The server cannot be reached, refuses, or answers what makes no sense.
        """
        request = pb.RevokeLicenseRequest(license_id=license_id, token_id=token_id, all_licenses=all_licenses, why=why)
        if issued_before is not None:
            moment = Timestamp()
            moment.FromDatetime(issued_before)
            request.issued_before.CopyFrom(moment)
        answer = self._call(pb.RevokeLicenseResponse, "RevokeLicense", request)
        check_revoked(answer, license_id)
        return answer

    def suspend(self, license_id: str, *, why: str = "", unpaid: bool = False) -> pb.LicenseState:
        """Suspend a license until it is reinstated; where that is for non-payment, disclosures go on for a while.

        Raises:
            ClientError: The server cannot be reached, does not know the license, or answers what makes no sense.
        """
        answer = self._call(
            pb.SuspendLicenseResponse,
            "SuspendLicense",
            pb.SuspendLicenseRequest(license_id=license_id, why=why, unpaid=unpaid),
        )
        check_state(answer.state, license_id)
        return answer.state

    def reinstate(self, license_id: str) -> pb.LicenseState:
        """End a suspension; a revoked license stays revoked.

        Raises:
            ClientError: The server cannot be reached, does not know the license, or answers what makes no sense.
        """
        answer = self._call(
            pb.ReinstateLicenseResponse, "ReinstateLicense", pb.ReinstateLicenseRequest(license_id=license_id)
        )
        check_state(answer.state, license_id)
        return answer.state

    def drain(self) -> pb.DrainResponse:
        """Let the server finish the calls that run, and end.

        Raises:
            ClientError: The server cannot be reached, or answers what makes no sense.
        """
        answer = self._call(pb.DrainResponse, "Drain", pb.DrainRequest())
        check_drain(answer)
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AdminClient {self._settings.target}>"

    def _call(self, kind: type[_Answer], method: str, request: Message) -> _Answer:
        # Answers are taken as bytes, because gRPC logs a traceback when a deserialiser fails.
        call: grpc.UnaryUnaryMultiCallable[Message, bytes] = self._channel.unary_unary(
            _SERVICE + method, request_serializer=lambda message: message.SerializeToString()
        )
        failure: ClientError
        try:
            data = call(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            failure = translate(error, settings=self._settings, timeout_s=self._timeout_s, request_id="")
        else:
            try:
                return kind.FromString(data)
            except DecodeError:
                text = f"the server at {self._settings.target} sent an answer that cannot be read"
                failure = BadAnswerError(f"{text}: check that it is the admin port of a keylock server")
        # Raised outside of the handler, so that gRPC's own exception is not even its context.
        raise failure
