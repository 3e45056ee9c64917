"""Why no connection comes about is said in words, by the client and the command line, and nothing else is printed."""

import datetime as dt
import json
import re
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keylock.errors import InputError
from keylock_client import Client, DeadlineError, Tls, UnreachableError, UnsupportedError
from keylock_client._connections import explain_unavailable
from keylock_client._settings import Settings

# What gRPC and the libraries below it say.
RAW = ("ssl_", "SSL_ERROR", "OPENSSL", "TSI_", "ipv4:", "last error", "HTTP/2", "ALPN", "Socket", "errno", ".cc:")


class Certified:
    """A certificate with its key."""

    def __init__(self, *, issuer=None, name="localhost", days=(-10, 10)):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder(serial_number=x509.random_serial_number(), public_key=self.key.public_key())
            .subject_name(self.name)
            .issuer_name((issuer or self).name)
            .not_valid_before(now + dt.timedelta(days=days[0]))
            .not_valid_after(now + dt.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        )
        self.certificate = builder.sign((issuer or self).key, hashes.SHA256())

    def write(self, folder, name):
        """Write `NAME.pem` and `NAME.key`."""
        (folder / f"{name}.pem").write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        form = serialization.PrivateFormat.PKCS8
        content = self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        (folder / f"{name}.key").write_bytes(content)


class Web(socketserver.StreamRequestHandler):
    """Answers every request as a web server does that speaks HTTP/1.1 alone, over TLS where it is given a context."""

    def handle(self):
        stream = self.request
        try:
            if self.server.context is not None:
                stream = self.server.context.wrap_socket(stream, server_side=True)
            stream.recv(65536)
            stream.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        except OSError:
            # What comes is no TLS, or is gone: that is what is tested.
            pass
        finally:
            stream.close()


def web_server(folder, certificate=None):
    server = socketserver.ThreadingTCPServer(("localhost", 0), Web)
    server.daemon_threads, server.context = True, None
    if certificate is not None:
        server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.context.load_cert_chain(folder / f"{certificate}.pem", folder / f"{certificate}.key")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Authorities `ca` and `other`, and certificates of servers and of a client."""
    made = tmp_path_factory.mktemp("certificates")
    ca, other = Certified(name="ca"), Certified(name="other")
    certificates = {
        "ca": ca,
        "other": other,
        "good": Certified(issuer=ca),
        "expired": Certified(issuer=ca, days=(-10, -1)),
        "early": Certified(issuer=ca, days=(1, 10)),
        "misnamed": Certified(issuer=ca, name="elsewhere.example"),
        "client": Certified(issuer=ca, name="client"),
    }
    for name, one in certificates.items():
        one.write(made, name)
    return made


def credentials(folder, name, *, client_ca=None):
    pair = ((folder / f"{name}.key").read_bytes(), (folder / f"{name}.pem").read_bytes())
    roots = None if client_ca is None else (folder / f"{client_ca}.pem").read_bytes()
    return grpc.ssl_server_credentials([pair], roots, client_ca is not None)


@pytest.fixture(scope="module")
def ports(folder):
    """The ports of servers by name; they run until the module is done."""
    pool, servers = ThreadPoolExecutor(4), []

    def serve(made):
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        port = server.add_insecure_port("localhost:0") if made is None else server.add_secure_port("localhost:0", made)
        server.start()
        servers.append(server)
        return port

    web, encrypted_web = web_server(folder), web_server(folder, "good")
    yield {
        "plain": serve(None),
        "demanding": serve(credentials(folder, "good", client_ca="ca")),
        **{name: serve(credentials(folder, name)) for name in ("good", "expired", "early", "misnamed")},
        "web": web.server_address[1],
        "encrypted web": encrypted_web.server_address[1],
        "nobody": 1,
    }
    for server in servers:
        server.stop(None)
    for server in (web, encrypted_web):
        server.shutdown()
        server.server_close()


CASES = [
    # the server, the authority to trust (None: clear text), what is said
    ("good", None, "closes connections in clear text, as one does that expects TLS"),
    ("good", "other", "is signed by nobody who is trusted here"),
    ("expired", "ca", "has expired"),
    ("early", "ca", "is not valid yet"),
    ("misnamed", "ca", "is for another name"),
    ("plain", "ca", "does not speak TLS"),
    ("nobody", None, "no server listens at localhost:1"),
    ("nobody", "ca", "no server listens at localhost:1"),
    ("web", None, "is not a keylock server, it speaks another protocol"),
    ("web", "ca", "does not speak TLS"),
    ("encrypted web", "ca", "is not a keylock server, it speaks another protocol"),
    ("encrypted web", None, "closes connections in clear text, as one does that expects TLS"),
    ("demanding", "ca", "asks for a certificate of the client"),
]


def assert_said(message, what):
    assert re.search(what, message), message
    assert not [raw for raw in RAW if raw in message], message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "ca", "what"), CASES)
def test_a_connection_that_fails_is_told_in_words(name, ca, what, ports, folder, connect):
    tls = False if ca is None else Tls(ca=folder / f"{ca}.pem")
    client = connect(f"localhost:{ports[name]}", tls=tls, timeout_s=10)
    with pytest.raises(UnreachableError) as caught:
        client.model()
    assert_said(caught.value.message, what)
    assert caught.value.code == "UNAVAILABLE"


REFUSED = "failed to connect to all addresses; last error: UNKNOWN: ipv6:[::1]:1: Connection refused"


@pytest.mark.parametrize(("name", "ca", "what"), CASES)
def test_what_gets_lost_between_two_addresses_of_localhost_is_found(name, ca, what, ports, folder):
    tls = False if ca is None else Tls(ca=folder / f"{ca}.pem")
    settings = Settings.make(target=f"localhost:{ports[name]}", license=None, timeout_s=1.0, tls=tls, model=None)
    assert_said(explain_unavailable(REFUSED, settings), what)


def test_a_name_that_nobody_has_is_told(connect):
    with pytest.raises(UnreachableError, match=r"no machine of the name in no\.such\.host\.invalid:8470"):
        connect("no.such.host.invalid", tls=False, timeout_s=10).model()


def test_the_client_prints_nothing_of_its_libraries(ports, folder):
    # In a process of its own, because the C core is told when gRPC is imported.
    script = (
        "import json, sys\n"
        "from keylock_client import Client, Tls, UnreachableError\n"
        "for port, ca in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        with Client(f'localhost:{port}', tls=Tls(ca=ca) if ca else False, timeout_s=10) as client:\n"
        "            client.model()\n"
        "    except UnreachableError as error:\n"
        "        print(error)\n"
    )
    asked = [(ports[name], ca and str(folder / f"{ca}.pem")) for name, ca, _ in CASES]
    line = [sys.executable, "-c", script, json.dumps(asked)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    for message, (_, _, what) in zip(done.stdout.splitlines(), CASES, strict=True):
        assert_said(message, what)


@pytest.mark.parametrize(
    ("name", "ca", "what"), [case for case in CASES if case[0] in {"good", "misnamed", "plain", "web"} or not case[1]]
)
def test_the_command_line_prints_one_line(name, ca, what, ports, folder, tmp_path, png):
    (tmp_path / "cat.png").write_bytes(png())
    how = ["--no-tls"] if ca is None else ["--tls-ca", str(folder / f"{ca}.pem")]
    line = [sys.executable, "-m", "keylock", "predict", "cat.png", "--server", f"localhost:{ports[name]}", *how]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, "")
    [said] = done.stderr.splitlines()
    assert said.startswith("error: ")
    assert "=" not in said, "an argument of Python in a message for people at a terminal"
    assert_said(said, what)


@pytest.mark.parametrize(
    ("tls", "what"),
    [
        ({"ca": "good.key"}, "holds no PEM certificate"),
        ({"ca": "gone.pem"}, "cannot read"),
        ({"ca": "ca.pem", "certificate": "client.pem", "private_key": "client.pem"}, "holds no PEM private key"),
        ({"ca": "ca.pem", "certificate": "client.pem", "private_key": "good.key"}, "not the private key of the cert"),
        ({"ca": "ca.pem", "certificate": "client.key", "private_key": "client.key"}, "holds no PEM certificate"),
    ],
)
def test_files_for_tls_that_do_not_fit_are_refused_when_the_client_is_made(tls, what, folder):
    with pytest.raises(InputError, match=what):
        Client(tls=Tls(**{name: folder / file for name, file in tls.items()}))


def test_a_certificate_of_the_client_opens_the_demanding_server(ports, folder):
    tls = Tls(ca=folder / "ca.pem", certificate=folder / "client.pem", private_key=folder / "client.key")
    # It has no services, which is known behind the handshake only.
    with Client(f"localhost:{ports['demanding']}", tls=tls) as client, pytest.raises(UnsupportedError) as caught:
        client.model()
    assert "Method not found" not in caught.value.message


def test_a_silent_server_is_late(connect):
    with socket.create_server(("localhost", 0)) as silent:
        client = connect(f"localhost:{silent.getsockname()[1]}", tls=False, timeout_s=0.5)
        with pytest.raises(DeadlineError, match=r"did not answer within 0\.5 s"):
            client.model()


def test_what_no_row_knows_is_told_without_the_text():
    settings = Settings.make(target="here:1", license=None, timeout_s=1.0, tls=True, model=None)
    said = explain_unavailable("tsi_weird: 42", settings)
    assert said.startswith("no keylock server answers at here:1")
    assert "weird" not in said
