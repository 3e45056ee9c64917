"""What was charged, as rows for the vendor and as the events that billing systems take.

The event formats are those their makers document: CloudEvents 1.0 in JSON, which OpenMeter takes; `POST /events` of
Lago; meter events of Stripe. Every event has an id that is made of license and request id, so that sending it twice
does not bill it twice.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, text

from keylock.licensing import License

__all__ = ["FORMATS", "Line", "charged", "harmless", "render"]

_EVENT: Final = "keylock.explanation"
_CODE: Final = "keylock_explanation"
_QUERY: Final = """
    SELECT ledger.*, licenses.customer, licenses.claims
    FROM ledger LEFT JOIN licenses ON licenses.id = ledger.license_id
    WHERE charged_at IS NOT NULL AND disclosure IS NULL {and_where}
    ORDER BY charged_at, license_id, request_id
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One request that was charged.

    Attributes:
        charged_at: When (UTC).
        license_id: The license that pays.
        customer: Whose it is; empty where the store does not know the license.
        billing_id: What billing systems call the customer: the feature `billing_id` of the license, or the customer.
        request_id: Names the request within the license.
        model_digest: Digest of the model.
        explainer: Name of the saliency method.
        images: How many.
        units: What they cost.
        overage: Units of it that were beyond the quota.
    """

    charged_at: datetime
    license_id: str
    customer: str
    billing_id: str
    request_id: str
    model_digest: str
    explainer: str
    images: int
    units: int
    overage: int


def charged(
    connection: Connection,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    license_id: str | None = None,
    customer: str | None = None,
) -> Iterator[Line]:
    """Reads what was charged, in the order in which it was; disclosures, which cost nothing, are no part of it.

    Args:
        connection: A connection inside a transaction.
        since: From when on; from the beginning when None.
        until: Until when, that moment excluded; to the end when None.
        license_id: Of one license; of all when None.
        customer: Of one customer; of all when None.

    Yields:
        One line for each request.
    """
    wanted = {
        "charged_at >= :since": None if since is None else int(since.timestamp()),
        "charged_at < :until": None if until is None else int(until.timestamp()),
        "license_id = :license": license_id,
        "licenses.customer = :customer": customer,
    }
    given = {condition: value for condition, value in wanted.items() if value is not None}
    query = _QUERY.format(and_where="".join(f" AND {condition}" for condition in given))
    values = {condition.rpartition(":")[2]: value for condition, value in given.items()}
    known: dict[str, str] = {}
    for row in connection.execute(text(query), values):
        if row.license_id not in known:
            known[row.license_id] = _billing_id(row.claims, row.customer)
        yield Line(
            charged_at=datetime.fromtimestamp(row.charged_at, UTC),
            license_id=row.license_id,
            customer=row.customer or "",
            billing_id=known[row.license_id],
            request_id=row.request_id,
            model_digest=row.model_digest,
            explainer=row.explainer,
            images=row.images,
            units=row.units,
            overage=row.overage,
        )


def render(lines: Iterator[Line], form: str) -> Iterator[str]:
    """Writes lines of use in a format of `FORMATS`.

    Args:
        lines: What was charged.
        form: Name of the format.

    Yields:
        Lines of text without their ends; CSV begins with a header.
    """
    if form == "csv":
        yield ",".join(Line.__dataclass_fields__)
    for line in lines:
        yield FORMATS[form](line)


def _billing_id(claims: str | None, customer: str | None) -> str:
    named = License.model_validate_json(claims).features.get("billing_id") if claims else None
    return named if isinstance(named, str) else customer or ""


def _event_id(line: Line) -> str:
    # Request ids may be longer than billing systems take.
    return hashlib.sha256(f"{line.license_id}\n{line.request_id}".encode()).hexdigest()[:40]


def _plain(line: Line) -> dict[str, object]:
    return {**asdict(line), "charged_at": line.charged_at.isoformat()}


def _csv(line: Line) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(harmless(str(value)) for value in _plain(line).values())
    return out.getvalue()


def harmless(cell: str) -> str:
    """Keeps spreadsheets from taking a text that a caller chose for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _cloudevent(line: Line) -> dict[str, object]:
    return {
        "specversion": "1.0",
        "type": _EVENT,
        "id": _event_id(line),
        "source": f"keylock/{line.license_id}",
        "subject": line.billing_id,
        "time": line.charged_at.isoformat(),
        "datacontenttype": "application/json",
        "data": {
            "units": line.units,
            "overage": line.overage,
            "images": line.images,
            "explainer": line.explainer,
            "model": line.model_digest,
            "license": line.license_id,
        },
    }


def _lago(line: Line) -> dict[str, object]:
    properties = {"units": line.units, "overage": line.overage, "images": line.images, "explainer": line.explainer}
    return {
        "event": {
            "transaction_id": _event_id(line),
            "external_subscription_id": line.billing_id,
            "code": _CODE,
            "timestamp": int(line.charged_at.timestamp()),
            "properties": properties,
        }
    }


def _stripe(line: Line) -> dict[str, object]:
    return {
        "event_name": _CODE,
        "identifier": _event_id(line),
        "timestamp": int(line.charged_at.timestamp()),
        "payload": {"stripe_customer_id": line.billing_id, "value": str(line.units)},
    }


def _json(make: Callable[[Line], dict[str, object]]) -> Callable[[Line], str]:
    return lambda line: json.dumps(make(line), ensure_ascii=False, separators=(",", ":"))


FORMATS: Final[dict[str, Callable[[Line], str]]] = {
    "csv": _csv,
    "jsonl": _json(_plain),
    "cloudevents": _json(_cloudevent),
    "lago": _json(_lago),
    "stripe": _json(_stripe),
}
"""How each format writes one line."""
