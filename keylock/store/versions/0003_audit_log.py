"""The audit log, with a name that is made up once."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Makes the tables of the log, and the head of an empty one."""
    identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "audit_log",
        sa.Column("seq", identity, primary_key=True, autoincrement=False),
        sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_audit_log_leaf_hash", "audit_log", ["leaf_hash"])
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("size", identity, nullable=False),
        sa.Column("frontier", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "audit_checkpoints",
        sa.Column("number", identity, primary_key=True, autoincrement=True),
        sa.Column("size", identity, nullable=False),
        sa.Column("signed_at", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    origin = f"keylock/log/{secrets.token_hex(8)}"
    op.bulk_insert(head, [{"id": 1, "origin": origin, "size": 0, "frontier": b""}])
