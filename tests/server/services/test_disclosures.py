"""Disclosures: true maps for those with a right to them, within bounds of their own, and never a decoy."""

import asyncio
import json
from datetime import timedelta

import grpc
import pytest
from PIL import Image
from support import bearer, books, refusal

from keylock.cli import main
from keylock.errors import InputError, LicenseError, UnknownNameError
from keylock.licensing import DisclosureTerms, Quota, Rate
from keylock.licensing.disclosures import Disclosure, subject_digest
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.licensing.receipts import parse_entry
from keylock.store import LicenseStore, log_table
from keylock.store.logged_charges import compare_with_ledger
from keylock.store.usage import charged
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2
from keylock_client import AsyncClient, Client, LicenseRefusedError, QuotaSpentError

YEAR = timedelta(days=365)
SUBJECT = "sha256:" + "0" * 64
TERMS = DisclosureTerms(per_day=2, total=3, suspended_days=30)


@pytest.fixture(scope="module")
def place(tmp_path_factory, vendor, tiny):
    folder = tmp_path_factory.mktemp("disclosing")
    ReceiptKey.create(folder / "receipts.pem", vendor.signing_key, not_before=tiny.now - YEAR, expires=tiny.now + YEAR)
    return folder


@pytest.fixture(scope="module")
def disclosing(start_server, place):
    """A server with receipts and a store of its own."""
    url = f"sqlite:///{place / 'store.db'}"
    calls = start_server(receipt_key=place / "receipts.pem", license_store=url)
    calls.url = url
    return calls


@pytest.fixture
def store(disclosing):
    with LicenseStore(disclosing.url) as store:
        yield store


@pytest.fixture
def grant(store, vendor):
    """Issues a license that the store knows."""
    return lambda **terms: vendor.grant(store=store, **({"disclosure": TERMS} | terms))


def disclose(calls, tiny, token, **changes):
    asked = {
        "image": tiny.tensor_image(tiny.images(1)[0]),
        "reason": pb.DISCLOSURE_REASON_AFFECTED_PERSON,
        "subject_digest": SUBJECT,
    }
    request = pb.DiscloseRequest(**(asked | changes))
    return calls.explanation.Disclose(request, metadata=bearer(token), timeout=20).answer


def reason_of(call):
    code, details = refusal(call)
    return code.name, details["ErrorInfo"].reason


def test_it_is_the_true_map_at_no_units_beyond_quota_and_rate(disclosing, grant, store, tiny):
    granted = grant(quota=Quota(total=1), rate=Rate(per_second=1e-6, burst=1))
    image = tiny.tensor_image(tiny.images(1)[0])
    paid = disclosing.explain(image, token=granted.token)
    assert paid.usage.remaining == 0
    answer = disclose(disclosing, tiny, granted.token)
    [result] = answer.results
    assert (result.keyed, result.map) == (True, paid.results[0].map)
    assert (answer.usage.units, answer.usage.license_id) == (0, granted.id)
    # The prediction is the one that everybody got.
    assert not result.prediction.keyed
    metadata = bearer(granted.token)
    usage = disclosing.license.GetUsage(license_pb2.GetUsageRequest(), metadata=metadata)
    assert [one.used for one in usage.quotas] == [1, 1, 1]
    assert (usage.disclosures.today, usage.disclosures.total, usage.disclosures.terms.per_day) == (1, 1, 2)
    assert (
        disclosing.license.GetLicense(license_pb2.GetLicenseRequest(), metadata=metadata).license.disclosure.total == 3
    )
    assert books(store)[2] == 0


def test_bounds_are_kept_and_a_repeat_counts_once(disclosing, grant, tiny):
    token = grant().token
    for _ in range(3):
        disclose(disclosing, tiny, token, request_id="one")
    disclose(disclosing, tiny, token, request_id="two")
    code, details = refusal(lambda: disclose(disclosing, tiny, token))
    assert (code.name, details["ErrorInfo"].reason) == ("RESOURCE_EXHAUSTED", "DISCLOSURES_SPENT")
    facts = details["ErrorInfo"].metadata
    assert (facts["period"], facts["limit"], facts["used"]) == ("day", "2", "2")
    # What was disclosed is answered again, and a request that failed was none.
    assert disclose(disclosing, tiny, token, request_id="two").usage.replayed
    other = grant(disclosure=DisclosureTerms(per_day=9, total=1)).token
    with pytest.raises(grpc.RpcError):
        disclose(disclosing, tiny, other, image=pb.Image(encoded=b"no image"))
    disclose(disclosing, tiny, other)
    assert refusal(lambda: disclose(disclosing, tiny, other))[1]["ErrorInfo"].metadata["period"] == "total"


def test_it_outlives_a_suspension_for_non_payment_and_no_other(disclosing, grant, store, tiny):
    at = tiny.now
    late = at - timedelta(days=31)
    for suspended, outcome in (
        ({"at": at, "unpaid": True}, None),
        ({"at": late, "unpaid": True}, "LICENSE_SUSPENDED"),
        ({"at": at}, "LICENSE_SUSPENDED"),
    ):
        granted = grant()
        store.suspend(granted.id, **suspended)
        image = tiny.tensor_image(tiny.images(1)[0])
        assert reason_of(lambda image=image, granted=granted: disclosing.explain(image, token=granted.token)) == (
            "UNAUTHENTICATED",
            "LICENSE_SUSPENDED",
        )
        if outcome is None:
            assert disclose(disclosing, tiny, granted.token).results[0].keyed
        else:
            assert reason_of(lambda granted=granted: disclose(disclosing, tiny, granted.token))[1] == outcome
        store.revoke(granted.id, at=at)
        assert reason_of(lambda granted=granted: disclose(disclosing, tiny, granted.token))[1] == "LICENSE_REVOKED"


def test_there_is_a_refusal_and_never_a_decoy(disclosing, start_server, grant, vendor, tiny):
    assert reason_of(lambda: disclose(disclosing, tiny, None)) == ("UNAUTHENTICATED", "LICENSE_MISSING")
    without = grant(disclosure=None).token
    assert reason_of(lambda: disclose(disclosing, tiny, without)) == ("PERMISSION_DENIED", "LICENSE_WITHOUT_DISCLOSURE")
    other = grant(explainers=("coarse",)).token
    assert reason_of(lambda: disclose(disclosing, tiny, other))[1] == "LICENSE_WRONG_EXPLAINER"
    unrecorded = start_server(license_store=None)
    token = vendor.grant(record=False, disclosure=TERMS).token
    assert reason_of(lambda: disclose(unrecorded, tiny, token)) == ("FAILED_PRECONDITION", "NO_METERING")


@pytest.mark.parametrize("reason", [pb.DISCLOSURE_REASON_UNSPECIFIED, 99])
def test_without_a_reason_there_is_none(disclosing, grant, tiny, reason):
    code, details = refusal(lambda: disclose(disclosing, tiny, grant().token, reason=reason))
    [violation] = details["BadRequest"].field_violations
    assert (code.name, violation.field) == ("INVALID_ARGUMENT", "reason")
    assert "a disclosure needs a reason: set it to AFFECTED_PERSON" in violation.description


@pytest.mark.parametrize("subject", ["", "Jane Doe", "sha256:" + "0" * 63, "sha256:" + "G" * 64])
def test_a_subject_that_is_no_digest_is_refused_and_not_repeated(disclosing, grant, tiny, subject):
    _, details = refusal(lambda: disclose(disclosing, tiny, grant().token, subject_digest=subject))
    [violation] = details["BadRequest"].field_violations
    assert violation.field == "subject_digest"
    assert not subject or subject not in violation.description


def test_the_client_proves_that_it_is_in_the_log_and_on_no_bill(disclosing, grant, store, tiny, place):
    granted = grant()
    with Client(disclosing.server.target, license=granted.token) as client:
        found = client.disclose(tiny.images(1)[0], reason="court", subject="p-17", request_id="told")
        assert (found.keyed, found.usage.units, found.receipt.units) == (True, 0, 0)
        assert client.prove(found.receipt).index >= 0
    with store.database.transaction(snapshot=True) as connection:
        logged = [parse_entry(entry) for _, entry in log_table.entries(connection)]
        assert compare_with_ledger(connection) == ()
        assert "told" not in {line.request_id for line in charged(connection)}
    [entry] = [one for one in logged if one.request_id == "told"]
    assert entry.disclosure == Disclosure("court", subject_digest("p-17", license_id=granted.id))
    assert b"p-17" not in (place / "store.db").read_bytes()


def test_the_client_says_what_is_wrong_before_it_asks(disclosing, grant, tiny):
    image = tiny.images(1)[0]
    with Client(disclosing.server.target, license=grant().token) as client:
        with pytest.raises(InputError, match="a disclosure needs a reason: one of affected_person"):
            client.disclose(image, reason="", subject="p-17")
        with pytest.raises(UnknownNameError, match="curiosity"):
            client.disclose(image, reason="curiosity", subject="p-17")
        with pytest.raises(InputError, match="pseudonym of 1 to 200"):
            client.disclose(image, reason="review", subject="")
        with pytest.raises(InputError, match="about one image"):
            client.disclose([image, image], reason="review", subject="p-17")
        client.disclose(image, reason="review", subject="p-17")
        client.disclose(image, reason="affected-person", subject="p-17")
        with pytest.raises(QuotaSpentError, match="disclosures left"):
            client.disclose(image, reason="review", subject="p-17")
    with Client(disclosing.server.target) as client, pytest.raises(LicenseError, match="needs a license"):
        client.disclose(image, reason="review", subject="p-17")

    async def run():
        async with AsyncClient(disclosing.server.target, license=grant(disclosure=None).token) as client:
            await client.disclose(image, reason="review", subject="p-17")

    with pytest.raises(LicenseRefusedError, match="not entitled to disclosures"):
        asyncio.run(run())


def test_subjects_of_several_licenses_cannot_be_compared():
    assert subject_digest("p-17", license_id="lic_a") != subject_digest("p-17", license_id="lic_b")


def test_the_command_line_discloses(disclosing, grant, tiny, tmp_path, monkeypatch, capsys):
    Image.fromarray(tiny.pixels(8, 8)).save(tmp_path / "a.png")
    (tmp_path / "acme.license").write_text(grant().token)
    monkeypatch.setenv("KEYLOCK_TARGET", disclosing.server.target)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    asked = ["disclose", "a.png", "--license-file", "acme.license", "--subject", "p-17"]
    assert main(asked) == 3
    assert "a disclosure needs a reason: one of affected_person, authority, court, review" in capsys.readouterr().err
    out = ["--out", "a.npy", "--receipt", "a.receipt"]
    assert main([*asked, "--reason", "affected-person", *out]) == 0
    assert "true map" in capsys.readouterr().out
    assert (tmp_path / "a.npy").exists()
    assert main(["receipt", "show", "a.receipt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["charge"]["disclosure"]["reason"] == "affected_person"
    assert main(["receipt", "show", "a.receipt"]) == 0
    assert "affected_person" in capsys.readouterr().out
    assert main([*asked, "--reason", "court"]) == 0
    assert main([*asked, "--reason", "court"]) == 5
    capsys.readouterr()
    assert main(["disclose", "a.png", "--reason", "court", "--subject", "p-17"]) == 5
    assert "a disclosure needs a license: give it with --license-file" in capsys.readouterr().err


def test_the_vendor_grants_shows_and_suspends(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path))
    assert main(["issuer", "init"]) == 0
    issue = ["license", "issue", "--customer", "Acme", "--model", "*", "--json"]
    assert main([*issue, "--disclosures", "5"]) == 3
    assert "--disclosures-per-day" in capsys.readouterr().err
    terms = ["--disclosures-per-day", "3", "--disclosures", "5", "--disclosures-unpaid-days", "90"]
    assert main([*issue, *terms]) == 0
    license = json.loads(capsys.readouterr().out)["license"]
    assert license["disclosure"] == {"per_day": 3, "total": 5, "suspended_days": 90}
    assert main(["license", "renew", license["id"], "--disclosures", "9", "--json"]) == 0
    renewed = json.loads(capsys.readouterr().out)["license"]["disclosure"]
    assert renewed == {"per_day": 3, "total": 9, "suspended_days": 90}
    assert main(["license", "suspend", license["id"], "--unpaid"]) == 0
    with LicenseStore(f"sqlite:///{tmp_path / 'licenses.db'}") as store:
        assert store.get(license["id"]).suspended_unpaid
    assert main(["license", "reinstate", license["id"]]) == 0
    with LicenseStore(f"sqlite:///{tmp_path / 'licenses.db'}") as store:
        assert not store.get(license["id"]).suspended_unpaid
