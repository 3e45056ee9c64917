"""Every call has an id: in its trailing metadata, in its errors, and in each line that is logged for it."""

import io
import json
import logging
import re
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from support import scrape

import keylock_server
from keylock.inference import inference_pb2
from keylock.v1 import explanation_pb2 as pb
from keylock_server.transport.logs import JsonFormatter, TextFormatter

MADE = re.compile(r"[0-9a-f]{32}")


@pytest.fixture
def image(tiny):
    return tiny.tensor_image(tiny.images(1)[0])


def id_of(call: grpc.Call) -> str:
    (found,) = [value for name, value in call.trailing_metadata() if name == "x-request-id"]
    return found


def explain(calls, *images, sent=(), **fields):
    metadata = [("x-request-id", value) for value in sent]
    return calls.explanation.Explain.with_call(
        pb.ExplainRequest(images=images, **fields), metadata=metadata, timeout=20
    )


def test_the_id_in_the_message_comes_before_the_one_in_the_metadata(calls, image):
    answer, call = explain(calls, image, request_id="mine", sent=["proxy"])
    assert (answer.request_id, id_of(call)) == ("mine", "mine")
    request = inference_pb2.ModelInferRequest(id="mine/2")
    with pytest.raises(grpc.RpcError) as caught:
        calls.inference.ModelInfer(request, metadata=[("x-request-id", "proxy")])
    assert id_of(caught.value) == "mine/2"


def test_the_id_in_the_metadata_names_the_call_and_not_what_is_charged(calls, vendor, image):
    token = vendor.grant().token
    metadata = [("x-request-id", "page-7"), ("authorization", f"Bearer {token}")]
    answers = [
        calls.explanation.Explain.with_call(pb.ExplainRequest(images=[image] * n), metadata=metadata) for n in (1, 2)
    ]
    assert [id_of(call) for _, call in answers] == ["page-7", "page-7"]
    # Two requests under one entry, as a proxy may send them, are two requests.
    assert [answer.usage.units for answer, _ in answers] == [1, 2]
    assert len({answer.request_id for answer, _ in answers} | {"page-7"}) == 3


@pytest.mark.parametrize("sent", [(), ("x" * 129,), ("two words",), ("a", "b"), ("",)], ids=str)
def test_an_id_is_made_where_none_is_well_formed(calls, image, sent):
    _, call = explain(calls, image, sent=sent)
    assert MADE.fullmatch(id_of(call))


@pytest.mark.parametrize("given", ["x" * 129, "two words", "line\nbreak", "é", "\x1b[31m", "nul\0"], ids=repr)
def test_an_id_in_the_message_that_is_not_well_formed_is_refused_and_not_repeated(calls, image, given, server_log):
    with pytest.raises(grpc.RpcError) as caught:
        explain(calls, image, request_id=given)
    status = rpc_status.from_call(caught.value)
    violations = [detail for detail in status.details if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR)]
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(violations) == 1
    assert MADE.fullmatch(id_of(caught.value))
    assert given not in server_log.text + str(status)


@pytest.mark.parametrize("form", [TextFormatter, JsonFormatter])
def test_every_line_of_a_call_has_its_id(start_server, vendor, image, form, tmp_path):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(form())
    logger = logging.getLogger("keylock_server")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        calls = start_server(license_store=f"sqlite:///{tmp_path / 'licenses.db'}")
        token = vendor.grant(record=False).token
        (tmp_path / "licenses.db").unlink()
        (tmp_path / "licenses.db").mkdir()
        with pytest.raises(grpc.RpcError):
            calls.explain(image, token=token, request_id="lost")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    lines = stream.getvalue().splitlines()
    # The store's complaint, which a thread logs, and the line of the call.
    of_call = [line for line in lines if "lost" in line]
    assert len(of_call) == 2, lines
    assert any("licenses.db" in line for line in of_call)
    if form is JsonFormatter:
        assert {json.loads(line)["request_id"] for line in of_call} == {"lost"}
        assert "request_id" not in json.loads(lines[0])
    else:
        assert all(" lost: " in line for line in of_call)
        assert any(" -: serving tiny" in line for line in lines)


def test_every_logger_of_the_server_names_calls():
    names = set()
    for module in Path(keylock_server.__file__).parent.rglob("*.py"):
        names |= set(re.findall(r'getLogger\("([^"]*)"\)', module.read_text("utf-8")))
    assert names == {"keylock_server", "keylock_server.calls", "keylock_server.http"}


def test_ids_are_no_label_of_metrics(start_server, image):
    calls = start_server(metrics_port=0)
    explain(calls, image, request_id="counted-never")
    text = scrape(calls.server.metrics_port)
    assert "keylock_calls_total" in text
    assert "counted-never" not in text
