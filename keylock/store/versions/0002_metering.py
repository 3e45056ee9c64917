"""Suspension, cut-off times, revoked access tokens; counters, ledger and rates."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds columns to the licenses, and the tables of metering."""
    op.add_column("licenses", sa.Column("suspended_at", sa.BigInteger))
    op.add_column("licenses", sa.Column("suspended_why", sa.Text, nullable=False, server_default=""))
    op.add_column("licenses", sa.Column("refuse_before", sa.BigInteger))
    op.create_table(
        "revoked_tokens",
        sa.Column("token_id", sa.Text, primary_key=True),
        sa.Column("revoked_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "counters",
        sa.Column("license_id", sa.Text, primary_key=True),
        sa.Column("period", sa.Text, primary_key=True),
        sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("used", sa.BigInteger, nullable=False),
        sa.Column("ceiling", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ledger",
        sa.Column("license_id", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("request_digest", sa.Text, nullable=False),
        sa.Column("model_digest", sa.Text, nullable=False),
        sa.Column("explainer", sa.Text, nullable=False),
        sa.Column("images", sa.BigInteger, nullable=False),
        sa.Column("units", sa.BigInteger, nullable=False),
        sa.Column("overage", sa.BigInteger, nullable=False),
        sa.Column("day", sa.BigInteger, nullable=False),
        sa.Column("month", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Text, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("charged_at", sa.BigInteger),
        sa.Column("answer_digest", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ledger_expires_at", "ledger", ["expires_at"])
    op.create_index("ledger_charged_at", "ledger", ["charged_at"])
    op.create_table(
        "rates",
        sa.Column("license_id", sa.Text, primary_key=True),
        sa.Column("full_at_us", sa.BigInteger, nullable=False),
        sa.Column("touched_at_us", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
