"""Disclosures: why a request is one, and suspensions that they outlive for a while."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds the columns; nothing was a disclosure before, and no suspension was for non-payment."""
    op.add_column("licenses", sa.Column("suspended_unpaid", sa.Integer, nullable=False, server_default="0"))
    op.add_column("ledger", sa.Column("disclosure", sa.Text))
    only = sa.text("disclosure IS NOT NULL")
    op.create_index("ledger_disclosures", "ledger", ["license_id", "day"], sqlite_where=only, postgresql_where=only)
