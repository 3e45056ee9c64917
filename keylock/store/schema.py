"""The tables of the store, as the newest migration leaves them; a test compares the two.

Times are seconds since 1970 unless a name says otherwise. Ids are texts chosen elsewhere.
"""

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, Text

__all__ = ["AUDIT_CHECKPOINTS", "AUDIT_LOG", "COUNTERS", "LEDGER", "LICENSES", "RATES", "REVOKED_TOKENS", "metadata"]

metadata: Final = MetaData()

_BigId: Final = BigInteger().with_variant(Integer, "sqlite")

LICENSES: Final = Table(
    "licenses",
    metadata,
    Column("id", Text, primary_key=True),
    Column("customer", Text, nullable=False, index=True),
    Column("issuer", Text, nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("claims", Text, nullable=False),
    Column("revoked_at", BigInteger),
    Column("revoked_why", Text, nullable=False, server_default=""),
    Column("suspended_at", BigInteger),
    Column("suspended_why", Text, nullable=False, server_default=""),
    # 1 where it is for non-payment, which disclosures outlive for a while.
    Column("suspended_unpaid", Integer, nullable=False, server_default="0"),
    # Tokens of this license that were issued before this time are refused.
    Column("refuse_before", BigInteger),
)

REVOKED_TOKENS: Final = Table(
    "revoked_tokens",
    metadata,
    Column("token_id", Text, primary_key=True),
    Column("revoked_at", BigInteger, nullable=False),
)

# What a license used in a period: `start` counts days or months since 1970, and is 0 for the period `total`.
# `ceiling` is the limit the last reservation was made under, so that one statement can compare and add.
COUNTERS: Final = Table(
    "counters",
    metadata,
    Column("license_id", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("used", BigInteger, nullable=False),
    Column("ceiling", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# One row for each request that is reserved or charged; a request that is released leaves none.
LEDGER: Final = Table(
    "ledger",
    metadata,
    Column("license_id", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("request_digest", Text, nullable=False),
    Column("model_digest", Text, nullable=False),
    Column("explainer", Text, nullable=False),
    Column("images", BigInteger, nullable=False),
    Column("units", BigInteger, nullable=False),
    Column("overage", BigInteger, nullable=False),
    Column("day", BigInteger, nullable=False),
    Column("month", BigInteger, nullable=False),
    # Who works on it, and until when at the latest; empty and null once it is charged.
    Column("attempt", Text, nullable=False),
    Column("expires_at", BigInteger),
    Column("charged_at", BigInteger),
    Column("answer_digest", Text, nullable=False),
    # Of a request with a condition that is charged, a 1 for each image that was explained and a 0 for the others.
    Column("explained", Text),
    # Of a disclosure, its reason. It costs nothing, and is counted by its rows.
    Column("disclosure", Text),
    Index("ledger_expires_at", "expires_at"),
    Index("ledger_charged_at", "charged_at"),
    # Of rows with a disclosure alone, by the migration. To say so here would import the dialect of PostgreSQL at the
    # start of every server.
    Index("ledger_disclosures", "license_id", "day"),
    sqlite_with_rowid=False,
)

# The token bucket of a license as one number: when it will be full again, in microseconds since 1970.
RATES: Final = Table(
    "rates",
    metadata,
    Column("license_id", Text, primary_key=True),
    Column("full_at_us", BigInteger, nullable=False),
    Column("touched_at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# One row: which store this is. `keylock.store.identity` reads and writes this table and the next.
Table(
    "store_identity",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("store_id", Text, nullable=False),
    Column("generation", Text, nullable=False),
)

# What each server that runs wrote when it looked last.
Table(
    "server_marks",
    metadata,
    Column("server_id", Text, primary_key=True),
    Column("mark", Text, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
)

# The audit log, of which `keylock.store.log_table` is the only reader and writer: its entries in order, where it ends,
# and the states of it that were signed.
AUDIT_LOG: Final = Table(
    "audit_log",
    metadata,
    Column("seq", _BigId, primary_key=True, autoincrement=False),
    Column("leaf_hash", LargeBinary(32), nullable=False, index=True),
    Column("entry", LargeBinary, nullable=False),
)

Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("origin", Text, nullable=False),
    Column("size", _BigId, nullable=False),
    Column("frontier", LargeBinary, nullable=False),
)

AUDIT_CHECKPOINTS: Final = Table(
    "audit_checkpoints",
    metadata,
    Column("number", _BigId, primary_key=True, autoincrement=True),
    Column("size", _BigId, nullable=False),
    Column("signed_at", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
)
