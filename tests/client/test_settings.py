"""Targets, licenses, encryption and environment variables, checked when a client is made."""

import copy
import pickle

import grpc
import pytest

from keylock.errors import InputError, LicenseError, LicenseReason
from keylock_client import AsyncClient, Client, Tls, UnreachableError
from keylock_client._settings import Settings, Token, read_environment


def make(target="localhost:8470", **options):
    return Settings.make(target=target, **{"license": None, "timeout_s": 30.0, "tls": None, "model": None, **options})


@pytest.mark.parametrize(
    ("target", "address", "encrypted"),
    [
        ("localhost", "localhost:8470", False),
        (" localhost:1 ", "localhost:1", False),
        ("127.0.0.1:80", "127.0.0.1:80", False),
        ("127.8.9.1", "127.8.9.1:8470", False),
        ("[::1]:9000", "[::1]:9000", False),
        ("unix:/tmp/keylock.sock", "unix:/tmp/keylock.sock", False),
        ("dns:///localhost:8470", "dns:///localhost:8470", False),
        ("keylock.example:443", "keylock.example:443", True),
        ("localhost.example", "localhost.example:8470", True),
        ("127.0.0.1.example", "127.0.0.1.example:8470", True),
        ("10.0.0.7", "10.0.0.7:8470", True),
        ("[2001:db8::1]", "[2001:db8::1]:8470", True),
        ("dns:///keylock.example:1", "dns:///keylock.example:1", True),
    ],
)
def test_a_target_gets_a_port_and_is_encrypted_unless_it_is_this_machine(target, address, encrypted):
    settings = make(target)
    assert settings.target == address
    assert (settings.tls is not None) == encrypted
    assert make(target, tls=True).tls == Tls()
    assert make(target, tls=False).tls is None


@pytest.mark.parametrize(
    "target", ["", "  ", "http://localhost:8470", "host:", "host:0", "host:65536", "host:port", "a b", "::1", None, 7]
)
def test_a_target_that_is_no_address_is_refused(target):
    with pytest.raises(InputError, match="host:port"):
        make(target)


def test_a_proxy_is_not_asked_for_this_machine(server, connect, png, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://localhost:1")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert connect(server.target).explain(png()).prediction.label == "star"


@pytest.mark.parametrize("form", [str, lambda path: path, lambda path: path.read_text()])
def test_a_license_is_a_path_or_the_token(tmp_path, token, form):
    file = tmp_path / "acme.license"
    file.write_text(f"{token}\n")
    settings = make(license=form(file))
    assert settings.metadata() == (("authorization", f"Bearer {token}"),)
    assert make().metadata() == ()


def test_a_license_file_that_is_none_is_refused(tmp_path, token):
    empty, picture, large = tmp_path / "empty", tmp_path / "picture", tmp_path / "large"
    empty.write_text("")
    picture.write_bytes(b"\x89PNG\xff\x00")
    large.write_text(token + "A" * 9000)
    for file in (empty, picture, large):
        with pytest.raises(LicenseError, match=f"{file.name}' holds no license") as caught:
            make(license=file)
        assert caught.value.reason is LicenseReason.MALFORMED
    with pytest.raises(LicenseError, match=r"gone' cannot be read \(No such file"):
        make(license=tmp_path / "gone")
    with pytest.raises(LicenseError, match="directory"):
        make(license=tmp_path)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_license_says_so(text):
    with pytest.raises(LicenseError, match="the license is an empty text"):
        make(license=text)


@pytest.mark.parametrize(
    "slip", [lambda t: t + ".x", lambda t: "Bearer " + t, lambda t: t[:-1] + "\0", lambda t: t * 99]
)
def test_a_mistyped_token_is_not_repeated(token, slip):
    with pytest.raises(LicenseError, match="not a token either") as caught:
        make(license=slip(token))
    assert token[:20] not in str(caught.value)


def test_the_token_shows_itself_to_nobody(token):
    settings, client = make(license=token), Client(license=token)
    for holder in (settings, settings.token, client, AsyncClient(license=token)):
        for form in (repr, str, "{}".format):
            assert token.rpartition(".")[2] not in form(holder)
    for copier in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="secret"):
            copier(Token(token))
        with pytest.raises(TypeError, match="make one in each process"):
            copier(AsyncClient(license=token))
    assert repr(client) == "<Client localhost:8470, clear text, licensed>"
    client.close()


def test_the_environment_is_read_on_request_only(monkeypatch, tmp_path, token):
    file = tmp_path / "acme.license"
    file.write_text(token)
    monkeypatch.setenv("KEYLOCK_TARGET", "keylock.example")
    monkeypatch.setenv("KEYLOCK_LICENSE_FILE", str(file))
    monkeypatch.setenv("KEYLOCK_LICENSE", "")
    with Client() as plain, Client.from_environment() as told, Client.from_environment(target="localhost:9") as given:
        assert repr(plain) == "<Client localhost:8470, clear text, no license>"
        assert repr(told) == "<Client keylock.example:8470, TLS, licensed>"
        assert repr(given) == "<Client localhost:9, clear text, licensed>"


def test_every_variable_becomes_its_argument(tmp_path, token):
    assert read_environment({}) == {}
    assert read_environment({"KEYLOCK_TARGET": "a:1", "KEYLOCK_MODEL": "m", "KEYLOCK_TIMEOUT_S": "2.5"}) == {
        "target": "a:1",
        "model": "m",
        "timeout_s": 2.5,
    }
    assert read_environment({"KEYLOCK_LICENSE": token}) == {"license": token}
    assert read_environment({"KEYLOCK_TLS": "ON"}) == {"tls": True}
    assert read_environment({"KEYLOCK_TLS": "off", "KEYLOCK_TLS_CA": "ca.pem"}) == {"tls": False}
    assert read_environment({"KEYLOCK_TLS": "auto"}) == {}
    assert read_environment({"KEYLOCK_TLS_CA": "ca.pem"}) == {"tls": Tls(ca="ca.pem")}


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"KEYLOCK_LICENSE": "a", "KEYLOCK_LICENSE_FILE": "b"}, "unset one"),
        ({"KEYLOCK_TIMEOUT_S": "soon"}, "KEYLOCK_TIMEOUT_S"),
        ({"KEYLOCK_TIMEOUT_S": "-1"}, "KEYLOCK_TIMEOUT_S"),
        ({"KEYLOCK_TLS": "maybe"}, "on, off or auto"),
    ],
)
def test_a_variable_with_an_unusable_value_is_named(variables, what):
    with pytest.raises(InputError, match=what):
        read_environment(variables)
    overridden = {"license": "", "timeout_s": 1, "tls": None}
    assert read_environment(variables, ignored=overridden) == {}


def test_files_for_tls_are_read_when_the_client_is_made(tmp_path):
    with pytest.raises(InputError, match=r"gone\.pem' for TLS: No such file"):
        Client(tls=Tls(ca=tmp_path / "gone.pem"))
    with pytest.raises(InputError, match="both or none"):
        Client(tls=Tls(certificate="a.pem"))


def _certificate(name):
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, certificate.public_bytes(serialization.Encoding.PEM)


def test_tls_works_and_a_wrong_authority_does_not(toolbox, connect, tmp_path, png, token):
    key, certificate = _certificate("keylock.test")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(certificate)
    server = toolbox.Scripted(credentials=grpc.ssl_server_credentials([(key, certificate)]))
    try:
        tls = Tls(ca=ca, server_name="keylock.test")
        assert connect(server.target, license=token, tls=tls).explain(png()).keyed
        ca.write_bytes(_certificate("keylock.test")[1])
        for wrong in (Tls(ca=ca, server_name="keylock.test"), False):
            with pytest.raises(UnreachableError, match=r"signed by nobody who is trusted|one does that expects TLS"):
                connect(server.target, license=token, tls=wrong, timeout_s=5).explain(png())
        assert len(server.asked("Explain")) == 1
    finally:
        server.stop()
