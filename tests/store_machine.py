"""Drives a real store and its plain model (`tests/store_model.py`) through the same steps; compares them after each.

A step is what a vendor, a customer, a server or an operator does: licenses are issued, renewed, suspended and revoked,
requests reserved, charged, repeated and given up, servers die, the clock moves both ways, the store is put back from a
backup, receipts are kept and proven. Hypothesis chooses the steps and shortens what it finds.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rfc6962 import mth, path, subproof
from sqlalchemy import Connection
from store_model import Model, Presented, RefusedError, Settled, seconds
from store_places import PostgresqlPlace, SqlitePlace

from keylock.crypto.digests import digest_of
from keylock.crypto.signing import SigningKey
from keylock.errors import (
    AuditLogError,
    DisclosuresSpentError,
    InputError,
    LicenseError,
    QuotaError,
    RateError,
    RequestReusedError,
    ServiceError,
)
from keylock.licensing import (
    AnswerDigests,
    Charge,
    DisclosureTerms,
    License,
    Quota,
    Rate,
    UsageNote,
    issue,
    issue_access,
)
from keylock.licensing.conditions import Condition
from keylock.licensing.disclosures import Disclosure
from keylock.licensing.receipt_keys import Certificate, ReceiptKey, delegate, open_checkpoint
from keylock.licensing.receipts import Receipt, ReceiptSigner, entry_of, parse_entry, trusts_any
from keylock.store import Ledger, LicenseStore, log_table
from keylock.store.counters import Window
from keylock.store.identity import Presence
from keylock.store.ledger import ChargeRequest, ChargeResult, Reservation
from keylock.store.logged_charges import compare_with_ledger, compare_with_receipts, record_charge
from keylock.store.reconcile import reconcile
from keylock.store.usage import charged
from keylock_server.auth.authentication import Authenticator, Caller
from keylock_server.metering.store_clock import compare_clocks

__all__ = ["StoreMachine"]

BEGIN = datetime(2026, 11, 29, 23, 58, 0, tzinfo=UTC)
KEPT = 3  # Backups and states of the log that are remembered.

ISSUER, ACCESS = SigningKey.generate(), SigningKey.generate()
RECEIPTS = SigningKey.generate()
RECEIPT_KEY = ReceiptKey(
    RECEIPTS,
    Certificate.read(
        delegate(
            RECEIPTS.verifying_key,
            ISSUER,
            not_before=datetime(2020, 1, 1, tzinfo=UTC),
            expires=datetime(2099, 1, 1, tzinfo=UTC),
        )
    ),
)
TRUSTS = trusts_any([ISSUER.verifying_key])

picks = st.integers(0, 2**16)
limits = st.none() | st.integers(0, 12)
quotas = st.builds(Quota, day=limits, month=limits, total=limits, overage=st.booleans())
rates = st.none() | st.builds(Rate, per_second=st.sampled_from([0.1, 0.5, 1.0, 4.0]), burst=st.integers(1, 4))
ends = st.sampled_from([timedelta(minutes=2), timedelta(hours=3), timedelta(days=2), timedelta(days=60)])
moves = st.sampled_from([1, 7, 29, 40, 95, 3_600, 86_400, 31 * 86_400, -3, -4_000, -2 * 86_400]).map(
    lambda one: timedelta(seconds=one)
)
starts = st.sampled_from([timedelta(0), timedelta(-5), timedelta(minutes=1), timedelta(days=1)])


class LostError(Exception):
    """A server that dies in the middle of a transaction."""


def outcome(run: Callable[[], Any]) -> tuple[str, Any]:
    """Returns what a call gave, or the kind of error and what it must say; both the store's and the model's."""
    try:
        return "answer", run()
    except RefusedError as expected:
        return "refused", expected.told
    except LicenseError as error:
        return "refused", ("license", error.reason.value)
    except DisclosuresSpentError as error:
        return "refused", ("disclosures", error.period, error.limit, error.used, error.resets_at)
    except QuotaError as error:
        return "refused", ("quota", error.period, error.limit, error.used, error.units, error.resets_at)
    except RateError as error:
        return "refused", ("rate", round(error.retry_after_s, 5))
    except RequestReusedError as error:
        return "refused", ("reused", error.request_id)
    except ServiceError:
        return "refused", ("service",)


class StoreMachine(RuleBasedStateMachine):
    """One store and one server at a time; `place` says in which database."""

    def __init__(self, place: SqlitePlace | PostgresqlPlace) -> None:
        super().__init__()
        self.place, self.url = place, place.new()
        self.model, self.now = Model(), BEGIN
        self.numbers = itertools.count()
        self.shown: list[Presented] = []
        self.under_way: list[tuple[Reservation, Charge, list[Any]]] = []
        self.backups: list[tuple[Any, Model]] = []
        self.receipts: list[Receipt] = []
        self.notes: list[tuple[str, list[bytes]]] = []
        self.dies = False
        self.begin()

    # A server that begins and ends.

    def begin(self) -> None:
        self.store = LicenseStore(self.url)
        self.ledger = Ledger(self.store.database, record=self.record)
        self.presence, self.server = Presence(self.store.database, now=lambda: self.now), next(self.numbers)
        self.authenticator = Authenticator(
            keys=lambda: KEYS,
            access_keys=[ACCESS.verifying_key],
            store=self.store,
            leeway_s=30,
            now=lambda: self.now,
        )
        self.under_way.clear()

    def end(self) -> None:
        self.ledger.close()
        self.store.close()

    def teardown(self) -> None:
        self.compare_the_books()
        self.end()
        self.place.remove(self.url, [name for name, _ in self.backups])

    def record(self, connection: Connection, charge: Charge, entry: bytes) -> None:
        record_charge(connection, charge, entry)
        if self.dies:
            raise LostError

    def count(self, what: str) -> None:
        self.place.counted[what] += 1

    # What the vendor does.

    @initialize(quota=quotas, rate=rates)
    def issue_the_first(self, quota: Quota, rate: Rate | None) -> None:
        self.issue(quota, rate, timedelta(days=60), timedelta(days=-4))

    @rule(quota=quotas, rate=rates, end=ends, start=starts)
    def issue(self, quota: Quota, rate: Rate | None, end: timedelta, start: timedelta) -> None:
        license = License(
            id=f"lic_{next(self.numbers)}", customer="Acme", models=("*",), explainers=("*",), issued_at=self.now,
            not_before=self.now + start, expires=self.now + max(start, timedelta(0)) + end, quota=quota, rate=rate,
            disclosure=DisclosureTerms(per_day=1, total=3, suspended_days=1),
        )  # fmt: skip
        self.store.add(license, issuer=ISSUER.key_id)
        self.model.add(license)
        self.hand_over(license)

    @rule(pick=picks, quota=quotas, rate=rates, end=ends, earlier=st.booleans())
    def renew(self, pick: int, quota: Quota, rate: Rate | None, end: timedelta, earlier: bool) -> None:
        name = self.pick(self.shown, pick).license.id
        grant = self.model.grants.get(name)
        old = self.pick(self.shown, pick).license if grant is None else grant.terms
        starts = min(self.now, old.not_before)
        # As the command line does it: no two issues of a license have the same time.
        license = old.model_copy(
            update={
                "quota": quota,
                "rate": rate,
                "issued_at": max(self.now, old.issued_at + timedelta(seconds=1)),
                "not_before": starts,
                "expires": max(starts + timedelta(seconds=1), self.now) if earlier else self.now + end,
            }
        )
        expected = outcome(lambda: self.model.renew(license))
        assert outcome(lambda: self.store.renew(license, issuer=ISSUER.key_id).license) == expected
        if expected[0] == "answer":
            self.hand_over(license)

    @rule(
        pick=picks,
        act=st.sampled_from(["revoke", "suspend", "suspend", "suspend", "reinstate", "reinstate", "reinstate"]),
        unpaid=st.booleans(),
    )
    def close(self, pick: int, act: str, unpaid: bool) -> None:
        name = self.pick(self.shown, pick).license.id
        why: dict[str, Any] = {} if act == "reinstate" else {"at": self.now, "why": act}
        if act == "suspend":
            why["unpaid"] = unpaid
        expected = outcome(lambda: self.model.close(name, act, self.now, unpaid=unpaid))
        assert outcome(lambda: bool(getattr(self.store, act)(name, **why))) == expected

    @rule(pick=picks, back=st.sampled_from([0, 1, 3600]), what=st.sampled_from(["license", "license", "all", "token"]))
    def cut_off(self, pick: int, back: int, what: str) -> None:
        shown = self.pick(self.shown, pick)
        if what == "token" and shown.id is not None:
            self.store.revoke_token(shown.id, at=self.now)
            self.model.revoked_tokens.setdefault(shown.id, seconds(self.now))
            return
        name, cutoff = None if what == "all" else shown.license.id, self.now - timedelta(seconds=back)
        expected = outcome(lambda: self.model.cut_off(name, cutoff))
        assert outcome(lambda: self.store.refuse_before(cutoff, license_id=name)) == expected

    # What customers do.

    @rule(pick=picks, lifetime_s=st.sampled_from([300, 900]))
    def exchange(self, pick: int, lifetime_s: int) -> None:
        shown = self.pick([one for one in self.shown if one.id is None], pick)
        if self.authenticate(shown) is None:
            return
        ends = self.model.grants[shown.license.id].terms.expires
        text, token = issue_access(shown.license, ACCESS, now=self.now, lifetime_s=lifetime_s, ends=ends)
        assert token.expires <= min(ends, shown.license.expires)
        self.shown.append(Presented(text, shown.license, token.issued_at, token.expires, token.id))

    @rule(
        pick=picks, request=st.integers(0, 1), other=st.sampled_from([False, False, True]),
        images=st.integers(1, 3), price=st.integers(0, 2), lifetime_s=st.sampled_from([5, 60]),
    )  # fmt: skip
    def reserve(self, pick: int, request: int, other: bool, images: int, price: int, lifetime_s: int) -> None:
        shown = self.pick(self.shown, pick)
        license = self.authenticate(shown)
        if license is None:
            return
        # What is asked for has a digest, so images and content of a request id go together; the price may change.
        images, digest = (images, digest_of(b"other%d" % images)) if other else (1, digest_of(b"content"))
        key, attempt = (license.id, f"r{request}"), f"attempt-{next(self.numbers)}"
        order = ChargeRequest(
            license=license, request_id=key[1], request_digest=digest, model_digest=digest_of(b"model"),
            explainer="grad_cam", images=images, units=images * price, attempt=attempt,
        )  # fmt: skip
        expected = outcome(
            lambda: self.model.reserve(
                key, license, digest=digest, units=order.units, images=images, attempt=attempt, now=self.now,
                lifetime_s=lifetime_s,
            )
        )  # fmt: skip
        if expected[0] == "refused" and expected[1][0] == "rate":
            expected = "refused", ("rate", round(expected[1][1], 5))
        found = outcome(lambda: self.ledger.reserve(order, now=self.now, lifetime_s=lifetime_s).result(30))
        self.count(f"reserve {expected[1][0] if expected[0] == 'refused' else 'answered'}")
        if found[0] == "refused":
            assert found == expected
            return
        reservation = found[1]
        windows = self.model.windows(license, self.now)
        assert expected == ("answer", reservation.charged_at)
        assert reservation.explained == self.model.requests[key].explained
        assert plain(reservation.windows) == windows
        self.under_way.append((reservation, self.charge_of(order), windows))

    @rule(pick=picks, request=st.integers(0, 4), lifetime_s=st.sampled_from([5, 60]))
    def disclose(self, pick: int, request: int, lifetime_s: int) -> None:
        """What somebody has a right to, within terms of its own; it outlives a quota, and for a day non-payment."""
        license = self.authenticate(self.pick(self.shown, pick), disclosing=True)
        if license is None:
            return
        key, attempt = (license.id, f"d{request}"), f"attempt-{next(self.numbers)}"
        order = ChargeRequest(
            license=license, request_id=key[1], request_digest=digest_of(b"disclosed"),
            model_digest=digest_of(b"model"), explainer="grad_cam", images=1, units=0, attempt=attempt,
            disclosure="court",
        )  # fmt: skip
        expected = outcome(
            lambda: self.model.disclose(
                key, license, digest=order.request_digest, attempt=attempt, now=self.now, lifetime_s=lifetime_s
            )
        )
        found = outcome(lambda: self.ledger.reserve(order, now=self.now, lifetime_s=lifetime_s).result(30))
        self.count(f"disclose {expected[1][0] if expected[0] == 'refused' else 'answered'}")
        if found[0] == "refused":
            assert found == expected
            return
        assert expected == ("answer", found[1].charged_at)
        self.under_way.append((found[1], self.charge_of(order), self.model.windows(order.payer, self.now)))

    @precondition(lambda self: self.under_way)
    @rule(pick=picks, answer=st.integers(0, 2), last=st.booleans())
    def commit(self, pick: int, answer: int, last: bool) -> None:
        # It stays: what is committed twice, because nobody knows whether it went through, is charged once.
        reservation, charge, windows = self.pick(self.under_way, len(self.under_way) - 1 if last else pick)
        order = reservation.order
        charge = replace(charge, answer=answers(order.images, answer), time=self.now.replace(microsecond=0))
        key = (order.license.id, order.request_id)
        expected = outcome(lambda: self.model.commit(key, order.license, order.attempt, order.images, charge))
        found = outcome(lambda: self.ledger.commit(reservation, charge).result(30))
        self.count(f"commit {expected[1][0] if expected[0] == 'refused' else 'answered'}")
        if found[0] == "refused":
            assert found == expected
            return
        result, settled = found[1], expected[1]
        assert isinstance(settled, Settled), settled
        first = self.model.requests[key].charge
        assert first is not None
        assert (result.charge, result.overage, result.repeated) == (settled.charge, settled.overage, settled.repeated)
        answer = result.charge.repeats or result.charge.answer.digest()
        assert (result.charge.time, answer) == (first.time, first.answer.digest())
        now = self.model.windows(order.payer, charge.time) if settled.looked_up else windows
        given_back = 0 if settled.looked_up else settled.given_back
        told = [(one[0], one[1], one[2] - given_back, one[3]) for one in now]
        assert plain(result.windows) == told
        if settled.given_back:
            self.count("commit gives back")
        self.keep_receipt(result)

    @precondition(lambda self: self.under_way)
    @rule(pick=picks, answer=st.integers(0, 2))
    def commit_that_fails(self, pick: int, answer: int) -> None:
        """Whatever ends a transaction takes all of it back, wherever it had come to."""
        reservation, charge, _ = self.pick(self.under_way, pick)
        charge = replace(charge, answer=answers(reservation.order.images, answer), time=self.now)
        before = self.model.copy()
        key = (reservation.order.license.id, reservation.order.request_id)
        entries = len(self.model.log)
        expected = outcome(
            lambda: self.model.commit(
                key, reservation.order.license, reservation.order.attempt, reservation.order.images, charge
            )
        )
        recorded = len(self.model.log) > entries or (expected[0] == "answer" and expected[1].charge.repeats is not None)
        self.dies = True
        try:
            found = outcome(lambda: bool(self.ledger.commit(reservation, charge).result(30)))
        except LostError:
            assert recorded
            self.model = before
        else:
            assert not recorded
            assert found[0] == expected[0]
            if found[0] == "refused":
                assert found == expected
        finally:
            self.dies = False

    @rule(pick=picks, request=st.integers(0, 3), price=st.integers(0, 2), answer=st.integers(0, 2))
    def ask(self, pick: int, request: int, price: int, answer: int) -> None:
        """What most calls are: reserved and charged at once."""
        before = len(self.under_way)
        self.reserve(pick, request, False, 1, price, 60)
        if len(self.under_way) > before:
            self.commit(0, answer, True)

    @rule(pick=picks, request=st.integers(4, 6), price=st.integers(1, 2), answer=st.integers(0, 2))
    def ask_on_a_condition(self, pick: int, request: int, price: int, answer: int) -> None:
        """Three images, of which as many as the answer says are not explained."""
        before = len(self.under_way)
        self.reserve(pick, request, True, 3, price, 60)
        if len(self.under_way) > before:
            self.commit(0, answer, True)

    @rule(pick=picks, request=st.integers(0, 1), answer=st.integers(0, 1))
    def ask_once_more(self, pick: int, request: int, answer: int) -> None:
        """The same few requests over and over, each of them at today's price."""
        self.ask(pick, request, 1 + answer, answer)

    @precondition(lambda self: self.under_way)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        order = self.under_way.pop(pick % len(self.under_way))[0].order
        expected = self.model.release((order.license.id, order.request_id), order.attempt)
        assert self.ledger.release(order).result(30) == expected
        self.count(f"release {expected}")

    @precondition(lambda self: len(self.under_way) > 1)
    @rule(picked=st.lists(st.tuples(picks, st.booleans()), min_size=2, max_size=5))
    def many_at_once(self, picked: list[tuple[int, bool]]) -> None:
        """Several share a transaction, and none disturbs another; those of one license keep their order."""
        jobs = []
        for pick, gives_up in picked:
            reservation, charge, _ = self.pick(self.under_way, pick)
            charge = replace(charge, answer=answers(reservation.order.images, 0), time=self.now.replace(microsecond=0))
            jobs.append((reservation, charge, gives_up))
        futures: list[Any] = [
            self.ledger.release(reservation.order) if gives_up else self.ledger.commit(reservation, charge)
            for reservation, charge, gives_up in jobs
        ]
        logged = len(self.model.log)
        for future, (reservation, charge, gives_up) in zip(futures, jobs, strict=True):
            order = reservation.order
            key = (order.license.id, order.request_id)
            if gives_up:
                assert future.result(30) == self.model.release(key, order.attempt)
                continue
            expected = outcome(lambda: self.model.commit(key, order.license, order.attempt, order.images, charge))  # noqa: B023
            found = outcome(lambda: future.result(30))  # noqa: B023
            assert found[0] == expected[0]
            if found[0] == "refused":
                assert found == expected
            else:
                assert (found[1].overage, found[1].repeated) == (expected[1].overage, expected[1].repeated)
        # Where they came to lie among each other is the log's own affair.
        with self.store.database.transaction() as connection:
            entries = [entry for _, entry in log_table.entries(connection)]
        assert sorted(entries[logged:]) == sorted(self.model.log[logged:])
        self.model.log[logged:] = entries[logged:]

    # What servers and operators do.

    @rule()
    def reap(self) -> None:
        assert self.ledger.reap(now=self.now).result(30) == self.model.reap(self.now)

    @rule(move=moves)
    def move_clock(self, move: timedelta) -> None:
        self.now += move

    @rule()
    def look_at_the_store(self) -> None:
        self.presence.confirm()
        self.model.mark(self.server, self.now)
        newest = max((seconds(one.charge.time) for one in self.model.requests.values() if one.charge), default=None)
        behind = newest is not None and seconds(self.now) + 30 < newest
        assert (compare_clocks(self.store, now=lambda: self.now, leeway_s=30) is not None) == behind

    @rule()
    def die_and_begin_anew(self) -> None:
        self.end()
        self.begin()

    @rule()
    def back_up(self) -> None:
        if not self.place.backs_up_while_in_use:
            self.end()
        self.backups.append((self.place.back_up(self.url, self.store.database), self.model.copy()))
        if len(self.backups) > KEPT:
            self.place.drop_backup(self.backups.pop(0)[0])
        if not self.place.backs_up_while_in_use:
            self.begin()

    @precondition(lambda self: self.backups)
    @rule(pick=picks, takes_leave=st.sampled_from([True, True, False]))
    def restore(self, pick: int, takes_leave: bool) -> None:
        backup, then = self.pick(self.backups, pick)
        if takes_leave:
            self.presence.leave()
            self.model.marks.pop(self.server, None)
        self.end()
        since, told = self.model, {}
        if not self.place.carries_over:
            # PostgreSQL puts a database back without asking keylock, which only looks at what is there then.
            since = self.model = then.copy()
        elif not since.in_use(self.now):
            self.model, told = since.restored_from(then)
        try:
            restored = self.place.restore(self.url, backup, self.now)
        except InputError:
            found = "refused"
        else:
            found = "done"
            assert {name: getattr(restored, name) for name in told} == told
        assert found == ("refused" if since.in_use(self.now) else "done")
        if found == "done":
            self.model.marks.clear()
        self.count(f"restore {found}")
        self.begin()

    # What is proven.

    @rule()
    def sign_checkpoint(self) -> None:
        with self.store.database.transaction(writes=True) as connection:
            note = log_table.sign_checkpoint(
                connection, lambda state: RECEIPT_KEY.sign_checkpoint(state, at=self.now), at=self.now
            )
        checkpoint = open_checkpoint(note, TRUSTS)
        assert (checkpoint.size, checkpoint.root) == (len(self.model.log), mth(self.model.log))
        self.notes.append((note, list(self.model.log)))
        del self.notes[:-KEPT]

    @precondition(lambda self: self.notes and self.receipts)
    @rule(pick=picks, which=picks)
    def prove(self, pick: int, which: int) -> None:
        note, then = self.pick(self.notes, pick)
        entry = self.pick(self.receipts, which).entry
        log = self.model.log
        with self.store.database.transaction(snapshot=True) as connection:
            try:
                proof = log_table.prove_inclusion(connection, entry, checkpoint=note)
            except AuditLogError:
                assert entry not in log[: len(then)] or len(then) > len(log)
                return
            assert list(proof.hashes) == path(proof.index, log[: len(then)])
            assert log[proof.index] == entry
            state = log_table.head(connection)
            newest = RECEIPT_KEY.sign_checkpoint(state, at=self.now)
            goes_on = log_table.prove_consistency(connection, len(then), checkpoint=newest) if len(then) else None
        believes = log[: len(then)] == then
        try:
            proof.verify(entry, lambda text: open_checkpoint(text, TRUSTS))
            if goes_on is not None:
                assert list(goes_on.hashes) == subproof(len(then), log, True)
                goes_on.verify(open_checkpoint(note, TRUSTS), lambda text: open_checkpoint(text, TRUSTS))
        except AuditLogError:
            # The checkpoint is of a state that was lost when the store was put back.
            assert not believes
        else:
            assert believes
        self.count(f"proof {'holds' if believes else 'of a lost state'}")

    @rule()
    def verify_the_log(self) -> None:
        known = [note for note, _ in self.notes]
        good = all(self.model.log[: len(then)] == then for _, then in self.notes)
        with self.store.database.transaction(snapshot=True) as connection:
            try:
                found = log_table.verify(
                    connection,
                    open_checkpoint=lambda text: open_checkpoint(text, TRUSTS),
                    check_entry=parse_entry,
                    known=known,
                )
            except AuditLogError:
                assert not good
            else:
                assert good
                assert found.checkpoint.size == len(self.model.log)
                assert found.checkpoint.root == mth(self.model.log)
            missing = compare_with_receipts(connection, self.receipts)
        lost = {
            (one.charge.license_id, one.charge.request_id) for one in self.receipts if one.entry not in self.model.log
        }
        assert {(one.license_id, one.request_id) for one in missing} == lost

    # What holds after every step.

    @invariant()
    def store_is_what_the_model_is(self) -> None:
        """Every row but those of rates, which show in what is refused."""
        self.count("steps")
        model = self.model
        with self.store.database.transaction(snapshot=True) as connection:
            read = connection.exec_driver_sql
            requests, counters = read(_REQUESTS).fetchall(), read(_COUNTERS).fetchall()
            log = [bytes(row[0]) for row in read("SELECT entry FROM audit_log ORDER BY seq")]
            tokens = read("SELECT token_id, revoked_at FROM revoked_tokens").fetchall()
            head = log_table.head(connection)
        assert {(row[0], row[1]): tuple(row[2:]) for row in requests} == {
            key: (
                one.digest, one.units, one.overage, one.attempt,
                *one.ends(), None if one.explained is None else "".join(str(int(hit)) for hit in one.explained),
                "court" if one.disclosed else None,
            )
            for key, one in model.requests.items()
        }  # fmt: skip
        assert {tuple(row[:3]): row[3] for row in counters} == model.counters()
        assert log == model.log
        assert (head.size, head.root) == (len(log), mth(log))
        assert {row[0]: row[1] for row in tokens} == model.revoked_tokens

    @invariant()
    def licenses_are_what_the_model_says(self) -> None:
        stored = {one.license.id: one for one in self.store.list()}
        assert stored.keys() == self.model.grants.keys()
        for name, grant in self.model.grants.items():
            one = stored[name]
            assert one.suspended_unpaid == grant.unpaid
            closed = (one.revoked_at, one.suspended_at, one.refuse_before)
            assert one.license == grant.terms
            assert tuple(None if moment is None else seconds(moment) for moment in closed) == grant.closed()
            assert one.status(self.now).value == grant.status(self.now)

    @rule()
    def compare_the_books(self) -> None:
        """What the vendor looks at says the same as the model, and so finds nothing wrong."""
        done = {key: one for key, one in self.model.requests.items() if one.charge is not None}
        with self.store.database.transaction(snapshot=True) as connection:
            assert compare_with_ledger(connection) == ()
            found = reconcile(connection)
            lines = [(one.license_id, one.request_id, one.units, one.overage) for one in charged(connection)]
        assert found.differences == ()
        reserved = sum(one.units for key, one in self.model.requests.items() if key not in done)
        assert (found.requests, found.units, found.reserved) == (
            len(done), sum(one.units for one in done.values()), reserved,
        )  # fmt: skip
        # Disclosures are on no bill.
        billed = {key: one for key, one in done.items() if not one.disclosed}
        assert sorted(lines) == sorted((*key, one.units, one.overage) for key, one in billed.items())
        for name in self.model.grants:
            assert self.ledger.disclosures(name, now=self.now) == self.model.disclosures(name, self.now)
        entries = [parse_entry(entry) for entry in self.model.log]
        assert sorted((one.license_id, one.request_id) for one in entries if one.repeats is None) == sorted(done)
        for grant in self.model.grants.values():
            assert plain(self.ledger.windows(grant.terms, now=self.now)) == self.model.windows(grant.terms, self.now)
            self.within_quota(grant.terms)

    def within_quota(self, terms: License) -> None:
        """A license that never had other terms has used no more than they allow."""
        first = min(shown.license.issued_at for shown in self.shown if shown.license.id == terms.id)
        if not terms.quota.overage and terms.issued_at == first:
            for _, limit, used, _ in self.model.windows(terms, self.now):
                assert limit is None or used <= limit

    # Helpers.

    @staticmethod
    def pick(among: list[Any], number: int) -> Any:
        return among[number % len(among)]

    def hand_over(self, license: License) -> None:
        self.shown.append(Presented(issue(license, ISSUER), license, license.issued_at, license.expires))

    def authenticate(self, shown: Presented, *, disclosing: bool = False) -> License | None:
        caller = Caller((("authorization", f"Bearer {shown.token}"),), None)
        expected = outcome(lambda: self.model.authenticate(shown, self.now, disclosing=disclosing))
        found = outcome(lambda: self.authenticator.require(caller, disclosing=disclosing).license)
        assert found == expected
        self.count(f"license {expected[1][-1] if expected[0] == 'refused' else 'good'}")
        return expected[1] if expected[0] == "answer" else None

    def charge_of(self, order: ChargeRequest) -> Charge:
        return Charge(
            license_id=order.license.id, request_id=order.request_id, request_digest=order.request_digest,
            model_digest=order.model_digest, model_name="tiny", explainer=order.explainer, parameters={"layer": "x"},
            target=-1, units=order.units, keyed=True, time=self.now,
            image_digests=(digest_of(b"image"),) * order.images,
            # Whoever asks for several images wants those alone that are worth it.
            explain_if=CONDITION if order.images > 1 else None,
            disclosure=None if order.disclosure is None else Disclosure(order.disclosure, digest_of(b"subject")),
        )  # fmt: skip

    def keep_receipt(self, result: ChargeResult) -> None:
        """A server signs for what it was told, and the receipt is in the log."""
        note = UsageNote(replayed=result.repeated, overage_units=result.overage, remaining=None, resets_at=None)
        receipt = Receipt.verify(ReceiptSigner(RECEIPT_KEY).issue(result.entry, note), TRUSTS)
        assert receipt.charge == result.charge
        assert receipt.entry in self.model.log
        assert entry_of(receipt.charge) == receipt.entry
        self.receipts.append(receipt)


_REQUESTS = """
    SELECT license_id, request_id, request_digest, units, overage, attempt, expires_at, charged_at, answer_digest,
           explained, disclosure
    FROM ledger
"""
_COUNTERS = "SELECT license_id, period, start, used FROM counters WHERE used != 0"
KEYS = (ISSUER.verifying_key,)


CONDITION = Condition("probability_below", below=0.8)


def answers(images: int, answer: int) -> AnswerDigests:
    """An answer; of several images as many are not explained as its number says."""
    one = digest_of(b"answer%d" % answer)
    maps = tuple(None if images > 1 and row < answer else one for row in range(images))
    return AnswerDigests(maps=maps, scalings=(None,) * images, predictions=(one,) * images, targets=maps)


def plain(windows: tuple[Window, ...]) -> list[tuple[str, int | None, int, datetime | None]]:
    return [(one.period, one.limit, one.used, one.resets_at) for one in windows]
