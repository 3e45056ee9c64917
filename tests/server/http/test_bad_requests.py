"""Requests that are wrong as HTTP get a clear answer, and the server goes on."""

import json
import logging
import socket
import time

import pytest
from support import books, wait_for

from keylock.errors import InputError
from keylock_server import ServerSettings

PROBLEM = "application/problem+json"


def raw(web, data, *, wait_s=10.0):
    """Sends bytes, and returns everything that comes back until the server closes or pauses."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=wait_s) as connection:
        connection.sendall(data)
        found = b""
        while True:
            try:
                part = connection.recv(65536)
            except TimeoutError:
                return found
            if not part:
                return found
            found += part
            head, _, body = found.partition(b"\r\n\r\n")
            if b"content-length: " in head and len(body) >= int(head.split(b"content-length: ")[1].split(b"\r\n")[0]):
                return found


@pytest.fixture(scope="module")
def small(serve_web):
    """A server that takes little."""
    return serve_web(max_message_bytes=65536)


@pytest.fixture(scope="module")
def hasty(serve_web):
    """A server that waits for a short time."""
    return serve_web(deadline_s=0.5)


def check_problem(reply, status, words):
    assert (reply.status, reply.headers["content-type"]) == (status, PROBLEM)
    problem = reply.plain
    assert words in problem["detail"]
    assert problem["status"] == status
    assert problem["type"] == "about:blank"
    assert problem["request_id"] == reply.headers["x-request-id"]
    return problem


def check_raw_problem(found, status, words):
    assert found.startswith(f"HTTP/1.1 {status} ".encode()), found[:200]
    head, _, body = found.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:])
    assert (headers["content-type"], headers["connection"]) == (PROBLEM, "close")
    problem = json.loads(body)
    assert words in problem["detail"]
    assert (problem["status"], problem["request_id"]) == (status, headers["x-request-id"])


@pytest.mark.parametrize(
    "path", ["/v3", "/v1/explain/", "/v1/models/a/b", "/admin", "/%2e%2e/etc/passwd", "//v1/explain"]
)
def test_unknown_paths(web, path):
    check_problem(web.get(path), 404, "there is no such path")


def test_unknown_paths_of_the_inference_protocol_have_its_form(web):
    reply = web.get("/v2/models")
    assert (reply.status, reply.headers["content-type"]) == (404, "application/json")
    assert "no such path" in reply.plain["error"]


def test_other_methods_are_named(web):
    reply = web.ask("DELETE", "/v1/explain")
    check_problem(reply, 405, "POST")
    assert reply.headers["allow"] == "POST"
    assert web.ask("HEAD", "/v2/health/live").body == b""
    assert web.ask("POST", "/").status == 405


def test_a_body_of_another_type(web):
    reply = web.post("/v1/explain", b"<xml/>", headers={"Content-Type": "text/xml"})
    problem = check_problem(reply, 415, "'text/xml'")
    assert problem["reason"] == "INVALID_INPUT"
    check_problem(web.post("/v1/explain", b"{}"), 415, "Content-Type: application/json")
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    check_problem(web.post("/v1/explain", b"--x", headers=form), 415, "or an image file with 'Content-Type: image/png'")
    compressed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    check_problem(web.post("/v1/explain", b"{}", headers=compressed), 415, "compressed")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "is not JSON"),
        (b"nul", "is not JSON"),
        (b"[]", "no JSON object"),
        (b"{}", "no images"),
        (b'{"images": 5}', "not the JSON of keylock.v1.ExplainRequest"),
        (b'{"images": [{"encoded": 5}]}', "not the JSON"),
        (b'{"images": ["a"]}', "image"),
        (b'{"pictures": []}', "pictures"),
        (b'{"images": [], "parameters": {"x": NaN}}', "JSON has no NaN"),
        (b'{"images": [{"encoded": "AAAA", "tensor": {}}]}', "not the JSON"),
        (b'{"target_index": 99999999999999999999999}', "not the JSON"),
    ],
)
def test_bodies_that_are_no_request(web, body, words):
    reply = web.post("/v1/explain", body, headers={"Content-Type": "application/json"})
    check_problem(reply, 400, words)


def test_large_bodies_are_refused_with_a_length_in_chunks_and_before_they_are_sent(small, server_log):
    body = b"x" * 200_000
    headers = {"Content-Type": "application/json"}
    check_problem(small.post("/v1/explain", body, headers=headers), 413, "65536 bytes")
    chunked = b"POST /v1/explain HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"".join(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" for _ in range(6)) + b"0\r\n\r\n"
    check_raw_problem(raw(small, chunked), 413, "65536 bytes")
    waiting = b"POST /v1/explain HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 200000\r\n\r\n"
    # Not told to go on.
    check_raw_problem(raw(small, waiting), 413, "65536 bytes")
    assert "keylock.v1.ExplanationService/Explain INVALID_ARGUMENT" in server_log.text


def test_a_caller_that_waits_for_leave_to_send_gets_it(web):
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as connection:
        head = b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"{}")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    other = b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\nContent-Length: 2\r\n\r\n{}"
    assert raw(web, other).startswith(b"HTTP/1.1 417 ")


def test_chunks_are_put_together(web):
    body = (
        b"POST /v1/estimate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    body += b'a\r\n{"images":\r\n2\r\n3}\r\n0\r\n\r\n'
    found = raw(web, body)
    assert found.startswith(b"HTTP/1.1 200 ")
    assert json.loads(found.partition(b"\r\n\r\n")[2])["units"] == 3


def test_slow_bodies_are_given_up(hasty):
    began = time.monotonic()
    found = raw(hasty, b"POST /v1/explain HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
    check_raw_problem(found, 408, "did not come within 0.5 s")
    assert time.monotonic() - began < 5


def test_slow_heads_are_given_up(web, monkeypatch):
    from keylock_server.http import serving

    monkeypatch.setattr(serving, "_HEADERS_S", 0.2)
    # Who has sent nothing is told nothing.
    assert raw(web, b"") == b""
    check_raw_problem(raw(web, b"GET /v2 HTTP/1.1\r\nHost:"), 408, "did not come in time")


def test_a_second_head_that_is_slow_ends_the_connection_after_the_first_answer(web, monkeypatch):
    from keylock_server.http import serving

    monkeypatch.setattr(serving, "_HEADERS_S", 0.2)
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\nGET /v2 HTTP/1.1\r\nHo")
        found = b""
        while part := connection.recv(65536):
            found += part
    first, second = found.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200 ")
    check_raw_problem(b"HTTP/1.1 " + second, 408, "did not come in time")


def test_truncated_bodies_leave_nothing_behind(web, vendor, server_log):
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/explain HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
    wait_for(lambda: web.calls.server.parts.running.count == 0)
    assert web.get("/v2/health/live").status == 200
    assert [record for record in server_log.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    ("head", "status", "words"),
    [
        (
            b"GET /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "no request",
        ),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400, "no request"),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "no request"),
        (b"GET /v2 HTTP/1.1\r\nHost : x\r\n\r\n", 400, "no request"),
        (b"GET /v2 HTTP/1.1\nBad\r\n\r\n", 400, "no request"),
        (b"\x16\x03\x01 this is TLS", 400, "http or https"),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 40_000 + b"\r\n\r\n", 431, "head of the request has more"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "address has more than 32768 bytes"),
    ],
    ids=[
        "two lengths",
        "two content lengths",
        "a chunk without a length",
        "a space in a name",
        "no header",
        "TLS",
        "a large header",
        "a long path",
    ],
)
def test_heads_that_are_ambiguous_or_too_large_are_refused(web, server_log, head, status, words):
    check_raw_problem(raw(web, head), status, words)
    # Whoever sends them does not fill the log. Servers of other tests may take back what expired meanwhile.
    said = [record.getMessage() for record in server_log.records]
    assert [one for one in said if "reservations that had expired" not in one] == []
    assert web.get("/v2/health/live").status == 200


def test_more_connections_than_there_are_descriptors_for_are_refused(serve_web, monkeypatch):
    from keylock_server.http import serving

    monkeypatch.setattr(serving, "allowed_connections", lambda: 2)
    web = serve_web()
    with socket.create_connection(("127.0.0.1", web.port)), socket.create_connection(("127.0.0.1", web.port)):
        wait_for(lambda: web.get("/v1/models").status == 503)
        reply = web.get("/v1/models")
        assert (reply.status, reply.headers["retry-after"], reply.headers["connection"]) == (503, "1", "close")
        assert (reply.headers["content-type"], reply.plain["reason"]) == (PROBLEM, "OVERLOADED")
        assert "as many connections as it takes" in web.get("/v2").plain["error"]
    wait_for(lambda: web.get("/v1/models").status == 200)


def test_a_license_in_the_address_is_refused_and_logged_nowhere(web, vendor, server_log):
    token = vendor.grant().token
    for query in (f"token={token}", f"license={token}", "access_token=x", f"explainer={token}"):
        reply = web.post(f"/v1/explain?{query}", {"images": []})
        problem = check_problem(reply, 400, "Authorization: Bearer")
        assert token.split(".")[1] not in json.dumps(problem)
    assert web.get(f"/?token={token}").status == 400
    assert token.split(".")[1] not in "\n".join(str(record.__dict__) for record in server_log.records)


def test_unknown_parameters_are_refused(web):
    check_problem(web.post("/v1/explain?colour=red", {}), 400, "'colour'")
    check_problem(web.post("/v1/explain?maps=pictures", {}), 400, "base64 or lists")
    check_problem(web.post("/v1/explain?maps=lists&maps=lists", {}), 400, "twice")
    check_problem(web.post("/v1/explain?explainer=coarse", {}), 400, "put it into the JSON")


def test_licenses_that_are_not_good_are_refused(web, vendor):
    reply = web.get("/v1/license")
    problem = check_problem(reply, 401, "no license was presented")
    assert problem["reason"] == "LICENSE_MISSING"
    assert reply.headers["www-authenticate"] == "Bearer"
    token = vendor.grant().token
    reply = web.get("/v1/license", token=token[:-8] + "AAAAAAAA")
    assert check_problem(reply, 401, "")["reason"] in ("LICENSE_FORGED", "LICENSE_MALFORMED")
    twice = (
        f"GET /v1/license HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
    assert b"LICENSE_MALFORMED" in raw(web, twice.encode())


def test_streams_are_for_grpc(web):
    check_problem(web.post("/keylock.v1.ExplanationService/ExplainStream"), 501, "gRPC")


def test_who_hangs_up_is_charged_nothing_and_leaves_nothing_behind(web, vendor, monkeypatch, server_log, tmp_path):
    import threading

    model, go = web.calls.server.model, threading.Event()
    explain = model.explain
    monkeypatch.setattr(model, "explain", lambda *given, **options: (go.wait(20), explain(*given, **options))[1])
    before = books(vendor.store)
    body = json.dumps({"images": [{"tensor": {"dtype": 2, "shape": [3, 8, 8], "data": "AAAA" * 256}}]}).encode()
    head = f"POST /v1/explain HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    head += f"X-Request-Id: hung-up\r\nAuthorization: Bearer {vendor.grant().token}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        wait_for(lambda: web.calls.server.parts.batchers.held == 1)
    wait_for(lambda: web.calls.server.parts.running.count == 0)
    go.set()
    wait_for(lambda: books(vendor.store) == before)
    lines = [record for record in server_log.records if getattr(record, "request_id", "") == "hung-up"]
    assert [record.code for record in lines if hasattr(record, "code")] == ["CANCELLED"]
    assert [record for record in server_log.records if record.levelno >= logging.ERROR] == []


def test_other_pages_may_ask_where_that_is_set_alone(web, serve_web):
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization"
    closed = web.ask("OPTIONS", "/v1/explain", headers=asked)
    assert closed.status == 405
    assert "access-control-allow-origin" not in web.get("/v2", headers=asked).headers
    shared = serve_web(http_cors_origins=("https://a.example",))
    allowed = shared.ask("OPTIONS", "/v1/explain", headers=asked)
    assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, "https://a.example")
    assert "access-control-allow-credentials" not in allowed.headers
    assert shared.get("/v2", headers=asked).headers["access-control-allow-origin"] == "https://a.example"
    other = asked | {"Origin": "https://b.example"}
    assert "access-control-allow-origin" not in shared.get("/v2", headers=other).headers


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"http_port": 70000}, "http_port"),
        ({"http_port": 8470}, "http_port= and port= are the same"),
        ({"http_port": 9000, "metrics_port": 9000}, "metrics_port"),
        ({"http_cors_origins": ("https://a.example",)}, "needs http_port"),
        ({"http_port": 1, "http_cors_origins": ("a.example",)}, "no origin"),
        ({"http_port": 1, "http_cors_origins": ("https://a.example/path",)}, "no origin"),
    ],
)
def test_wrong_settings_are_named(values, match):
    with pytest.raises(InputError, match=match):
        ServerSettings.load(bundle="x", **values)
