"""Every gRPC status becomes an error of ours that says what to do, and the license token is in none of them."""

import traceback

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, RequestInfo, RetryInfo

from keylock.errors import InputError, LicenseError, LicenseReason, ServiceError
from keylock_client import (
    ClientError,
    ConnectionLostError,
    DeadlineError,
    LicenseRefusedError,
    OverloadedError,
    RequestRefusedError,
    ServerFaultError,
    UnreachableError,
    UnsupportedError,
    errors,
)
from keylock_client._failures import _ROWS

EXPECTED = {
    "CANCELLED": ServerFaultError,
    "UNKNOWN": ServerFaultError,
    "INVALID_ARGUMENT": RequestRefusedError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "NOT_FOUND": RequestRefusedError,
    "ALREADY_EXISTS": RequestRefusedError,
    "PERMISSION_DENIED": RequestRefusedError,
    "UNAUTHENTICATED": RequestRefusedError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "FAILED_PRECONDITION": RequestRefusedError,
    "ABORTED": OverloadedError,
    "OUT_OF_RANGE": RequestRefusedError,
    "UNIMPLEMENTED": UnsupportedError,
    "INTERNAL": ServerFaultError,
    "UNAVAILABLE": UnreachableError,
    "DATA_LOSS": ServerFaultError,
}


def fail(server, connect, png, answer, **options):
    server.answers["Explain"] = answer
    with pytest.raises(ClientError) as caught:
        connect(server.target, **options).explain(png(), request_id="asked")
    return caught.value


def test_no_status_lacks_a_row():
    assert set(_ROWS) == {code.name for code in grpc.StatusCode}
    assert set(EXPECTED) == set(_ROWS) - {"OK"}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_bare_status_becomes_an_error(server, connect, png, name):
    code = grpc.StatusCode[name]
    error = fail(server, connect, png, lambda request, context: context.abort(code, "because of the weather"))
    assert type(error) is EXPECTED[name]
    assert (error.code, error.request_id) == (name, "asked")
    # What refuses a request may say why. Other texts are gRPC's own, or of some server that is none of ours.
    refused = EXPECTED[name] is RequestRefusedError
    assert ("because of the weather" in error.message) == refused
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("UNIMPLEMENTED", "Received http2 header with status: 404"),
        ("PERMISSION_DENIED", "Received http2 header with status: 403"),
        ("UNAVAILABLE", "Received http2 header with status: 429"),
        ("UNKNOWN", "Stream removed: invalid content-type: text/html"),
    ],
)
def test_a_web_server_is_no_keylock_server(server, connect, png, name, text):
    code = grpc.StatusCode[name]
    error = fail(server, connect, png, lambda request, context: context.abort(code, text))
    assert type(error) is UnreachableError
    assert "is not a keylock server, it speaks another protocol" in error.message
    assert "http2" not in error.message


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_balancer_without_servers_is_told_from_a_web_server(server, connect, png, status):
    text = f"Received http2 header with status: {status}"
    error = fail(server, connect, png, lambda request, context: context.abort(grpc.StatusCode.UNAVAILABLE, text))
    assert type(error) is UnreachableError
    assert "found none that answered: try again later" in error.message


# What HAProxy 2.6 and nginx 1.22 make of a stream that they end, as gRPC 1.85 tells it.
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("UNKNOWN", "Stream removed (Data frame with END_STREAM flag received)"),
        ("CANCELLED", "Stream removed (Data frame with END_STREAM flag received) (Received RST_STREAM with code 8)"),
        ("INTERNAL", "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"),
    ],
)
def test_a_call_that_a_balancer_ends_is_a_lost_connection(server, connect, png, toolbox, name, text):
    code = grpc.StatusCode[name]
    error = fail(server, connect, png, lambda request, context: context.abort(code, text))
    assert type(error) is ConnectionLostError
    assert (error.code, error.request_id) == (name, "asked")
    assert "was lost before the answer had come: try again with the same request id" in error.message
    # A server that says so itself has failed.
    error = fail(server, connect, png, toolbox.refuse(code, text, toolbox.reason("INTERNAL", error_id="e-1")))
    assert type(error) is ServerFaultError


def test_what_a_server_says_counts_more_than_the_reset_of_a_balancer(server, connect, png, toolbox):
    def answer(request, context):
        with pytest.raises(Exception):  # noqa: B017, PT011 - `abort` raises one without a type of its own
            toolbox.refuse(grpc.StatusCode.UNAVAILABLE, "the server stops", toolbox.reason("LEAVING"))(request, context)
        context.set_code(grpc.StatusCode.CANCELLED)
        context.set_details("Stream removed (RST_STREAM (Received RST_STREAM with error code 8))")
        return b""

    error = fail(server, connect, png, answer)
    assert type(error) is OverloadedError
    assert (error.code, error.message) == ("UNAVAILABLE", "the server stops")


@pytest.mark.parametrize("why", list(LicenseReason))
def test_every_reason_of_a_refused_license_arrives(server, connect, png, toolbox, why):
    refusal = toolbox.refuse(grpc.StatusCode.UNAUTHENTICATED, "the license is not good", toolbox.reason(why.value))
    error = fail(server, connect, png, refusal)
    assert isinstance(error, LicenseRefusedError)
    assert isinstance(error, LicenseError)
    assert (error.reason, error.message, error.exit_code) == (why, "the license is not good", 5)


def test_reasons_of_another_domain_are_not_ours(server, connect, png, toolbox):
    info = toolbox.reason(LicenseReason.EXPIRED.value)
    info.domain = "example.com"
    error = fail(server, connect, png, toolbox.refuse(grpc.StatusCode.INVALID_ARGUMENT, "no", info))
    assert type(error) is RequestRefusedError


def test_details_are_kept(server, connect, png, toolbox):
    request = BadRequest(field_violations=[BadRequest.FieldViolation(field="explainer", description="unknown")])
    refusal = toolbox.refuse(grpc.StatusCode.NOT_FOUND, "no such explainer", toolbox.reason("UNKNOWN_NAME"), request)
    error = fail(server, connect, png, refusal)
    assert error.violations == (errors.Violation("explainer", "unknown"),)
    assert error.exit_code == InputError.exit_code


def test_a_call_without_an_id_is_named_by_the_server(server, connect, toolbox):
    refusal = toolbox.refuse(grpc.StatusCode.NOT_FOUND, "no", toolbox.reason("X"), RequestInfo(request_id="made"))
    server.answers["GetModel"] = refusal
    with pytest.raises(ClientError) as caught:
        connect(server.target).model()
    assert caught.value.request_id == "made"


def test_a_fault_carries_the_id_to_quote(server, connect, png, toolbox):
    facts = toolbox.reason("INTERNAL", error_id="e-77")
    error = fail(server, connect, png, toolbox.refuse(grpc.StatusCode.INTERNAL, "the server failed", facts))
    assert error.error_id == "e-77"
    assert "quote the id e-77" in error.message
    assert error.exit_code == ServiceError.exit_code


def test_an_overloaded_server_is_told_from_an_absent_one(server, connect, png, toolbox):
    pause = RetryInfo()
    pause.retry_delay.FromMilliseconds(1500)
    refusal = toolbox.refuse(grpc.StatusCode.UNAVAILABLE, "the queue is full", toolbox.reason("OVERLOADED"), pause)
    error = fail(server, connect, png, refusal)
    assert (type(error), error.message, error.retry_after_s) == (OverloadedError, "the queue is full", 1.5)


def test_a_server_without_the_key_is_no_fault_of_the_request(server, connect, png, toolbox):
    refusal = toolbox.refuse(grpc.StatusCode.FAILED_PRECONDITION, "this server holds no key", toolbox.reason("NO_KEY"))
    error = fail(server, connect, png, refusal)
    assert (type(error), error.message) == (UnsupportedError, "this server holds no key")


def test_another_kind_of_server_is_recognised(server, connect, png):
    server.answers["GetModel"] = None
    with pytest.raises(UnsupportedError, match="is a keylock server of this version"):
        connect(server.target).explain(png())


def test_a_message_over_the_limit_of_the_server_is_the_image_of_the_caller(connect, png, toolbox):
    import numpy as np

    strict = toolbox.Scripted()
    strict.stop()
    pool = grpc.server(
        strict._pool.__class__(2), handlers=(strict,), options=[("grpc.max_receive_message_length", 100_000)]
    )
    port = pool.add_insecure_port("localhost:0")
    pool.start()
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    try:
        with pytest.raises(RequestRefusedError, match="send a smaller one"):
            connect(f"localhost:{port}").explain(noise)
    finally:
        pool.stop(None).wait()


@pytest.mark.parametrize("trailer", [b"\xff\xff", b"", b"\x1a\x05hello", b"\x1a\x02\x12\x00"])
def test_broken_details_do_no_harm(server, connect, png, trailer):
    def answer(request, context):
        context.set_trailing_metadata([("grpc-status-details-bin", trailer)])
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")

    assert fail(server, connect, png, answer).message == "no"


def test_a_packed_detail_that_is_broken_does_no_harm(server, connect, png):
    from google.rpc.status_pb2 import Status

    def answer(request, context):
        status = Status(code=3, message="no")
        status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff")
        context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")

    assert fail(server, connect, png, answer).message == "no"


def test_what_a_server_says_is_one_line_of_limited_length(server, connect, png):
    nasty = "red \x1b[31m\r\nalert\u2028 " + "x" * 5000
    error = fail(server, connect, png, lambda request, context: context.abort(grpc.StatusCode.INVALID_ARGUMENT, nasty))
    assert error.message.startswith(r"red \x1b[31m alert xxx")
    assert len(error.message) <= 600


def test_a_server_that_repeats_the_token_does_not_bring_it_into_an_error(
    server, connect, png, token, toolbox, caplog, capfd
):
    caplog.set_level(0)
    facts = toolbox.reason("INVALID_INPUT", echo=token)
    request = BadRequest(field_violations=[BadRequest.FieldViolation(field=token, description=f"bad {token}")])
    refusal = toolbox.refuse(grpc.StatusCode.INVALID_ARGUMENT, f"you sent Bearer {token}", facts, request)
    error = fail(server, connect, png, refusal, license=token)
    assert error.message == "you sent Bearer ***"
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(error.violations) + repr(error.__dict__)
    printed = capfd.readouterr()
    for text in (shown, caplog.text, printed.out, printed.err):
        assert token not in text
        assert token.rpartition(".")[2] not in text
    assert error.__context__ is None or token not in repr(error.__context__)


def test_no_exception_of_grpc_comes_along(server, connect, png, toolbox):
    error = fail(server, connect, png, toolbox.refuse(grpc.StatusCode.INTERNAL, "no"))
    assert error.__cause__ is None
    assert error.__context__ is None


def test_a_missing_license_is_asked_for_as_an_argument(connect, server, toolbox, png):
    server.answers["Explain"] = toolbox.refuse(
        grpc.StatusCode.UNAUTHENTICATED,
        "explanations need a license here: send one as 'authorization: Bearer ...'",
        toolbox.reason("LICENSE_MISSING"),
    )
    with pytest.raises(LicenseRefusedError, match=r"^explanations need a license here: give one with license=$"):
        connect(server.target).explain(png())


def test_fields_of_a_request_are_called_by_the_arguments_that_they_come_from(connect, server, toolbox, png):
    said = "the request names no model: set model_name; ask for another type (answer.map_dtype); not a.target_label"
    server.answers["Explain"] = toolbox.refuse(grpc.StatusCode.INVALID_ARGUMENT, said)
    told = "the request names no model: set model=; ask for another type (map_dtype=); not a.target_label"
    with pytest.raises(RequestRefusedError) as caught:
        connect(server.target).explain(png())
    assert caught.value.message == told


def test_what_a_server_says_is_shown_and_does_nothing(connect, server, toolbox, png):
    server.answers["Explain"] = toolbox.refuse(
        grpc.StatusCode.INVALID_ARGUMENT,
        "bad",
        BadRequest(field_violations=[BadRequest.FieldViolation(field="\x1b[2Jx", description="a\u202eb 猫 🙂")]),
    )
    with pytest.raises(RequestRefusedError) as caught:
        connect(server.target).explain(png())
    (violation,) = caught.value.violations
    assert violation.field == r"\x1b[2Jx"
    assert violation.description == r"a\u202eb 猫 🙂"
