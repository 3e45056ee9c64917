"""Receipts of a real server: they fit their answers and are in the log; the client refuses a false one."""

import asyncio
import hashlib
import threading
import time
from contextlib import suppress
from datetime import timedelta

import grpc
import pytest
from PIL import Image
from support import bearer, wait_for

from keylock.cli import main
from keylock.crypto.digests import digest_of_array
from keylock.crypto.signing import Home, SigningKey, encode_base64url
from keylock.errors import AuditLogError, ReceiptError, ServiceError, SignatureError
from keylock.licensing.receipt_keys import ReceiptKey, open_checkpoint
from keylock.licensing.receipts import Receipt, parse_entry, trusts_any
from keylock.licensing.revocations import RevocationFile, Revocations
from keylock.store import Database, LicenseStore, log_table
from keylock.store.logged_charges import compare_with_ledger
from keylock.transparency import Tree, leaf_hash
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2
from keylock_client import (
    AsyncClient,
    BadAnswerError,
    BadReceiptError,
    Client,
    ClientError,
    LicenseRefusedError,
    RequestRefusedError,
)
from keylock_client._checks import Asked
from keylock_client._receipts import Trust, newer, question, read_proof, read_receipt

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
        return [entry for _, entry in log_table.entries(connection)]


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


@pytest.fixture
def shell(proving, licensed, vendor, tiny, tmp_path, monkeypatch, capsys):
    """Run the command line in a folder with two images, a license and the vendor's public key."""
    for number in range(2):
        Image.fromarray(tiny.pixels(8, 8, seed=number)).save(tmp_path / f"{number}.png")
    (tmp_path / "acme.license").write_text(licensed.token)
    vendor.signing_key.verifying_key.write(tmp_path / "issuer.pub.pem")
    monkeypatch.setenv("KEYLOCK_TARGET", proving.server.target)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)

    def run(line, *, code=0):
        assert main(line.split()) == code
        return capsys.readouterr()

    return run


def test_the_shell_saves_a_receipt_that_fits_image_and_map(shell):
    shell("explain 0.png --license-file acme.license --out map.npy --receipt 0.receipt")
    checked = shell("receipt verify 0.receipt --issuer issuer.pub.pem --image 0.png --map map.npy")
    assert "good, certified by" in checked.out
    assert checked.err == "not checked, because it was not given: --proof\n"
    assert "true ones" in shell("receipt show 0.receipt --license-file acme.license").out
    shell("receipt verify 0.receipt --issuer issuer.pub.pem --image 1.png", code=11)


def test_the_shell_saves_a_receipt_for_each_of_several_images(shell, tmp_path):
    shell("explain 0.png 1.png --license-file acme.license --out both --receipt both")
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"0.png", "0.receipt", "1.png", "1.receipt"}
    for number in range(2):
        shell(f"receipt verify both/{number}.receipt --issuer issuer.pub.pem --image {number}.png")
    assert "is one file" in shell("explain 0.png 1.png --license-file acme.license --receipt x.receipt", code=3).err


def test_the_shell_says_where_there_is_no_receipt(shell, tmp_path):
    told = shell("explain 0.png --receipt 0.receipt", code=11)
    assert "no receipt was saved for 0.png: there is none for a decoy" in told.err
    assert "decoy" in told.out
    assert not (tmp_path / "0.receipt").exists()
    assert "no directory" in shell("explain 0.png --license-file acme.license --receipt no/0.receipt", code=3).err


def test_a_repeat_with_the_same_bits_has_one_receipt_and_one_entry(client, proving, tiny):
    image = tiny.images(1)[0]
    found = [client.explain(image, request_id="again").receipt for _ in range(3)]
    assert [one.repeated for one in found] == [False] * 3
    # The header says besides that the repeats cost nothing.
    assert len({one.token.split(".")[1] for one in found}) == 1
    assert found[1].token == found[2].token != found[0].token
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
                latest = log_table.latest_checkpoint(connection)
                if latest is not None and open_checkpoint(latest, trusts).size > log_table.find(connection, entry):
                    proof = str(log_table.prove_inclusion(connection, entry, checkpoint=latest))
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


def read(came, images, license, **options):
    asked = Asked(came.request_id, pb.ExplainRequest(**options), images)
    maps = [one.map.data for one in came.results]
    return read_receipt(came, maps, asked, Trust.make((), license.token))


def test_a_receipt_whose_payload_was_replaced_does_not_hold(proving, licensed, tiny):
    image = tiny.tensor_image(tiny.images(1)[0])
    answer = proving.explain(image, token=licensed.token, explainer="brightness")
    assert read(answer, [image], licensed).trusted
    header, _, signature = answer.receipt.split(".")
    answer.receipt = f"{header}.{encode_base64url(b'{}')}.{signature}"
    with pytest.raises(BadReceiptError):
        read(answer, [image], licensed)


def test_an_answer_to_something_else_is_refused_and_says_what_differs(proving, licensed, vendor, tiny):
    image, other = (tiny.tensor_image(one) for one in tiny.images(2))
    answer = proving.explain(image, token=licensed.token, explainer="brightness", target_index=2)
    for name, options in {
        "explainer": {"explainer": "coarse", "target_index": 2},
        "target": {},
        "target.label": {"target_label": "north-east"},
        "parameters.power": {"parameters": {"power": 2}, "target_index": 2},
        "request digest": {"answer": pb.AnswerOptions(map_dtype=pb.DATA_TYPE_UINT8), "target_index": 2},
        "model.name": {"model_name": "another", "target_index": 2},
        "model.version": {"model_version": "0" * 12, "target_index": 2},
        "prediction.keyed": {"prediction": pb.PREDICTION_KIND_PUBLIC, "target_index": 2},
    }.items():
        with pytest.raises(BadReceiptError, match=f"{name} is another"):
            read(answer, [image], licensed, **options)
    with pytest.raises(BadReceiptError, match="its images"):
        read(answer, [other], licensed, target_index=2)
    with pytest.raises(BadReceiptError, match="its license"):
        read(answer, [image], vendor.grant(record=False), target_index=2)
    assert read(answer, [image], licensed, target_index=2).target == 2


def test_a_receipt_that_was_taken_out_is_missed(proving, licensed, client, tiny):
    assert client.model().signs_receipts
    image = tiny.tensor_image(tiny.images(1)[0])
    answer = proving.explain(image, token=licensed.token)
    answer.ClearField("receipt")
    asked = Asked(answer.request_id, pb.ExplainRequest(), [image])
    maps = [answer.results[0].map.data]
    trust = Trust.make((), licensed.token)
    with pytest.raises(BadReceiptError, match="no receipt"):
        read_receipt(answer, maps, asked, trust, expected=True)
    assert read_receipt(answer, maps, asked, trust) is None
    answer.results[0].keyed = False
    with pytest.raises(BadAnswerError, match=r"results\[0\].keyed"):
        read_receipt(answer, maps, asked, trust)


def test_a_decoy_is_no_true_map_and_no_answer_to_a_license(proving, licensed, tiny):
    image = tiny.tensor_image(tiny.images(1)[0])
    answer = proving.explain(image)
    asked, maps = Asked(answer.request_id, pb.ExplainRequest(), [image]), [answer.results[0].map.data]
    assert read_receipt(answer, maps, asked, Trust()) is None
    with pytest.raises(BadAnswerError, match="keyed"):
        read_receipt(answer, maps, asked, Trust.make((), licensed.token))
    answer.results[0].keyed = True
    with pytest.raises(BadAnswerError, match="keyed"):
        read_receipt(answer, maps, asked, Trust())
    true = proving.explain(image, token=licensed.token)
    with pytest.raises(BadReceiptError, match="no license was presented"):
        read_receipt(true, maps, asked, Trust())


def test_a_repeat_with_other_bits_has_a_receipt_of_its_own_that_is_logged_once(proving, client, licensed, tiny):
    """The same request asked with the other prediction is answered with other bits, and costs nothing."""
    image = tiny.images(1)[0]
    first = client.explain(image, request_id="other-bits")
    others = [client.explain(image, request_id="other-bits", prediction="keyed") for _ in range(3)]
    assert [one.usage.replayed for one in (first, *others)] == [False, True, True, True]
    assert {one.receipt.repeated for one in others} == {True}
    assert len({one.receipt.token for one in others}) == 1
    again = client.explain(image, request_id="other-bits")
    assert not again.receipt.repeated
    logged = [parse_entry(entry) for entry in entries(proving.url)]
    ours = [one for one in logged if one.request_id == "other-bits"]
    assert [one.repeats for one in ours] == [None, ours[0].answer.digest()]
    with Database(proving.url) as database, database.transaction(snapshot=True) as connection:
        assert compare_with_ledger(connection) == ()
    assert sum(one.used for one in client.usage() if one.period == "total") == ours[0].units + sum(
        one.units for one in logged if one.license_id == licensed.id and one.request_id != "other-bits"
    )
    # It is proven like any other receipt.
    proof = client.prove(others[0].receipt)
    assert client.verify_receipt(others[0].receipt, proof=proof.text).repeated


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


# Proofs online


def test_a_customer_is_proven_its_receipt(client, tiny):
    receipt = client.explain(tiny.images(1)[0]).receipt
    first = client.prove(receipt)
    assert (first.size > first.index, first.text.startswith("c2sp.org/tlog-proof@v1")) == (True, True)
    assert client.verify_receipt(receipt, proof=first.text) == receipt
    # A later proof shows that the log goes on from where it was.
    later = client.explain(tiny.images(1, seed=5)[0]).receipt
    second = client.prove(later, since=first.checkpoint)
    assert second.index > first.index
    assert second.size > first.size
    # An older receipt is proven under the newest checkpoint too.
    assert client.prove(receipt.token, since=second.checkpoint).size == second.size


async def test_a_customer_is_proven_its_receipt_asynchronously(proving, licensed, tiny, loop_thread):
    async def ask():
        async with AsyncClient(proving.server.target, license=licensed.token) as client:
            receipt = (await client.explain(tiny.images(1)[0])).receipt
            return await client.prove(receipt)

    proof = await asyncio.wrap_future(loop_thread.submit(ask()))
    assert proof.index < proof.size


def test_nobody_is_proven_the_receipt_of_another(client, proving, vendor, tiny):
    receipt = client.explain(tiny.images(1)[0]).receipt
    other = vendor.grant(record=False)
    with LicenseStore(proving.url) as store:
        store.add(other.license, issuer=vendor.signing_key.key_id)
    with Client(proving.server.target, license=other.token) as stranger, pytest.raises(RequestRefusedError) as caught:
        stranger.prove(receipt)
    assert (caught.value.code, "no such receipt" in caught.value.message) == ("NOT_FOUND", True)
    with Client(proving.server.target, issuer=vendor.issuer_file) as nobody, pytest.raises(LicenseRefusedError):
        nobody.prove(receipt)


def test_what_is_no_proof_is_not_taken_for_one(client, tiny):
    receipt = client.explain(tiny.images(1)[0]).receipt
    other = client.explain(tiny.images(1, seed=9)[0]).receipt
    trust, revoked = client._memory.trust, frozenset()
    kept = client.prove(receipt)
    proof = client.prove(other, since=kept.checkpoint)
    asked = question(other, trust, since=None, revoked=revoked)
    assert read_proof(asked, inclusion=proof.text, consistency="", trust=trust) == proof
    stranger = Trust(key_id="another")
    for text, whose in ((kept.text, trust), ("", trust), (proof.text[:-9], trust), (proof.text, stranger)):
        with pytest.raises(BadReceiptError, match="does not prove"):
            read_proof(asked, inclusion=text, consistency="", trust=whose)
    # A checkpoint that was kept demands that the log goes on from it.
    both = question(other, trust, since=kept.checkpoint, revoked=revoked)
    with pytest.raises(BadReceiptError, match="does not prove"):
        read_proof(both, inclusion=proof.text, consistency="", trust=trust)


def test_requests_for_proofs_that_make_no_sense_are_refused(proving, licensed):
    metadata = [("authorization", f"Bearer {licensed.token}")]
    for leaf, code in ((b"", "INVALID_ARGUMENT"), (b"x" * 33, "INVALID_ARGUMENT"), (bytes(32), "NOT_FOUND")):
        with pytest.raises(grpc.RpcError) as caught:
            proving.license.ProveReceipt(license_pb2.ProveReceiptRequest(leaf_hash=leaf), metadata=metadata, timeout=9)
        assert caught.value.code().name == code


def test_a_checkpoint_larger_than_the_log_is_refused(client, proving, licensed, tiny):
    leaf = leaf_hash(Receipt.verify(client.explain(tiny.images(1)[0]).receipt.token, lambda _: True).entry)
    request = license_pb2.ProveReceiptRequest(leaf_hash=leaf, since_size=10**9)
    with pytest.raises(grpc.RpcError) as caught:
        proving.license.ProveReceipt(request, metadata=[("authorization", f"Bearer {licensed.token}")], timeout=9)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_whoever_goes_away_from_a_proof_leaves_the_next_ones_right(client, proving, licensed, tiny, monkeypatch):
    append, reached, go = Tree.append, threading.Event(), threading.Event()

    def slow(tree, leaf):
        if not reached.is_set():  # The first thread alone.
            reached.set()
            assert go.wait(20)
        append(tree, leaf)

    def ask():
        leaf = leaf_hash(Receipt.verify(client.explain(tiny.images(1)[0]).receipt.token, lambda _: True).entry)
        request = license_pb2.ProveReceiptRequest(leaf_hash=leaf)
        return proving.license.ProveReceipt.future(request, metadata=bearer(licensed.token), timeout=20)

    monkeypatch.setattr(Tree, "append", slow)
    gone = ask()
    assert reached.wait(20)
    gone.cancel()
    wait_for(lambda: proving.server.parts.running.count == 0)
    later = ask()
    # Long enough for an answer, if it did not wait for the thread of the first.
    with suppress(grpc.FutureTimeoutError):
        later.result(timeout=1)
    go.set()
    assert later.result().inclusion_proof
    assert ask().result().inclusion_proof


def test_a_server_that_keeps_no_log_proves_nothing(calls, vendor, client, tiny):
    receipt = client.explain(tiny.images(1)[0]).receipt
    with Client(calls.server.target, license=vendor.grant().token) as asking, pytest.raises(ClientError) as caught:
        asking.prove(receipt)
    assert "keeps no audit log" in caught.value.message


# Receipt keys that were taken back


def test_receipts_under_a_key_that_was_taken_back_hold_with_a_proof_alone(start_server, vendor, tiny, tmp_path):
    """A stolen receipt key signs whatever its thief likes, with any time; what is in the log it cannot change."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        certify(tmp_path / name, vendor.signing_key, now=tiny.now)
    stolen = ReceiptKey.load(tmp_path / "first" / "receipts.pem")
    file = RevocationFile(tmp_path / "revoked.jws")
    settings = {"license_store": f"sqlite:///{tmp_path / 'store.db'}", "receipt_revocations": file.path}
    server = start_server(receipt_key=tmp_path / "first" / "receipts.pem", **settings)
    with LicenseStore(settings["license_store"]) as store:
        granted = vendor.grant(store=store)
    with Client(server.server.target, license=granted.token) as client:
        receipt = client.explain(tiny.images(1)[0], request_id="before").receipt
        old = client.prove(receipt)
        # The vendor takes the key back; the server is not even restarted.
        revocations = Revocations.none().with_key(stolen.key.key_id, vendor.signing_key, now=tiny.now)
        file.write(revocations)
        client._memory.revocations_until = 0.0
        with pytest.raises(BadReceiptError, match="has taken back the receipt key"):
            client.explain(tiny.images(1)[0], request_id="after")
        with pytest.raises(ReceiptError, match="taken back"):
            client.verify_receipt(receipt)
        # A checkpoint of that key proves nothing either.
        with pytest.raises(AuditLogError, match="taken back"):
            client.verify_receipt(receipt, proof=old.text)
    server.stop().result(timeout=20)
    with pytest.raises(ServiceError, match="taken back"):
        start_server(receipt_key=tmp_path / "first" / "receipts.pem", **settings)
    server = start_server(receipt_key=tmp_path / "second" / "receipts.pem", **settings)
    with Client(server.server.target, license=granted.token) as client:
        proof = client.prove(receipt)
        assert client.verify_receipt(receipt, proof=proof.text) == receipt
        # The answer is given again, under the new key.
        assert client.explain(tiny.images(1)[0], request_id="after").receipt.units == 1


def test_clients_keep_the_later_of_two_lists(vendor, tiny):
    trust = Trust(keys=(vendor.signing_key.verifying_key,))
    first = Revocations.none().with_key("first", vendor.signing_key, now=tiny.now)
    both = first.with_key("second", vendor.signing_key, now=tiny.now - YEAR)
    assert both.issued_at > first.issued_at
    known = newer(None, both.token, trust)
    assert known.keys == {"first", "second"}
    # Neither an older list, nor none, nor that of a stranger, takes anything back.
    strangers = Revocations.none().with_key("x", SigningKey.generate(), now=tiny.now + YEAR)
    for token in (first.token, "", strangers.token, both.token[:-4], "nonsense"):
        assert newer(known, token, trust) == known


def test_commands_prove_a_receipt_and_heed_keys_that_were_taken_back(proving, licensed, vendor, tiny, tmp_path, capsys):
    with Client(proving.server.target, license=licensed.token) as client:
        receipt = client.explain(tiny.images(1)[0]).receipt
    kept, proof = receipt.save(tmp_path / "a.receipt"), tmp_path / "a.tlog-proof"
    (tmp_path / "license").write_text(licensed.token)

    def run(*arguments):
        code = main([*map(str, arguments)])
        return code, capsys.readouterr()

    code, shown = run(
        "receipt",
        "prove",
        kept,
        "--out",
        proof,
        "--server",
        proving.server.target,
        "--license-file",
        tmp_path / "license",
    )
    assert (code, shown.err) == (0, "")
    assert "log " in shown.out
    verify = ("receipt", "verify", kept, "--issuer", vendor.issuer_file, "--json")
    assert run(*verify, "--proof", proof)[0] == 0
    # The vendor takes the key back.
    home = Home(tmp_path / "home")
    home.path.mkdir()
    vendor.signing_key.write(home.signing_key_path)
    vendor.signing_key.verifying_key.write(home.verifying_key_path)
    key_id = Receipt.verify(receipt.token, lambda _: True).certificate.key.key_id
    code, shown = run("issuer", "revoke-receipt-key", "--home", home.path, "--json", "--", key_id)
    assert (code, key_id in shown.out) == (0, True)
    assert run("issuer", "revoke-receipt-key", "--home", home.path, "nonsense!")[0] == 3
    code, shown = run(*verify, "--revocations", home.revocations_path)
    assert (code, "taken back" in shown.err) == (11, True)
    # The checkpoint of the proof is of the same key.
    assert run(*verify, "--revocations", home.revocations_path, "--proof", proof)[0] == 11
    assert run(*verify, "--revocations", kept)[0] == 11
