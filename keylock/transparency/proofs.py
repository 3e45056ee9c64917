"""Proofs as files: that an entry is in a log, and that a log goes on from an earlier state of itself.

Both carry the signed checkpoint they lead to, so that whoever trusts the key of the log can check them offline.

References:
    C2SP tlog-proof, https://c2sp.org/tlog-proof, for inclusion. The file for consistency has the same form.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from keylock.errors import AuditLogError
from keylock.transparency.checkpoints import Checkpoint
from keylock.transparency.merkle import HASH_BYTES, leaf_hash, verify_consistency, verify_inclusion

__all__ = ["ConsistencyProof", "InclusionProof"]

_INCLUSION: Final = "c2sp.org/tlog-proof@v1"
_CONSISTENCY: Final = "keylock/log-consistency@v1"
_SHOWN: Final = {
    _INCLUSION: "that a receipt is in the log",
    _CONSISTENCY: "that the log goes on from an earlier checkpoint",
}
_MAX_HASHES: Final = 128
_MAX_DIGITS: Final = 19


@dataclass(frozen=True)
class InclusionProof:
    """Shows that an entry is in a log.

    Attributes:
        index: The place of the entry, from 0.
        hashes: From the leaf to the root, 32 bytes each.
        checkpoint: The signed checkpoint the hashes lead to.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a proof; nothing in it is verified yet.

        Raises:
            AuditLogError: If it is none.
        """
        return cls(*_parse(text, header=_INCLUSION, label="index"))

    def verify(self, entry: bytes, open_checkpoint: Callable[[str], Checkpoint]) -> Checkpoint:
        """Returns the checkpoint of a log that holds an entry.

        Args:
            entry: The entry itself, which the log keeps of a receipt.
            open_checkpoint: Returns the checkpoint in a signed note, and raises where it is not to be trusted.

        Raises:
            AuditLogError: If the checkpoint is not to be trusted, or the entry is not shown to be in the log.
        """
        checkpoint = open_checkpoint(self.checkpoint)
        leaf, size, root = leaf_hash(entry), checkpoint.size, checkpoint.root
        try:
            verify_inclusion(leaf, index=self.index, size=size, proof=self.hashes, root=root)
        except AuditLogError as error:
            raise AuditLogError(
                f"the proof and the receipt do not belong together, or one of them was changed: {error.message}"
            ) from None
        return checkpoint

    def __str__(self) -> str:
        return _write(_INCLUSION, f"index {self.index}", self.hashes, self.checkpoint)


@dataclass(frozen=True)
class ConsistencyProof:
    """Shows that a log goes on from an earlier state of itself.

    Attributes:
        old_size: Entries of the earlier state.
        hashes: 32 bytes each.
        checkpoint: The signed checkpoint of the later state.
    """

    old_size: int
    hashes: tuple[bytes, ...]
    checkpoint: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a proof; nothing in it is verified yet.

        Raises:
            AuditLogError: If it is none.
        """
        return cls(*_parse(text, header=_CONSISTENCY, label="old"))

    def verify(self, old: Checkpoint, open_checkpoint: Callable[[str], Checkpoint]) -> Checkpoint:
        """Returns the checkpoint of the later state, in which everything of the earlier one still stands.

        Args:
            old: The earlier checkpoint, which was verified when it was received.
            open_checkpoint: Returns the checkpoint in a signed note, and raises where it is not to be trusted.

        Raises:
            AuditLogError: If the checkpoint is not to be trusted, is of another log, or does not go on from
                the earlier one.
        """
        new = open_checkpoint(self.checkpoint)
        apart = "the proof and the earlier checkpoint do not belong together"
        if new.origin != old.origin:
            raise AuditLogError(f"{apart}: the proof is of the log {new.origin}, and the checkpoint of {old.origin}")
        if self.old_size != old.size:
            raise AuditLogError(
                f"{apart}: the proof is for a checkpoint of {self.old_size} entries, and this one has {old.size}"
            )
        verify_consistency(old_size=old.size, old_root=old.root, size=new.size, root=new.root, proof=self.hashes)
        return new

    def __str__(self) -> str:
        return _write(_CONSISTENCY, f"old {self.old_size}", self.hashes, self.checkpoint)


def _write(header: str, number: str, hashes: Sequence[bytes], checkpoint: str) -> str:
    lines = [header, number, *(base64.b64encode(hash_).decode("ascii") for hash_ in hashes)]
    return "\n".join(lines) + "\n\n" + checkpoint


def _parse(text: str, *, header: str, label: str) -> tuple[int, tuple[bytes, ...], str]:
    head, separator, checkpoint = text.partition("\n\n")
    lines = head.split("\n")
    what = f"; it is one {_SHOWN[lines[0]]}" if lines[0] in _SHOWN and lines[0] != header else ""
    refusal = AuditLogError(f"this is not a proof of the form {header}, {_SHOWN[header]}{what}")
    if len(lines) > 1 and header == _INCLUSION and lines[1].startswith("extra "):
        del lines[1]  # For applications, of which this is none.
    if not separator or len(lines) < 2 or lines[0] != header or len(lines) > _MAX_HASHES + 2:
        raise refusal
    name, _, digits = lines[1].partition(" ")
    if name != label or not (digits.isascii() and digits.isdigit()) or len(digits) > _MAX_DIGITS:
        raise refusal
    hashes = []
    for line in lines[2:]:
        try:
            raw = base64.b64decode(line.encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raw = b""
        if len(raw) != HASH_BYTES:
            raise refusal
        hashes.append(raw)
    return int(digits), tuple(hashes), checkpoint
