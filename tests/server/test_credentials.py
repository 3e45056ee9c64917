"""Content credentials on overlays, from a real server, read by the public reader of C2PA."""

import io
import json
import os
import pickle
import socket
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from keylock.cli import main
from keylock.crypto.digests import digest_of
from keylock.errors import InputError, SignatureError
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.licensing.receipts import Receipt
from keylock_client import Client
from keylock_client.credentials import Credentials, read_about

c2pa = pytest.importorskip("c2pa", reason="c2pa-python is not installed: the extra c2pa brings it")

NOW = datetime.now(UTC)
KINDS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}


def certificate(key, issuer=None, *, ca=False, start=-1, end=30, usage=True, name="Acme Ltd"):
    """A certificate, self-signed or by an (issuer's key, its certificate)."""
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme")]
    )
    signer, authority = issuer or (key, None)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=start))
        .not_valid_after(NOW + timedelta(days=end))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca,
                key_cert_sign=ca,
                crl_sign=ca,
                **dict.fromkeys(
                    (
                        *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
                        *("encipher_only", "decipher_only"),
                    ),
                    False,
                ),
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if usage and not ca:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return made.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def pem(*certificates, key=None, password=None):
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    found = b"".join(one.public_bytes(Encoding.PEM) for one in certificates)
    return found + (b"" if key is None else key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


@pytest.fixture(scope="module")
def acme():
    """A signer of content whose certificate an authority issued: what is in its file, and the authority's."""
    root, own = KINDS["P-256"](), KINDS["P-256"]()
    authority = certificate(root, ca=True, name="Acme root")
    return pem(certificate(own, (root, authority)), authority, key=own), pem(authority)


@pytest.fixture
def place(acme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme.pem").write_bytes(acme[0])
    return tmp_path


@pytest.fixture
def picture(place, tiny):
    Image.fromarray(tiny.pixels(8, 8, seed=3)).save(place / "cat.png")
    return place / "cat.png"


@pytest.fixture
def shell(calls, vendor, place, monkeypatch, capsys):
    (place / "acme.license").write_text(vendor.grant().token)
    if "KEYLOCK_TARGET" not in os.environ:
        monkeypatch.setenv("KEYLOCK_TARGET", calls.server.target)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def receipts(start_server, place, vendor, tiny, monkeypatch):
    """Ask a server that signs receipts."""
    since, until = tiny.now.replace(year=2020), tiny.now.replace(year=2100)
    ReceiptKey.create(place / "receipts.pem", vendor.signing_key, not_before=since, expires=until)
    monkeypatch.setenv("KEYLOCK_TARGET", start_server(receipt_key=place / "receipts.pem").server.target)


def read(path, anchors=None):
    """What the public reader says of a file."""
    settings = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    if anchors is not None:
        settings |= {"trust": {"trust_anchors": anchors.decode()}}
        settings["verify"] |= {"verify_trust": True}
    with c2pa.Context(c2pa.Settings.from_dict(settings)) as context, c2pa.Reader(str(path), context=context) as reader:
        return json.loads(reader.json())


def active(said):
    return said["manifests"][said["active_manifest"]]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_an_overlay_says_what_it_was_made_of(suffix, receipts, shell, picture, place, acme):
    arguments = ("--credentials", "acme.pem", "--license-file", "acme.license", "--receipt", "cat.receipt", "--json")
    code, out, err = shell("explain", picture, "--out", f"why.{suffix}", *arguments)
    assert code == 0, err
    shown = json.loads(out)["explanations"][0]
    said = read(place / f"why.{suffix}", acme[1])
    assert said["validation_state"] == "Trusted"
    manifest = active(said)
    about = read_about(manifest)
    assert about["image"] == digest_of(picture.read_bytes())
    assert about["model"] == shown["model"]
    assert about["explainer"] == shown["explainer"]
    assert about["keyed"] is True
    receipt = Receipt.verify(about["receipt"], lambda _key: True)
    assert about["receipt"] in "".join((place / "cat.receipt").read_text().splitlines())
    assert [about["map"]] == list(receipt.charge.answer.maps)
    [ingredient] = manifest["ingredients"]
    assert ingredient["relationship"] == "parentOf"
    assert ingredient["format"] == "image/png"
    [actions] = [one for one in manifest["assertions"] if one["label"].startswith("c2pa.actions")]
    assert [action["action"] for action in actions["data"]["actions"]] == ["c2pa.opened", "c2pa.edited"]
    assert manifest["claim_generator_info"][0]["name"] == "keylock"
    with Image.open(place / f"why.{suffix}") as opened:
        assert opened.size == (256, 256)


def test_no_copy_of_a_picture_is_in_the_credentials(shell, picture, place):
    assert shell("explain", picture, "--out", "plain.png", "--license-file", "acme.license")[0] == 0
    assert shell("explain", picture, "--out", "why.png", "--credentials", "acme.pem")[0] == 0
    said = read(place / "why.png")
    assert "thumbnail" not in json.dumps(said)
    assert (place / "why.png").stat().st_size - (place / "plain.png").stat().st_size < 30_000
    assert (place / "why.png").read_bytes().count(b"\xff\xd8\xff") == 0


def test_a_decoy_says_that_it_is_one_and_has_no_receipt(shell, picture, place):
    assert shell("explain", picture, "--out", "why.png", "--credentials", "acme.pem")[0] == 0
    about = read_about(active(read(place / "why.png")))
    assert (about["keyed"], about["receipt"]) == (False, None)


def test_a_picture_that_was_changed_is_found_out(shell, picture, place):
    assert shell("explain", picture, "--out", "why.png", "--credentials", "acme.pem")[0] == 0
    content = bytearray((place / "why.png").read_bytes())
    content[-20] ^= 1
    (place / "changed.png").write_bytes(content)
    assert read(place / "why.png")["validation_state"] == "Valid"
    assert read(place / "changed.png")["validation_state"] == "Invalid"


def test_without_anchors_a_self_signed_certificate_reads_as_valid_and_not_as_trusted(shell, picture, place):
    key = KINDS["P-256"]()
    (place / "own.pem").write_bytes(pem(certificate(key)))
    (place / "own.key").write_bytes(pem(key=key))
    arguments = ("--credentials", "own.pem", "--credentials-key", "own.key")
    assert shell("explain", picture, "--out", "why.png", *arguments)[0] == 0
    assert read(place / "why.png")["validation_state"] == "Valid"


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_all_kinds_sign(kind, place):
    key = KINDS[kind]()
    (place / "own.pem").write_bytes(pem(certificate(key), key=key))
    dot = io.BytesIO()
    Image.new("RGB", (2, 2)).save(dot, "PNG")
    made = Credentials.load(place / "own.pem").sign(
        dot.getvalue(), suffix=".png", title="t.png", image=dot.getvalue(), about={"keyed": True}
    )
    (place / "t.png").write_bytes(made)
    assert read(place / "t.png")["validation_state"] == "Valid"


def test_what_is_no_file_travels_as_pixels_and_is_named_all_the_same(calls, vendor, place, tiny, acme):
    credentials = Credentials.load("acme.pem")
    with Client(calls.server.target, license=vendor.grant().token) as client:
        explanation = client.explain(tiny.pixels(8, 8, seed=3))
    explanation.save("why.png", credentials=credentials)
    [ingredient] = active(read(place / "why.png"))["ingredients"]
    assert ingredient["format"] == "image/png"
    with pytest.raises(InputError, match=r"a file \.npy cannot carry credentials: write \.png"):
        explanation.save("why.npy", credentials=credentials)
    np.testing.assert_array_equal(np.asarray(Image.open("why.png")), np.asarray(explanation.overlay()))


REFUSED = {
    "missing": (lambda _: None, 3, "cannot read 'bad.pem': No such file or directory"),
    "no certificate": (lambda key: b"hello", 6, "there is no certificate in bad.pem"),
    "no key": (
        lambda key: pem(certificate(key)),
        6,
        "there is no private key in bad.pem: give its file with --credentials-key",
    ),
    "another key": (lambda key: pem(certificate(key), key=KINDS["P-256"]()), 6, "is not that of the first certificate"),
    "over": (lambda key: pem(certificate(key, start=-3, end=-1), key=key), 6, "which is not now"),
    "not yet": (lambda key: pem(certificate(key, start=1), key=key), 6, "which is not now"),
    "passphrase": (lambda key: pem(certificate(key), key=key, password=b"x"), 6, "has a passphrase: give one without"),
    "authority": (lambda key: pem(certificate(key, ca=True), key=key), 6, "cannot sign content"),
    "no use": (lambda key: pem(certificate(key, usage=False), key=key), 6, "cannot sign content"),
    "short RSA": (
        lambda _: (lambda rsa_key: pem(certificate(rsa_key), key=rsa_key))(rsa.generate_private_key(65537, 1024)),  # noqa: S505
        6,
        "of a kind that C2PA does not take",
    ),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_cannot_sign_is_refused_before_anything_is_asked(row, shell, picture, place, monkeypatch):
    make, code, words = REFUSED[row]
    content = make(KINDS["P-256"]())
    if content is not None:
        (place / "bad.pem").write_bytes(content)
    # Whoever asked would hear that nobody is there.
    monkeypatch.setenv("KEYLOCK_TARGET", "localhost:1")
    found, out, err = shell("explain", picture, "--out", "w.png", "--credentials", "bad.pem")
    assert (found, out) == (code, ""), err
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (place / "w.png").exists()
    assert "PRIVATE" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--credentials", "acme.pem"), "say where to write them with --out"),
        (("--credentials", "acme.pem", "--out", "w.npy"), "a file .npy cannot carry credentials"),
        (("--credentials", "acme.pem", "--out", "w.bmp"), "a file .bmp cannot carry credentials"),
        (("--credentials-key", "acme.pem", "--out", "w.png"), "give the certificate with --credentials"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, words, shell, picture):
    code, _, err = shell("explain", picture, *arguments)
    assert code == 3, err
    assert words in err


def test_without_the_library_the_extra_is_named(shell, picture, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    code, _, err = shell("explain", picture, "--credentials", "acme.pem", "--out", "w.png")
    assert code == 10, err
    assert "credentials need c2pa-python, which is not installed: pip install '.[c2pa]'" in err


def test_the_private_key_is_neither_shown_nor_pickled(place):
    credentials = Credentials.load("acme.pem")
    assert repr(credentials) == "<Credentials of 'O=Acme,CN=Acme Ltd'>"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(credentials)


def test_signing_asks_nothing_of_the_network(place, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert Credentials.load("acme.pem").subject


def test_a_bad_certificate_is_an_error_of_signatures():
    with pytest.raises(SignatureError, match="there is no certificate"):
        Credentials.load(__file__)


def test_a_key_that_is_missing_is_asked_for_by_the_name_of_the_argument(place):
    (place / "bad.pem").write_bytes(pem(certificate(KINDS["P-256"]())))
    with pytest.raises(SignatureError, match=r"there is no private key in bad\.pem: give its file with key=$"):
        Credentials.load("bad.pem")
