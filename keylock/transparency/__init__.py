"""The audit log: an append-only record of what was charged, as a Merkle tree that cannot be rewritten unseen.

`merkle` is the tree of RFC 6962 without any storage, `notes` and `checkpoints` sign its state in the formats of C2SP,
`proofs` are the files that show an entry is in it. `keylock.store.log_table` keeps it in a database and is imported by
its own name because it needs the `server` extra. What an auditor does with them: docs/receipts.md.
"""

from keylock.transparency.checkpoints import Checkpoint
from keylock.transparency.merkle import EMPTY_ROOT, Frontier, Tree, leaf_hash, verify_consistency, verify_inclusion
from keylock.transparency.notes import NoteKey, open_note, sign_note
from keylock.transparency.proofs import ConsistencyProof, InclusionProof

__all__ = [
    "EMPTY_ROOT",
    "Checkpoint",
    "ConsistencyProof",
    "Frontier",
    "InclusionProof",
    "NoteKey",
    "Tree",
    "leaf_hash",
    "open_note",
    "sign_note",
    "verify_consistency",
    "verify_inclusion",
]
