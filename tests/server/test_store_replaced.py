"""A server whose store is another one than it began with gives no true map, says so, and charges nobody."""

import os
import sqlite3
import time
from contextlib import closing

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support import details_of, wait_for

from keylock.licensing import Quota
from keylock.store import LicenseStore
from keylock.store.backup import back_up

SERVING = health_pb2.HealthCheckResponse.SERVING
EXPLANATIONS, PREDICTIONS = "keylock.v1.ExplanationService", "inference.GRPCInferenceService"


@pytest.fixture
def image(tiny):
    return tiny.tensor_image(tiny.images(1)[0])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "licenses.db"


def health(calls, service):
    stub = health_pb2_grpc.HealthStub(calls.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status


def reason_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return details_of(error)["ErrorInfo"].reason
    return "true map"


def marks(path):
    """What running servers wrote into a store last."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM server_marks").fetchall()


def replaced_by_renaming(path, backup):
    for side in ("-wal", "-shm"):
        path.with_name(path.name + side).unlink(missing_ok=True)
    os.replace(backup, path)


def deleted(path, backup):
    path.unlink()


def deleted_and_made_again(path, backup):
    path.unlink()
    LicenseStore(f"sqlite:///{path}").close()


def restored_into_the_same_file(path, backup):
    with closing(sqlite3.connect(backup)) as source, closing(sqlite3.connect(path)) as target:
        source.backup(target)


@pytest.mark.parametrize("change", [replaced_by_renaming, deleted, deleted_and_made_again, restored_into_the_same_file])
def test_server_that_lost_its_store_explains_nothing_for_a_license(
    start_server, vendor, image, path, change, server_log
):
    url = f"sqlite:///{path}"
    calls = start_server(license_store=url)
    with LicenseStore(url) as store:
        granted = vendor.grant(store=store, quota=Quota(total=10))
        back_up(store.database, path.with_name("backup.db"))
    assert reason_of(lambda: calls.explain(image, token=granted.token)) == "true map"
    # A backup with the mark that the server wrote last is the store as it is.
    wait_for(lambda: marks(path) != marks(path.with_name("backup.db")))
    change(path, path.with_name("backup.db"))
    changed = time.monotonic()
    while health(calls, EXPLANATIONS) == SERVING:
        assert time.monotonic() - changed < 10
        time.sleep(0.02)
    seen = [reason_of(lambda: calls.explain(image, token=granted.token)) for _ in range(20)]
    assert seen == ["STORE_LOST"] * 20
    assert health(calls, PREDICTIONS) == SERVING
    assert not calls.explain(image).results[0].keyed
    assert "health check failed: store" in server_log.text
    assert str(path) in calls.server.problems["store"]
    with LicenseStore(url) as store:
        store.database.migrate()
        if any(one.license.id == granted.id for one in store.list()):
            store.revoke(granted.id, at=granted.license.issued_at)
    assert {reason_of(lambda: calls.explain(image, token=granted.token)) for _ in range(20)} == {"STORE_LOST"}
    calls.stop().result(timeout=30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_server_whose_store_thread_has_died_says_so_and_keeps_nobody_waiting(start_server, vendor, image, path):
    url = f"sqlite:///{path}"
    calls = start_server(license_store=url, store_check_s=0.05)
    with LicenseStore(url) as store:
        token = vendor.grant(store=store).token
    assert reason_of(lambda: calls.explain(image, token=token)) == "true map"
    ledger = calls.server.parts.meter._ledger

    def end(connection):
        raise SystemExit

    future = ledger._commits.submit(end, order="")
    assert "has ended" in str(future.exception(timeout=10))
    began = time.monotonic()
    assert reason_of(lambda: calls.explain(image, token=token)) == "SERVICE"
    assert time.monotonic() - began < 5
    while health(calls, EXPLANATIONS) == SERVING:
        assert time.monotonic() - began < 10
        time.sleep(0.02)
    assert "has ended" in calls.server.problems["metering"]
    assert health(calls, PREDICTIONS) == SERVING
    calls.stop().result(timeout=30)


def test_server_whose_store_takes_no_writes_explains_nothing_for_a_license_until_it_does(
    start_server, vendor, image, postgresql
):
    """As a PostgreSQL is that has become a standby: it can be read, and nothing can be charged."""
    psycopg = pytest.importorskip("psycopg")
    url = postgresql.new_url()
    with LicenseStore(url) as store:
        token = vendor.grant(store=store, quota=Quota(total=2)).token
    calls = start_server(license_store=url)

    def set_read_only(value):
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            connection.execute("SELECT pg_reload_conf()")

    def wait_for(well):
        began = time.monotonic()
        while (health(calls, EXPLANATIONS) == SERVING) != well:
            assert time.monotonic() - began < 10
            time.sleep(0.02)

    try:
        assert reason_of(lambda: calls.explain(image, token=token, request_id="first")) == "true map"
        set_read_only("on")
        wait_for(well=False)
        assert {reason_of(lambda: calls.explain(image, token=token)) for _ in range(10)} == {"SERVICE"}
        assert health(calls, PREDICTIONS) == SERVING
        assert not calls.explain(image).results[0].keyed
    finally:
        set_read_only("off")
    wait_for(well=True)
    # Nothing that was refused was charged.
    assert reason_of(lambda: calls.explain(image, token=token)) == "true map"
    assert reason_of(lambda: calls.explain(image, token=token)) == "QUOTA_SPENT"
    calls.stop().result(timeout=30)
