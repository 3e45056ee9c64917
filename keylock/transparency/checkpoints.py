"""Checkpoints: the signed size and root hash of a log. Whoever keeps one will notice if the log is rewritten later.

References:
    C2SP tlog-checkpoint, https://c2sp.org/tlog-checkpoint.
"""

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from keylock.crypto.signing import SigningKey
from keylock.errors import AuditLogError
from keylock.transparency.merkle import HASH_BYTES
from keylock.transparency.notes import NoteKey, open_note, sign_note

__all__ = ["Checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """What a log commits to.

    Attributes:
        origin: The name of the log, which is also that of the key that signs for it.
        size: Entries in the log.
        root: Root hash of its tree, 32 bytes.
        extensions: Further lines that are signed, each not empty.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @classmethod
    def open(cls, note: str, keys: Collection[NoteKey]) -> Self:
        """Reads a signed checkpoint.

        Args:
            note: The signed note.
            keys: The keys that are trusted to sign for the log.

        Raises:
            AuditLogError: If it is not signed by one of them, or is not a checkpoint.
        """
        return cls.parse(open_note(note, keys))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads the text of a checkpoint, without signatures.

        Raises:
            AuditLogError: If it is not a checkpoint.
        """
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] != "" or not lines[0] or "" in lines[:-1]:
            raise AuditLogError("the checkpoint is malformed: it needs an origin, a size and a root hash")
        size_text = lines[1]
        if not (size_text.isascii() and size_text.isdigit()) or size_text != str(int(size_text[:19])):
            raise AuditLogError("the checkpoint is malformed: its size is not a number")
        try:
            root = base64.b64decode(lines[2].encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            root = b""
        if len(root) != HASH_BYTES or base64.b64encode(root).decode("ascii") != lines[2]:
            raise AuditLogError("the checkpoint is malformed: its root hash is none")
        return cls(lines[0], int(size_text), root, tuple(lines[3:-1]))

    @classmethod
    def parse_unverified(cls, note: str) -> Self:
        """Reads a signed checkpoint without looking at its signatures: to find out who is said to have signed it.

        Raises:
            AuditLogError: If it is not a checkpoint.
        """
        return cls.parse(note.rpartition("\n\n")[0] + "\n")

    def text(self) -> str:
        """Returns the lines that are signed."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode("ascii"), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    def sign(self, key: SigningKey) -> str:
        """Returns the checkpoint as a signed note."""
        return sign_note(self.text(), name=self.origin, key=key)
