"""What answers, logs, metrics and times tell over HTTP: nothing that is secret."""

import base64
import json

import pytest
from support import logged, scrape, slow_charges

from keylock_server.transport.interceptors import Logs

PASSPHRASE = "correct horse battery staple"


@pytest.mark.parametrize("even", [True, False])
def test_an_answer_without_a_license_takes_as_long_as_one_with_it(serve_web, vendor, tiny, monkeypatch, even):
    waits = slow_charges(monkeypatch)
    web = serve_web(pad_response_times=even)
    image = base64.b64encode(tiny.images(1)[0].tobytes()).decode()
    asked = {"images": [{"tensor": {"dtype": "DATA_TYPE_FLOAT32", "shape": [3, 8, 8], "data": image}}]}
    assert web.post("/v1/explain", asked, token=vendor.grant().token).plain["results"][0]["keyed"]
    assert waits == []
    assert not web.post("/v1/explain", asked).plain["results"][0]["keyed"]
    assert [seconds > 0 for seconds in waits] == [True] * even


def test_no_secret_is_told_over_http(serve_web, vendor, tiny, server_log, capfd, monkeypatch):
    web = serve_web(metrics_port=0)
    token, pixels = vendor.grant().token, tiny.pixels(8, 8).tobytes()
    text = base64.b64encode(pixels).decode()
    image = {"images": [text, {"encoded": text}, {"tensor": {"data": text}}, {"x": text}]}
    wrong = [
        ("/v1/explain", {"images": [text]}),
        ("/v1/explain", image),
        ("/v1/explain", {"images": [], "request_id": PASSPHRASE}),
        ("/v1/explain", {"images": [], "explainer": PASSPHRASE}),
        ("/v1/explain", {PASSPHRASE: 1}),
        ("/v1/token", {"lifetime_s": 1}),
        (f"/v1/models/{PASSPHRASE.replace(' ', '%20')}", {}),
        (f"/{PASSPHRASE.replace(' ', '_')}", {}),
        (f"/v1/explain?license={token}", {}),
        ("/v2/models/tiny/infer", {"inputs": [{"name": text, "data": [text]}]}),
        ("/v2/models/tiny/infer", {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": [text]}]}),
        ("/keylock.v1.LicenseService/GetLicense", {"x": text}),
    ]
    replies = [web.post(path, body, token=token) for path, body in wrong]
    replies += [web.post(path, body, token=token[:-8] + "AAAAAAAA") for path, body in wrong]
    around = Logs.around

    async def fail(_request, _context):
        raise RuntimeError(f"{token} {PASSPHRASE} {pixels!r} {vendor.seed.reveal()!r}")

    async def broken(self, method, request, context, _):
        return await around(self, method, request, context, fail)

    with monkeypatch.context() as patch:
        patch.setattr(Logs, "around", broken)
        replies += [web.post("/v1/explain", {"images": [text]}, token=token), web.get("/v2")]
    assert {reply.status // 100 for reply in replies} == {4, 5}

    told = logged(server_log, capfd.readouterr()) | {
        "metrics": scrape(web.calls.server.metrics_port),
        "answers": "\n".join(f"{reply.headers} {reply.body!r}" for reply in replies),
    }
    for place in ("log as text", "metrics"):
        assert "/keylock.v1.ExplanationService/Explain" in told[place]
    secrets = {*token.split(".")[1:], vendor.seed.reveal().hex(), vendor.key_file.read_text().strip()}
    found = [(place, secret) for place, said in told.items() for secret in secrets if secret in said]
    # What was sent as a name or a file comes back to whoever sent it, and goes nowhere else.
    own = {PASSPHRASE, text[:40], pixels.hex()[:40]}
    found += [(place, one) for place, said in told.items() if place != "answers" for one in own if one in said]
    assert found == []
    assert "Traceback" not in "".join(told.values())


def test_a_fault_beside_the_calls_is_answered_with_an_id(web, monkeypatch, server_log):
    from keylock_server.http import application

    def fail(*_arguments, **_options):
        raise RuntimeError("the text of a fault")

    monkeypatch.setattr(application, "read_query", fail)
    reply = web.get("/v2")
    assert reply.status == 500
    assert json.loads(reply.body)["reason"] == "INTERNAL"
    assert "the text of a fault" not in server_log.text + reply.body.decode()
    assert reply.plain["detail"].split("id ")[1].split()[0] in server_log.text
