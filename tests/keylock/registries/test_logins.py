"""Logins: to a real registry with passwords, to one with tokens, and what a hostile registry never gets."""

import base64
import contextlib
import datetime
import hashlib
import json
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from oci_registry import PASSWORD, USER, basic, password_file, start

from keylock.bundle import open_bundle
from keylock.errors import RegistryError
from keylock.registries import Credentials, Reference, Registry, pull_bundle, push_bundle

pytest.importorskip("requests", reason="pip install '.[oci]'")


@contextlib.contextmanager
def serving(handler):
    """Serve HTTP on localhost until the block ends; yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)


@pytest.fixture(scope="module")
def with_password(tmp_path_factory):
    folder = tmp_path_factory.mktemp("password")
    running = start(folder, auth=password_file(folder / "auth"))
    yield running
    running.stop()


class Issuer:
    """Gives tokens as Distribution's token server does: JWTs of a certificate that the registry trusts."""

    def __init__(self, folder):
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self.key.public_key())
        builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = builder.sign(self.key, hashes.SHA256())
        (folder / "tokens.pem").write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        self.asked = []

    def token(self, scope):
        kind, name, actions = scope.split(":")
        der = base64.b64encode(self.certificate.public_bytes(serialization.Encoding.DER)).decode()
        now = int(time.time())
        claims = {"iss": "tests", "sub": USER, "aud": "tests", "exp": now + 60, "nbf": now - 5, "iat": now, "jti": "1"}
        claims["access"] = [{"type": kind, "name": name, "actions": actions.split(",")}]
        head = {"typ": "JWT", "alg": "ES256", "x5c": [der]}
        text = b".".join(encoded(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss(self.key.sign(text, ec.ECDSA(hashes.SHA256())))
        return (text + b"." + encoded(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()


def decode_dss(signature):
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    return decode_dss_signature(signature)


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory):
    """A registry that wants tokens, and who gives them: to USER for everything, to others for pulling from public/."""
    folder = tmp_path_factory.mktemp("tokens")
    issuer = Issuer(folder)

    class Tokens(Quiet):
        def do_GET(self):
            asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            issuer.asked.append((asked, self.headers.get("Authorization")))
            if self.headers.get("Authorization") not in (None, f"Basic {basic(USER, PASSWORD)}"):
                self.answer(401)
                return
            if self.headers.get("Authorization") is None and "public/" not in asked["scope"]:
                self.answer(401)
                return
            self.give(asked["scope"])

        def do_POST(self):
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            issuer.asked.append((form, self.headers.get("Authorization")))
            if form["refresh_token"] != ["an-identity-token"]:
                self.answer(401)
                return
            self.give(form["scope"][0])

        def give(self, scope):
            self.answer(200, json.dumps({"access_token": issuer.token(scope)}).encode())

    with serving(Tokens) as address:
        auth = f"auth: {{token: {{realm: 'http://{address}/token', service: tests, issuer: tests, "
        running = start(folder, auth=auth + f"rootcertbundle: {folder / 'tokens.pem'}}}}}\n")
        running.issuer = issuer
        yield running
        running.stop()


def push(place, bundle, credentials):
    with Registry(place, credentials=credentials) as registry:
        return push_bundle(open_bundle(bundle, trusted=None), registry)


def pull(place, out, credentials):
    with Registry(place, credentials=credentials) as registry:
        return pull_bundle(registry, out)


@pytest.mark.parametrize("kind", ["with_password", "with_tokens"])
def test_with_a_login_bundles_go_and_come(kind, request, bundle, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    place = Reference(request.getfixturevalue(kind).host, "private/m")
    login = Credentials(USER, PASSWORD)
    pushed = push(place, bundle, login)
    assert pull(place, tmp_path / "got", login).digest == pushed.digest
    assert PASSWORD not in caplog.text
    assert basic(USER, PASSWORD) not in caplog.text


@pytest.mark.parametrize("kind", ["with_password", "with_tokens"])
def test_without_one_or_with_a_wrong_one_it_is_said(kind, request, bundle, tmp_path):
    place = Reference(request.getfixturevalue(kind).host, "private/other")
    with pytest.raises(RegistryError, match="asks for a login: set KEYLOCK_REGISTRY_USER") as caught:
        push(place, bundle, None)
    assert f"docker login {place.host}" in str(caught.value)
    with pytest.raises(RegistryError, match=f"refuses the login of {USER} for private/other") as caught:
        push(place, bundle, Credentials(USER, "a-wrong-password"))
    assert "a-wrong-password" not in str(caught.value)
    with pytest.raises(RegistryError, match="asks for a login"):
        pull(place, tmp_path / "got", None)
    assert [path.name for path in tmp_path.iterdir()] == ["noise"]


def test_without_a_login_a_token_for_everybody_is_asked_for(with_tokens, bundle, tmp_path):
    place = Reference(with_tokens.host, "public/m")
    push(place, bundle, Credentials(USER, PASSWORD))
    with_tokens.issuer.asked.clear()
    pull(place, tmp_path / "got", None)
    [(asked, shown)] = with_tokens.issuer.asked
    assert asked == {"service": "tests", "scope": "repository:public/m:pull"}
    assert shown is None


def test_an_identity_token_is_changed_for_a_token(with_tokens, bundle, tmp_path):
    place = Reference(with_tokens.host, "private/identity")
    push(place, bundle, Credentials("", "an-identity-token", is_token=True))
    with pytest.raises(RegistryError, match="refuses the login for private"):
        pull(place, tmp_path / "got", Credentials("", "another", is_token=True))
    with pytest.raises(RegistryError, match="refuses the login"):
        pull(Reference(with_tokens.host, "private/identity"), tmp_path / "got", Credentials("", "x", is_token=True))


def hostile(get):
    """A registry whose answers to GET a function makes; `seen` are the headers it got."""

    class Hostile(Quiet):
        seen: list

        def do_GET(self):
            type(self).seen.append(dict(self.headers))
            get(self)

    Hostile.seen = []
    return Hostile


def test_redirects_elsewhere_do_not_show_the_login(bundle):
    content = b"a file"
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    elsewhere = hostile(lambda handler: handler.answer(200, content))
    with serving(elsewhere) as other:

        def redirect(handler):
            if "Authorization" not in handler.headers:
                handler.answer(401, WWW_Authenticate='Basic realm="x"')
            else:
                handler.answer(307, Location=f"http://{other}/file")

        registry = hostile(redirect)
        with serving(registry) as host, Registry(Reference(host, "m"), credentials=Credentials("a", "b")) as asked:
            asked.fetch_blob(digest, len(content), bundle / "file")
    assert (bundle / "file").read_bytes() == content
    assert ["Authorization" in headers for headers in registry.seen] == [False, True]
    [headers] = elsewhere.seen
    assert "Authorization" not in headers


@pytest.mark.parametrize(
    ("get", "says"),
    [
        (lambda h: h.answer(401, WWW_Authenticate='Bearer realm="http://evil.invalid/token"'), "in the clear"),
        (lambda h: h.answer(401, WWW_Authenticate='Bearer realm="file:///etc/passwd"'), "no address for tokens"),
        (lambda h: h.answer(401, WWW_Authenticate="Negotiate"), "of a kind that is not known"),
        (lambda h: h.answer(401), "of a kind that is not known"),
        (lambda h: h.answer(307, Location="http://evil.invalid/file"), "a redirect over the network in the clear"),
        (lambda h: h.answer(307, Location="/v2/m/manifests/latest"), "its redirects do not end"),
        (lambda h: h.answer(200, b"x" * (5 * 1024 * 1024)), "more than 4194304 bytes"),
        (lambda h: h.answer(200, b"{}", Docker_Content_Digest="sha256:" + "0" * 64), "not the one asked for"),
        (lambda h: h.answer(200, b"[" * 100_000), "is no artefact of one model"),
        (lambda h: h.answer(403), "does not allow this"),
        (lambda h: h.answer(429), "asked too often"),
        (lambda h: h.answer(500, b'{"errors": [{"message": "\\u001b[2Jgone"}]}'), r"answers 500 .\\x1b\[2Jgone."),
        (lambda h: h.answer(503, b"x"), "answers 503: try again"),
        (lambda h: h.wfile.write(b"nonsense\r\n\r\n"), "cannot be reached .it does not speak HTTP."),
        (lambda h: h.connection.shutdown(socket.SHUT_RDWR), "cannot be reached .the connection was broken off."),
    ],
)
def test_a_registry_that_misbehaves_is_said_in_a_sentence(get, says, tmp_path):
    class Handler(hostile(get)):
        def handle(self):
            with contextlib.suppress(OSError, ValueError):
                super().handle()

    Handler.seen = []
    with serving(Handler) as host, pytest.raises(RegistryError, match=says) as caught:
        pull(Reference(host, "m"), tmp_path / "got", Credentials("me", "secret"))
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_other_machines_are_asked_over_tls_unless_it_is_said():
    assert Registry(Reference("registry.example.com", "m"))._base == "https://registry.example.com/v2/m/"
    assert Registry(Reference("10.0.0.1:5000", "m"))._base == "https://10.0.0.1:5000/v2/m/"
    assert Registry(Reference("10.0.0.1:5000", "m"), plain_http=True)._base == "http://10.0.0.1:5000/v2/m/"
    assert Registry(Reference("localhost:5000", "m"))._base == "http://localhost:5000/v2/m/"


def test_logins_in_netrc_are_for_others(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine localhost login somebody password netrc-secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    registry = hostile(lambda handler: handler.answer(404))
    with serving(registry) as host, pytest.raises(RegistryError, match="there is no"):
        pull(Reference(host, "m"), tmp_path / "got", None)
    [headers] = registry.seen
    assert "Authorization" not in headers
