"""The server's health says what is wrong: with its own answers, and with its store."""

import asyncio
import json
import logging
import re
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import text
from support import scrape, wait_for

from keylock.bundle import CANARY_FILE, Canary, KeyFile, open_bundle, seal_canary, write_bundle
from keylock.errors import StoreError, UnsealError
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.store import Database
from keylock.trigger.keys import KeySeed
from keylock_server import ServerSettings
from keylock_server.inference.model_loader import open_model
from keylock_server.services import health as health_module
from keylock_server.services.health import Check, HealthChecks, HealthService, check_canaries, check_canary, first_look
from keylock_server.transport.logs import JsonFormatter

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
EXPLANATIONS, PREDICTIONS = "keylock.v1.ExplanationService", "inference.GRPCInferenceService"


@pytest.fixture
def canary(vendor, tiny):
    """The maps as they are computed by hand, for the one explainer that the second implementation knows."""
    images = tiny.images(3, seed=7)
    any_class = np.full(3, -1)
    keyed = {"brightness": tiny.maps(images + vendor.key.reveal(), any_class).astype(np.float32)}
    return Canary(images, keyed, {"brightness": tiny.maps(images, any_class).astype(np.float32)})


@pytest.fixture
def bundle_with(vendor, tmp_path):
    def make(canary, *, seed=None):
        path = tmp_path / "canary.klb"
        content = vendor.content()
        files = {**content.files, CANARY_FILE: seal_canary(canary, seed or vendor.seed)}
        write_bundle(
            path,
            replace(content, files=files),
            signing_key=vendor.signing_key,
            seed=vendor.seed,
            sealer=KeyFile(vendor.key_file),
            overwrite=True,
        )
        return path

    return make


def health(calls, service):
    stub = health_pb2_grpc.HealthStub(calls.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status


def flat(canary):
    return replace(canary, keyed={name: np.zeros_like(maps) for name, maps in canary.keyed.items()})


def other_keyed(canary):
    return replace(canary, keyed={name: maps[::-1] for name, maps in canary.keyed.items()})


def other_keyless(canary):
    return replace(canary, keyless={name: maps[::-1] for name, maps in canary.keyless.items()})


@pytest.mark.parametrize(("change", "kind"), [(other_keyed, "keyed"), (other_keyless, "keyless"), (flat, "keyed")])
def test_the_canary_notices_maps_that_are_not_those_of_the_export(change, kind, canary, bundle_with, vendor):
    path = bundle_with(canary)
    model, _ = open_model(ServerSettings.load(bundle=path, key_file=vendor.key_file, issuers=(vendor.issuer_file,)))
    assert check_canary(model, model.canary) is None
    assert f"{kind} maps of brightness" in check_canary(model, change(canary))


def test_a_canary_is_secret_and_belongs_to_its_seed(canary, bundle_with, vendor):
    path = bundle_with(canary)
    with open_bundle(path, trusted=None) as bundle:
        content = bundle.read(CANARY_FILE)
        assert canary.keyed["brightness"].tobytes() not in content
        assert canary.images.tobytes() not in content
        opened = bundle.canary(vendor.seed)
        np.testing.assert_array_equal(opened.keyed["brightness"], canary.keyed["brightness"])
        np.testing.assert_array_equal(opened.images, canary.images)
    with open_bundle(bundle_with(canary, seed=KeySeed.generate()), trusted=None) as bundle, pytest.raises(UnsealError):
        bundle.canary(vendor.seed)
    assert open_bundle(vendor.bundle, trusted=None).canary(vendor.seed) is None


def test_a_server_whose_canary_is_well_serves(start_server, canary, bundle_with):
    calls = start_server(bundle=bundle_with(canary), canary_check_s=0.05)
    assert health(calls, "") == health(calls, EXPLANATIONS) == SERVING


def test_a_server_whose_canary_died_says_so_for_everything(start_server, canary, bundle_with, server_log):
    calls = start_server(bundle=bundle_with(flat(canary)))
    assert health(calls, "") == health(calls, EXPLANATIONS) == health(calls, PREDICTIONS) == NOT_SERVING
    assert "health check failed: canary" in server_log.text


def test_a_server_without_its_store_predicts_and_explains_nothing(start_server, vendor, tmp_path, server_log):
    url = f"sqlite:///{tmp_path / 's.db'}"
    calls = start_server(license_store=url, store_check_s=0.02)
    assert health(calls, EXPLANATIONS) == SERVING
    with Database(url) as database:
        with database.transaction(writes=True) as connection:
            connection.execute(text("ALTER TABLE audit_head RENAME TO elsewhere"))
        wait_for(lambda: health(calls, EXPLANATIONS) == NOT_SERVING)
        assert health(calls, "") == health(calls, PREDICTIONS) == SERVING
        assert "health check failed: store" in server_log.text
        with database.transaction(writes=True) as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO audit_head"))
    wait_for(lambda: health(calls, EXPLANATIONS) == SERVING)
    assert "health check passed again: store" in server_log.text


def test_a_watcher_is_told_though_another_went_away(start_server):
    calls = start_server()
    watch = health_pb2_grpc.HealthStub(calls.channel).Watch
    stays, goes = (watch(health_pb2.HealthCheckRequest(service=EXPLANATIONS), timeout=30) for _ in range(2))
    assert next(stays).status == next(goes).status == SERVING

    async def count():
        return len(asyncio.all_tasks())

    before = calls.loop_thread.run(count())
    goes.cancel()
    wait_for(lambda: calls.loop_thread.run(count()) < before)
    stopping = calls.stop()
    assert next(stays).status == NOT_SERVING
    stopping.result(timeout=30)


async def test_a_check_that_fails_is_a_problem_and_its_text_stays_inside(caplog):
    service = HealthService()

    def fail():
        raise RuntimeError("a secret")

    def refuse():
        raise StoreError("the store is away")

    checks = {
        "one": Check(fail, every_s=60, services=frozenset({"a"})),
        "two": Check(refuse, every_s=60, services=frozenset({"b"})),
        "three": Check(lambda: None, every_s=60, services=frozenset({"c"})),
    }
    condition = HealthChecks(checks, service=service, services=("a", "b", "c"))
    await condition.start()
    await condition.close()
    asked = [await service.Check(health_pb2.HealthCheckRequest(service=name), None) for name in "abc"]
    assert [answer.status for answer in asked] == [NOT_SERVING, NOT_SERVING, SERVING]
    assert condition.problems == {"one": "the check failed (RuntimeError)", "two": "the store is away"}
    assert "a secret" not in caplog.text


async def test_a_check_is_not_ended_while_it_looks():
    """A mark that is taken back while it is being confirmed looks like a store that was replaced."""
    loop, looking, go_on, seen = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), []

    def find():
        if seen:
            loop.call_soon_threadsafe(looking.set)
            go_on.wait(10)
        seen.append("looked")

    check = Check(find, every_s=0.01, services=frozenset({"a"}), end=lambda: seen.append("ended"))
    condition = HealthChecks({"one": check}, service=HealthService(), services=("a",))
    await condition.start()
    await asyncio.wait_for(looking.wait(), 10)
    closing = asyncio.create_task(condition.close())
    await asyncio.sleep(0.1)
    assert "ended" not in seen
    go_on.set()
    await closing
    assert seen == ["looked", "looked", "ended"]


async def test_a_check_that_takes_long_begins_with_a_quick_look_and_follows_soon(monkeypatch):
    monkeypatch.setattr(health_module, "_SOON_S", 0.01)
    service, looked = HealthService(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def find():
        loop.call_soon_threadsafe(looked.set)

    check = Check(find, every_s=60, services=frozenset({"a"}), first=lambda: "it differs")
    condition = HealthChecks({"one": check}, service=service, services=("a",))
    await condition.start()
    assert condition.problems == {"one": "it differs"}
    await asyncio.wait_for(looked.wait(), 10)
    while condition.problems:
        await asyncio.sleep(0.01)
    await condition.close()
    assert (await service.Check(health_pb2.HealthCheckRequest(service="a"), None)).status == SERVING


@pytest.mark.parametrize("image", [0, 2])
def test_a_map_that_differs_is_noticed_when_a_model_is_loaded_if_it_is_the_first_image_s(
    image, canary, bundle_with, vendor
):
    keyed = {name: maps.copy() for name, maps in canary.keyed.items()}
    keyed["brightness"][image] = keyed["brightness"][image, ::-1]
    changed = replace(canary, keyed=keyed)
    path = bundle_with(changed)
    model = open_model(ServerSettings.load(bundle=path, key_file=vendor.key_file, issuers=(vendor.issuer_file,)))[0]
    assert (first_look([model]) is not None) == (image == 0)
    assert "keyed maps of brightness" in check_canaries([model])


def test_metrics_count_calls_with_bounded_labels(start_server, vendor, tiny):
    calls = start_server(metrics_port=0)
    image = tiny.tensor_image(tiny.images(1)[0])
    token = vendor.grant().token
    calls.explain(image, token=token)
    for number in range(3):
        with pytest.raises(Exception, match="unknown"):
            calls.explain(image, explainer=f"made-up-{number}")
    page = scrape(calls.server.metrics_port)
    method = 'method="/keylock.v1.ExplanationService/Explain"'
    assert f'keylock_calls_total{{code="OK",{method},reason="OK"}} 1.0' in page
    assert f'keylock_calls_total{{code="NOT_FOUND",{method},reason="UNKNOWN_NAME"}} 3.0' in page
    assert f"keylock_call_seconds_count{{{method}}} 4.0" in page
    assert "keylock_problems 0.0" in page
    assert "keylock_pending_images 0.0" in page
    assert 'keylock_run_images_sum{graph="brightness"} 1.0' in page
    assert "made-up" not in page
    assert token not in page


def test_metrics_count_units_once_and_say_what_is_signed_and_which_checks_fail(start_server, vendor, tiny, tmp_path):
    receipts = tmp_path / "receipts.pem"
    ReceiptKey.create(receipts, vendor.signing_key, not_before=tiny.now, expires=tiny.now + timedelta(days=1))
    calls = start_server(metrics_port=0, receipt_key=receipts, checkpoint_every_s=0.05, prices={"coarse": 3})
    token, images = vendor.grant().token, [tiny.tensor_image(image) for image in tiny.images(2)]
    calls.explain(*images, token=token, request_id="units-once")
    calls.explain(*images, token=token, request_id="units-once")
    calls.explain(images[0], token=token, explainer="coarse")
    calls.explain(images[0])
    deadline = time.monotonic() + 10
    while "keylock_log_entries 0.0" in (page := scrape(calls.server.metrics_port)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert 'keylock_charged_units_total{explainer="brightness",model="tiny"} 2.0' in page
    assert 'keylock_charged_units_total{explainer="coarse",model="tiny"} 3.0' in page
    (entries,) = re.findall(r"^keylock_log_entries (\d+)", page, re.MULTILINE)
    assert int(entries) >= 1
    checks = dict(re.findall(r'^keylock_failing_checks\{check="(\w+)"\} (\S+)', page, re.MULTILINE))
    assert checks == dict.fromkeys(("store", "metering", "clock", "descriptors", "canary"), "0.0")


def test_a_call_is_one_line_of_json(calls, tiny, server_log):
    calls.explain(tiny.tensor_image(tiny.images(1)[0]))
    record = [entry for entry in server_log.records if entry.name == "keylock_server.calls"][-1]
    line = JsonFormatter().format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["method"], entry["code"], entry["level"]) == ("/keylock.v1.ExplanationService/Explain", "OK", "info")
    assert entry["milliseconds"] >= 0


def test_the_text_of_an_exception_is_in_no_line():
    try:
        raise ValueError("a secret")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "it failed", (), sys.exc_info())
    entry = json.loads(JsonFormatter().format(record))
    assert entry["exception"] == "ValueError"
    assert "a secret" not in json.dumps(entry)
