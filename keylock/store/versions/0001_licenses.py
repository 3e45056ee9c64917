"""Licenses and their revocation.

A SQLite store that was made before there were migrations is at this revision.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the table of licenses."""
    op.create_table(
        "licenses",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("customer", sa.Text, nullable=False),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("issued_at", sa.BigInteger, nullable=False),
        sa.Column("claims", sa.Text, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("revoked_why", sa.Text, nullable=False, server_default=""),
    )
    op.create_index("ix_licenses_customer", "licenses", ["customer"])
