"""A process that charges requests as fast as it can until somebody kills it; prints each charge that was answered."""

import sys
from datetime import UTC, datetime, timedelta

from keylock.licensing import AnswerDigests, Charge, License
from keylock.store import Database, Ledger
from keylock.store.ledger import ChargeRequest
from keylock.store.logged_charges import record_charge

URL, WORKER = sys.argv[1:]
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32
LICENSES = [
    License(
        id=f"lic_{number}",
        customer="Acme",
        models=("*",),
        explainers=("*",),
        issued_at=NOW,
        not_before=NOW,
        expires=NOW + timedelta(days=9),
    )
    for number in range(3)
]


def charge_of(order):
    return Charge(
        license_id=order.license.id,
        request_id=order.request_id,
        request_digest=DIGEST,
        model_digest=DIGEST,
        model_name="tiny",
        explainer="gradient",
        parameters={},
        target=-1,
        units=order.units,
        keyed=True,
        time=NOW,
        image_digests=(DIGEST,),
        answer=AnswerDigests(maps=(DIGEST,)),
    )


ledger = Ledger(Database(URL), record=record_charge)
batch = 0
while True:
    orders = [
        ChargeRequest(
            license=LICENSES[number % 3],
            request_id=f"{WORKER}-{batch}-{number}",
            request_digest=DIGEST,
            model_digest=DIGEST,
            explainer="gradient",
            images=1,
            units=1 + number % 2,
            attempt=f"{WORKER}-{batch}",
        )
        for number in range(6)
    ]
    reserved = [ledger.reserve(order, now=NOW, lifetime_s=60) for order in orders]
    # One in six is given back instead.
    commits = [
        (order, ledger.commit(future.result(), charge_of(order)))
        for order, future in zip(orders[1:], reserved[1:], strict=True)
    ]
    reserved[0].result()
    ledger.release(orders[0]).result()
    for order, future in commits:
        future.result()
        sys.stdout.write(f"{order.license.id} {order.request_id}\n")
        sys.stdout.flush()
    batch += 1
