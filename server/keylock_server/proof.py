"""What a server can prove: receipts for what it charged, and checkpoints of the audit log, signed every so often."""

import asyncio
import logging
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keylock.errors import KeylockError, ReceiptError, ServiceError
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.signing import VerifyingKey

if TYPE_CHECKING:
    from keylock.store import Database

__all__ = ["CheckpointSigner", "load_receipt_key"]

_LOG: Final = logging.getLogger("keylock_server")


def load_receipt_key(path: Path, *, issuers: Collection[VerifyingKey], now: datetime) -> ReceiptKey:
    """Reads the receipt key of a server, and checks that its receipts will be believed.

    Args:
        path: The key; its certificate is beside it.
        issuers: Whose licenses the server accepts: customers trust these.
        now: The time, with its zone.

    Raises:
        SignatureError: If key or certificate cannot be read, or do not belong together.
        ServiceError: If the certificate is of another issuer, or does not hold now.
    """
    key = ReceiptKey.load(path)
    try:
        key.certificate.check(lambda issuer: issuer in issuers, at=now)
    except ReceiptError as error:
        raise ServiceError(f"nobody would believe receipts under {path}: {error}; keylock issuer receipt-key") from None
    return key


class CheckpointSigner:
    """Signs the state of the audit log while the server runs, whenever it has changed."""

    def __init__(self, database: "Database", key: ReceiptKey, *, every_s: float, now: Callable[[], datetime]) -> None:
        """Makes the signer.

        Args:
            database: The store with the log; stays open when the signer is closed.
            key: What signs.
            every_s: How often to look, in seconds.
            now: The clock, in UTC.
        """
        self._database, self._key, self._every_s, self._now = database, key, every_s, now
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins; called in the event loop."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Signs a last time, so that everything this server charged is under a checkpoint."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._sign_or_log()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self._sign_or_log()

    async def _sign_or_log(self) -> None:
        try:
            await asyncio.to_thread(self._sign)
        except KeylockError as error:
            _LOG.error("no checkpoint was signed: %s", error)

    def _sign(self) -> None:
        from keylock.auditlog import table

        now = self._now()
        with self._database.transaction(writes=True) as connection:
            table.sign_checkpoint(connection, lambda state: self._key.sign_checkpoint(state, at=now), at=now)
