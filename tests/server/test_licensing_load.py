"""The benchmarks of licensing in small: load, kills, three servers, revocation, a corpus of forgeries."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "licensing"))

import checks
import forged
import load
import world

from keylock.signing import SigningKey


@pytest.fixture
def vendor_world(tmp_path, store_url):
    made = world.World.make(tmp_path, store_url)
    yield made
    made.store.close()


def faults(books):
    return {fault: books[fault] for fault in load.FAULTS if books[fault]}


def test_callers_that_retry_repeat_cancel_and_run_late_are_charged_once(vendor_world, loop_thread):
    found = load.callers(vendor_world, calls=200, count=24, seed=7, run=loop_thread.run)
    assert faults(found["books"]) == {}
    # The quota is spent to the last unit, so it was under pressure.
    assert found["books"]["units_charged"] == found["quota"]
    assert found["outcomes"]["REPLAYED"] > 0


def test_books_agree_after_every_kill_of_the_server(tmp_path, loop_thread):
    made = world.World.make(tmp_path, f"sqlite:///{tmp_path / 'licenses.db'}")
    found = load.kills(made, times=2, count=16, seed=3, between_s=0.4, run=loop_thread.run)
    made.store.close()
    assert found["rounds_with_a_fault"] == 0
    assert found["requests_charged"] > 10


def test_books_agree_when_a_server_stands_still_and_the_database_restarts(tmp_path, postgresql, loop_thread):
    made = world.World.make(tmp_path, postgresql.new_url())

    def restart():
        postgresql.stop()
        postgresql.start()

    found = load.three(made, seconds=3, count=12, seed=5, restart=restart, pause_s=1, run=loop_thread.run)
    made.store.close()
    assert faults(found["books"]) == {}
    assert found["books"]["requests_charged"] > 10


def test_revoked_license_is_refused_by_three_servers_within_two_seconds(tmp_path):
    made = world.World.make(tmp_path, f"sqlite:///{tmp_path / 'licenses.db'}")
    assert checks.revoke(made, servers=3, times=1)["longest_s"] <= 2
    made.store.close()


def test_no_forgery_is_accepted_and_none_is_a_fault(calls, vendor, tiny):
    good = vendor.grant().license
    tokens = forged.corpus(
        random.Random(11),  # noqa: S311 - not for secrets
        good=good,
        issuer=vendor.signing_key,
        access_key=SigningKey.generate(),
        now=tiny.now,
    )
    bad = [(*next(tokens), {}) for _ in range(1200)]
    image = tiny.tensor_image(tiny.images(1)[0])
    found = calls.loop_thread.run(forged.send(calls.server.target, bad, image))
    # gRPC itself refuses metadata that are too long.
    assert set(found) <= {"UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"}
    assert found["RESOURCE_EXHAUSTED"] < len(bad) / 20
    assert sum(found.values()) == len(bad)


def test_check_reads_the_license_by_its_key(tmp_path):
    """What makes it cost the same with ten licenses and with a million."""
    found = checks.licenses(f"sqlite:///{tmp_path / 'licenses.db'}", (10, 5000), checks=100)
    assert set(found["median_us"]) == {"10", "5000"}
    from sqlalchemy import text

    from keylock.store import LicenseStore

    with LicenseStore(f"sqlite:///{tmp_path / 'licenses.db'}") as store, store.database.transaction() as connection:
        plan = connection.execute(text("EXPLAIN QUERY PLAN SELECT * FROM licenses WHERE id = 'x'")).all()
    assert "USING INDEX" in plan[0].detail
