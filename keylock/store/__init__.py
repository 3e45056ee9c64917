"""The store: which licenses were issued and what was done to them, and what each of them used.

SQLite in a file, or PostgreSQL by URL, with the same guarantees on both. Tokens, images and maps are not kept: who
reads the store cannot present anybody's license. Needs the `server` extra, and `postgres` for PostgreSQL.
"""

from keylock.store.database import Database
from keylock.store.ledger import Ledger
from keylock.store.licenses import LicenseStore

__all__ = ["Database", "Ledger", "LicenseStore"]
