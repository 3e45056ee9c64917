"""The benchmarks of licensing in small: load, kills, three servers, revocation, a corpus of forgeries."""

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "licensing"))

import checks
import forged
import load
import world

from keylock.crypto.signing import SigningKey
from keylock.store.reconcile import Difference, Reconciliation


@pytest.fixture
def vendor_world(tmp_path, store_url):
    made = world.World.make(tmp_path, store_url)
    yield made
    made.store.close()


def faults(books):
    return {fault: books[fault] for fault in load.FAULTS if books[fault]}


def test_each_fault_in_the_books_is_found(vendor_world):
    """What callers hold and what the books say, made up so that each of them is wrong in every way once."""
    clients = load.Clients(
        answered={"no charge": 1, "other units": 1},
        entries={"no charge": b"no entry"},
        first_answers=Counter({"other units": 2}),
        outcomes=Counter(OTHER_UNITS=1, OTHER_MAPS=1, BAD_RECEIPT=1),
    )
    difference = Difference("lic", "day", 0, 1, 2)
    books = world.Books(
        Reconciliation(2, 3, 0, (difference,)), 1, {"other units": 2, "no answer": 1}, frozenset({b"an entry"})
    )
    found = load.audit(books, clients, quota=2)
    assert all(found[fault] for fault in load.FAULTS)
    assert not faults(load.audit(vendor_world.books(), load.Clients(), quota=0))


def test_callers_that_retry_repeat_cancel_and_run_late_are_charged_once(vendor_world, loop_thread):
    told = []
    found = load.callers(vendor_world, calls=200, count=24, seed=7, run=loop_thread.run, progress=told.append)
    assert told == [found | {"seconds": told[0]["seconds"]}]
    assert faults(found["books"]) == {}
    books = found["books"]
    assert books["receipts_held"] == books["log_entries"] == books["requests_charged"] > 0
    # The quota is spent to the last unit, so it was under pressure.
    assert found["books"]["units_charged"] == found["quota"]
    assert found["outcomes"]["REPLAYED"] > 0


def test_books_agree_after_every_kill_of_the_server(tmp_path, loop_thread):
    made = world.World.make(tmp_path, f"sqlite:///{tmp_path / 'licenses.db'}")
    found = load.kills(made, times=2, count=16, seed=3, between_s=0.4, run=loop_thread.run)
    made.store.close()
    assert (found["kills"], found["rounds_with_a_fault"]) == (2, 0)
    assert found["books"]["receipts_held"] == found["books"]["requests_charged"] > 10
    assert found["calls_under_way_at_a_kill"]["least"] > 0


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


def test_what_was_good_once_or_is_good_elsewhere_is_refused(start_server, vendor, tiny, tmp_path, loop_thread):
    access_key = SigningKey.generate()
    access_key.write(tmp_path / "tokens.pem")
    calls = start_server(token_keys=(tmp_path / "tokens.pem",))

    def grant(**terms):
        made = vendor.grant(**terms)
        return made.license, made.token

    _, spent = grant()
    image = tiny.tensor_image(tiny.images(1)[0])
    bad = forged.genuine(grant, vendor.store, spent=spent, access_key=access_key, now=tiny.now)
    loop_thread.run(forged.spend(calls.server.target, spent, image))
    found = loop_thread.run(forged.send(calls.server.target, bad, image))
    # Each is refused for what it is, and `spend` shows that the server answers a good one.
    assert found == {"ALREADY_EXISTS": 1, "PERMISSION_DENIED": 2, "UNAUTHENTICATED": 6}
    calls.stop().result(timeout=30)


def test_check_reads_the_license_by_its_key(tmp_path):
    """What makes it cost the same with ten licenses and with a million."""
    found = checks.licenses(f"sqlite:///{tmp_path / 'licenses.db'}", (10, 5000), checks=100)
    assert set(found["median_us"]) == {"10", "5000"}
    from sqlalchemy import text

    from keylock.store import LicenseStore

    with LicenseStore(f"sqlite:///{tmp_path / 'licenses.db'}") as store, store.database.transaction() as connection:
        plan = connection.execute(text("EXPLAIN QUERY PLAN SELECT * FROM licenses WHERE id = 'x'")).all()
    assert "USING INDEX" in plan[0].detail
