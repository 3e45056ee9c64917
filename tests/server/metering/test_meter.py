"""What answers cost: a call is charged once or not at all, says so, and is refused where the license has no more."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from sqlalchemy import text
from support import bearer, refusal, wait_for

from keylock.bundle import KeyFile, write_bundle
from keylock.crypto.signing import SigningKey
from keylock.errors import StoreError, UnknownNameError
from keylock.licensing import Quota, Rate
from keylock.store import LicenseStore
from keylock.store.logged_charges import compare_with_ledger
from keylock.store.reconcile import reconcile
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2


@pytest.fixture
def image(tiny):
    return tiny.tensor_image(tiny.images(1)[0])


@pytest.fixture
def other_image(tiny):
    return tiny.tensor_image(tiny.images(1, seed=5)[0])


def usage(calls, token):
    answer = calls.license.GetUsage(license_pb2.GetUsageRequest(), metadata=bearer(token), timeout=20)
    return {window.period: window.used for window in answer.quotas}


def test_answer_says_what_it_cost_and_what_is_left(calls, vendor, image, tiny):
    granted = vendor.grant(quota=Quota(day=10, total=100))
    answer = calls.explain(image, image, token=granted.token, request_id="mine")
    assert (answer.usage.units, answer.usage.license_id, answer.usage.remaining) == (2, granted.id, 8)
    assert answer.usage.resets_at.ToDatetime(UTC) == datetime(2026, 11, 23, tzinfo=UTC)
    assert answer.usage.charged_at.ToDatetime(UTC) == tiny.now
    assert not answer.usage.replayed
    assert usage(calls, granted.token) == {"day": 2, "month": 2, "total": 2}


def test_without_a_limit_nothing_is_said_to_remain(calls, vendor, image):
    answer = calls.explain(image, token=vendor.grant().token)
    assert answer.usage.units == 1
    assert not answer.usage.HasField("remaining")


def test_unlicensed_answer_costs_nothing(calls, image):
    assert calls.explain(image).usage == pb.Usage()


def test_repeat_is_answered_again_and_costs_nothing(calls, vendor, image):
    granted = vendor.grant(quota=Quota(total=1))
    first = calls.explain(image, token=granted.token, request_id="r")
    again = calls.explain(image, token=granted.token, request_id="r")
    assert again.results == first.results
    assert (again.usage.units, again.usage.replayed, again.usage.remaining) == (1, True, 0)
    assert again.usage.charged_at == first.usage.charged_at
    assert usage(calls, granted.token)["total"] == 1


def test_same_id_with_another_content_is_refused(calls, vendor, image, other_image):
    granted = vendor.grant()
    calls.explain(image, token=granted.token, request_id="r")
    for change in (
        lambda: calls.explain(other_image, token=granted.token, request_id="r"),
        lambda: calls.explain(image, image, token=granted.token, request_id="r"),
        lambda: calls.explain(image, token=granted.token, request_id="r", explainer="coarse"),
        lambda: calls.explain(image, token=granted.token, request_id="r", target_index=2),
    ):
        code, details = refusal(change)
        assert code == grpc.StatusCode.ALREADY_EXISTS
        assert details["ErrorInfo"].reason == "REQUEST_ID_REUSED"
    # Ids belong to a license: another customer may use the same one.
    assert calls.explain(other_image, token=vendor.grant().token, request_id="r").usage.units == 1
    assert usage(calls, granted.token)["total"] == 1


def test_spent_quota_is_refused_with_its_reset_time(calls, vendor, image):
    granted = vendor.grant(quota=Quota(day=3))
    calls.explain(image, image, token=granted.token)
    code, details = refusal(lambda: calls.explain(image, image, token=granted.token))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    info = details["ErrorInfo"]
    assert (info.reason, info.metadata["period"], info.metadata["limit"], info.metadata["used"]) == (
        "QUOTA_SPENT",
        "day",
        "3",
        "2",
    )
    assert info.metadata["resets_at"] == "2026-11-23T00:00:00+00:00"
    assert details["QuotaFailure"].violations[0].subject == f"license:{granted.id}"
    assert calls.explain(image, token=granted.token).usage.remaining == 0


def test_spent_total_has_no_reset_time(calls, vendor, image):
    granted = vendor.grant(quota=Quota(total=0))
    _, details = refusal(lambda: calls.explain(image, token=granted.token))
    assert details["ErrorInfo"].metadata["period"] == "total"
    assert "resets_at" not in details["ErrorInfo"].metadata


def test_overage_is_answered_and_noted(calls, vendor, image):
    granted = vendor.grant(quota=Quota(day=1, overage=True))
    answer = calls.explain(image, image, token=granted.token)
    assert (answer.usage.overage_units, answer.usage.remaining) == (1, 0)


def test_too_fast_is_refused_with_the_time_to_wait(calls, vendor, image):
    granted = vendor.grant(rate=Rate(per_second=0.5, burst=2))
    calls.explain(image, token=granted.token)
    calls.explain(image, token=granted.token)
    code, details = refusal(lambda: calls.explain(image, token=granted.token))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details["ErrorInfo"].reason == "RATE_LIMITED"
    assert details["RetryInfo"].retry_delay.seconds == 2
    assert usage(calls, granted.token)["total"] == 2


def test_failed_call_costs_nothing(calls, vendor, image):
    granted = vendor.grant(quota=Quota(total=1))
    broken = pb.Image(encoded=b"no image at all")
    code, _ = refusal(lambda: calls.explain(broken, token=granted.token, request_id="r"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    # Nor does its id stand for anything.
    assert calls.explain(image, token=granted.token, request_id="r").usage.units == 1


def test_batch_and_image_size_are_limited_by_the_license(calls, vendor, image, tiny):
    granted = vendor.grant(max_images=1, max_pixels=100)
    code, details = refusal(lambda: calls.explain(image, image, token=granted.token))
    assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.PERMISSION_DENIED, "LICENSE_BATCH_TOO_LARGE")
    code, details = refusal(lambda: calls.explain(tiny.tensor_image(tiny.pixels(20, 20)), token=granted.token))
    assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.PERMISSION_DENIED, "LICENSE_IMAGE_TOO_LARGE")
    assert calls.explain(tiny.tensor_image(tiny.pixels(10, 10)), token=granted.token).usage.units == 1
    assert usage(calls, granted.token)["total"] == 1


def test_a_price_of_an_explainer_that_no_bundle_offers_stops_the_server_at_its_start(start_server):
    with pytest.raises(UnknownNameError, match="unknown explainer in prices 'coarsse': choose one of"):
        start_server(prices={"coarsse": 5, "*": 2})


def test_prices_by_explainer_and_an_estimate_before(start_server, vendor, image):
    calls = start_server(prices={"coarse": 5, "*": 2})
    granted = vendor.grant(quota=Quota(day=11))

    def estimate(explainer, images, token=granted.token):
        request = pb.EstimateExplainRequest(explainer=explainer, images=images)
        return calls.explanation.EstimateExplain(request, metadata=bearer(token) if token else (), timeout=20)

    told = estimate("coarse", 2)
    assert (told.units, told.units_per_image, told.fits) == (10, 5, True)
    assert not estimate("coarse", 3).fits
    assert estimate("", 1).explainer == "brightness"
    anybody = estimate("coarse", 3, token=None)
    assert (anybody.units, anybody.fits, len(anybody.quotas)) == (15, True, 0)
    assert usage(calls, granted.token)["total"] == 0
    assert calls.explain(image, image, token=granted.token, explainer="coarse").usage.units == 10
    assert not estimate("brightness", 1).fits
    calls.stop().result(timeout=30)


def test_renewed_terms_hold_at_once_for_the_old_file(calls, vendor, image):
    granted = vendor.grant(quota=Quota(total=1))
    calls.explain(image, token=granted.token)
    refusal(lambda: calls.explain(image, token=granted.token))
    later = granted.license.issued_at + timedelta(seconds=1)
    vendor.store.renew(granted.license.model_copy(update={"quota": Quota(total=2), "issued_at": later}), issuer="key")
    assert calls.explain(image, token=granted.token).usage.remaining == 0
    vendor.store.suspend(granted.id, at=datetime.now(UTC))
    _, details = refusal(lambda: calls.explain(image, token=granted.token))
    assert details["ErrorInfo"].reason == "LICENSE_SUSPENDED"


def test_license_with_limits_needs_a_server_that_keeps_record(start_server, vendor, image):
    calls = start_server(license_store=None)
    assert calls.explain(image, token=vendor.grant().token).results[0].keyed
    for terms in ({"quota": Quota(day=1)}, {"rate": Rate(per_second=1, burst=1)}):
        token = vendor.grant(**terms).token
        code, details = refusal(lambda token=token: calls.explain(image, token=token))
        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_METERING")
    calls.stop().result(timeout=30)


@pytest.fixture
def slow(start_server, store_url, monkeypatch):
    """A server on each database whose explanations wait until they are let go."""
    go = threading.Event()
    calls = start_server(license_store=store_url, deadline_s=30)
    model = calls.server.model
    real = type(model).explain

    def wait(self, *arguments, **options):
        if self is model:
            go.wait(20)
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(model), "explain", wait)
    with LicenseStore(store_url) as store:
        yield calls, store, go
    go.set()
    calls.stop().result(timeout=30)


def reserved(store):
    with store.database.transaction(snapshot=True) as connection:
        found = reconcile(connection)
    assert found.differences == ()
    return found.requests, found.units, found.reserved


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_call_that_is_given_up_costs_nothing(slow, vendor, image, how):
    calls, store, go = slow
    token = vendor.grant(quota=Quota(total=1), store=store).token
    request = pb.ExplainRequest(images=[image], request_id="r")
    timeout = 20 if how == "cancel" else 4.0
    call = calls.explanation.Explain.future(request, metadata=bearer(token), timeout=timeout)
    wait_for(lambda: reserved(store) == (0, 0, 1))
    if how == "cancel":
        call.cancel()
    wait_for(lambda: reserved(store) == (0, 0, 0))
    go.set()
    assert not calls.explain(image, token=token, request_id="r").usage.replayed
    assert reserved(store) == (1, 1, 0)


def test_of_calls_at_once_under_one_id_one_is_charged(slow, vendor, image):
    calls, store, go = slow
    token = vendor.grant(quota=Quota(total=1), store=store).token
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(calls.explain, image, token=token, request_id="r") for _ in range(6)]
        wait_for(lambda: reserved(store) == (0, 0, 1))
        go.set()
        answers = [future.result(timeout=30) for future in futures]
    assert sorted(answer.usage.replayed for answer in answers) == [False] + [True] * 5
    assert len({answer.results[0].map.data for answer in answers}) == 1
    assert reserved(store) == (1, 1, 0)


def test_store_that_goes_away_closes_explain_and_leaves_predict_open(start_server, vendor, image, postgresql, tiny):
    from keylock.inference import inference_pb2

    url = postgresql.new_url()
    calls = start_server(license_store=url)
    with LicenseStore(url) as store:
        token = vendor.grant(store=store).token
    assert calls.explain(image, token=token, request_id="before").usage.units == 1
    postgresql.stop()
    try:
        code, details = refusal(lambda: calls.explain(image, token=token))
        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "SERVICE")
        tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=[1, 3, 8, 8])
        request = inference_pb2.ModelInferRequest(
            model_name="tiny", inputs=[tensor], raw_input_contents=[tiny.images(1).tobytes()]
        )
        assert calls.inference.ModelInfer(request, timeout=20).outputs
        assert not calls.explain(image).results[0].keyed
    finally:
        postgresql.start()
    # The store is found again by itself, and nothing was lost.
    again = calls.explain(image, token=token, request_id="before")
    assert again.usage.replayed
    assert usage(calls, token)["total"] == 1
    calls.stop().result(timeout=30)


def test_server_takes_back_what_a_dead_one_had_reserved(start_server, vendor, store_url, image, tiny):
    from keylock.store import Ledger
    from keylock.store.ledger import ChargeRequest

    with LicenseStore(store_url) as store:
        granted = vendor.grant(quota=Quota(total=1), store=store)
        ledger = Ledger(store.database)
        order = ChargeRequest(
            license=granted.license,
            request_id="dead",
            request_digest="d",
            model_digest="m",
            explainer="e",
            images=1,
            units=1,
            attempt="dead",
        )
        ledger.reserve(order, now=tiny.now - timedelta(seconds=60), lifetime_s=10).result(timeout=30)
        ledger.close()
        calls = start_server(license_store=store_url)
        wait_for(lambda: reserved(store) == (0, 0, 0))
    assert calls.explain(image, token=granted.token).usage.remaining == 0
    calls.stop().result(timeout=30)


# Trouble with the store and the clock: found, named, and nothing lost


def test_audit_log_that_was_altered_ends_charging_and_not_predicting(start_server, vendor, image, tmp_path, server_log):
    url = f"sqlite:///{tmp_path / 'licenses.db'}"
    calls = start_server(license_store=url, store_check_s=0.05)
    with LicenseStore(url) as store:
        token = vendor.grant(store=store, quota=Quota(total=5)).token
        assert calls.explain(image, token=token).usage.units == 1
        with store.database.transaction(writes=True) as connection:
            kept = connection.execute(text("SELECT size FROM audit_head")).scalar_one()
            connection.execute(text("UPDATE audit_head SET size = size + 1"))
        code, details = refusal(lambda: calls.explain(image, token=token))
        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "SERVICE")
        assert "the audit log was cut or changed" in server_log.text
        with store.database.transaction(writes=True) as connection:
            connection.execute(text("UPDATE audit_head SET size = :size"), {"size": kept})
        wait_for(lambda: reserved(store) == (1, 1, 0))
        assert calls.explain(image, token=token).usage.remaining == 3
        with store.database.transaction(snapshot=True) as connection:
            assert (reconcile(connection).differences, compare_with_ledger(connection)) == ((), ())
    calls.stop().result(timeout=30)


def test_store_that_a_newer_keylock_took_over_is_named(start_server, vendor, image, tmp_path):
    url = f"sqlite:///{tmp_path / 'licenses.db'}"
    calls = start_server(license_store=url, store_check_s=0.05)
    with LicenseStore(url) as store, store.database.transaction(writes=True) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    wait_for(lambda: "upgrade keylock" in calls.server.problems.get("store", ""))
    calls.stop().result(timeout=30)
    with pytest.raises(StoreError, match="upgrade keylock"):
        start_server(license_store=url)


def test_store_that_another_program_has_locked_is_named(start_server, vendor, image, tmp_path, monkeypatch):
    monkeypatch.setattr("keylock.store.database._BUSY_TIMEOUT_MS", 20)
    url = f"sqlite:///{tmp_path / 'licenses.db'}"
    calls = start_server(license_store=url, store_check_s=0.05)
    with LicenseStore(url) as store, closing(sqlite3.connect(tmp_path / "licenses.db", isolation_level=None)) as other:
        token = vendor.grant(store=store, quota=Quota(total=1)).token
        assert calls.server.problems == {}
        other.execute("BEGIN IMMEDIATE")
        wait_for(lambda: "locked" in calls.server.problems.get("store", ""))
        code, details = refusal(lambda: calls.explain(image, token=token))
        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "SERVICE")
        other.execute("ROLLBACK")
        wait_for(lambda: calls.server.problems == {})
        assert calls.explain(image, token=token).usage.remaining == 0
        assert reserved(store) == (1, 1, 0)
    calls.stop().result(timeout=30)


def test_license_that_was_edited_in_the_store_is_refused_and_named(start_server, vendor, image, store_url, server_log):
    calls = start_server(license_store=store_url)
    with LicenseStore(store_url) as store:
        granted = vendor.grant(store=store, quota=Quota(total=1))
        answer = calls.license.ExchangeToken(
            license_pb2.ExchangeTokenRequest(), metadata=bearer(granted.token), timeout=20
        )
        with store.database.transaction(writes=True) as connection:
            edited = granted.license.model_copy(update={"quota": Quota(total=1000)}).model_dump_json()
            connection.execute(text("UPDATE licenses SET claims = :claims"), {"claims": edited})
        for token in (granted.token, answer.access_token):
            code, details = refusal(lambda token=token: calls.explain(image, token=token))
            assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "SERVICE")
        assert f"{granted.id} in the store is not what was issued" in server_log.text
        assert reserved(store) == (0, 0, 0)
        # Renewed as it should be, it is good again, for the old file too.
        later = granted.license.issued_at + timedelta(seconds=1)
        store.renew(granted.license.model_copy(update={"issued_at": later}), issuer="key")
        assert calls.explain(image, token=granted.token).usage.remaining == 0
    calls.stop().result(timeout=30)


def test_clock_that_was_set_back_is_named_and_nothing_is_lost(start_server, vendor, image, tiny, tmp_path):
    url = f"sqlite:///{tmp_path / 'licenses.db'}"
    clock = [tiny.now]
    calls = start_server(license_store=url, store_check_s=0.05, now=lambda: clock[0])
    with LicenseStore(url) as store:
        granted = vendor.grant(store=store, quota=Quota(total=2), not_before=tiny.now - timedelta(days=9))
    assert calls.explain(image, token=granted.token, request_id="a").usage.units == 1
    assert calls.server.problems == {}
    clock[0] = tiny.now - timedelta(days=3)
    wait_for(lambda: "the clock was set back" in calls.server.problems.get("clock", ""))
    # It goes on, and neither the charge nor what is left has changed.
    assert calls.explain(image, token=granted.token, request_id="a").usage.replayed
    assert calls.explain(image, token=granted.token, request_id="b").usage.remaining == 0
    code, _ = refusal(lambda: calls.explain(image, token=granted.token, request_id="c"))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    clock[0] = tiny.now
    wait_for(lambda: calls.server.problems == {})
    calls.stop().result(timeout=30)


def test_servers_of_different_issuers_on_one_store_refuse_each_others_licenses(start_server, vendor, image, tmp_path):
    other = SigningKey.generate()
    other.verifying_key.write(tmp_path / "other.pub.pem")
    content, sealer = vendor.content(), KeyFile.create(tmp_path / "other.key")
    write_bundle(tmp_path / "other.klb", content, signing_key=other, seed=vendor.seed, sealer=sealer)
    url = f"sqlite:///{tmp_path / 'licenses.db'}"
    ours = start_server(license_store=url)
    theirs = start_server(
        license_store=url,
        bundle=tmp_path / "other.klb",
        key_file=tmp_path / "other.key",
        issuers=(tmp_path / "other.pub.pem",),
    )
    with LicenseStore(url) as store:
        mine, foreign = (vendor.grant(store=store, signing_key=key).token for key in (vendor.signing_key, other))
        for calls, good, bad in ((ours, mine, foreign), (theirs, foreign, mine)):
            assert calls.explain(image, token=good).results[0].keyed
            code, details = refusal(lambda calls=calls, bad=bad: calls.explain(image, token=bad))
            assert (code, details["ErrorInfo"].reason) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "LICENSE_UNKNOWN_ISSUER",
            )
        assert reserved(store) == (2, 2, 0)
    for calls in (ours, theirs):
        calls.stop().result(timeout=30)
