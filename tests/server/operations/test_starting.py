"""What a server starts with: keys, issuers and bundles, and what keeps it from starting."""

import socket
import time

import grpc
import numpy as np
import pytest
from support import details_of

from keylock.bundle import HpkeIdentity, export_public, open_bundle, seal_for, write_bundle
from keylock.crypto.issuers import retire, rotate, trusted_file
from keylock.crypto.signing import Home
from keylock.errors import BundleError, BundleTamperedError, KeylockError, ServiceError, SignatureError, UnsealError
from keylock_server import ServerSettings, start


def refused(vendor, loop_thread, **changes) -> KeylockError:
    values = {"bundle": vendor.bundle, "port": 0, "key_file": vendor.key_file} | changes
    with pytest.raises(KeylockError) as caught:
        loop_thread.run(start(ServerSettings.load(**values)))
    return caught.value


def test_port_in_use_is_a_clear_error(calls, vendor, loop_thread):
    error = refused(vendor, loop_thread, port=calls.server.port)
    assert isinstance(error, ServiceError)
    assert "the port is in use" in error.message
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert "in use" in refused(vendor, loop_thread, port=other.getsockname()[1]).message


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"host": "no-such-host.invalid"}, ServiceError, "no address"),
        ({"host": "192.0.2.1"}, ServiceError, "cannot listen"),
        ({"bundle": "missing.klb"}, BundleError, "missing.klb"),
        ({"key_file": None}, UnsealError, "key_file="),
        ({"key_file": "missing"}, UnsealError, "missing"),
        ({"issuers": ("missing.pem",)}, SignatureError, "missing.pem"),
        ({"license_store": "postgresql://x"}, ServiceError, "sqlite"),
        ({"tls_certificate": "missing.pem", "tls_key": "missing.pem"}, ServiceError, "missing.pem"),
        ({"ready_file": "/no/such/folder/ready"}, ServiceError, "ready file"),
    ],
)
def test_what_keeps_a_server_from_starting(vendor, loop_thread, changes, kind, match):
    error = refused(vendor, loop_thread, **changes)
    assert isinstance(error, kind)
    assert match in error.message


def test_ready_file_of_a_server_that_was_killed_says_nothing_of_the_next_one(vendor, loop_thread, tmp_path):
    ready = tmp_path / "ready"
    ready.write_text("127.0.0.1:1\n")
    refused(vendor, loop_thread, ready_file=ready, license_store="postgresql://x")
    assert not ready.exists()


def test_a_new_issuer_key_is_taken_up_and_the_old_one_holds_until_it_is_retired(start_server, vendor, tiny, tmp_path):
    home = Home.open(tmp_path / "home")
    calls = start_server(issuers=(vendor.issuer_file, trusted_file(home)))
    image = tiny.tensor_image(tiny.images(1)[0])

    def reason(token):
        try:
            calls.explain(image, token=token)
        except grpc.RpcError as error:
            return details_of(error)["ErrorInfo"].reason
        return "GOOD"

    def wait_until(token, expected):
        until = time.monotonic() + 20
        while reason(token) != expected:
            assert time.monotonic() < until
            time.sleep(0.05)

    first = home.signing_key()
    old = vendor.grant(signing_key=first).token
    assert reason(old) == "GOOD"
    fresh = vendor.grant(signing_key=rotate(home)).token
    wait_until(fresh, "GOOD")
    assert reason(old) == "GOOD"
    retire(home, first.key_id)
    wait_until(old, "LICENSE_UNKNOWN_ISSUER")
    assert reason(fresh) == "GOOD"
    calls.stop().result(timeout=30)


def test_a_bundle_of_another_issuer_is_refused(vendor, loop_thread, tmp_path):
    from keylock.crypto.signing import SigningKey

    SigningKey.generate().verifying_key.write(tmp_path / "other.pem")
    assert "not among the trusted" in refused(vendor, loop_thread, issuers=(tmp_path / "other.pem",)).message


def test_a_changed_bundle_is_refused_by_name(vendor, loop_thread, tmp_path):
    data = bytearray(vendor.bundle.read_bytes())
    position = data.index(b"quadrant" if b"quadrant" in data else b"tiny", len(data) // 4)
    data[position] ^= 1
    (tmp_path / "changed.klb").write_bytes(data)
    error = refused(vendor, loop_thread, bundle=tmp_path / "changed.klb")
    assert isinstance(error, BundleTamperedError)
    assert error.file


def test_key_by_seed_and_by_passphrase(start_server, vendor, tiny, tmp_path):
    from keylock.bundle import Passphrase

    write_bundle(
        tmp_path / "p.klb",
        vendor.content(),
        signing_key=vendor.signing_key,
        seed=vendor.seed,
        sealer=Passphrase("correct horse battery"),
    )
    (tmp_path / "passphrase").write_text("correct horse battery\n")
    image = tiny.tensor_image(tiny.images(1)[0])
    token = vendor.grant().token
    for changes in (
        {"bundle": tmp_path / "p.klb", "key_passphrase_file": tmp_path / "passphrase"},
        {"bundle": tmp_path / "p.klb", "key_passphrase": "correct horse battery"},
        {"key_seed_file": vendor.seed_file},
    ):
        calls = start_server(key_file=None, **changes)
        assert calls.explain(image, token=token).results[0].keyed
        calls.stop().result(timeout=30)


def test_a_key_that_was_handed_over_opens_a_public_copy(start_server, vendor, tiny, tmp_path):
    server_key = HpkeIdentity.create(tmp_path / "server.pem")
    opened = open_bundle(vendor.bundle, trusted=None)
    export_public(opened, tmp_path / "public.klb")
    (tmp_path / "sealed").write_bytes(seal_for(opened, vendor.seed, server_key.recipient))
    calls = start_server(
        bundle=tmp_path / "public.klb",
        key_file=None,
        key_provider=f"hpke:{tmp_path / 'server.pem'}",
        sealed_key=tmp_path / "sealed",
    )
    image = tiny.images(1)
    answer = calls.explain(tiny.tensor_image(image[0]), token=vendor.grant().token)
    assert answer.results[0].keyed
    keyed = tiny.maps(image + vendor.key.reveal(), np.array([-1]))[0]
    np.testing.assert_allclose(tiny.to_array(answer.results[0].map), keyed, rtol=1e-4, atol=1e-6)
