"""Which store this is, and the marks of the servers that use it."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Makes the two tables, and names the store."""
    identity = op.create_table(
        "store_identity",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("store_id", sa.Text, nullable=False),
        sa.Column("generation", sa.Text, nullable=False),
    )
    op.create_table(
        "server_marks",
        sa.Column("server_id", sa.Text, primary_key=True),
        sa.Column("mark", sa.Text, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(identity, [{"id": 1, "store_id": secrets.token_hex(8), "generation": secrets.token_hex(8)}])
