"""ledger.py and rates.py: every request is charged once, and never beyond its quota, whatever happens around it."""

import random
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import event, text

from keylock.crypto.digests import digest_of
from keylock.errors import MeteringError, QuotaError, RateError, RequestReusedError, StoreError
from keylock.licensing import AnswerDigests, Charge, License, Quota, Rate
from keylock.store import Database, Ledger
from keylock.store import ledger as ledger_module
from keylock.store.ledger import ChargeRequest, Standing
from keylock.store.periods import day_of, month_of, resets_at
from keylock.store.reconcile import reconcile


def answer_digests(answer, images=1):
    one = digest_of(answer.encode())
    return AnswerDigests(
        maps=(one,) * images, scalings=(None,) * images, predictions=(one,) * images, targets=(one,) * images
    )


ANSWER = answer_digests("a").digest()
NOW = datetime(2026, 11, 30, 23, 59, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def make_license(id="lic_1", **changes):
    fields = {
        "id": id,
        "customer": "Acme",
        "models": ("*",),
        "explainers": ("*",),
        "issued_at": NOW,
        "not_before": NOW,
        "expires": NOW + timedelta(days=400),
    }
    return License(**(fields | changes))


def order(license, request_id, *, units=1, digest="d", attempt=None):
    return ChargeRequest(
        license=license,
        request_id=request_id,
        request_digest=digest_of(digest.encode()),
        model_digest=digest_of(b"m"),
        explainer="grad_cam",
        images=units,
        units=units,
        attempt=attempt or f"attempt-{random.getrandbits(60)}",
    )


def charge(wanted, *, now=NOW, answer="a"):
    return Charge(
        license_id=wanted.license.id,
        request_id=wanted.request_id,
        request_digest=wanted.request_digest,
        model_digest=wanted.model_digest,
        model_name="tiny",
        explainer=wanted.explainer,
        parameters={},
        target=-1,
        units=wanted.units,
        keyed=True,
        time=now.replace(microsecond=0),
        image_digests=(digest_of(b"image"),) * wanted.images,
        answer=answer_digests(answer, wanted.images),
    )


@pytest.fixture
def database(store_url):
    with Database(store_url) as database:
        yield database


@pytest.fixture
def recorded():
    return []


@pytest.fixture
def ledger(database, recorded):
    ledger = Ledger(database, record=lambda connection, charge, entry: recorded.append(charge))
    yield ledger
    ledger.close()
    with database.transaction(snapshot=True) as connection:
        assert reconcile(connection).differences == ()


def reserve(ledger, wanted, *, now=NOW, lifetime_s=60):
    return ledger.reserve(wanted, now=now, lifetime_s=lifetime_s).result(timeout=30)


def settle(ledger, reservation, *, now=NOW, answer="a"):
    return ledger.commit(reservation, charge(reservation.order, now=now, answer=answer)).result(timeout=30)


def test_requests_are_found_by_what_their_ids_begin_with(ledger):
    license = make_license()
    settle(ledger, reserve(ledger, order(license, "bulk-ab-1", units=4)))
    reserve(ledger, order(license, "bulk-ab-10", units=6))
    for other in ("bulk-abc-1", "bulk-ab", "Xbulk-ab-1"):
        reserve(ledger, order(license, other))
    settle(ledger, reserve(ledger, order(make_license("lic_2"), "bulk-ab-2")))
    assert ledger.standings("lic_1", prefix="bulk-ab-") == {
        "bulk-ab-1": Standing(images=4, units=4, charged=True, explained=None),
        "bulk-ab-10": Standing(images=6, units=6, charged=False, explained=None),
    }
    assert ledger.standings("lic_3", prefix="bulk-") == {}


def used(ledger, license, *, now=NOW):
    return [window.used for window in ledger.windows(license, now=now)]


def test_charge_counts_in_every_period_and_says_what_is_left(ledger, recorded):
    license = make_license(quota=Quota(day=10, month=20))
    reservation = reserve(ledger, order(license, "r", units=3))
    assert [w.remaining for w in reservation.windows] == [7, 17, None]
    assert [w.resets_at for w in reservation.windows] == [
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2026, 12, 1, tzinfo=UTC),
        None,
    ]
    result = settle(ledger, reservation)
    assert (result.repeated, result.overage, result.charge.time) == (False, 0, NOW)
    assert [charge.request_id for charge in recorded] == ["r"]
    assert used(ledger, license) == [3, 3, 3]
    # A new day is a new month here, and the total goes on.
    assert used(ledger, license, now=NOW + MINUTE) == [0, 0, 3]


def test_released_units_are_there_again(ledger, recorded):
    license = make_license(quota=Quota(total=1))
    first = order(license, "r")
    reserve(ledger, first)
    with pytest.raises(QuotaError):
        reserve(ledger, order(license, "s"))
    assert ledger.release(first).result(timeout=30)
    assert not ledger.release(first).result(timeout=30)
    assert used(ledger, license) == [0, 0, 0]
    settle(ledger, reserve(ledger, order(license, "s")))
    assert [charge.request_id for charge in recorded] == ["s"]


@pytest.mark.parametrize("answer", ["a", "another"])
def test_request_costs_what_was_set_aside_first_whatever_its_price_is_later(ledger, recorded, answer):
    license = make_license(quota=Quota(total=9))
    settle(ledger, reserve(ledger, order(license, "r", units=2)))
    result = settle(ledger, reserve(ledger, order(license, "r", units=5)), answer=answer)
    assert (result.charge.units, result.repeated) == (2, True)
    # One that is taken over was set aside at the first price as well.
    reserve(ledger, order(license, "s", units=1))
    assert settle(ledger, reserve(ledger, order(license, "s", units=7))).charge.units == 1
    assert {charge.units for charge in recorded if charge.request_id == "r"} == {2}
    assert [charge.units for charge in recorded if charge.request_id == "s"] == [1]
    assert used(ledger, license) == [3, 3, 3]


def test_quotas_that_are_told_are_those_of_the_reservation_that_was_charged(ledger):
    license = make_license(quota=Quota(day=9))
    reservation = reserve(ledger, order(license, "r"), lifetime_s=1)
    tomorrow = NOW + MINUTE
    ledger.reap(now=tomorrow).result(timeout=30)
    settle(ledger, reserve(ledger, order(license, "s", units=4), now=tomorrow), now=tomorrow)
    day = settle(ledger, reservation, now=tomorrow).windows[0]
    assert (day.used, day.resets_at) == (5, datetime(2026, 12, 2, tzinfo=UTC))


@pytest.mark.parametrize("period", ["day", "month", "total"])
def test_spent_quota_is_refused_with_its_period_and_reset(ledger, period):
    license = make_license(quota=Quota(**{period: 5}))
    settle(ledger, reserve(ledger, order(license, "r", units=4)))
    with pytest.raises(QuotaError) as caught:
        reserve(ledger, order(license, "s", units=2))
    error = caught.value
    assert (error.period, error.limit, error.used, error.units) == (period, 5, 4, 2)
    assert error.resets_at == (None if period == "total" else datetime(2026, 12, 1, tzinfo=UTC))
    assert used(ledger, license) == [4, 4, 4]
    settle(ledger, reserve(ledger, order(license, "s", units=1)))
    with pytest.raises(QuotaError):
        reserve(ledger, order(make_license("lic_new", quota=Quota(**{period: 5})), "s", units=6))
    if period != "total":
        reserve(ledger, order(license, "t", units=2), now=NOW + MINUTE)


def test_repeat_is_not_charged_and_keeps_its_time(ledger, recorded):
    license = make_license(quota=Quota(total=1))
    settle(ledger, reserve(ledger, order(license, "r")))
    later = NOW + timedelta(days=40)
    again = reserve(ledger, order(license, "r"), now=later)
    assert again.charged_at == NOW
    result = settle(ledger, again, now=later)
    assert (result.repeated, result.charge.time, result.charge.repeats) == (True, NOW, None)
    assert result.charge.answer.digest() == ANSWER
    assert settle(ledger, again, now=later, answer="another").charge.repeats == ANSWER
    assert used(ledger, license)[2] == 1
    assert [(one.time, one.repeats) for one in recorded] == [(NOW.replace(microsecond=0), None), (NOW, ANSWER)]


def test_same_id_for_another_request_is_refused(ledger):
    license = make_license()
    settle(ledger, reserve(ledger, order(license, "r", digest="cat")))
    with pytest.raises(RequestReusedError):
        reserve(ledger, order(license, "r", digest="dog"))
    reserve(ledger, order(make_license("lic_2"), "r", digest="dog"))


def test_of_twins_one_is_charged(ledger, recorded):
    license = make_license()
    first, second = order(license, "r"), order(license, "r")
    one, two = reserve(ledger, first), reserve(ledger, second)
    assert used(ledger, license) == [1, 1, 1]
    # The first was taken over, so that it can give nothing back.
    assert not ledger.release(first).result(timeout=30)
    assert not settle(ledger, one).repeated
    assert settle(ledger, two).repeated
    assert len(recorded) == 1
    assert used(ledger, license) == [1, 1, 1]


def test_twin_that_gives_up_takes_nothing_from_the_other(ledger, recorded):
    license = make_license()
    first, second = order(license, "r"), order(license, "r")
    one = reserve(ledger, first)
    reserve(ledger, second)
    assert ledger.release(second).result(timeout=30)
    assert used(ledger, license) == [0, 0, 0]
    assert not settle(ledger, one).repeated
    assert used(ledger, license) == [1, 1, 1]
    assert len(recorded) == 1


def test_expired_reservation_is_taken_back_and_a_late_commit_pays_again(ledger, recorded):
    license = make_license(quota=Quota(total=1))
    late = reserve(ledger, order(license, "late"), lifetime_s=5)
    assert ledger.reap(now=NOW + timedelta(seconds=5)).result(timeout=30) == 0
    assert ledger.reap(now=NOW + timedelta(seconds=7)).result(timeout=30) == 1
    assert used(ledger, license) == [0, 0, 0]
    assert not settle(ledger, late).repeated
    assert used(ledger, license)[2] == 1
    other = make_license("lic_2", quota=Quota(total=1))
    late = reserve(ledger, order(other, "late"), lifetime_s=5)
    ledger.reap(now=NOW + MINUTE).result(timeout=30)
    settle(ledger, reserve(ledger, order(other, "faster")))
    with pytest.raises(QuotaError):
        settle(ledger, late)
    assert [charge.request_id for charge in recorded] == ["late", "faster"]


def test_what_another_server_sets_aside_anew_during_a_commit_is_charged_and_not_taken_for_charged(
    ledger, recorded, monkeypatch
):
    """PostgreSQL shows each statement of a transaction what others have committed since the one before."""
    license = make_license(quota=Quota(total=1))
    mine, theirs = (order(license, "r", attempt=name) for name in ("mine", "theirs"))
    first = reserve(ledger, mine)
    assert ledger.release(mine).result(timeout=30)
    find, meanwhile = ledger_module._find, []

    def find_late(connection, wanted):
        if not meanwhile:
            meanwhile.append(ledger._reserve(connection, theirs, NOW, NOW + MINUTE))
        return find(connection, wanted)

    monkeypatch.setattr(ledger_module, "_find", find_late)
    result = settle(ledger, first)
    assert (result.charge.time, result.repeated, result.charge.answer.digest()) == (NOW, False, ANSWER)
    assert len(recorded) == 1
    assert settle(ledger, meanwhile[0]).repeated
    assert len(recorded) == used(ledger, license)[2] == 1


def test_commit_that_waits_for_a_server_which_releases_and_reserves_anew_charges_once(postgresql):
    url = postgresql.new_url()
    with Database(url) as database, Database(url) as other, ThreadPoolExecutor(1) as pool:
        ledger, others = Ledger(database), Ledger(other)
        license = make_license(quota=Quota(total=1))
        mine, given_up, theirs = (order(license, "r", attempt=name) for name in ("mine", "given up", "theirs"))
        first = reserve(ledger, mine)
        with other.transaction(writes=True) as connection:
            others._reserve(connection, given_up, NOW, NOW + MINUTE)
            assert others._release(connection, given_up)
            second = others._reserve(connection, theirs, NOW, NOW + MINUTE)
            settled = pool.submit(settle, ledger, first)
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            while not connection.execute(waiting).scalar_one():
                assert not settled.done()
        assert (settled.result(timeout=30).charge.time, settled.result().repeated) == (NOW, False)
        assert settle(others, second).repeated
        assert used(ledger, license)[2] == 1
        ledger.close()
        others.close()


def test_overage_is_answered_and_noted(ledger, database):
    license = make_license(quota=Quota(day=5, total=7, overage=True))
    assert settle(ledger, reserve(ledger, order(license, "r", units=4))).overage == 0
    assert settle(ledger, reserve(ledger, order(license, "s", units=2))).overage == 1
    assert settle(ledger, reserve(ledger, order(license, "t", units=3))).overage == 3
    with database.transaction() as connection:
        assert connection.execute(text("SELECT sum(overage) FROM ledger")).scalar_one() == 4


def test_quota_lowered_below_use_refuses_and_loses_nothing(ledger):
    license = make_license(quota=Quota(total=10))
    reservation = reserve(ledger, order(license, "r", units=8))
    lowered = license.model_copy(update={"quota": Quota(total=5)})
    with pytest.raises(QuotaError) as caught:
        reserve(ledger, order(lowered, "s"))
    assert (caught.value.limit, caught.value.used) == (5, 8)
    settle(ledger, reservation)
    assert ledger.windows(lowered, now=NOW)[2].remaining == 0


def test_clock_that_is_set_back_loses_nothing(ledger):
    license = make_license(quota=Quota(day=1, total=2))
    settle(ledger, reserve(ledger, order(license, "r")))
    yesterday = NOW - timedelta(days=1)
    settle(ledger, reserve(ledger, order(license, "s"), now=yesterday), now=yesterday)
    for now in (yesterday + MINUTE, NOW + MINUTE):
        with pytest.raises(QuotaError):
            reserve(ledger, order(license, "t"), now=now)


def test_clock_that_is_set_back_makes_nobody_wait_for_it(ledger):
    license = make_license(rate=Rate(per_second=1, burst=1))
    reserve(ledger, order(license, "r"))
    yesterday = NOW - timedelta(days=1)
    with pytest.raises(RateError) as caught:
        reserve(ledger, order(license, "s"), now=yesterday)
    assert caught.value.retry_after_s == 1
    reserve(ledger, order(license, "s"), now=yesterday + timedelta(seconds=1))


def test_rate_holds_on_average_for_batches_of_any_size(ledger):
    license = make_license(rate=Rate(per_second=2, burst=3))
    passed, moment = 0, NOW
    generator = random.Random(5)  # noqa: S311 - not for secrets
    for n in range(120):
        moment += timedelta(seconds=generator.choice((0.1, 0.3, 0.6)))
        images = generator.choice((1, 1, 2, 5))
        wanted = order(license, f"r{n}", units=images)
        error = ledger.reserve(wanted, now=moment, lifetime_s=60).exception(timeout=30)
        if error is not None:
            moment += timedelta(seconds=error.retry_after_s + 0.001)
            reserve(ledger, wanted, now=moment)
        passed += images
    elapsed = (moment - NOW).total_seconds()
    # The bucket at the start, what was filled in, and the debt of the last batch.
    assert passed <= 3 + 2 * elapsed + 5
    assert passed >= 2 * elapsed * 0.8


def test_rate_that_is_kept_is_never_refused(ledger):
    license = make_license(rate=Rate(per_second=10, burst=1))
    for n in range(20):
        reserve(ledger, order(license, f"r{n}"), now=NOW + timedelta(seconds=n * 0.1))
    with pytest.raises(RateError) as caught:
        reserve(ledger, order(license, "too-fast"), now=NOW + timedelta(seconds=1.9))
    assert caught.value.retry_after_s == pytest.approx(0.1, abs=0.001)


def test_many_threads_never_exceed_a_quota_and_charge_every_request_once(ledger, recorded):
    license = make_license(quota=Quota(total=150))
    outcomes = []

    def call(seed):
        generator = random.Random(seed)  # noqa: S311 - not for secrets
        for _ in range(12):
            wanted = order(license, f"r{generator.randrange(200)}", digest="same")
            try:
                reservation = reserve(ledger, wanted)
            except MeteringError:
                continue
            if generator.random() < 0.3:
                ledger.release(wanted).result(timeout=30)
            elif generator.random() < 0.9:
                try:
                    result = settle(ledger, reservation)
                except QuotaError:  # Its twin gave up, and somebody else was faster.
                    continue
                outcomes.append((wanted.request_id, result.repeated))

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(call, range(64)))
    ledger.reap(now=NOW + 2 * MINUTE).result(timeout=30)
    answered = {request_id for request_id, _ in outcomes}
    charged = [charge.request_id for charge in recorded]
    assert sorted(charged) == sorted(answered)
    assert used(ledger, license)[2] == len(charged) <= 150
    assert len(charged) > 100


def test_several_processes_never_exceed_a_quota(database, store_url):
    script = r"""
import sys, random
from datetime import UTC, datetime, timedelta
from keylock.errors import QuotaError
from keylock.licensing import Charge, License, Quota
from keylock.store import Database, Ledger
from keylock.store.ledger import ChargeRequest
now = datetime(2026, 11, 30, tzinfo=UTC)
license = License(id="lic_1", customer="c", models=("*",), explainers=("*",), issued_at=now, not_before=now,
                  expires=now + timedelta(days=1), quota=Quota(total=100))
ledger = Ledger(Database(sys.argv[1]))
done = 0
futures = [ledger.reserve(ChargeRequest(license=license, request_id=f"{sys.argv[2]}-{n}", request_digest="d",
           model_digest="m", explainer="e", images=1, units=1, attempt=f"{sys.argv[2]}-{n}"), now=now, lifetime_s=60)
           for n in range(60)]
for future in futures:
    try:
        future.result(timeout=60)
        done += 1
    except QuotaError:
        pass
ledger.close()
print(done)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, store_url, str(n)], stdout=subprocess.PIPE) for n in range(3)
    ]
    assert sum(int(process.communicate(timeout=60)[0]) for process in processes) == 100
    with database.transaction() as connection:
        total = text("SELECT used FROM counters WHERE period = 'total'")
        assert connection.execute(total).scalar_one() == 100


def test_record_that_fails_takes_the_charge_with_it(database):
    def fail(connection, charge, entry):
        if charge.request_id == "bad":
            raise ValueError("no")

    ledger = Ledger(database, record=fail)
    license = make_license()
    reservations = [reserve(ledger, order(license, name)) for name in ("good", "bad", "fine")]
    futures = [ledger.commit(one, charge(one.order)) for one in reservations]
    assert [type(future.exception(timeout=30)) for future in futures] == [type(None), ValueError, type(None)]
    with database.transaction() as connection:
        rows = connection.execute(text("SELECT request_id FROM ledger WHERE charged_at IS NOT NULL ORDER BY 1"))
        assert rows.scalars().all() == ["fine", "good"]
    ledger.close()


def test_closed_ledger_says_so(database):
    ledger = Ledger(database)
    ledger.close()
    with pytest.raises(StoreError, match="closed"):
        ledger.release(order(make_license(), "r"))


def test_periods_have_the_calendars_length():
    for year in (1999, 2000, 2024, 2026):
        for month in range(1, 13):
            first = datetime(year, month, 1, tzinfo=UTC)
            following = resets_at("month", first)
            assert following.day == 1
            assert month_of(following) == month_of(first) + 1
            assert month_of(following - timedelta(microseconds=1)) == month_of(first)
            assert resets_at("day", first + timedelta(hours=5)) == first + timedelta(days=1)
            assert day_of(first) == (first - datetime(1970, 1, 1, tzinfo=UTC)).days
    assert resets_at("total", NOW) is None


def test_reconcile_names_what_does_not_agree(database):
    ledger = Ledger(database)
    license = make_license()
    settle(ledger, reserve(ledger, order(license, "r", units=2)))
    ledger.close()
    with database.transaction(writes=True) as connection:
        connection.execute(text("UPDATE counters SET used = used + 1 WHERE period = 'day'"))
        connection.execute(text("DELETE FROM counters WHERE period = 'total'"))
    with database.transaction(snapshot=True) as connection:
        found = reconcile(connection)
    assert found.requests == 1
    assert {(d.period, d.ledger, d.counter) for d in found.differences} == {("day", 2, 3), ("total", 2, 0)}


def test_who_reads_a_snapshot_may_take_its_time_between_rows(database):
    """As an export does that is printed page by page, or a check of a long log."""
    with database.transaction(snapshot=True) as connection:
        assert reconcile(connection).requests == 0
        time.sleep(6)  # Who writes, and holds up others, is given five seconds.
        assert reconcile(connection).requests == 0


# A store that is in trouble while a ledger uses it (SQLite: what a database server does is its own affair)


@pytest.fixture
def file_ledger(tmp_path):
    with Database(f"sqlite:///{tmp_path / 'ledger.db'}") as database:
        made = Ledger(database)
        yield made, database
        made.close()


@pytest.mark.parametrize("change", ["reserve", "commit", "release", "reap"])
def test_charges_alone_wait_for_the_disk(file_ledger, monkeypatch, change):
    ledger, _ = file_ledger
    license, found = make_license(), []
    reservation = reserve(ledger, order(license, "r"))

    def look(connection, *_):
        found.append(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())

    # Of this ledger alone: servers of other tests run in this process, and do the same by themselves.
    for name in ("_reserve", "_commit", "_release", "_reap"):
        monkeypatch.setattr(ledger, name, look)
    asked = {
        "reserve": lambda: ledger.reserve(order(license, "s"), now=NOW, lifetime_s=60),
        "commit": lambda: ledger.commit(reservation, charge(reservation.order)),
        "release": lambda: ledger.release(reservation.order),
        "reap": lambda: ledger.reap(now=NOW),
    }
    asked[change]().result()
    asked["commit"]().result()
    asked[change]().result()
    full, normal = 2, 1
    own = full if change == "commit" else normal
    assert found == [own, full, own]


def test_a_power_cut_takes_no_charge_and_leaves_books_that_agree(file_ledger, tmp_path):
    ledger, _ = file_ledger
    license, log = make_license(), tmp_path / "ledger.db-wal"
    settle(ledger, reserve(ledger, order(license, "first")))
    on_disk = []
    for number in range(4):
        waiting = reserve(ledger, order(license, f"waits-{number}"))
        settle(ledger, reserve(ledger, order(license, f"charged-{number}")))
        # The charge has waited for all of the log up to here; of what follows the disk may have any part.
        on_disk.append(log.stat().st_size)
        if number % 2:
            ledger.release(waiting.order).result()
        reserve(ledger, order(license, f"late-{number}"))
    whole, file = log.read_bytes(), (tmp_path / "ledger.db").read_bytes()
    page = int.from_bytes(file[16:18], "big")
    for number, size in enumerate(on_disk):
        for cut in range(size, len(whole) + 1, page + 24):
            copy = tmp_path / f"cut-{number}-{cut}.db"
            copy.write_bytes(file)
            copy.with_name(f"{copy.name}-wal").write_bytes(whole[:cut])
            with Database(f"sqlite:///{copy}") as database, database.transaction(snapshot=True) as connection:
                found = reconcile(connection)
                charged = connection.execute(text("SELECT request_id FROM ledger WHERE charged_at IS NOT NULL"))
                names = set(charged.scalars())
            assert found.differences == ()
            assert {"first", *(f"charged-{earlier}" for earlier in range(number + 1))} <= names


def test_full_disk_refuses_charges_and_loses_nothing(file_ledger):
    ledger, database = file_ledger
    license = make_license(quota=Quota(total=10_000))
    with database.transaction() as connection:
        most = connection.exec_driver_sql("PRAGMA page_count").scalar_one() + 3
    # Whichever connection the ledger uses next.
    event.listen(database._engine, "connect", lambda opened, _: opened.execute(f"PRAGMA max_page_count = {most}"))
    database._engine.dispose()
    settle(ledger, reserve(ledger, order(license, "before")))
    done = 1
    with pytest.raises(StoreError, match="disk is full") as caught:  # noqa: PT012 - how many fit is not known
        while done < 200:
            settle(ledger, reserve(ledger, order(license, f"{done}-{'x' * 100}")))
            done += 1
    assert caught.value.passing
    most = 1_000_000
    with database.transaction() as connection:
        found = reconcile(connection)
    assert (found.requests, found.differences) == (done, ())
    # With room again it goes on where it was.
    settle(ledger, reserve(ledger, order(license, "after")))
    assert used(ledger, license)[2] == done + found.reserved + 1


def test_store_that_another_program_locks_is_named_and_used_again(file_ledger, tmp_path, monkeypatch):
    ledger, database = file_ledger
    monkeypatch.setattr("keylock.store.database._BUSY_TIMEOUT_MS", 20)
    database._engine.dispose()
    license = make_license(quota=Quota(total=1))
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked") as caught:
        reserve(ledger, order(license, "r"))
    assert caught.value.passing
    other.execute("ROLLBACK")
    other.close()
    settle(ledger, reserve(ledger, order(license, "r")))
    assert used(ledger, license) == [1, 1, 1]
