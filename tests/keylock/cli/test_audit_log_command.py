"""`keylock audit-log`, `keylock receipt` and `keylock issuer receipt-key`: a vendor, a customer and an auditor."""

import hashlib
import json
import os
from datetime import UTC, datetime

import numpy as np
import pytest

pytest.importorskip("sqlalchemy")

from client_install import run_as_customer
from sqlalchemy import text

from keylock.cli import main
from keylock.cli.receipt import _digest_of_map
from keylock.crypto.digests import digest_of, digest_of_array
from keylock.crypto.signing import Home
from keylock.errors import InputError
from keylock.licensing.charges import AnswerDigests, Charge, UsageNote
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.licensing.receipts import ReceiptSigner, entry_of
from keylock.store import Database, log_table

IMAGE = b"the bytes of an image file"
MAP = np.arange(6, dtype=np.float32).reshape(2, 3)

UNUSED = UsageNote(replayed=False, overage_units=0, remaining=None, resets_at=None)


def charge(number):
    return Charge(
        license_id="lic_1",
        request_id=f"r-{number}",
        request_digest=digest_of(b"request"),
        model_digest=digest_of(b"model"),
        model_name="tiny",
        explainer="gradient",
        parameters={"beta": 8.0},
        target=-1,
        units=1,
        keyed=True,
        time=datetime.now(UTC),
        image_digests=(digest_of(IMAGE),),
        answer=AnswerDigests(
            maps=(digest_of_array("float32", MAP.shape, MAP.tobytes()),),
            scalings=(None,),
            predictions=(digest_of(b"prediction"),),
            targets=(digest_of(b"target"),),
        ),
    )


@pytest.fixture
def run(capsys):
    def call(line, *, code=0):
        assert main(line.split()) == code
        return capsys.readouterr()

    return call


@pytest.fixture
def vendor(tmp_path, monkeypatch, run):
    """A vendor's directory with a receipt key and a store; charges are added by the function returned."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "home"))
    home = Home.open(tmp_path / "home")
    run("issuer receipt-key")
    signer = ReceiptSigner(ReceiptKey.load(home.receipt_key_path))
    (tmp_path / "image.png").write_bytes(IMAGE)
    np.save(tmp_path / "map.npy", MAP)
    database = Database(home.licenses_url)

    def add(*numbers):
        with database.transaction(writes=True) as connection:
            for number in numbers:
                made = charge(number)
                log_table.append(connection, [entry_of(made)])
                (tmp_path / f"r{number}.receipt").write_text(signer.issue(entry_of(made), UNUSED) + "\n")

    add.database = database
    yield add
    database.close()


def test_a_receipt_is_checked_and_proven_offline_with_the_public_key_alone(vendor, run, tmp_path, monkeypatch):
    vendor(0, 1, 2)
    note = run("audit-log checkpoint --out first.txt").out
    assert note == (tmp_path / "first.txt").read_text()
    assert run("audit-log prove r1.receipt --out r1.tlog-proof").out == "r1.tlog-proof\n"
    (tmp_path / "issuer.pem").write_bytes((tmp_path / "home" / "issuer.pub.pem").read_bytes())
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "nowhere"))
    line = "receipt verify r1.receipt --issuer issuer.pem --image image.png --map map.npy --proof r1.tlog-proof"
    assert run(line).err == ""
    answer = json.loads(run(line + " --json").out)
    assert answer["charge"]["request_id"] == "r-1"
    assert answer["log"]["size"] == 3
    assert answer["images_checked"] is answer["maps_checked"] is True
    assert run("receipt verify r1.receipt --issuer issuer.pem").err.count("not checked") == 3
    assert "say whom you trust" in run("receipt verify r1.receipt", code=6).err


def test_a_receipt_is_shown_with_or_without_knowing_whom_to_trust(vendor, run, tmp_path, monkeypatch):
    vendor(0)
    shown = run("receipt show r0.receipt").out
    assert "signature   good, certified by" in shown
    assert digest_of(IMAGE) in shown
    assert "beta=8.0" in shown
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "nowhere"))
    assert "not checked: it names the issuer" in run("receipt show r0.receipt").out
    answer = json.loads(run("receipt show r0.receipt --json").out)
    assert answer["issuer_trusted"] is False
    assert answer["charge"]["request_id"] == "r-0"
    Home.open(tmp_path / "others", create=True)
    assert "not trusted here" in run("receipt show r0.receipt --issuer others/issuer.pub.pem", code=11).err
    assert "receipt" in run("receipt show image.png", code=11).err


def test_a_license_says_whom_to_trust(vendor, run, tmp_path, monkeypatch):
    vendor(0)
    run("license issue --customer Acme --model * --out acme.license")
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "nowhere"))
    assert "good" in run("receipt show r0.receipt --license-file acme.license").out
    assert "good" in run("receipt verify r0.receipt --license-file acme.license").out
    assert "holds no license" in run("receipt show r0.receipt --license-file r0.receipt", code=3).err
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "others"))
    run("issuer init --home others")
    run("license issue --customer Acme --model * --home others --out other.license")
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "nowhere"))
    assert run("receipt show r0.receipt --license-file other.license", code=11).out == ""


def test_a_proof_is_checked_with_what_a_client_has_installed(vendor, run, tmp_path):
    vendor(0, 1)
    run("audit-log checkpoint --out kept.txt")
    vendor(2, 3, 4)
    newest = run("audit-log checkpoint").out
    run("audit-log prove --since kept.txt --out since.proof")
    run("audit-log prove r1.receipt --out r1.tlog-proof")
    line = ["audit-log", "verify-proof", "since.proof", "--since", "kept.txt", "--issuer", "home/issuer.pub.pem"]
    done = run_as_customer(*line, "--out", "newer.txt", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "from 2 entries to 5; none of the 2 was changed" in done.stdout
    assert (tmp_path / "newer.txt").read_text() == newest
    line = ["audit-log", "verify-proof", "r1.tlog-proof", "--receipt", "r1.receipt", "--issuer", "home/issuer.pub.pem"]
    answer = json.loads(run_as_customer(*line, "--json", folder=tmp_path).stdout)
    assert answer["size"] == 5
    assert answer["checkpoint"] == newest
    # The one it leads to is where the next one begins.
    vendor(5)
    run("audit-log checkpoint")
    run("audit-log prove --since newer.txt --out later.proof")
    assert "from 5 entries to 6" in run("audit-log verify-proof later.proof --since newer.txt").out


def test_proofs_and_checkpoints_that_went_over_windows_are_checked(vendor, run, tmp_path):
    vendor(0, 1)
    run("audit-log checkpoint --out kept.txt")
    vendor(2)
    run("audit-log checkpoint")
    run("audit-log prove --since kept.txt --out since.proof")
    run("audit-log prove r1.receipt --out r1.tlog-proof")
    for name in ("kept.txt", "since.proof", "r1.tlog-proof", "r1.receipt"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))

    assert "from 2 entries to 3" in run("audit-log verify-proof since.proof --since kept.txt").out
    run("audit-log verify-proof r1.tlog-proof --receipt r1.receipt")
    run("receipt verify r1.receipt --proof r1.tlog-proof")


@pytest.mark.parametrize(
    ("options", "code", "what"),
    [
        ("since.proof --since other.txt", 11, "for a checkpoint of 2 entries, and this one has 1"),
        ("changed.proof --since kept.txt", 11, "the log was rewritten, or the proof was changed"),
        ("since.proof --receipt r0.receipt", 11, "it is one that the log goes on from an earlier checkpoint"),
        ("r0.tlog-proof --since kept.txt", 11, "it is one that a receipt is in the log"),
        ("kept.txt --since kept.txt", 11, "not a proof of the form keylock/log-consistency@v1, that the log goes on"),
        ("r0.tlog-proof --receipt r1.receipt", 11, "the proof and the receipt do not belong together"),
        ("since.proof", 3, "one of them"),
        ("since.proof --since kept.txt --receipt r0.receipt", 3, "one of them"),
        ("missing.proof --since kept.txt", 3, "cannot read"),
        ("since.proof --since image.png", 11, "checkpoint"),
        ("since.proof --since kept.txt --issuer others/issuer.pub.pem", 11, "not to be trusted"),
        ("since.proof --since kept.txt --home nowhere", 6, "say whom you trust"),
    ],
)
def test_a_proof_that_does_not_show_it_is_refused(options, code, what, vendor, run, tmp_path):
    vendor(0)
    run("audit-log checkpoint --out other.txt")
    vendor(1)
    run("audit-log checkpoint --out kept.txt")
    vendor(2)
    run("audit-log checkpoint")
    run("audit-log prove --since kept.txt --out since.proof")
    run("audit-log prove r0.receipt --out r0.tlog-proof")
    head, _, tail = (tmp_path / "since.proof").read_text().partition("\n\n")
    first, old, *hashes = head.split("\n")
    (tmp_path / "changed.proof").write_text("\n".join([first, old, *reversed(hashes), hashes[0]]) + "\n\n" + tail)
    Home.open(tmp_path / "others", create=True)
    refused = run(f"audit-log verify-proof {options}", code=code)
    assert what in refused.err
    assert refused.out == ""


@pytest.mark.parametrize(
    ("options", "code", "what"),
    [
        ("--image map.npy", 11, "number 1 is another"),
        ("--image image.png --image image.png", 11, "is for 1 images and 2 were given"),
        ("--map other.npy", 11, "number 1 is another"),
        ("--map image.png", 3, "is not an array"),
        ("--map wide.npy", 3, "float64"),
        ("--proof other.tlog-proof", 11, "entry 2 is not in the log"),
        ("--proof image.png", 11, "not a proof"),
        ("--image missing", 3, "cannot read"),
    ],
)
def test_a_receipt_that_does_not_fit_is_refused(options, code, what, vendor, run, tmp_path):
    vendor(0, 1, 2)
    run("audit-log checkpoint")
    run("audit-log prove r2.receipt --out other.tlog-proof")
    np.save(tmp_path / "other.npy", MAP + 1)
    np.save(tmp_path / "wide.npy", MAP.astype(np.float64))
    assert what in run(f"receipt verify r1.receipt {options}", code=code).err


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_a_map_is_verified_in_the_type_it_was_sent_in(dtype, tmp_path):
    elements = np.arange(12).reshape(3, 4).astype(dtype)
    np.save(tmp_path / "map.npy", elements)
    assert _digest_of_map(tmp_path / "map.npy") == digest_of_array(dtype, (3, 4), elements.tobytes())


@pytest.mark.parametrize("header", [b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,", b"(", b"{}", b"\xff"])
def test_a_map_file_that_is_damaged_is_refused(header, tmp_path):
    path = tmp_path / "map.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InputError, match="is not an array"):
        _digest_of_map(path)


def test_an_archive_of_arrays_is_no_map(tmp_path):
    np.savez(tmp_path / "map.npz", a=MAP)
    with pytest.raises(InputError, match="is not an array"):
        _digest_of_map(tmp_path / "map.npz")


def test_a_receipt_that_was_changed_is_refused(vendor, run, tmp_path):
    vendor(0)
    path = tmp_path / "r0.receipt"
    path.write_text(path.read_text().replace(".", ".A", 1))
    assert "receipt" in run("receipt verify r0.receipt", code=11).err


def test_a_log_is_verified_and_goes_on_from_what_was_signed(vendor, run, tmp_path):
    assert "no checkpoint" in run("audit-log verify").err
    vendor(0, 1)
    run("audit-log checkpoint --out first.txt")
    vendor(2)
    run("audit-log checkpoint")
    answer = json.loads(run("audit-log verify --checkpoint first.txt --json").out)
    assert (answer["size"], answer["checkpoints"]) == (3, 3)
    proof = run("audit-log prove --since first.txt").out
    assert proof.startswith("keylock/log-consistency@v1\nold 2\n")
    # The digest of a leaf, the second time: RFC 6962, section 2.1.
    with vendor.database.transaction() as connection:
        row = connection.execute(text("SELECT leaf_hash, entry FROM audit_log WHERE seq = 2")).one()
    assert hashlib.sha256(b"\0" + row.entry).digest() == row.leaf_hash


def test_a_log_that_was_rewritten_is_told_with_its_entry(vendor, run):
    vendor(0, 1, 2)
    run("audit-log checkpoint --out kept.txt")
    with vendor.database.transaction(writes=True) as connection:
        connection.execute(
            text("UPDATE audit_log SET entry = (SELECT entry FROM audit_log WHERE seq = 0) WHERE seq = 1")
        )
    assert "entry 1 is not what was appended" in run("audit-log verify", code=11).err


def test_mistakes_are_told(vendor, run):
    vendor(0)
    assert "no checkpoint was signed" in run("audit-log prove r0.receipt", code=11).err
    assert "one of them" in run("audit-log prove", code=3).err
    assert "keylock issuer receipt-key" in run("audit-log checkpoint --home elsewhere", code=6).err
    assert "not overwritten" in run("issuer receipt-key", code=6).err
    assert "no license was issued" in run("audit-log verify --home elsewhere --issuer home/issuer.pub.pem", code=7).err


def test_the_log_is_that_of_the_store_that_is_named(vendor, run, tmp_path, monkeypatch):
    vendor(0)
    with Database(f"sqlite:///{tmp_path / 'other.db'}") as other, other.transaction(writes=True) as connection:
        log_table.append(connection, [entry_of(charge(number)) for number in range(2)])
    named = f"sqlite:///{tmp_path / 'other.db'}"
    assert json.loads(run(f"audit-log verify --store {named} --json").out)["size"] == 2
    monkeypatch.setenv("KEYLOCK_LICENSE_STORE", named)
    assert json.loads(run("audit-log checkpoint --json").out)["size"] == 2
    # It may have a password in it: the variable is gone once it was read.
    assert "KEYLOCK_LICENSE_STORE" not in os.environ
    assert json.loads(run("audit-log verify --json").out)["size"] == 1


def test_no_secret_is_printed(vendor, run, tmp_path):
    vendor(0)
    secret = "".join((tmp_path / "home" / "receipts.pem").read_text().splitlines()[1:-1])
    printed = [run("audit-log checkpoint"), run("audit-log verify"), run("issuer receipt-key --out other.pem")]
    assert not any(secret in output.out + output.err for output in printed)
