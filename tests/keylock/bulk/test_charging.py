"""What blocks cost, on a store, without Ray."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("pyarrow", reason="needs the extra ray")

from bulk_jobs import cashier_of, draw, made_job, order_for

from keylock.bulk.worker import Worker
from keylock.bundle import HpkeIdentity, open_bundle, seal_for
from keylock.errors import LicenseError, QuotaError, RequestReusedError
from keylock.licensing import Quota
from keylock.licensing.offline import OfflineLicense
from keylock.trigger.keys import KeySeed


@pytest.fixture
def job(vendor, tmp_path):
    return made_job(vendor, draw(tmp_path / "data", 5, broken=1), tmp_path / "out")


@pytest.fixture
def result(vendor, job):
    return Worker(order_for(vendor, job)).explain(0, 4, 0)


def test_block_costs_its_explained_images_and_is_charged_once(vendor, job, result):
    cashier, _ = cashier_of(vendor, vendor.grant())
    first, second = cashier.charge(job, result), cashier.charge(job, result)
    assert cashier.units == 12
    assert first is not None
    assert first.split(".")[1] == second.split(".")[1]
    with pytest.raises(RequestReusedError):
        cashier.charge(job, replace(result, image_digests=result.image_digests[::-1]))
    cashier.close()


def test_quota_refuses_the_block_that_does_not_fit(vendor, job, result):
    cashier, _ = cashier_of(vendor, vendor.grant(quota=Quota(total=20)))
    assert cashier.left() == 6
    cashier.charge(job, result)
    with pytest.raises(QuotaError):
        cashier.charge(job, replace(result, number=1))
    assert cashier.left() == 2
    cashier.close()


def test_revoked_license_pays_for_no_further_block(vendor, job, result):
    license = vendor.grant()
    cashier, _ = cashier_of(vendor, license)
    cashier.charge(job, result)
    vendor.store.revoke(license.stem, at=datetime.now(UTC))
    with pytest.raises(LicenseError, match="revoked"):
        cashier.charge(job, replace(result, number=1))
    cashier.close()


@pytest.mark.parametrize(("condition", "images"), [(None, 4), ("probability < 0.3919", 2)])
def test_offline_license_pays_and_opens_the_public_copy(vendor, job, tmp_path, condition, images):
    job = replace(job, asked=replace(job.asked, explain_if=condition))
    now = datetime.now(UTC)
    license = vendor.grant(quota=Quota(total=100), expires=now + timedelta(days=2))
    identity = HpkeIdentity.create(tmp_path / "customer.pem")
    with open_bundle(vendor.bundle.public, trusted=None) as public:
        sealed = seal_for(public, KeySeed.from_file(vendor.bundle.seed_file), identity.recipient)
    offline = tmp_path / "acme.offline"
    offline.write_bytes(OfflineLicense(license.read_text().strip(), sealed).to_bytes())
    provider = f"hpke:{tmp_path / 'customer.pem'}"
    settings = {"bundle": str(vendor.bundle.public), "key_provider": provider}
    worker = Worker(order_for(vendor, job, settings=settings, offline_license=str(offline)))
    found = worker.explain(0, 4, 0)
    assert (found.error, found.explained) == (None, images)
    store = f"sqlite:///{tmp_path / 'own.db'}"
    cashier, _ = cashier_of(vendor, license, offline_license=offline, key_provider=provider, license_store=store)
    assert cashier.charge(job, found) is not None
    assert cashier.units == 3 * images
    assert cashier.left() == (100 - 3 * images) // 3
    cashier.close()
