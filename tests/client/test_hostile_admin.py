"""Answers of an admin service that make no sense, one change each: an error of one kind, and never a result."""

import datetime as dt
import shutil
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keylock.v1 import admin_pb2 as pb
from keylock.v1 import explanation_pb2
from keylock_client import AdminClient, BadAnswerError, Tls

NAN, INFINITE = float("nan"), float("inf")
SERVICE = "/keylock.v1.AdminService/"
BEGIN = 1_764_000_000


def good(method):
    """An answer in which nothing is wrong."""
    if method == "GetStatus":
        model = explanation_pb2.Model(name="shapes", version="0123456789ab", digest="sha256:0")
        answer = pb.GetStatusResponse(version="1", uptime_s=5, model=model, explainers=["grad_cam"], store="sqlite")
        answer.started_at.seconds = BEGIN
        answer.models.add(model=model, explainers=["grad_cam"])
        answer.problems["store"] = "it is full"
        return answer
    if method == "GetUsage":
        answer = pb.AdminServiceGetUsageResponse(license_id="lic_1")
        answer.quotas.add(period="day", used=3, limit=9).resets_at.seconds = BEGIN
        answer.quotas.add(period="total", used=3)
        return answer
    if method == "Drain":
        return pb.DrainResponse(running_calls=1, drain_s=30)
    kinds = {"RevokeLicense": pb.RevokeLicenseResponse, "SuspendLicense": pb.SuspendLicenseResponse}
    answer = kinds.get(method, pb.ReinstateLicenseResponse)()
    state = answer.state
    state.status = "active"
    state.license.id, state.license.customer = "lic_1", "Acme"
    state.license.models.append("*")
    state.license.explainers.append("*")
    state.license.issued_at.seconds = state.license.not_before.seconds = BEGIN
    state.license.expires.seconds = BEGIN + 1000
    return answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A certificate that the server shows and the client trusts, and shows in turn."""
    made = tmp_path_factory.mktemp("admin")
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(serial_number=x509.random_serial_number(), public_key=key.public_key())
        .subject_name(name)
        .issuer_name(name)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (made / "own.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (made / "own.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    yield made
    shutil.rmtree(made)


class Answering(grpc.GenericRpcHandler):
    """A server whose answers a test sets."""

    def __init__(self):
        self.answers = {}

    def service(self, details):
        name = details.method.removeprefix(SERVICE)

        def encode(answer):
            return answer if isinstance(answer, bytes) else answer.SerializeToString()

        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self.answers.get(name, good(name)), lambda data: data, encode
        )


@pytest.fixture(scope="module")
def served(folder):
    pool, handler = ThreadPoolExecutor(4), Answering()
    server = grpc.server(pool, handlers=(handler,), options=[("grpc.so_reuseport", 0)])
    pair = ((folder / "own.key").read_bytes(), (folder / "own.pem").read_bytes())
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
    server.start()
    own = str(folder / "own.pem")
    tls = Tls(ca=own, certificate=own, private_key=str(folder / "own.key"))
    with AdminClient(f"localhost:{port}", tls=tls, timeout_s=10) as client:
        yield client, handler.answers
    server.stop(None).wait()
    pool.shutdown()


ASKS = {
    "GetStatus": lambda client: client.status(),
    "GetUsage": lambda client: client.usage("lic_1"),
    "RevokeLicense": lambda client: client.revoke("lic_1"),
    "SuspendLicense": lambda client: client.suspend("lic_1"),
    "ReinstateLicense": lambda client: client.reinstate("lic_1"),
    "Drain": lambda client: client.drain(),
}


def put(path, value):
    """Returns a change that sets a field, given by its path from the answer."""

    def change(answer):
        *way, last = path.split(".")
        for name in way:
            answer = answer[int(name)] if name.isdigit() else getattr(answer, name)
        if isinstance(value, list):
            getattr(answer, last)[:] = value
        else:
            setattr(answer, last, value)

    return change


STATE = {
    "another license": put("state.license.id", "lic_2"),
    "a license without a customer": put("state.license.customer", ""),
    "a license for no model": put("state.license.models", []),
    "a license for no explainer": put("state.license.explainers", []),
    "an end before the start": put("state.license.expires.seconds", 5),
    "an end long after": put("state.license.expires.seconds", 2**62),
    "a start of negative nanoseconds": put("state.license.not_before.nanos", -5),
    "a rate that is not a number": put("state.license.rate.per_second", NAN),
    "an infinite rate": put("state.license.rate.per_second", INFINITE),
    "an unknown status": put("state.status", "\x1b[2J"),
    "no status": put("state.status", ""),
    "revoked at no time": put("state.status", "revoked"),
    "a time of revocation of one that is active": put("state.revoked_at.seconds", BEGIN),
    "a suspension long after": put("state.suspended_at.seconds", 2**62),
    "a cut-off long before": put("state.refuse_before.seconds", -(2**62)),
    "no license": lambda answer: answer.ClearField("state"),
}
TABLE = {
    "GetStatus": {
        "no version": put("version", ""),
        "an uptime that is not a number": put("uptime_s", NAN),
        "a negative uptime": put("uptime_s", -1),
        "an infinite uptime": put("uptime_s", INFINITE),
        "a start long after": put("started_at.seconds", 2**62),
        "a start of too many nanoseconds": put("started_at.nanos", 2**31 - 1),
        "an unknown store": put("store", "\x1b[2J"),
        "a model without a name": put("models.0.model.name", ""),
        "an explainer without a name": put("models.0.explainers", ["grad_cam", ""]),
        "another first model": put("model.name", "other"),
        "a model that is not among the models": lambda answer: answer.ClearField("models"),
        "models without a first one": lambda answer: answer.ClearField("model"),
        "a check without a name": lambda answer: answer.problems.update({"": "what"}),
        "an empty answer": lambda answer: answer.Clear(),
    },
    "GetUsage": {
        "another license": put("license_id", "lic_2"),
        "an unknown period": put("quotas.0.period", "\x1b[2J"),
        "a period twice": put("quotas.1.period", "day"),
        "an end long after": put("quotas.0.resets_at.seconds", 2**62),
        "an empty answer": lambda answer: answer.Clear(),
    },
    "RevokeLicense": STATE,
    "SuspendLicense": STATE,
    "ReinstateLicense": STATE,
    "Drain": {
        "a time that is not a number": put("drain_s", NAN),
        "a negative time": put("drain_s", -1),
        "an infinite time": put("drain_s", INFINITE),
    },
}


@pytest.mark.parametrize("method", ASKS)
def test_an_answer_in_which_nothing_is_wrong_is_taken(served, method):
    client, answers = served
    answers.clear()
    ASKS[method](client)


@pytest.mark.parametrize(("method", "name"), [(method, name) for method in TABLE for name in TABLE[method]])
def test_a_changed_answer_is_an_error(served, method, name):
    client, answers = served
    answers.clear()
    answers[method] = good(method)
    TABLE[method][name](answers[method])
    with pytest.raises(BadAnswerError, match="makes no sense") as caught:
        ASKS[method](client)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("answer", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f"])
@pytest.mark.parametrize("method", ASKS)
def test_bytes_that_are_no_message_are_an_error(served, method, answer):
    client, answers = served
    answers.clear()
    answers[method] = answer
    with pytest.raises(BadAnswerError):
        ASKS[method](client)


def test_a_token_that_is_revoked_has_no_license(served):
    client, answers = served
    answers.clear()
    with pytest.raises(BadAnswerError, match="nobody asked for"):
        client.revoke(token_id="tok_1")
    answers["RevokeLicense"] = pb.RevokeLicenseResponse(licenses=3)
    assert client.revoke(token_id="tok_1").licenses == 3
