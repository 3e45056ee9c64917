"""What is charged says what is left, and receipts and proofs are saved for an auditor."""

from datetime import UTC, datetime

import pytest

from keylock.errors import InputError
from keylock_client import Proof, Quota, Receipt

NOW = datetime(2026, 11, 22, tzinfo=UTC)
RECEIPT = Receipt(
    token="receipt-text",
    license_id="l",
    request_id="r",
    model_digest="sha256:0",
    explainer="grad_cam",
    parameters={},
    keyed=True,
    units=1,
    time=NOW,
    image_digests=(),
    map_digests=(),
    target=-1,
    repeated=False,
    issuer="i",
    trusted=True,
)


@pytest.mark.parametrize(("limit", "used", "left"), [(10, 3, 7), (10, 12, 0), (None, 5, None)])
def test_a_quota_says_what_is_left(limit, used, left):
    assert Quota("month", limit, used, NOW).remaining == left


@pytest.mark.parametrize(
    ("value", "text"), [(RECEIPT, "receipt-text\n"), (Proof("proof-text\n", 0, 1, "log", "c"), "proof-text\n")]
)
def test_a_receipt_and_a_proof_are_saved_for_their_owner_alone(value, text, tmp_path):
    saved = value.save(tmp_path / "kept.txt")

    assert saved.read_text() == text
    assert saved.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="cannot write"):
        value.save(tmp_path / "missing" / "kept.txt")


def test_a_receipt_does_not_show_its_text():
    assert "receipt-text" not in repr(RECEIPT)
