"""Receipts of a real server: they fit their answers and are in the log; the client refuses a false one."""

import hashlib
import time
from datetime import timedelta

import grpc
import pytest
from PIL import Image

from keylock.auditlog import table
from keylock.digests import digest_of_array
from keylock.errors import AuditLogError, ReceiptError, ServiceError, SignatureError
from keylock.licensing.receipt_keys import ReceiptKey, open_checkpoint
from keylock.licensing.receipts import Receipt, parse_entry, trusts_any
from keylock.signing import SigningKey, encode_base64url
from keylock.store import Database, LicenseStore
from keylock.store.audit import compare_with_ledger
from keylock.v1 import explanation_pb2 as pb
from keylock_client import BadReceiptError, Client
from keylock_client._receipts import Trust, read_receipt

YEAR = timedelta(days=365)


def certify(folder, issuer, *, now):
    return ReceiptKey.create(folder / "receipts.pem", issuer, not_before=now - YEAR, expires=now + YEAR)


@pytest.fixture(scope="module")
def proving(start_server, vendor, tiny, tmp_path_factory):
    """A server with a receipt key and a store of its own."""
    folder = tmp_path_factory.mktemp("proving")
    certify(folder, vendor.signing_key, now=tiny.now)
    url = f"sqlite:///{folder / 'store.db'}"
    calls = start_server(receipt_key=folder / "receipts.pem", license_store=url, checkpoint_every_s=0.05)
    calls.url = url
    return calls


@pytest.fixture
def licensed(proving, vendor):
    """A license that the store of the proving server knows."""
    granted = vendor.grant(record=False)
    with LicenseStore(proving.url) as store:
        store.add(granted.license, issuer=vendor.signing_key.key_id)
    return granted


@pytest.fixture
def client(proving, licensed):
    with Client(proving.server.target, license=licensed.token) as client:
        yield client


def entries(url):
    with Database(url) as database, database.transaction(snapshot=True) as connection:
        return [entry for _, entry in table.entries(connection)]


def test_a_charged_answer_has_a_receipt_that_fits_it(client, licensed, tiny, vendor):
    images = tiny.images(2)
    first, second = client.explain(list(images), explainer="brightness", request_id="fits")
    receipt = first.receipt
    assert receipt == second.receipt
    assert receipt.trusted
    assert receipt.issuer == vendor.signing_key.key_id
    assert (receipt.license_id, receipt.request_id, receipt.units, receipt.keyed) == (licensed.id, "fits", 2, True)
    assert receipt.model_digest == vendor.manifest.model_digest
    assert receipt.parameters == {"layer": "stem", "power": 1}
    assert receipt.image_digests == tuple(digest_of_array("float32", (3, 8, 8), image.tobytes()) for image in images)
    assert receipt.map_digests == tuple(
        digest_of_array("float32", (8, 8), one.map.tobytes()) for one in (first, second)
    )
    assert client.verify_receipt(receipt) == receipt
    assert first.to_dict()["receipt"] == receipt.token


def test_a_file_is_named_by_its_own_digest(client, tiny, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(tiny.pixels(8, 8)).save(path)
    receipt = client.explain(path).receipt
    assert receipt.image_digests == ("sha256:" + hashlib.sha256(path.read_bytes()).hexdigest(),)
    assert receipt.save(tmp_path / "r.receipt").read_text() == receipt.token + "\n"


def test_a_repeat_has_the_same_receipt_and_one_entry(client, proving, tiny):
    image = tiny.images(1)[0]
    tokens = {client.explain(image, request_id="again").receipt.token for _ in range(3)}
    assert len(tokens) == 1
    assert [parse_entry(entry).request_id for entry in entries(proving.url)].count("again") == 1
    with Database(proving.url) as database, database.transaction(snapshot=True) as connection:
        assert compare_with_ledger(connection) == ()


def test_a_receipt_is_proven_to_be_in_the_log(client, proving, tiny, vendor):
    receipt = client.explain(tiny.images(1)[0]).receipt
    trusts = trusts_any([vendor.signing_key.verifying_key])
    entry = Receipt.verify(receipt.token, trusts).entry
    proof, deadline = None, time.monotonic() + 20
    with Database(proving.url) as database:
        while proof is None:
            assert time.monotonic() < deadline, "no checkpoint was signed"
            with database.transaction(snapshot=True) as connection:
                latest = table.latest_checkpoint(connection)
                if latest is not None and open_checkpoint(latest, trusts).size > table.find(connection, entry):
                    proof = str(table.prove_inclusion(connection, entry, checkpoint=latest))
    assert client.verify_receipt(receipt.token, proof=proof) == receipt
    other = client.explain(tiny.images(1)[0]).receipt
    with pytest.raises(AuditLogError, match="is not in the log"):
        client.verify_receipt(other, proof=proof)


def test_decoys_have_no_receipt(proving, tiny):
    with Client(proving.server.target) as client:
        assert client.explain(tiny.images(1)[0]).receipt is None
        with pytest.raises(ReceiptError, match="nobody is known"):
            client.verify_receipt("a.b.c")


def test_a_client_that_trusts_somebody_else_refuses_the_answer(proving, licensed, tiny, tmp_path):
    SigningKey.generate().verifying_key.write(tmp_path / "other.pem")
    with (
        Client(proving.server.target, license=licensed.token, issuer=tmp_path / "other.pem") as client,
        pytest.raises(BadReceiptError, match="not trusted") as caught,
    ):
        client.explain(tiny.images(1)[0], request_id="distrusted")
    assert caught.value.request_id == "distrusted"


def tamper_map(answer):
    answer.results[0].map.data = answer.results[0].map.data[::-1]


def tamper_keyed(answer):
    answer.results[0].keyed = False


def tamper_model(answer):
    answer.model.digest = "sha256:" + "0" * 64


def tamper_explainer(answer):
    answer.results[0].explainer.name = "coarse"


def tamper_request(answer):
    answer.request_id = "another"


def tamper_receipt(answer):
    header, _, signature = answer.receipt.split(".")
    answer.receipt = f"{header}.{encode_base64url(b'{}')}.{signature}"


@pytest.mark.parametrize(
    "tamper", [tamper_map, tamper_keyed, tamper_model, tamper_explainer, tamper_request, tamper_receipt]
)
def test_an_answer_that_was_changed_does_not_fit_its_receipt(tamper, proving, licensed, tiny):
    image = tiny.tensor_image(tiny.images(1)[0])
    answer = proving.explain(image, token=licensed.token, explainer="brightness")
    trust = Trust.make((), licensed.token)
    assert read_receipt(answer, [image], trust).trusted
    tamper(answer)
    with pytest.raises(BadReceiptError):
        read_receipt(answer, [image], trust)


def test_an_answer_for_another_image_does_not_fit_its_receipt(proving, licensed, tiny):
    image, other = (tiny.tensor_image(one) for one in tiny.images(2))
    answer = proving.explain(image, token=licensed.token)
    with pytest.raises(BadReceiptError, match="images differ"):
        read_receipt(answer, [other], Trust())


def test_log_and_receipts_hold_no_image_map_key_or_token(proving, licensed, tiny, vendor):
    image = tiny.images(1)[0]
    answer = proving.explain(tiny.tensor_image(image), token=licensed.token)
    kept = b"".join(entries(proving.url)) + answer.receipt.encode()
    secrets = [image.tobytes(), answer.results[0].map.data, vendor.key.reveal().tobytes(), vendor.seed.reveal()]
    for secret in (*secrets, licensed.token.encode()):
        for form in (secret, secret.hex().encode(), encode_base64url(secret).encode()):
            assert form not in kept


def test_a_receipt_key_that_nobody_would_believe_is_refused_at_start(start_server, vendor, tiny, tmp_path):
    certify(tmp_path, SigningKey.generate(), now=tiny.now)
    with pytest.raises(ServiceError, match="nobody would believe"):
        start_server(receipt_key=tmp_path / "receipts.pem")
    (tmp_path / "late").mkdir()
    certify(tmp_path / "late", vendor.signing_key, now=tiny.now - 3 * YEAR)
    with pytest.raises(ServiceError, match="was not certified"):
        start_server(receipt_key=tmp_path / "late" / "receipts.pem")
    with pytest.raises(SignatureError):
        start_server(receipt_key=tmp_path / "none.pem")


def test_a_server_without_a_receipt_key_signs_none_and_keeps_the_log(calls, vendor, tiny):
    granted = vendor.grant()
    answer = calls.explain(tiny.tensor_image(tiny.images(1)[0]), token=granted.token, request_id="unsigned")
    assert answer.receipt == ""
    last = parse_entry(entries(vendor.store_url)[-1])
    assert (last.license_id, last.request_id) == (granted.id, "unsigned")


def test_a_refused_call_leaves_no_entry(proving, licensed):
    with pytest.raises(grpc.RpcError):
        proving.explain(pb.Image(encoded=b"no image"), token=licensed.token, request_id="refused")
    assert all(parse_entry(entry).request_id != "refused" for entry in entries(proving.url))
