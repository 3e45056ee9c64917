"""Access tokens: short, good for what the license is good for, bound to a certificate if wanted, and revocable."""

import ssl
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from support import bearer, refusal

from keylock.crypto.signing import SigningKey
from keylock.errors import LicenseError, LicenseReason
from keylock.licensing import Quota, certificate_thumbprint, issue, issue_access, verify, verify_access
from keylock.store import LicenseStore
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc, license_pb2, license_pb2_grpc
from keylock_client import Client, LicenseRefusedError, QuotaSpentError, RateLimitedError, RequestIdReusedError


@pytest.fixture
def image(tiny):
    return tiny.tensor_image(tiny.images(1)[0])


def exchange(stub, token, **fields):
    return stub.ExchangeToken(license_pb2.ExchangeTokenRequest(**fields), metadata=bearer(token), timeout=20)


def reason(call):
    return refusal(call)[1]["ErrorInfo"].reason


def test_access_token_stands_for_the_license(calls, vendor, image, tiny):
    granted = vendor.grant(quota=Quota(total=2))
    answer = exchange(calls.license, granted.token)
    assert answer.expires.ToDatetime(UTC) == tiny.now + timedelta(minutes=10)
    assert calls.explain(image, token=answer.access_token).usage.license_id == granted.id
    assert calls.explain(image, token=granted.token).usage.remaining == 0
    own = calls.license.GetLicense(
        license_pb2.GetLicenseRequest(), metadata=bearer(answer.access_token), timeout=20
    ).license
    assert (own.id, own.quota.total) == (granted.id, 2)


def test_access_token_is_no_license_and_buys_no_longer_life(calls, vendor):
    granted = vendor.grant()
    token = exchange(calls.license, granted.token).access_token
    assert reason(lambda: exchange(calls.license, token)) == LicenseReason.MALFORMED
    with pytest.raises(LicenseError):
        verify(token, [vendor.signing_key.verifying_key], now=datetime.now(UTC))


@pytest.mark.parametrize("lifetime_s", [1, 299, 901, 2**32 - 1])
def test_lifetime_is_5_to_15_minutes(calls, vendor, lifetime_s):
    with pytest.raises(grpc.RpcError) as caught:
        exchange(calls.license, vendor.grant().token, lifetime_s=lifetime_s)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_access_token_ends_with_its_license_and_its_time(tiny, vendor):
    key = SigningKey.generate()
    license = vendor.grant(expires=tiny.now + timedelta(minutes=2), record=False).license
    token, access = issue_access(license, key, now=tiny.now, lifetime_s=600)
    assert access.expires == license.expires
    keys = [key.verifying_key]
    assert verify_access(token, keys, now=tiny.now).license == license
    for now, expected in (
        (tiny.now + timedelta(minutes=3), LicenseReason.EXPIRED),
        (tiny.now - timedelta(days=2), LicenseReason.NOT_YET_VALID),
    ):
        with pytest.raises(LicenseError) as caught:
            verify_access(token, keys, now=now)
        assert caught.value.reason == expected
    with pytest.raises(LicenseError) as caught:
        verify_access(token, [SigningKey.generate().verifying_key], now=tiny.now)
    assert caught.value.reason == LicenseReason.UNKNOWN_ISSUER
    with pytest.raises(LicenseError):
        verify_access(issue(license, key), keys, now=tiny.now)


def test_access_tokens_are_revoked_one_by_one_by_license_and_by_time(calls, vendor, image, tiny):
    granted, other = vendor.grant(), vendor.grant()
    first, second = (exchange(calls.license, granted.token).access_token for _ in range(2))
    third = exchange(calls.license, other.token).access_token
    token_id = verify_ignoring_key(first)
    vendor.store.revoke_token(token_id, at=tiny.now)
    assert reason(lambda: calls.explain(image, token=first)) == LicenseReason.REVOKED
    assert calls.explain(image, token=second).results[0].keyed
    vendor.store.refuse_before(tiny.now + timedelta(seconds=1), license_id=granted.id)
    assert reason(lambda: calls.explain(image, token=second)) == LicenseReason.REVOKED
    assert reason(lambda: calls.explain(image, token=granted.token)) == LicenseReason.REVOKED
    assert calls.explain(image, token=third).results[0].keyed
    vendor.store.revoke(other.id, at=tiny.now)
    assert reason(lambda: calls.explain(image, token=third)) == LicenseReason.REVOKED


def verify_ignoring_key(token):
    import base64
    import json

    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["jti"]


def test_servers_with_one_token_key_take_each_others_tokens(start_server, vendor, image, tmp_path):
    key, retired = SigningKey.generate(), SigningKey.generate()
    key.write(tmp_path / "new.pem")
    retired.write(tmp_path / "old.pem")
    old = start_server(token_keys=(tmp_path / "old.pem",))
    new = start_server(token_keys=(tmp_path / "new.pem", tmp_path / "old.pem"))
    granted = vendor.grant()
    token = exchange(old.license, granted.token).access_token
    assert new.explain(image, token=token).results[0].keyed
    fresh = exchange(new.license, granted.token).access_token
    assert reason(lambda: old.explain(image, token=fresh)) == LicenseReason.UNKNOWN_ISSUER
    for calls in (old, new):
        calls.stop().result(timeout=30)


def test_bound_token_is_good_with_its_certificate_alone(start_server, vendor, image, tls_files):
    calls = start_server(
        tls_certificate=tls_files / "server.pem",
        tls_key=tls_files / "server.key",
        tls_client_ca=tls_files / "clients.pem",
    )
    token = vendor.grant().token
    roots = (tls_files / "server.pem").read_bytes()

    def channel(name):
        pair = ((tls_files / f"{name}.key").read_bytes(), (tls_files / f"{name}.pem").read_bytes())
        return grpc.secure_channel(
            f"localhost:{calls.server.port}", grpc.ssl_channel_credentials(roots, pair[0], pair[1])
        )

    with channel("client") as own, channel("thief") as thief:
        bound = exchange(license_pb2_grpc.LicenseServiceStub(own), token, bind_certificate=True).access_token
        request = pb.ExplainRequest(images=[image])

        def explain(connection):
            stub = explanation_pb2_grpc.ExplanationServiceStub(connection)
            return stub.Explain(request, metadata=bearer(bound), timeout=20)

        assert explain(own).results[0].keyed
        assert reason(lambda: explain(thief)) == LicenseReason.WRONG_CERTIFICATE
    der = ssl.PEM_cert_to_DER_cert((tls_files / "client.pem").read_text())
    assert certificate_thumbprint(der).encode() in _payload(bound)
    calls.stop().result(timeout=30)


def _payload(token):
    import base64

    payload = token.split(".")[1]
    return base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))


def test_without_a_certificate_nothing_can_be_bound(calls, vendor):
    with pytest.raises(grpc.RpcError) as caught:
        exchange(calls.license, vendor.grant().token, bind_certificate=True)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_client_exchanges_its_license_and_finds_a_new_server(start_server, vendor, tiny):
    first = start_server()
    granted = vendor.grant(quota=Quota(day=100))
    pixels = tiny.pixels(8, 8)
    with Client(first.server.target, license=granted.token, exchange_tokens=True) as client:
        assert client.explain(pixels, request_id="a").usage.remaining == 99
        access = client._memory.access[0].reveal()
        assert access != granted.token
        assert client.explain(pixels, request_id="a").usage.replayed
        assert client._memory.access[0].reveal() == access
        # As if the server had been started again: it does not know the token.
        other = start_server()
        client._memory.access = (client._memory.access[0].__class__(_foreign(other, vendor)), 1e18)
        assert client.explain(pixels).keyed
        assert [quota.used for quota in client.usage()] == [2, 2, 2]
        told = client.estimate(3)
        assert (told.units, told.fits, told.quotas[0].remaining) == (3, True, 98)
        assert client.license().rate is None
        vendor.store.revoke(granted.id, at=tiny.now)
        with pytest.raises(LicenseRefusedError) as caught:
            client.explain(pixels)
        assert caught.value.reason == LicenseReason.REVOKED
    for calls in (first, other):
        calls.stop().result(timeout=30)


def _foreign(calls, vendor):
    return exchange(calls.license, vendor.grant().token).access_token


def test_client_tells_quota_rate_and_reused_ids_apart(calls, vendor, tiny):
    from keylock.licensing import Rate

    pixels = tiny.pixels(8, 8)
    with Client(calls.server.target, license=vendor.grant(quota=Quota(day=1)).token) as client:
        explained = client.explain(pixels, request_id="r")
        assert (explained.usage.units, explained.usage.remaining) == (1, 0)
        assert explained.to_dict()["usage"]["units"] == 1
        with pytest.raises(QuotaSpentError) as caught:
            client.explain(pixels)
        assert (caught.value.period, caught.value.limit, caught.value.used) == ("day", 1, 1)
        assert caught.value.resets_at == datetime(2026, 11, 23, tzinfo=UTC)
        with pytest.raises(RequestIdReusedError):
            client.explain(tiny.pixels(8, 8, seed=3), request_id="r")
    with Client(calls.server.target, license=vendor.grant(rate=Rate(per_second=0.1, burst=1)).token) as client:
        client.explain(pixels)
        with pytest.raises(RateLimitedError) as caught:
            client.explain(pixels)
        assert caught.value.retry_after_s == pytest.approx(10, abs=0.1)


def test_license_renewed_with_an_earlier_end_is_over_for_every_token_of_it(start_server, vendor, image, tiny, tmp_path):
    clock = [tiny.now]
    # A store of its own: what is charged at a later time would show in the others as a clock that was set back.
    url = f"sqlite:///{tmp_path / 'licenses.db'}"
    calls = start_server(now=lambda: clock[0], leeway_s=0, license_store=url)
    with LicenseStore(url) as store:
        granted = vendor.grant(store=store)
    before = exchange(calls.license, granted.token).access_token
    end = tiny.now + timedelta(minutes=3)
    shorter = granted.license.model_copy(update={"issued_at": tiny.now, "expires": end})
    with LicenseStore(url) as store:
        store.renew(shorter, issuer=vendor.signing_key.key_id)
    after = exchange(calls.license, granted.token)
    assert after.expires.ToDatetime(UTC) == end
    shown = calls.license.GetLicense(
        license_pb2.GetLicenseRequest(), metadata=bearer(granted.token), timeout=20
    ).license
    assert shown.expires.ToDatetime(UTC) == end
    clock[0] = end - timedelta(seconds=1)
    assert calls.explain(image, token=granted.token).results[0].keyed
    clock[0] = end
    for token in (granted.token, before, after.access_token):
        assert reason(lambda token=token: calls.explain(image, token=token)) == LicenseReason.EXPIRED
    for call, request in (
        (calls.license.GetLicense, license_pb2.GetLicenseRequest()),
        (calls.license.GetUsage, license_pb2.GetUsageRequest()),
        (calls.license.ExchangeToken, license_pb2.ExchangeTokenRequest()),
    ):
        refused = reason(lambda call=call, ask=request: call(ask, metadata=bearer(granted.token), timeout=20))
        assert refused == LicenseReason.EXPIRED


def test_license_renewed_with_a_later_start_waits_for_it(start_server, vendor, image, tiny):
    calls = start_server(leeway_s=0)
    granted = vendor.grant()
    start = tiny.now + timedelta(days=1)
    later = granted.license.model_copy(update={"issued_at": tiny.now, "not_before": start})
    vendor.store.renew(later, issuer=vendor.signing_key.key_id)
    assert reason(lambda: calls.explain(image, token=granted.token)) == LicenseReason.NOT_YET_VALID
