"""What is known of a caller already is looked up in the event loop, and everything else is left to threads."""

import sqlite3
from datetime import timedelta

import pytest

from keylock.errors import LicenseError, LicenseReason
from keylock.store import LicenseStore
from keylock_server.auth.authentication import Authenticator, Caller


@pytest.fixture
def store(vendor, tmp_path):
    with LicenseStore(f"sqlite:///{tmp_path / 'licenses.db'}") as made:
        yield made


@pytest.fixture
def authenticator(vendor, store, tiny):
    keys = [vendor.signing_key.verifying_key]
    return Authenticator(keys=lambda: keys, store=store, leeway_s=0, now=lambda: tiny.now)


def caller(token):
    return Caller((("authorization", f"Bearer {token}"),), None)


def test_callers_without_a_license_are_known_at_once(authenticator):
    assert authenticator.authenticate_at_once(Caller((), None)) is None


def test_a_license_is_verified_in_a_thread_once_and_then_looked_up_at_once(vendor, store, authenticator, tiny):
    granted = vendor.grant(store=store)
    with pytest.raises(BlockingIOError):
        authenticator.authenticate_at_once(caller(granted.token))
    found = authenticator.authenticate(caller(granted.token))
    assert authenticator.authenticate_at_once(caller(granted.token)) == found
    store.revoke(granted.id, at=tiny.now)
    with pytest.raises(LicenseError) as caught:
        authenticator.authenticate_at_once(caller(granted.token))
    assert caught.value.reason is LicenseReason.REVOKED


def test_a_license_that_has_ended_since_is_refused_at_once(vendor, store, tiny):
    times, keys = [tiny.now], [vendor.signing_key.verifying_key]
    authenticator = Authenticator(keys=lambda: keys, store=store, leeway_s=0, now=lambda: times[-1])
    granted = vendor.grant(store=store)
    authenticator.authenticate(caller(granted.token))
    times.append(tiny.now + timedelta(days=31))
    with pytest.raises(LicenseError) as caught:
        authenticator.authenticate_at_once(caller(granted.token))
    assert caught.value.reason is LicenseReason.EXPIRED


def test_a_store_that_another_program_holds_is_left_to_a_thread(vendor, store, authenticator, tmp_path):
    granted = vendor.grant(store=store)
    found = authenticator.authenticate(caller(granted.token))
    store.close()
    with sqlite3.connect(tmp_path / "licenses.db", isolation_level=None) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BlockingIOError):
            authenticator.authenticate_at_once(caller(granted.token))
    other.close()
    assert authenticator.authenticate_at_once(caller(granted.token)) == found
