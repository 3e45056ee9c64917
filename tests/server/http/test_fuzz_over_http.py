"""Changed bodies, queries and whole requests over HTTP are answered or refused; always the same ones."""

import pytest
from fuzzing import run
from http_fuzzing import http_targets

# benchmarks/fuzz.py gives each of them many more.
INPUTS, SECONDS = 20, 3.0


@pytest.fixture
def targets(web, vendor):
    with http_targets(web.port, vendor.grant().token) as targets:
        yield targets


def test_changed_requests_have_an_answer_or_a_refusal(web, targets):
    assert len(targets) == len({target.name for target in targets}) > 35
    for target in targets:
        found = run(target, seed=1, inputs=INPUTS, seconds=SECONDS)
        assert found.faults == [], target.name
        assert found.inputs
    # It goes on serving.
    assert web.get("/v1/models").plain["models"][0]["name"] == "tiny"


def test_good_requests_are_answered(targets):
    for target in targets:
        # What of the RPCs is good is for readers of messages, and not all of it for this server.
        if not target.name.startswith(("http keylock.", "http inference.")):
            for good in target.contents:
                assert target.read(good), target.name
