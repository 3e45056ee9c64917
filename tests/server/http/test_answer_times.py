"""Answers over HTTP are written before those without a license wait, as part of the work that all of them have."""

import pytest

from keylock_server.http import application, messages
from keylock_server.metering.response_padding import CallTimes, ResponsePadding

SLOW_S = 0.05
FORMS = {
    "base64": ("/v1/explain", "application/json"),
    "lists": ("/v1/explain?maps=lists", "application/json"),
    "by its name": ("/keylock.v1.ExplanationService/Explain", "application/json"),
    "protobuf": ("/keylock.v1.ExplanationService/Explain", "application/x-protobuf"),
}


@pytest.fixture
def left(monkeypatch):
    """Whether calls had a license, and what they took beside their work, when they were let go."""
    left, leave = [], ResponsePadding.leave

    async def noted(self, times, *, licensed):
        left.append((licensed, times.beside_work()))
        await leave(self, times, licensed=licensed)

    monkeypatch.setattr(ResponsePadding, "leave", noted)
    return left


def ask(web, tiny, form, token):
    from keylock.v1 import explanation_pb2 as pb

    path, media = FORMS[form]
    message = pb.ExplainRequest(images=[tiny.tensor_image(tiny.images(1)[0])])
    body = message.SerializeToString() if media.endswith("protobuf") else messages.dump(messages.to_plain(message))
    reply = web.post(path, body, token=token, headers={"Content-Type": media})
    assert reply.status == 200, reply.body
    return reply


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_is_written_once_and_before_it_waits(web, vendor, tiny, left, monkeypatch, form):
    written, make = [], application._Reply

    def reply(*given, **named):
        written.append(len(left))
        return make(*given, **named)

    monkeypatch.setattr(application, "_Reply", reply)
    ask(web, tiny, form, vendor.grant().token)
    ask(web, tiny, form, None)
    assert written == [0, 1]
    assert [licensed for licensed, _ in left] == [True, False]


@pytest.mark.parametrize("form", ["base64", "lists", "by its name"])
def test_what_all_answers_have_is_work_and_what_licensed_ones_have_is_not(web, vendor, tiny, left, monkeypatch, form):
    now = [0.0]

    def slow(plain):
        # Results are in one part, price and receipt in the other.
        now[0] += SLOW_S * (("results" in plain) + 3 * ("usage" in plain))
        return dump(plain)

    dump = messages.dump
    body = ask(web, tiny, form, vendor.grant().token).plain
    monkeypatch.setattr(messages, "dump", slow)
    # A clock on which nothing else takes time, whatever the machine does besides.
    monkeypatch.setattr(CallTimes.__init__, "__defaults__", (lambda: now[0],))
    left.clear()
    slowed = ask(web, tiny, form, vendor.grant().token).plain
    ask(web, tiny, form, None)
    assert list(slowed) == list(body) == ["request_id", "model", "results", "usage", "receipt"]
    (_, licensed_s), (_, other_s) = left
    assert licensed_s == pytest.approx(3 * SLOW_S)
    assert other_s == pytest.approx(0)
