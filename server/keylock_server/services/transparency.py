"""What a server proves: receipts of what it charged, that they are in the audit log, and checkpoints of that log."""

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keylock.crypto.signing import VerifyingKey
from keylock.errors import AuditLogError, InputError, KeylockError, ReceiptError, ServiceError, StoreError
from keylock.licensing.receipt_keys import ReceiptKey, open_checkpoint
from keylock.licensing.receipts import parse_entry, trusts_any
from keylock.licensing.revocations import RevocationFile
from keylock.transparency import Checkpoint, ConsistencyProof, InclusionProof, Tree
from keylock.transparency.merkle import HASH_BYTES
from keylock_server.transport.fields import at_field
from keylock_server.transport.statuses import NoProofError, UnknownReceiptError

if TYPE_CHECKING:
    from keylock.store import Database

__all__ = ["CheckpointSigner", "Prover", "load_receipt_key", "sign_checkpoint"]

_LOG: Final = logging.getLogger("keylock_server")
_SIGN_EVERY_S: Final = 1.0


def load_receipt_key(
    path: Path, *, issuers: Collection[VerifyingKey], now: datetime, revocations: RevocationFile | None = None
) -> ReceiptKey:
    """Reads the receipt key of a server, and checks that its receipts will be believed.

    Args:
        path: The key; its certificate is beside it.
        issuers: Whose licenses the server accepts: customers trust these.
        now: The time, with its zone.
        revocations: Which receipt keys the issuer has taken back; None where nothing says so.

    Raises:
        SignatureError: If key or certificate cannot be read, or do not belong together.
        ServiceError: If the certificate is of another issuer, or does not hold now, or the key was taken back.
    """
    key = ReceiptKey.load(path)
    trusts = trusts_any(tuple(issuers))
    try:
        key.certificate.check(trusts, at=now, revoked=_taken_back(revocations, trusts))
    except ReceiptError as error:
        raise ServiceError(f"nobody would believe receipts under {path}: {error}; keylock issuer receipt-key") from None
    return key


class CheckpointSigner:
    """Signs the state of the audit log while the server runs, whenever it has changed.

    Attributes:
        size: Entries under the checkpoint that it signed or found last; 0 before.
    """

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
        self.size = 0

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
            note = await asyncio.to_thread(sign_checkpoint, self._database, self._key, now=self._now)
            self.size = Checkpoint.parse_unverified(note).size
        except KeylockError as error:
            _LOG.error("no checkpoint was signed: %s", error)


class Prover:
    """Proves to customers that their receipts are in the log, and hands out which receipt keys were taken back.

    The hashes of the log are read once and kept, 64 bytes for each entry, so that a proof costs next to nothing however
    long the log is.
    """

    def __init__(
        self,
        database: "Database | None",
        key: ReceiptKey | None,
        *,
        issuers: Callable[[], Collection[VerifyingKey]],
        revocations: RevocationFile | None,
        now: Callable[[], datetime],
    ) -> None:
        """Makes the prover.

        Args:
            database: The store with the log; None where there is none.
            key: Signs checkpoints; None where there is none.
            issuers: Returns those whose receipt keys are trusted.
            revocations: Which receipt keys were taken back; None where nothing says so.
            now: The clock, in UTC.
        """
        self._database, self._key, self._issuers, self._now = database, key, issuers, now
        self._revocations = revocations
        self._tree, self._growing = Tree(), threading.Lock()
        self._one_at_a_time = asyncio.Lock()
        self._signed_at = -_SIGN_EVERY_S

    def revocations(self) -> str:
        """Returns the signed list of receipt keys that were taken back; empty where there is none.

        Raises:
            ReceiptError: If the list cannot be read.
        """
        return "" if self._revocations is None else self._revocations.token()

    async def prove(self, license_id: str, leaf: bytes, *, since_size: int) -> tuple[str, str]:
        """Proves that an entry of a license is in the log.

        Args:
            license_id: Whose entry it must be.
            leaf: Its hash, 32 bytes.
            since_size: Entries of a checkpoint the caller has kept; 0 where it has none.

        Returns:
            The proof of inclusion, and that of consistency or an empty text.

        Raises:
            InputError: If the hash is none, or the checkpoint is larger than the log.
            UnknownReceiptError: If the license has no such entry; also where another license has it.
            NoProofError: If the server has no log, or nothing to sign checkpoints with.
            ServiceError: If the store cannot be used.
        """
        database, key = self._database, self._key
        if database is None or key is None:
            raise NoProofError
        with at_field("leaf_hash"):
            if len(leaf) != HASH_BYTES:
                raise InputError(f"the hash of a leaf has {HASH_BYTES} bytes, not {len(leaf)}")
        async with self._one_at_a_time:
            try:
                place = await asyncio.to_thread(self._find, database, license_id, leaf)
                note = await self._checkpoint_over(database, key, place)
                return await asyncio.to_thread(self._prove, database, place, note, since_size)
            except StoreError as error:
                # The store's own messages are for the vendor: they name files and addresses of the vendor's machines.
                _LOG.error("%s", error)
                raise ServiceError("the audit log cannot be read at the moment: try again later") from None

    @staticmethod
    def _find(database: "Database", license_id: str, leaf: bytes) -> int:
        from keylock.store import log_table

        with database.transaction() as connection:
            found = log_table.find_leaf(connection, leaf)
        # Whose it is instead is nobody's business.
        if found is None or parse_entry(found[1]).license_id != license_id:
            raise UnknownReceiptError
        return found[0]

    async def _checkpoint_over(self, database: "Database", key: ReceiptKey, place: int) -> str:
        """Returns a checkpoint that covers a place and will be believed; signs one, once a second at most."""
        note = await asyncio.to_thread(self._latest, database)
        if note is not None and Checkpoint.parse_unverified(note).size > place:
            return note
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, self._signed_at + _SIGN_EVERY_S - clock()))
        signed = await asyncio.to_thread(sign_checkpoint, database, key, now=self._now, good=self._is_believed)
        self._signed_at = clock()
        return signed

    def _latest(self, database: "Database") -> str | None:
        from keylock.store import log_table

        with database.transaction() as connection:
            note = log_table.latest_checkpoint(connection)
        return note if note is not None and self._is_believed(note) else None

    def _is_believed(self, note: str) -> bool:
        trusts = trusts_any(tuple(self._issuers()))
        try:
            open_checkpoint(note, trusts, revoked=_taken_back(self._revocations, trusts))
        except (AuditLogError, ReceiptError):
            return False
        return True

    def _prove(self, database: "Database", place: int, note: str, since_size: int) -> tuple[str, str]:
        from keylock.store import log_table

        checkpoint = Checkpoint.parse_unverified(note)
        with at_field("since_size"):
            if since_size > checkpoint.size:
                raise InputError(f"the log has {checkpoint.size} entries and never had {since_size}: wrong checkpoint?")
        # Where a caller went away its thread goes on, beside that of the next one.
        with self._growing, database.transaction(snapshot=True) as connection:
            log_table.grow(connection, self._tree, checkpoint.size)
        tree = self._tree
        if tree.root(checkpoint.size) != checkpoint.root:
            raise AuditLogError("the audit log was rewritten: it is not what its checkpoint signs")
        inclusion = InclusionProof(place, tuple(tree.inclusion_proof(place, size=checkpoint.size)), note)
        if not since_size:
            return str(inclusion), ""
        hashes = tuple(tree.consistency_proof(since_size, size=checkpoint.size))
        return str(inclusion), str(ConsistencyProof(since_size, hashes, note))


def _taken_back(revocations: RevocationFile | None, trusts: Callable[[VerifyingKey], bool]) -> frozenset[str]:
    return frozenset() if revocations is None else revocations.read(trusts).keys


def sign_checkpoint(
    database: "Database",
    key: ReceiptKey,
    *,
    now: Callable[[], datetime],
    good: Callable[[str], bool] = lambda _note: True,
) -> str:
    """Signs the state of the audit log, where no good checkpoint signs it already.

    Args:
        database: The store with the log.
        key: What signs.
        now: The clock, in UTC.
        good: Tells whether a checkpoint that is there is believed.

    Returns:
        The checkpoint, as a signed note.

    Raises:
        StoreError: If the store cannot be used.
        AuditLogError: If the log does not hold.
    """
    from keylock.store import log_table

    at = now()
    with database.transaction(writes=True) as connection:
        return log_table.sign_checkpoint(connection, lambda state: key.sign_checkpoint(state, at=at), at=at, good=good)
