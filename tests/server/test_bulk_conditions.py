"""A job of `keylock explain-many` and a server choose the same images on a condition, and charge the same for them."""

from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("pyarrow", reason="needs the extra ray")

from bulk_jobs import Vendor, cashier_of, draw, made_job, order_for

from keylock.bulk.worker import Worker
from keylock.crypto.signing import SigningKey
from keylock.licensing.conditions import Condition
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.licensing.receipts import Receipt
from keylock.store import LicenseStore
from keylock_client import Client

IMAGES = 9


@pytest.fixture(scope="module")
def both(sealed_bundle, start_server, tmp_path_factory):
    """A vendor, and a server with the same bundle, store, receipt key and prices."""
    folder, signing_key = tmp_path_factory.mktemp("both"), SigningKey.generate()
    signing_key.verifying_key.write(folder / "issuer.pub.pem")
    now = datetime.now(UTC)
    ReceiptKey.create(folder / "receipts.pem", signing_key, not_before=now, expires=now + timedelta(days=365))
    url = f"sqlite:///{folder / 'licenses.db'}"
    with LicenseStore(url) as store:
        vendor = Vendor(folder, sealed_bundle, signing_key, url, store)
        calls = start_server(
            bundle=sealed_bundle.path,
            key_file=sealed_bundle.key_file,
            issuers=(sealed_bundle.issuer, folder / "issuer.pub.pem"),
            license_store=url,
            receipt_key=folder / "receipts.pem",
            prices={"grad_cam": 3},
            now=lambda: datetime.now(UTC),
        )
        yield vendor, calls.server.target


@pytest.mark.parametrize(
    ("condition", "hits"),
    [
        ("probability < 0.3922", 4),
        ("margin < 0.067", 1),
        ("class in c", IMAGES),
        ("class in a, b", 0),
        ("probability < 1", IMAGES),
    ],
)
def test_job_and_server_agree(both, tmp_path, condition, hits):
    vendor, target = both
    data, license = draw(tmp_path / "data", IMAGES), vendor.grant()
    files = sorted(data.rglob("*.png"))
    with Client(target, license=license.read_text().strip()) as client:
        answers = client.explain(files, explainer="grad_cam", explain_if=condition)
        classes = client.model().classes
    job = made_job(
        vendor,
        data,
        tmp_path / "out",
        block_size=IMAGES,
        license=license.stem,
        explain_if=str(Condition.parse(condition, classes)),
    )
    [block] = job.blocks
    result = Worker(order_for(vendor, job, batch_size=IMAGES)).explain(block.number, block.count, block.offset)
    cashier, _ = cashier_of(vendor, license)
    charge = Receipt.verify(cashier.charge(job, result), lambda _: True).charge
    cashier.close()
    served = Receipt.verify(answers[0].receipt.token, lambda _: True).charge
    assert [one.explained for one in answers].count(True) == hits
    assert [one.explained for one in answers] == list(charge.answer.explained)
    assert answers[0].usage.units == charge.units == served.units
    # All that a charge is made of, but for the request id, which the caller of a server chooses.
    assert charge.request_digest == served.request_digest
    assert charge.explain_if == served.explain_if
    assert charge.answer.explained == served.answer.explained
