"""An offline license on a customer's machine: made by the vendor's command, and served from a public copy."""

import json
from datetime import timedelta

import grpc
import pytest

from keylock.bundle import HpkeIdentity, export_public, open_bundle
from keylock.cli import main
from keylock.crypto.signing import SigningKey
from keylock.errors import InputError, LicenseError, ServiceError, UnsealError
from keylock.licensing import License, Quota, issue
from keylock.licensing.offline import OfflineLicense
from keylock.licensing.pem import armour


@pytest.fixture
def customer(vendor, tiny, tmp_path, capsys):
    """A customer's machine with a public copy and a key; makes offline licenses with the vendor's command."""
    identity = HpkeIdentity.create(tmp_path / "customer.pem")
    (tmp_path / "customer.pub.pem").write_bytes(identity.recipient.to_pem())
    export_public(open_bundle(vendor.bundle, trusted=None), tmp_path / "public.klb")

    def get(name="acme", *, code=0, to="customer.pub.pem", key=vendor.signing_key, **changes):
        fields = {
            "id": "lic_offline",
            "customer": "Acme",
            "models": (vendor.manifest.model_digest,),
            "explainers": ("*",),
            "issued_at": tiny.now - timedelta(days=1),
            "not_before": tiny.now - timedelta(days=1),
            # The command takes the clock of the machine, on which a few days would be over soon.
            "expires": tiny.now.replace(year=2100),
            "quota": Quota(total=3),
        }
        token = issue(License(**(fields | changes)), key)
        (tmp_path / f"{name}.license").write_text(armour(token))
        line = (
            f"offline-license {tmp_path / name}.license --bundle {vendor.bundle} --key-file {vendor.key_file} "
            f"--to hpke:{tmp_path / to} --out {tmp_path / name}.offline --issuer {vendor.issuer_file} --json"
        )
        assert main(line.split()) == code
        get.printed = capsys.readouterr()
        return token

    get.folder = tmp_path
    return get


@pytest.fixture
def serve(start_server, customer):
    def begin(name="acme", **changes):
        values = {
            "bundle": customer.folder / "public.klb",
            "key_file": None,
            "key_provider": f"hpke:{customer.folder / 'customer.pem'}",
            "offline_license": customer.folder / f"{name}.offline",
            "license_store": f"sqlite:///{customer.folder / 'store.db'}",
        }
        return start_server(**(values | changes))

    return begin


def test_units_are_counted_and_the_last_one_is_the_last(customer, serve, tiny, vendor):
    token = customer()
    assert json.loads(customer.printed.out)["license"]["id"] == "lic_offline"
    calls = serve()
    image = tiny.tensor_image(tiny.images(1)[0])
    assert calls.explain(image, image, token=token).results[0].keyed
    calls.stop(drain_s=0).result(timeout=30)
    # What was used stays used when the server starts again.
    calls = serve()
    assert calls.explain(image, token=token).results[0].keyed
    with pytest.raises(grpc.RpcError) as caught:
        calls.explain(image, token=token)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    calls.stop(drain_s=0).result(timeout=30)
    # A renewed license adds to it; an older one does not come back.
    renewed = customer("renewed", issued_at=tiny.now, quota=Quota(total=4))
    calls = serve("renewed")
    assert calls.explain(image, token=renewed).results[0].keyed
    calls.stop(drain_s=0).result(timeout=30)
    with pytest.raises(LicenseError, match="newer"):
        serve("acme")


def test_the_file_opens_with_the_customers_key_alone(customer, serve):
    customer()
    HpkeIdentity.create(customer.folder / "thief.pem")
    with pytest.raises(UnsealError, match="was sealed to the recipient"):
        serve(key_provider=f"hpke:{customer.folder / 'thief.pem'}")


def test_an_offline_license_that_is_not_good_is_refused(customer, serve, vendor, tiny):
    token = customer()
    good = OfflineLicense.read(customer.folder / "acme.offline")
    later = tiny.now.replace(year=2101)
    with pytest.raises(LicenseError, match="expired"):
        serve(now=lambda: later)
    with pytest.raises(LicenseError, match="holds from"):
        serve(now=lambda: tiny.now - timedelta(days=9))
    claims = {"id": "x", "customer": "A", "explainers": ("*",), "issued_at": tiny.now, "not_before": tiny.now}
    claims |= {"expires": later, "quota": Quota(total=10**6), "models": ("*",)}
    forged = issue(License(**claims), SigningKey.generate())
    unlimited = issue(License(**(claims | {"quota": Quota()})), vendor.signing_key)
    elsewhere = issue(License(**(claims | {"models": ("other",)})), vendor.signing_key)
    changed = token[:-4] + ("AAAA" if not token.endswith("AAAA") else "BBBB")
    for wrong in (forged, unlimited, elsewhere, changed, ""):
        (customer.folder / "bad.offline").write_bytes(OfflineLicense(wrong, good.sealed_key).to_bytes())
        with pytest.raises(LicenseError):
            serve("bad")
    for content in (b"", b"{}", b"x" * 100_000):
        (customer.folder / "bad.offline").write_bytes(content)
        with pytest.raises(LicenseError, match="not an offline license"):
            serve("bad")


def test_a_clock_behind_the_last_charge_is_refused(customer, serve, tiny):
    token = customer(not_before=tiny.now - timedelta(days=9))
    calls = serve()
    calls.explain(tiny.tensor_image(tiny.images(1)[0]), token=token)
    calls.stop(drain_s=0).result(timeout=30)
    with pytest.raises(ServiceError, match="set the clock"):
        serve(now=lambda: tiny.now - timedelta(hours=1))


@pytest.mark.parametrize(
    "changes", [{"license_store": None}, {"key_provider": None}, {"issuers": ()}, {"sealed_key": "x"}]
)
def test_an_offline_license_needs_a_store_a_key_and_an_issuer(changes, customer, serve):
    customer()
    with pytest.raises(InputError, match="offline_license= needs"):
        serve(**changes)


def test_the_vendor_seals_no_license_without_a_limit_and_to_no_private_key(customer):
    customer(quota=Quota(), code=5)
    assert "total quota" in customer.printed.err
    customer(quota=Quota(total=5, overage=True), code=5)
    customer(to="customer.pem", code=3)
    assert "public key" in customer.printed.err
    customer(models=("other",), code=5)
    customer(key=SigningKey.generate(), code=5)
    assert not (customer.folder / "acme.offline").exists()
