"""Every error has a row in the status table, and what is for the operator alone never reaches a caller."""

import grpc
import pytest
from google.rpc import error_details_pb2

from keylock import errors
from keylock.errors import KeylockError, LicenseError, LicenseReason, UnknownNameError
from keylock_server.transport.statuses import (
    LICENSE_STATUSES,
    STATUSES,
    DeadlineError,
    OverloadedError,
    row_of,
    status_of,
)


def every_class(above: type[KeylockError] = KeylockError) -> set[type[KeylockError]]:
    found = {above}
    for below in above.__subclasses__():
        # The client's errors are made from statuses and never raised in a server.
        if below.__module__.startswith(("keylock.", "keylock_server.")):
            found |= every_class(below)
    return found


def details(status, kind):
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            packed.Unpack(message)
            return message
    return None


def test_every_error_has_its_own_row():
    assert every_class() - set(STATUSES) == set()


def test_every_license_reason_has_its_own_code():
    assert set(LICENSE_STATUSES) == set(LicenseReason)


def test_license_reasons_are_sent_as_they_are():
    for reason in LicenseReason:
        status = status_of(LicenseError(reason, "no"), error_id="x")
        assert details(status, error_details_pb2.ErrorInfo).reason == reason.value
        assert status.code == LICENSE_STATUSES[reason].value[0]


@pytest.mark.parametrize(
    "error",
    [
        errors.BundleTamperedError("graphs/x.onnx", "secret-text"),
        errors.UnsealError("secret-text"),
        errors.KeySeedError("secret-text"),
        errors.TrainingError("secret-text"),
        ValueError("secret-text"),
        KeylockError("secret-text"),
    ],
)
def test_text_about_the_server_stays_in_the_server(error):
    status = status_of(error, error_id="id-123")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert b"secret-text" not in status.SerializeToString()
    assert "id-123" in status.message
    assert details(status, error_details_pb2.ErrorInfo).metadata["error_id"] == "id-123"


def test_a_class_that_comes_later_takes_the_row_above_it():
    class LaterError(errors.ImageError):
        pass

    assert row_of(LaterError("x")) == STATUSES[errors.ImageError]


def test_overload_says_when_to_come_again():
    status = status_of(OverloadedError(retry_after_s=1.5), error_id="x")
    delay = details(status, error_details_pb2.RetryInfo).retry_delay
    assert (delay.seconds, delay.nanos) == (1, 500_000_000)


def test_fields_and_names_are_in_the_details():
    error = UnknownNameError("explainer", "lime", ["grad_cam"])
    error.field = "explainer"
    status = status_of(error, error_id="x")
    assert details(status, error_details_pb2.ErrorInfo).metadata["name"] == "lime"
    violation = details(status, error_details_pb2.BadRequest).field_violations[0]
    assert (violation.field, "grad_cam" in violation.description) == ("explainer", True)


def test_long_messages_fit_into_metadata():
    error = UnknownNameError("class", "x" * 10_000, [f"class number {i}" for i in range(1000)])
    error.field = "target_label"
    assert len(status_of(error, error_id="x").SerializeToString()) < 4096
    assert status_of(DeadlineError(2), error_id="x").code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
