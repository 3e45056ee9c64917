"""`keylock serve`: mistakes end in one line and an exit code; the vendor's directory fills what is left open."""

import socket
from dataclasses import fields
from pathlib import Path

import pytest

from keylock.cli import main
from keylock.cli._serve_options import _NO_SETTINGS, _RENAMED, ServeOptions
from keylock.cli._vendor_settings import complete_settings
from keylock.crypto.signing import Home
from keylock.errors import SignatureError
from keylock.licensing.receipt_keys import ReceiptKey
from keylock_server import ServerSettings


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("KEYLOCK_HOME", raising=False)
    monkeypatch.delenv("KEYLOCK_KEY_PASSPHRASE", raising=False)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 3, "no bundle is set: give one"),
        (["missing.klb"], 4, "missing.klb"),
        (["{bundle}"], 6, "--key-file"),
        (["{bundle}", "--key-file", "missing"], 6, "missing"),
        (["{bundle}", "--key-seed-file", "missing"], 6, "missing"),
        (["{bundle}", "--keyless", "--key-file", "{key_file}"], 3, "exclude"),
        (["{bundle}", "--keyless", "--port", "{busy}"], 7, "the port is in use"),
        (["{bundle}", "--keyless", "--host", "no-such-host.invalid"], 7, "no address"),
        (["{bundle}", "--keyless", "--unlicensed", "perhaps"], 3, "--unlicensed is wrong: give decoy or refuse"),
        (["{bundle}", "--keyless", "--host", ""], 3, "--host is wrong: give a text that is not empty"),
        (["{bundle}", "--port", "70000"], 3, "--port is wrong: give a whole number from 0 to 65535"),
        (["{bundle}", "--http-port", "8470", "--port", "8470"], 3, "--http-port and --port are the same"),
        (["{bundle}", "--key-file", "a", "--key-seed-file", "b"], 3, "--key-file and --key-seed-file were given"),
        (["{bundle}", "--key-file", "a", "--key-file", "b"], 3, "--key-file was given 2 times for 1 bundles"),
        (["{bundle}", "--tls-client-ca", "a"], 3, "--tls-client-ca needs --tls-certificate and --tls-key"),
        (["{bundle}", "--admin-port", "1"], 3, "--admin-certificate, --admin-key and --admin-client-ca must be given"),
        (["{bundle}", "--offline-license", "a"], 3, "--offline-license needs --key-provider"),
        (["{bundle}", "--key-file", "a", "--tls-key", "b", "--tls-certificate", "c"], 3, "a (--key-file), c (--tls-ce"),
        (["{bundle}", "--keyless", "--log-level", "loud"], 3, "loud"),
        (["{bundle}", "--keyless", "--config", "missing.toml"], 3, "missing.toml"),
        (["{bundle}", "--keyless", "--issuer", "missing.pem"], 6, "missing.pem"),
        (["{bundle}", "--keyless", "--home", "missing"], 6, "missing"),
        (["{bundle}", "--keyless", "--tls-key", "k.pem"], 3, "--tls-certificate and --tls-key go together"),
        (["{bundle}", "--keyless", "--port", "many"], 2, "--port"),
    ],
)
def test_mistakes_end_in_one_line(vendor, capsys, arguments, code, words):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        values = {"bundle": vendor.bundle, "key_file": vendor.key_file, "busy": busy.getsockname()[1]}
        port = [] if "--port" in arguments else ["--port", "0"]
        exit_code = main(["serve", *[argument.format(**values) for argument in arguments], *port])
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert exit_code == code


def test_options_are_settings_of_the_server():
    names = {_RENAMED.get(entry.name, entry.name) for entry in fields(ServeOptions)}
    assert names - set(ServerSettings.model_fields) == _NO_SETTINGS
    given = {"issuer": [Path("a.pem"), Path("b.pem")], "unlicensed": "refuse", "port": 0, "keyless": True}
    settings = ServeOptions(bundle=[Path("x.klb"), Path("y.klb")], **given).settings()
    assert settings.bundles == (Path("x.klb"), Path("y.klb"))
    assert settings.issuers == (Path("a.pem"), Path("b.pem"))
    assert (settings.unlicensed_explanations, settings.port, settings.keyless) == ("refuse", 0, True)


def test_options_that_were_not_given_leave_the_environment_its_settings(monkeypatch):
    monkeypatch.setenv("KEYLOCK_SERVER_KEYLESS", "true")
    monkeypatch.setenv("KEYLOCK_SERVER_PORT", "1")
    settings = ServeOptions(bundle=[Path("x.klb")]).settings()
    assert (settings.keyless, settings.port) == (True, 1)


def test_directory_that_was_named_fills_what_is_open(tmp_path):
    home = Home.open(tmp_path / "home")
    settings = complete_settings(ServerSettings.load(bundle="x"), home.path)
    assert [path.name for path in settings.issuers] == ["issuers.jwks"]
    assert settings.license_store == home.licenses_url
    assert settings.engine_cache == home.engines_path
    assert complete_settings(ServerSettings.load(bundle="x", engine_cache="own"), home.path).engine_cache == Path("own")
    kept = complete_settings(
        ServerSettings.load(bundle="x", issuers=("own.pem",), license_store="sqlite:///own"), home.path
    )
    assert [str(path) for path in kept.issuers] == ["own.pem"]
    assert kept.license_store == "sqlite:///own"
    with pytest.raises(SignatureError):
        complete_settings(ServerSettings.load(bundle="x"), tmp_path / "nothing")


def test_usual_directory_counts_unless_an_issuer_is_named(tmp_path):
    plain = ServerSettings.load(bundle="x")
    assert complete_settings(plain, None) == plain
    home = Home.open(tmp_path / "user" / ".keylock")
    assert complete_settings(plain, None).license_store == home.licenses_url
    named = ServerSettings.load(bundle="x", issuers=("own.pem",))
    assert complete_settings(named, None) == named


def test_receipts_are_signed_with_a_key_that_the_directory_certifies(tmp_path, capsys):
    home = Home.open(tmp_path / "home")
    settings = complete_settings(ServerSettings.load(bundle="x"), home.path)
    assert settings.receipt_key == home.receipt_key_path
    key = ReceiptKey.load(home.receipt_key_path)
    assert key.certificate.issuer == home.verifying_key()
    # Made once, and used again; not where another issuer is trusted, whose customers would not believe it.
    complete_settings(ServerSettings.load(bundle="x"), home.path)
    assert ReceiptKey.load(home.receipt_key_path).certificate == key.certificate
    assert complete_settings(ServerSettings.load(bundle="x", issuers=("own.pem",)), home.path).receipt_key is None
    # A server that has the public key alone makes none.
    (home.path / "issuer.pem").unlink()
    home.receipt_key_path.unlink()
    assert complete_settings(ServerSettings.load(bundle="x"), home.path).receipt_key is None
