"""The client of operators: the admin service of a server, over TLS with certificates on both sides."""

from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from keylock.v1 import admin_pb2 as pb
from keylock.v1 import admin_pb2_grpc
from keylock_client._failures import translate
from keylock_client._settings import Settings, Tls, check_timeout
from keylock_client.errors import ClientError

__all__ = ["DEFAULT_ADMIN_TARGET", "AdminClient"]

DEFAULT_ADMIN_TARGET: Final = "localhost:8471"


class AdminClient:
    """Shows how a server is, takes licenses back on it and drains it. Threads may share one client.

    Answers are the messages of `keylock.v1.admin_pb2`, which `proto/keylock/v1/admin.proto` describes.
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
        self._stub = admin_pb2_grpc.AdminServiceStub(self._channel)

    def status(self) -> pb.GetStatusResponse:
        """Ask how the server is.

        Raises:
            ClientError: The server cannot be reached, or refuses.
        """
        answer: pb.GetStatusResponse = self._call("GetStatus", pb.GetStatusRequest())
        return answer

    def usage(self, license_id: str) -> pb.AdminServiceGetUsageResponse:
        """Ask what a license has used.

        Raises:
            ClientError: The server cannot be reached, or does not know the license.
        """
        request = pb.AdminServiceGetUsageRequest(license_id=license_id)
        answer: pb.AdminServiceGetUsageResponse = self._call("GetUsage", request)
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
            ClientError: The server cannot be reached, or refuses.
        """
        request = pb.RevokeLicenseRequest(license_id=license_id, token_id=token_id, all_licenses=all_licenses, why=why)
        if issued_before is not None:
            moment = Timestamp()
            moment.FromDatetime(issued_before)
            request.issued_before.CopyFrom(moment)
        answer: pb.RevokeLicenseResponse = self._call("RevokeLicense", request)
        return answer

    def suspend(self, license_id: str, *, why: str = "") -> pb.LicenseState:
        """Suspend a license until it is reinstated.

        Raises:
            ClientError: The server cannot be reached, or does not know the license.
        """
        answer: pb.SuspendLicenseResponse = self._call(
            "SuspendLicense", pb.SuspendLicenseRequest(license_id=license_id, why=why)
        )
        return answer.state

    def reinstate(self, license_id: str) -> pb.LicenseState:
        """End a suspension; a revoked license stays revoked.

        Raises:
            ClientError: The server cannot be reached, or does not know the license.
        """
        answer: pb.ReinstateLicenseResponse = self._call(
            "ReinstateLicense", pb.ReinstateLicenseRequest(license_id=license_id)
        )
        return answer.state

    def drain(self) -> pb.DrainResponse:
        """Let the server finish the calls that run, and end.

        Raises:
            ClientError: The server cannot be reached.
        """
        answer: pb.DrainResponse = self._call("Drain", pb.DrainRequest())
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

    def _call(self, method: str, request: Message) -> Any:  # noqa: ANN401 - the answer of that method
        failure: ClientError
        try:
            return getattr(self._stub, method)(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            failure = translate(error, settings=self._settings, timeout_s=self._timeout_s, request_id="")
        # Raised outside of the handler, so that gRPC's own exception is not even its context.
        raise failure
