"""license, issuer and usage: terms, files, rotation, exports, through the real `main`."""

import csv
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import text

from keylock.cli import main
from keylock.crypto.issuers import IssuerKeys, home_keys, load_keys, retire, rotate, trusted_file
from keylock.crypto.signing import Home
from keylock.errors import LicenseReason
from keylock.licensing import AnswerDigests, Charge, UsageNote, verify
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.licensing.receipts import ReceiptSigner, entry_of, parse_entry
from keylock.store import Ledger, LicenseStore, log_table
from keylock.store.ledger import ChargeRequest
from keylock.store.logged_charges import record_charge

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def home(tmp_path):
    return Home.open(tmp_path / "home")


@pytest.fixture
def run(capsys, home, monkeypatch):
    monkeypatch.setenv("KEYLOCK_HOME", str(home.path))

    def call(*arguments, code=0, read=False):
        found = main([str(argument) for argument in arguments])
        out, error = capsys.readouterr()
        assert found == code, error
        text = error if code else out
        return json.loads(out) if read else text

    return call


def issue(run, *options):
    return run("license", "issue", "--customer", "Acme", "--model", "*", *options, "--json", read=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-images", 10**7), "--max-images is wrong: give a whole number from 1 to 1000000"),
        (("--per-day", 2**53), "--per-day is wrong: give a whole number from 0 to 9007199254740991"),
        (("--per-month", 2**53), "--per-month is wrong: give a whole number"),
        (("--total", 2**53), "--total is wrong: give a whole number"),
        (("--rate", 0), "--rate is wrong: give a number from 0.000001 to 1000000"),
        (("--rate", 1, "--burst", 10**7), "--burst is wrong: give a whole number from 1 to 1000000"),
        (("--disclosures-per-day", 10**5), "--disclosures-per-day is wrong: give a whole number from 1 to 10000"),
        (("--disclosures-per-day", 1, "--disclosures", 2**53), "--disclosures is wrong: give a whole number"),
        (
            ("--disclosures-per-day", 1, "--disclosures-unpaid-days", 9999),
            "--disclosures-unpaid-days is wrong: give a whole number from 0 to 3660",
        ),
        (("--customer", ""), "--customer is wrong: give a text of 1 to 200 characters"),
        (("--customer", " x"), "the customer's name must be printable"),
        (("--model", "a b"), "--model is wrong: give at most 100 names of 1 to 64 letters"),
        (("--explainer", "a b"), "--explainer is wrong: give at most 100 names of 1 to 64 letters"),
    ],
)
def test_terms_that_make_no_license_are_called_by_their_options(run, options, said):
    error = run("license", "issue", "--customer", "Acme", "--model", "*", *options, code=3)
    [line] = error.splitlines()
    assert line.startswith("error: cannot issue this license: ")
    assert said in line


def test_terms_are_in_the_token_and_in_the_store(run, home):
    issued = issue(
        run,
        *("--per-day", 10, "--per-month", 200, "--overage", "--rate", 2.5, "--max-images", 8, "--max-pixels", 10**6),
        *("--feature", "billing_id=cus_1", "--feature", 'tier={"gold": 1}'),
    )
    license = verify(issued["token"], [home.verifying_key()], now=datetime.now(UTC))
    assert license.quota.model_dump() == {"day": 10, "month": 200, "total": None, "overage": True}
    assert (license.rate.per_second, license.rate.burst) == (2.5, 2)
    assert (license.max_images, license.max_pixels) == (8, 10**6)
    assert license.features == {"billing_id": "cus_1", "tier": {"gold": 1}}
    with LicenseStore(home.licenses_url) as store:
        assert store.get(license.id).license == license
    shown = run("license", "show", license.id)
    assert "day 10, month 200, overage True" in shown


def test_license_file_is_armoured_and_verifies_offline(run, home, tmp_path):
    file = tmp_path / "acme.license"
    issue(run, "--out", file)
    lines = file.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("-----BEGIN KEYLOCK LICENSE-----", "-----END KEYLOCK LICENSE-----")
    assert max(map(len, lines[1:-1])) == 64
    home.licenses_path.unlink()
    assert run("license", "verify", file).startswith("good: ")
    assert run("license", "verify", file, "--issuer", home.verifying_key_path, "--json", read=True)["valid"]
    altered = file.read_text().replace(lines[3][:8], lines[3][:8].swapcase(), 1)
    file.write_text(altered)
    assert run("license", "verify", file, code=5)
    assert run("license", "verify", tmp_path / "missing", code=3)


@pytest.mark.parametrize("out", ["taken.license", "free.license", "nowhere/new.license"])
def test_a_license_that_cannot_be_handed_over_is_not_renewed(run, home, tmp_path, out):
    (tmp_path / "taken.license").write_text("mine")
    (tmp_path / "free.issuers.jwks").write_text("mine")
    issued = run("license", "issue", "--customer", "Acme", "--model", "*", "--json", read=True)["license"]
    refused = run("license", "renew", issued["id"], "--days", 900, "--out", tmp_path / out, code=3)
    assert str(tmp_path / out).removesuffix(".license") in refused
    shown = run("license", "show", issued["id"], "--json", read=True)
    assert shown["expires"] == issued["expires"]


def test_renewed_license_keeps_what_is_not_named(run, home, tmp_path):
    issued = issue(run, "--per-day", 10, "--total", 50, "--days", 1)["license"]
    renewed = run("license", "renew", issued["id"], "--per-day", 20, "--days", 30, "--json", read=True)
    assert renewed["license"]["quota"] == {"day": 20, "month": None, "total": 50, "overage": False}
    assert renewed["license"]["id"] == issued["id"]
    # By this servers tell one issue of it from the next.
    assert renewed["license"]["issued_at"] > issued["issued_at"]
    license = verify(renewed["token"], [home.verifying_key()], now=datetime.now(UTC) + timedelta(days=20))
    assert license.customer == "Acme"
    run("license", "revoke", issued["id"])
    assert "issue a new one" in run("license", "renew", issued["id"], code=5)


def test_similar_queries_are_granted_only_where_they_are_named(run, home):
    issued = issue(run)
    plain = verify(issued["token"], [home.verifying_key()], now=datetime.now(UTC))
    assert not plain.similar_queries
    renew = ("license", "renew", issued["license"]["id"], "--json")
    for options, granted in ((["--similar-queries"], True), ([], True), (["--no-similar-queries"], False)):
        renewed = run(*renew, *options, read=True)
        assert verify(renewed["token"], [home.verifying_key()], now=datetime.now(UTC)).similar_queries is granted
        assert renewed["license"]["similar_queries"] is granted


def test_suspended_reinstated_cut_off_revoked(run, home):
    license_id = issue(run)["license"]["id"]
    assert "suspended since" in run("license", "suspend", license_id, "--why", "dispute")
    assert run("license", "show", license_id, "--json", read=True)["suspended_why"] == "dispute"
    assert "is active" in run("license", "reinstate", license_id)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert run("license", "revoke", "--issued-before", tomorrow, "--json", read=True)["licenses"] == 1
    with LicenseStore(home.licenses_url) as store, pytest.raises(Exception, match="token") as caught:
        store.check(license_id, issued_at=datetime.now(UTC))
    assert caught.value.reason == LicenseReason.REVOKED
    assert "tok_1" in run("license", "revoke", "--token", "tok_1")
    assert "no id of an access token" in run("license", "revoke", "--token", "eyJhbGciOiJFZERTQSJ9.e30.c2ln", code=3)
    assert "say what to revoke" in run("license", "revoke", code=3)
    assert "say what to revoke" in run("license", "revoke", license_id, "--token", "tok_1", code=3)


def test_rotated_issuer_verifies_what_the_old_key_signed_until_it_is_retired(run, home):
    old = issue(run)["token"]
    path = trusted_file(home)
    now = [0.0]
    server = IssuerKeys([path], clock=lambda: now[0])
    before = server()
    first = home.verifying_key()
    shown = run("issuer", "rotate", "--json", read=True)
    assert shown["old_key_ids"] == [first.key_id]
    fresh = issue(run)["token"]
    # A server looks once a second.
    assert server() is before
    now[0] += 1
    assert {key.key_id for key in server()} == {first.key_id, home.verifying_key().key_id}
    for token in (old, fresh):
        verify(token, server(), now=datetime.now(UTC))
        assert run("license", "show", token, "--json", read=True)["status"] == "active"
    listed = run("issuer", "jwks", read=True)["keys"]
    assert [entry["kid"] for entry in listed] == [home.verifying_key().key_id, first.key_id]
    assert "in use" in run("issuer", "retire", home.verifying_key().key_id, code=6)
    run("issuer", "retire", first.key_id)
    now[0] += 1
    assert [key.key_id for key in server()] == [home.verifying_key().key_id]
    assert run("license", "show", old, code=5)


def test_key_file_that_breaks_changes_nothing(home):
    path = trusted_file(home)
    now = [0.0]
    server = IssuerKeys([path], clock=lambda: now[0])
    path.write_text("{")
    now[0] += 5
    assert list(server()) == list(home_keys(home))
    rotate(home)
    now[0] += 5
    assert len(server()) == 2


@pytest.mark.parametrize("content", ["{}", '{"keys": []}', '{"keys": [{"kty": "RSA"}]}', "[1]", '{"keys": 5}', "{"])
def test_file_that_is_no_jwks_is_refused(tmp_path, content):
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(Exception, match=r"JWKS|PEM") as caught:
        load_keys(path)
    assert caught.value.exit_code == 6


def test_retired_key_must_be_an_old_one(home):
    with pytest.raises(Exception, match="none of the old keys"):
        retire(home, "nobody")


@pytest.fixture
def charged(home, run):
    """Two customers, three requests; one id is one that a spreadsheet would calculate."""
    acme = issue(run, "--feature", "billing_id=cus_1", "--per-day", 100)["license"]["id"]
    other = run("license", "issue", "--customer", "O, Ltd", "--model", "*", "--json", read=True)["license"]["id"]
    with LicenseStore(home.licenses_url) as store:
        ledger = Ledger(store.database, record=record_charge)
        moment = datetime(2026, 11, 1, 12, tzinfo=UTC)
        for n, (license_id, request_id) in enumerate([(acme, "r1"), (acme, "=1+1"), (other, "r1")]):
            order = ChargeRequest(
                license=store.get(license_id).license,
                request_id=request_id,
                request_digest=DIGEST,
                model_digest=DIGEST,
                explainer="grad_cam",
                images=n + 1,
                units=(n + 1) * 2,
                attempt="a",
            )
            now = moment + timedelta(days=n)
            reservation = ledger.reserve(order, now=now, lifetime_s=60).result(timeout=30)
            charge = Charge(
                license_id=license_id,
                request_id=request_id,
                request_digest=DIGEST,
                model_digest=DIGEST,
                model_name="tiny",
                explainer="grad_cam",
                parameters={},
                target=-1,
                units=order.units,
                keyed=True,
                time=now,
                image_digests=(DIGEST,),
                answer=AnswerDigests(maps=(DIGEST,), scalings=(None,), predictions=(DIGEST,), targets=(DIGEST,)),
            )
            ledger.commit(reservation, charge).result(timeout=30)
        ledger.close()
    return acme, other


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--since", "2026-02-01", "--until", "2026-01-01"], 3, "nothing lies between"),
        (["--customer", "Acmee"], 3, "no license was issued to a customer 'Acmee'"),
        (["--license", "lic_unknown"], 5, "lic_unknown"),
    ],
)
def test_an_export_that_could_only_be_empty_is_refused(run, charged, options, code, says):
    assert says in run("usage", "export", *options, code=code)


def test_disclosures_are_shown_apart_where_a_license_has_them(run, home, charged):
    assert "disclosures" not in run("usage", "show")
    terms = ("--disclosures-per-day", 5, "--disclosures", 9)
    license_id = run("license", "issue", "--customer", "D", "--model", "*", *terms, "--json", read=True)["license"][
        "id"
    ]
    now = datetime.now(UTC)
    with LicenseStore(home.licenses_url) as store:
        ledger = Ledger(store.database, record=record_charge)
        order = ChargeRequest(
            license=store.get(license_id).license,
            request_id="why",
            request_digest=DIGEST,
            model_digest=DIGEST,
            explainer="grad_cam",
            images=1,
            units=0,
            attempt="a",
            disclosure="affected_person",
        )
        ledger.reserve(order, now=now, lifetime_s=60).result(timeout=30)
        ledger.close()
    shown = {row["license"]: row["disclosures"] for row in run("usage", "show", "--json", read=True)}
    assert shown.pop(license_id) == {
        "today": 1,
        "total": 1,
        "terms": {"per_day": 5, "total": 9, "suspended_days": 0},
    }
    assert set(shown.values()) == {None}
    header, *rows = run("usage", "show").splitlines()
    assert header.endswith("disclosures today  disclosures")
    assert next(row for row in rows if license_id in row).split()[-6:] == ["1", "of", "5", "1", "of", "9"]
    assert next(row for row in rows if charged[0] in row).split()[-2:] == ["-", "-"]


def test_usage_is_shown_exported_and_reconciled(run, home, charged, tmp_path):
    acme, other = charged
    shown = run("usage", "show", acme, "--json", read=True)[0]
    assert [window["used"] for window in shown["quotas"]][2] == 6
    assert other in run("usage", "show")
    rows = list(csv.DictReader(run("usage", "export").splitlines()))
    assert [(row["customer"], row["request_id"], row["units"]) for row in rows] == [
        ("Acme", "r1", "2"),
        ("Acme", "'=1+1", "4"),
        ("O, Ltd", "r1", "6"),
    ]
    lines = [
        json.loads(line) for line in run("usage", "export", "--format", "jsonl", "--customer", "Acme").splitlines()
    ]
    assert [line["billing_id"] for line in lines] == ["cus_1", "cus_1"]
    within = ("--since", "2026-11-02", "--until", "2026-11-03T12:00:00Z")
    assert len(run("usage", "export", "--format", "jsonl", *within).splitlines()) == 1
    found = run("usage", "reconcile", "--json", read=True)
    assert (found["requests"], found["units"], found["reserved"], found["differences"]) == (3, 12, 0, [])
    assert found["audit_log"] == []
    out = tmp_path / "usage.csv"
    run("usage", "export", "--out", out)
    assert len(out.read_text().splitlines()) == 4
    assert "not overwritten" in run("usage", "export", "--out", out, code=3)
    assert "csv" in run("usage", "export", "--format", "xml", code=3)


def test_events_are_those_the_billing_systems_take(run, charged):
    def events(form):
        return [json.loads(line) for line in run("usage", "export", "--format", form).splitlines()]

    cloud, lago, stripe = events("cloudevents"), events("lago"), events("stripe")
    assert {"specversion", "id", "source", "type"} <= set(cloud[0])
    assert (cloud[0]["subject"], cloud[0]["data"]["units"]) == ("cus_1", 2)
    assert datetime.fromisoformat(cloud[0]["time"]).tzinfo is not None
    event = lago[2]["event"]
    assert set(event) == {"transaction_id", "external_subscription_id", "code", "timestamp", "properties"}
    assert event["external_subscription_id"] == "O, Ltd"
    assert stripe[1]["payload"] == {"stripe_customer_id": "cus_1", "value": "4"}
    # The ids are the same in every format and every export, and different for every request.
    ids = [one["id"] for one in cloud]
    assert ids == [one["event"]["transaction_id"] for one in lago] == [one["identifier"] for one in stripe]
    assert len(set(ids)) == 3
    assert max(map(len, ids)) <= 100


def test_books_that_disagree_are_named(run, home, charged):
    acme, _ = charged
    with LicenseStore(home.licenses_url) as store, store.database.transaction(writes=True) as connection:
        connection.execute(text("UPDATE ledger SET units = 9 WHERE request_id = '=1+1'"))
    assert acme in run("usage", "reconcile", code=5)


def test_receipts_show_what_a_restored_store_has_lost(run, home, charged, tmp_path):
    with LicenseStore(home.licenses_url) as store, store.database.transaction() as connection:
        kept = [parse_entry(entry) for _, entry in log_table.entries(connection)]
    lost = replace(kept[0], request_id="lost", units=7)
    year = timedelta(days=365)
    key = ReceiptKey.create(
        tmp_path / "receipts.pem",
        home.signing_key(),
        not_before=lost.time - year,
        expires=lost.time + year,
    )
    used = UsageNote(replayed=False, overage_units=0, remaining=None, resets_at=None)
    tokens = [ReceiptSigner(key).issue(entry_of(charge), used) for charge in (*kept, lost)]
    held, all_of_them = tmp_path / "held.receipt", tmp_path / "all.receipt"
    held.write_text(tokens[0])
    all_of_them.write_text("\n".join(tokens))
    assert "differences  0" in run("usage", "reconcile", "--receipt", held)
    said = run("usage", "reconcile", "--receipt", held, "--receipt", all_of_them, code=5)
    assert "'lost'" in said
    assert "7 units were charged" in said
    assert len(said.splitlines()) == 1
    all_of_them.write_text(tokens[0][:-8])
    assert "not a keylock receipt" in run("usage", "reconcile", "--receipt", all_of_them, code=11)


def test_store_is_restored_with_its_revocations(run, home, charged, tmp_path):
    acme, other = charged
    backup = tmp_path / "backup.db"
    run("store", "backup", "--out", backup)
    run("license", "revoke", acme)
    assert "name the backup" in run("store", "restore", code=3)
    assert "no backup" in run("store", "restore", tmp_path / "nothing", code=3)
    told = run("store", "restore", backup, "--json", read=True)
    assert (told["closed"], told["lost_charges"], told["readable"]) == (1, 0, True)
    with LicenseStore(home.licenses_url) as store:
        assert store.get(acme).revoked_at
        assert store.get(other).revoked_at is None
    assert "licenses closed again" in run("store", "restore", backup)


def test_files_of_the_issuer_are_private(home):
    rotate(home)
    modes = {path.name: os.stat(path).st_mode & 0o777 for path in home.path.rglob("*.pem") if "pub" not in path.name}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 2
