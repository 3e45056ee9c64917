"""Every RPC of the public port with one answer does over HTTP what it does over gRPC, by the rows of `rpc_rows.py`."""

import json
from datetime import timedelta
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf import json_format, message_factory
from rpc_rows import CASES
from support import bearer, details_of, wait_for

from keylock.licensing import DisclosureTerms, Quota, Rate
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.licensing.receipts import Receipt
from keylock.store import LicenseStore
from keylock.transparency import leaf_hash
from keylock_server.http.failures import HTTP_STATUSES
from keylock_server.scheduling.batching import QueueQuota
from keylock_server.transport.interceptors import Logs
from keylock_server.transport.statuses import LICENSE_STATUSES, STATUSES

UNARY = [case for case in CASES if case.port == "public" and not case.method.client_streaming]
every_case = pytest.mark.parametrize("case", UNARY, ids=str)
PROTOBUF = "application/x-protobuf"


@pytest.fixture(scope="module")
def world(serve_web, vendor, tiny, tmp_path_factory):
    """A server with receipts, one of which can be proved."""
    folder, year = tmp_path_factory.mktemp("every_rpc_over_http"), timedelta(days=365)
    ReceiptKey.create(folder / "receipts.pem", vendor.signing_key, not_before=tiny.now - year, expires=tiny.now + year)
    url = f"sqlite:///{folder / 'licenses.db'}"
    web = serve_web(license_store=url, receipt_key=folder / "receipts.pem")
    with LicenseStore(url) as store:
        made = SimpleNamespace(web=web, calls=web.calls, grant=lambda **terms: vendor.grant(store=store, **terms))
        made.token = made.grant(disclosure=DisclosureTerms(per_day=1000)).token
        receipt = web.calls.explain(tiny.tensor_image(tiny.pixels(8, 8)), token=made.token).receipt
        made.leaf = leaf_hash(Receipt.verify(receipt, lambda _: True).entry)
        yield made


def ask(world, case, sent, *, token=None, id="asked", form=PROTOBUF):
    """Asks an RPC by its own name."""
    body = sent if isinstance(sent, bytes) else sent.SerializeToString()
    if form != PROTOBUF:
        body = json.dumps(json_format.MessageToDict(sent)).encode()
    return world.web.post(case.path, body, token=token, headers={"Content-Type": form, "X-Request-Id": id})


def read(case, reply):
    return message_factory.GetMessageClass(case.method.output_type).FromString(reply.body)


def ask_by_grpc(world, case, sent, *, token=None):
    call = world.calls.channel.unary_unary(
        case.path, type(sent).SerializeToString, message_factory.GetMessageClass(case.method.output_type).FromString
    )
    return call(sent, metadata=[*bearer(token), ("x-request-id", "asked")], timeout=20)


def check_refusal(reply, *, reason="", path="", id="asked"):
    problem = reply.plain
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["x-request-id"] == problem["request_id"] == id
    assert problem["reason"] == (reason or problem["reason"])
    assert reply.status == HTTP_STATUSES[grpc.StatusCode[problem["code"]]]
    assert problem.get("field", "") == path
    return problem


# What differs from call to call.
OWN = ("request_id", "access_token", "expires", "charged_at", "receipt")


def without_own(message):
    plain = json_format.MessageToDict(message, preserving_proto_field_name=True)
    # A disclosure has the answer of an explanation in it.
    for told in (plain, plain.get("answer", {})):
        told.get("usage", {}).pop("charged_at", None)
        for name in OWN:
            told.pop(name, None)
    return plain


@every_case
@pytest.mark.parametrize("form", [PROTOBUF, "application/json"])
def test_a_good_request_is_answered_as_by_grpc(world, case, form):
    sent = case.row.good(world)
    reply = ask(world, case, sent, token=world.token, form=form)
    if case.is_refused:
        check_refusal(reply, reason=case.row.refused_on[case.port])
        return
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == form
    known = ask_by_grpc(world, case, sent, token=world.token)
    if form == PROTOBUF:
        assert without_own(read(case, reply)) == without_own(known)
    else:
        filled = json_format.ParseDict(reply.plain, message_factory.GetMessageClass(case.method.output_type)())
        assert without_own(filled) == without_own(known)


@every_case
def test_what_is_wrong_is_named_as_by_grpc(world, case):
    for path, sent in case.row.bad.items():
        request = sent(world) if callable(sent) else sent
        refused = case.row.refused_on.get(case.port, "")
        reply = ask(world, case, request, token=world.token)
        problem = check_refusal(reply, reason=refused, path="" if refused else path)
        with pytest.raises(grpc.RpcError) as caught:
            ask_by_grpc(world, case, request, token=world.token)
        assert (problem["code"], problem["detail"]) == (caught.value.code().name, caught.value.details())
        assert problem["reason"] == details_of(caught.value)["ErrorInfo"].reason


@every_case
def test_bytes_that_are_no_message(world, case):
    problem = check_refusal(ask(world, case, b"\xff" * 20), reason="INVALID_INPUT")
    assert problem["status"] == 400


@pytest.mark.parametrize("case", [case for case in UNARY if case.row.license != "ignored"], ids=str)
def test_a_license_that_is_not_good_is_refused_with_its_reason(world, case):
    head, claims, _ = world.token.split(".")
    good = case.row.good(world)
    for token, reason in ((f"{head}.{claims}", "LICENSE_MALFORMED"), (f"{head}.{claims}.{'A' * 86}", "LICENSE_FORGED")):
        check_refusal(ask(world, case, good, token=token), reason=reason)
    if case.row.license == "needed":
        check_refusal(ask(world, case, good), reason="LICENSE_MISSING")


@pytest.mark.parametrize("case", [case for case in UNARY if case.row.units], ids=str)
def test_quota_and_rate_are_those_of_the_license(world, case):
    spent = check_refusal(
        ask(world, case, case.row.good(world), token=world.grant(quota=Quota(total=0)).token), reason="QUOTA_SPENT"
    )
    assert {"period": "total", "limit": "0", "units": "1"}.items() <= spent["metadata"].items()
    fast = world.grant(rate=Rate(per_second=0.5, burst=1)).token
    assert ask(world, case, case.row.good(world), token=fast).status == 200
    reply = ask(world, case, case.row.good(world), token=fast)
    problem = check_refusal(reply, reason="RATE_LIMITED")
    assert 0 < problem["retry_after_s"] <= int(reply.headers["retry-after"])


@pytest.mark.parametrize("case", [case for case in UNARY if "model" in case.row.works and not case.is_refused], ids=str)
def test_a_full_queue_says_when_to_come_again(world, case, monkeypatch):
    monkeypatch.setattr(QueueQuota, "take", lambda *_: False)
    reply = ask(world, case, case.row.good(world), token=world.token)
    check_refusal(reply, reason="OVERLOADED")
    assert int(reply.headers["retry-after"]) >= 1


@every_case
def test_a_fault_of_the_server_is_internal_with_an_id_and_no_text(world, case, monkeypatch, server_log):
    around = Logs.around

    async def fail(_request, _context):
        raise RuntimeError("the text of a fault")

    async def broken(self, method, request, context, _):
        return await around(self, method, request, context, fail)

    monkeypatch.setattr(Logs, "around", broken)
    problem = check_refusal(ask(world, case, case.row.good(world), token=world.token), reason="INTERNAL")
    assert problem["metadata"]["error_id"] in server_log.text
    assert "the text of a fault" not in server_log.text + json.dumps(problem)


def test_every_status_of_an_error_has_one_of_http():
    codes = {row.code for row in STATUSES.values()} | set(LICENSE_STATUSES.values())
    assert codes == set(HTTP_STATUSES)


def test_a_call_is_logged_counted_and_named_as_one_of_grpc(world, server_log):
    case = next(case for case in UNARY if case.method.name == "GetModel")
    ask(world, case, case.row.good(world), id="mine")
    wait_for(lambda: [one for one in server_log.records if getattr(one, "request_id", "") == "mine"])
    (line,) = (one for one in server_log.records if getattr(one, "request_id", "") == "mine")
    assert (line.method, line.code) == (case.path, "OK")
