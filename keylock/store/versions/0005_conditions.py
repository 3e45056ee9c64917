"""Which images of a request with a condition were explained."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds a column to the ledger; no request had a condition before."""
    op.add_column("ledger", sa.Column("explained", sa.Text))
