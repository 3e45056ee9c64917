"""Receipts: what they certify, for how long, and each way in which one may be false."""

import dataclasses
import json
import pickle
from datetime import UTC, datetime, timedelta

import pytest

from keylock.crypto.jws import sign
from keylock.crypto.signing import SigningKey, canonical_json
from keylock.errors import AuditLogError, ReceiptError, SignatureError
from keylock.licensing.charges import AnswerDigests, Charge, UsageNote
from keylock.licensing.receipt_keys import Certificate, ReceiptKey, certificate_path, delegate, open_checkpoint
from keylock.licensing.receipts import Receipt, ReceiptSigner, entry_of, parse_entry, trusts_any, trusts_id
from keylock.transparency import Checkpoint, leaf_hash

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
YEAR = timedelta(days=365)
ISSUER = SigningKey.generate()
DIGEST = "sha256:" + "ab" * 32
CHARGE = Charge(
    license_id="lic_1",
    request_id="r-1",
    request_digest="sha256:" + "01" * 32,
    model_digest="sha256:" + "02" * 32,
    model_name="tiny",
    explainer="grad_cam",
    parameters={"layer": "body.3", "beta": 8.0, "steps": 3},
    target=-1,
    units=2,
    keyed=True,
    time=NOW,
    image_digests=(DIGEST, "sha256:" + "03" * 32),
    answer=AnswerDigests(
        maps=("sha256:" + "04" * 32, "sha256:" + "05" * 32),
        scalings=(None, "sha256:" + "06" * 32),
        predictions=("sha256:" + "07" * 32, "sha256:" + "08" * 32),
        targets=("sha256:" + "09" * 32, "sha256:" + "0a" * 32),
    ),
)
USAGE = UsageNote(replayed=False, overage_units=0, remaining=9, resets_at=1795521600)
USED = dataclasses.asdict(USAGE)
TRUSTS = trusts_any([ISSUER.verifying_key])


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_a_number_that_no_json_has_is_refused(number):
    entry = entry_of(CHARGE)
    changed = entry.replace(b'"beta":8.0', b'"beta":' + number)
    assert changed != entry
    with pytest.raises(AuditLogError, match="not a record of a charge"):
        parse_entry(changed)
    key = make_key()
    token = sign(changed, key.key, typ="keylock-receipt+jws", cert=key.certificate.token, usage=USED)
    with pytest.raises(ReceiptError, match="cannot be read"):
        Receipt.verify(token, TRUSTS)


def make_key(*, key=None, issuer=ISSUER, start=NOW - YEAR, end=NOW + YEAR):
    key = key or SigningKey.generate()
    return ReceiptKey(key, Certificate.read(delegate(key.verifying_key, issuer, not_before=start, expires=end)))


KEY = make_key()
TOKEN = ReceiptSigner(KEY).issue(entry_of(CHARGE), USAGE)


def forge(payload, *, key=KEY, signer=None, typ="keylock-receipt+jws", usage=USED):
    return sign(payload, signer or key.key, typ=typ, cert=key.certificate.token, usage=usage)


def test_a_receipt_says_what_was_charged():
    receipt = Receipt.verify(TOKEN, TRUSTS)
    assert receipt.charge == CHARGE
    assert receipt.token == TOKEN
    assert receipt.entry == entry_of(CHARGE)
    assert receipt.certificate.issuer == ISSUER.verifying_key
    assert Receipt.verify(TOKEN + "\n", trusts_id(ISSUER.key_id)).charge == CHARGE


def test_equal_charges_have_equal_receipts_and_leaves_whatever_key_signs():
    again = dataclasses.replace(CHARGE, parameters=dict(reversed(CHARGE.parameters.items())))
    assert ReceiptSigner(KEY).issue(entry_of(again), USAGE) == TOKEN
    other = Receipt.verify(ReceiptSigner(make_key()).issue(entry_of(CHARGE), USAGE), TRUSTS)
    assert other.token != TOKEN
    assert leaf_hash(other.entry) == leaf_hash(entry_of(CHARGE))


def test_an_entry_is_the_documented_json():
    assert json.loads(entry_of(CHARGE)) == {
        "type": "keylock-charge/v2",
        "license": "lic_1",
        "request": "r-1",
        "request_digest": CHARGE.request_digest,
        "model": CHARGE.model_digest,
        "model_name": "tiny",
        "explainer": "grad_cam",
        "parameters": {"layer": "body.3", "beta": 8.0, "steps": 3},
        "target": -1,
        "units": 2,
        "keyed": True,
        "time": 1795521600,
        "images": list(CHARGE.image_digests),
        "maps": list(CHARGE.answer.maps),
        "scalings": list(CHARGE.answer.scalings),
        "predictions": list(CHARGE.answer.predictions),
        "targets": list(CHARGE.answer.targets),
    }
    assert parse_entry(entry_of(CHARGE)) == CHARGE


@pytest.mark.parametrize(
    "change",
    [
        {"units": -1},
        {"units": "2"},
        {"units": True},
        {"keyed": 1},
        {"time": -1},
        {"time": 10**15},
        {"images": ["md5:00"]},
        {"type": "keylock-charge/v1"},
        {"type": "keylock-repeat/v2"},
        {"repeats": DIGEST},
        {"scalings": [1]},
        {"more": 1},
        {"license": None},
    ],
)
def test_an_entry_that_says_something_else_is_refused(change):
    raw = canonical_json(json.loads(entry_of(CHARGE)) | change)
    with pytest.raises(AuditLogError, match="not a record"):
        parse_entry(raw)
    with pytest.raises(ReceiptError, match="cannot be read"):
        Receipt.verify(forge(raw), TRUSTS)


def test_an_entry_has_one_spelling():
    with pytest.raises(AuditLogError, match="spelled"):
        parse_entry(entry_of(CHARGE) + b" ")
    for raw in (b"", b"[]", b"\xff", b"{"):
        with pytest.raises(AuditLogError):
            parse_entry(raw)


def test_a_receipt_of_a_certified_key_in_its_time_is_good_and_no_other():
    for moment, good in ((NOW - YEAR, True), (NOW - YEAR - timedelta(seconds=1), False), (NOW + YEAR, False)):
        token = ReceiptSigner(KEY).issue(entry_of(dataclasses.replace(CHARGE, time=moment)), USAGE)
        if good:
            Receipt.verify(token, TRUSTS)
        else:
            with pytest.raises(ReceiptError, match="was not certified"):
                Receipt.verify(token, TRUSTS)


def test_a_receipt_of_another_issuer_is_refused():
    stranger = make_key(issuer=SigningKey.generate())
    for trusts in (TRUSTS, trusts_id(ISSUER.key_id), trusts_any([])):
        with pytest.raises(ReceiptError, match="not trusted"):
            Receipt.verify(ReceiptSigner(stranger).issue(entry_of(CHARGE), USAGE), trusts)


def test_a_receipt_signed_by_another_key_than_the_certified_one_is_refused():
    thief = SigningKey.generate()
    with pytest.raises(ReceiptError, match="changed"):
        Receipt.verify(forge(entry_of(CHARGE), signer=thief), TRUSTS)
    # Under the issuer's own key too: it signs certificates and never receipts.
    with pytest.raises(ReceiptError, match="changed"):
        Receipt.verify(forge(entry_of(CHARGE), signer=ISSUER), TRUSTS)


def test_a_certificate_the_receipt_key_makes_for_another_key_is_refused():
    thief = SigningKey.generate()
    chained = make_key(key=thief, issuer=KEY.key)
    with pytest.raises(ReceiptError, match="not trusted"):
        Receipt.verify(ReceiptSigner(chained).issue(entry_of(CHARGE), USAGE), TRUSTS)


@pytest.mark.parametrize("token", ["", "a.b.c", TOKEN[:-1], TOKEN.replace(".", ""), TOKEN + ".x", "ü"])
def test_what_is_no_receipt_is_refused(token):
    with pytest.raises(ReceiptError, match="not a keylock receipt"):
        Receipt.verify(token, TRUSTS)


def test_tokens_of_other_kinds_are_no_receipts():
    for typ in ("keylock-license+jws", "keylock-receipt-key+jws", "JWT"):
        with pytest.raises(ReceiptError, match="not a keylock receipt"):
            Receipt.verify(forge(entry_of(CHARGE), typ=typ), TRUSTS)
    with pytest.raises(ReceiptError, match="not a keylock receipt"):
        Receipt.verify(KEY.certificate.token, TRUSTS)
    with pytest.raises(ReceiptError, match="malformed"):
        Certificate.read(TOKEN)


def test_no_changed_character_of_a_certificate_passes():
    token = KEY.certificate.token
    for place in range(0, len(token), 3):
        letter = "A" if token[place] != "A" else "B"
        with pytest.raises(ReceiptError):
            Certificate.read(token[:place] + letter + token[place + 1 :])


def test_another_answer_to_a_request_is_an_entry_of_its_own_kind():
    other = dataclasses.replace(CHARGE.answer, maps=(DIGEST, DIGEST))
    repeat = dataclasses.replace(CHARGE, answer=other, repeats=CHARGE.answer.digest())
    said = json.loads(entry_of(repeat))
    assert (said["type"], said["repeats"]) == ("keylock-repeat/v2", CHARGE.answer.digest())
    assert parse_entry(entry_of(repeat)) == repeat
    receipt = Receipt.verify(ReceiptSigner(KEY).issue(entry_of(repeat), USAGE), TRUSTS)
    assert receipt.charge == repeat


def test_a_receipt_states_the_use_under_its_signature():
    used = UsageNote(replayed=True, overage_units=3, remaining=None, resets_at=None)
    token = ReceiptSigner(KEY).issue(entry_of(CHARGE), used)
    assert Receipt.verify(token, TRUSTS).usage == used
    assert Receipt.verify(token, TRUSTS).entry == Receipt.verify(TOKEN, TRUSTS).entry
    with pytest.raises(ReceiptError, match="changed"):
        Receipt.verify(".".join([TOKEN.split(".")[0], *token.split(".")[1:]]), TRUSTS)


@pytest.mark.parametrize(
    "usage", [None, {}, {"replayed": 1}, {"remaining": -1}, {"remaining": True}, {"overage_units": None}, {"more": 1}]
)
def test_a_header_that_says_something_else_about_the_use_is_refused(usage):
    said = {"replayed": False, "overage_units": 0, "remaining": 9, "resets_at": None}
    token = forge(entry_of(CHARGE), usage=usage and said | usage)
    with pytest.raises(ReceiptError, match="does not say what was used"):
        Receipt.verify(token, TRUSTS)


def test_a_receipt_key_is_made_once_and_read_again(tmp_path):
    path = tmp_path / "receipts.pem"
    made = ReceiptKey.create(path, ISSUER, not_before=NOW, expires=NOW + YEAR)
    assert path.stat().st_mode & 0o777 == 0o600
    read = ReceiptKey.load(path)
    assert read.certificate == made.certificate
    assert ReceiptSigner(read).issue(entry_of(CHARGE), USAGE) == ReceiptSigner(made).issue(entry_of(CHARGE), USAGE)
    with pytest.raises(SignatureError, match="not overwritten"):
        ReceiptKey.create(path, ISSUER, not_before=NOW, expires=NOW + YEAR)
    with pytest.raises(TypeError):
        pickle.dumps(read)


def test_a_receipt_key_without_its_own_certificate_is_refused(tmp_path):
    path = tmp_path / "receipts.pem"
    ReceiptKey.create(path, ISSUER, not_before=NOW, expires=NOW + YEAR)
    beside = certificate_path(path)
    beside.write_text(KEY.certificate.token)
    with pytest.raises(SignatureError, match="another key"):
        ReceiptKey.load(path)
    beside.write_text("")
    with pytest.raises(SignatureError, match="not a certificate"):
        ReceiptKey.load(path)
    beside.unlink()
    with pytest.raises(SignatureError, match="cannot read"):
        ReceiptKey.load(path)


STATE = Checkpoint("keylock/log/1", 3, bytes(range(32)))


def test_a_checkpoint_carries_the_certificate_of_the_key_that_signed_it():
    opened = open_checkpoint(KEY.sign_checkpoint(STATE, at=NOW), TRUSTS)
    assert (opened.origin, opened.size, opened.root) == (STATE.origin, STATE.size, STATE.root)
    assert opened.extensions == (f"keylock-time {int(NOW.timestamp())}", f"keylock-certificate {KEY.certificate.token}")


def test_a_checkpoint_that_is_not_to_be_trusted_is_refused():
    stranger = make_key(issuer=SigningKey.generate())
    good = KEY.sign_checkpoint(STATE, at=NOW)
    thief = SigningKey.generate()
    stolen = dataclasses.replace(STATE, extensions=open_checkpoint(good, TRUSTS).extensions).sign(thief)
    for note, what in (
        (stranger.sign_checkpoint(STATE, at=NOW), "not trusted"),
        (KEY.sign_checkpoint(STATE, at=NOW + 2 * YEAR), "was not certified"),
        (STATE.sign(KEY.key), "does not say"),
        (stolen, "not signed by a key"),
        (good.replace("\n3\n", "\n4\n"), "was changed"),
        (good.replace("keylock-time 1", "keylock-time -1"), "does not say"),
        (good.replace("keylock-certificate ", "keylock-certificate x"), "malformed"),
        ("", "malformed"),
    ):
        with pytest.raises(AuditLogError, match=what):
            open_checkpoint(note, TRUSTS)
