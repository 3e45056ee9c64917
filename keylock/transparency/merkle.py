"""The Merkle tree of RFC 6962: hashes, proofs, and their verification. Pure: no storage, no clock, no keys.

A leaf is hashed with a zero byte before it and an inner node with a one, so that neither can pass for the other. The
left part of a tree of n leaves holds the largest power of two that is smaller than n, so that what was hashed once
stays in the tree while it grows. All hashes are SHA-256, 32 bytes.

References:
    RFC 6962, section 2.1; RFC 9162, sections 2.1.3.2 and 2.1.4.2 (verification).
"""

import hashlib
from collections.abc import Sequence
from typing import Final

from keylock.errors import AuditLogError

__all__ = [
    "EMPTY_ROOT",
    "HASH_BYTES",
    "Frontier",
    "Tree",
    "leaf_hash",
    "verify_consistency",
    "verify_inclusion",
]

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256().digest()


def leaf_hash(entry: bytes) -> bytes:
    """Returns the hash of an entry as a leaf of the tree."""
    return hashlib.sha256(b"\x00" + entry).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The state of a tree that only grows: the roots of its complete subtrees, the largest first.

    There is one for each bit that is set in the size, so that adding a leaf and reading the root cost the logarithm of
    the size.

    Attributes:
        size: Leaves of the tree.
    """

    def __init__(self, size: int = 0, state: bytes = b"") -> None:
        """Takes a state that `state` gave before.

        Raises:
            AuditLogError: If the state does not belong to a tree of that size.
        """
        if size < 0 or len(state) != size.bit_count() * HASH_BYTES:
            raise AuditLogError(f"the state of the audit log does not belong to {size} entries: it was changed")
        self.size = size
        self._roots = [state[start : start + HASH_BYTES] for start in range(0, len(state), HASH_BYTES)]

    @property
    def state(self) -> bytes:
        """The roots of the complete subtrees, one after the other."""
        return b"".join(self._roots)

    def append(self, leaf: bytes) -> None:
        """Adds a leaf, given as its hash."""
        joined = leaf
        # The lowest bits that are set are the complete subtrees the new leaf completes to larger ones.
        rest = self.size
        while rest & 1:
            joined = _node_hash(self._roots.pop(), joined)
            rest >>= 1
        self._roots.append(joined)
        self.size += 1

    def root(self) -> bytes:
        """Returns the root hash of the tree."""
        if not self._roots:
            return EMPTY_ROOT
        joined = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            joined = _node_hash(left, joined)
        return joined


class Tree:
    """A tree that only grows, with the hashes of all its complete subtrees: 64 bytes for each leaf.

    A proof then costs no more than the square of the tree's height, for any earlier state of the tree as well.

    Attributes:
        size: Leaves of the tree.
    """

    def __init__(self) -> None:
        """Begins without a leaf."""
        self.size = 0
        # Of each height the hashes of the complete subtrees, one after the other.
        self._levels = [bytearray()]

    def append(self, leaf: bytes) -> None:
        """Adds a leaf, given as its hash."""
        joined, height, rest = leaf, 0, self.size
        self._levels[0] += joined
        while rest & 1:
            joined = _node_hash(self._node(height, rest - 1), joined)
            height, rest = height + 1, rest >> 1
            if height == len(self._levels):
                self._levels.append(bytearray())
            self._levels[height] += joined
        self.size += 1

    def root(self, size: int) -> bytes:
        """Returns the root hash the tree had when it had so many leaves.

        Raises:
            AuditLogError: If it never had so many.
        """
        if not 0 <= size <= self.size:
            raise AuditLogError(f"a log of {self.size} entries has no state of {size}")
        return self._root_between(0, size) if size else EMPTY_ROOT

    def inclusion_proof(self, index: int, *, size: int) -> list[bytes]:
        """Returns the hashes that lead from one leaf to the root of the first leaves.

        Args:
            index: Which leaf, from 0.
            size: How many leaves are meant, at most those there are.

        Raises:
            AuditLogError: If there is no such leaf among them.

        References:
            RFC 6962, section 2.1.1.
        """
        size = min(size, self.size)
        if not 0 <= index < size:
            raise AuditLogError(f"there is no entry {index} in a log of {size}")
        proof: list[bytes] = []
        start, stop = 0, size
        while stop - start > 1:
            middle = start + _left_size(stop - start)
            if index < middle:
                proof.append(self._root_between(middle, stop))
                stop = middle
            else:
                proof.append(self._root_between(start, middle))
                start = middle
        return proof[::-1]

    def consistency_proof(self, old_size: int, *, size: int) -> list[bytes]:
        """Returns the hashes that show the tree of the first leaves to begin with that of fewer.

        Args:
            old_size: Leaves of the smaller tree.
            size: Leaves of the larger one, at most those there are.

        Raises:
            AuditLogError: If the smaller tree is larger than the other.

        References:
            RFC 6962, section 2.1.2.
        """
        size = min(size, self.size)
        if not 0 <= old_size <= size:
            raise AuditLogError(f"a log of {size} entries cannot go on from one of {old_size}")
        if old_size in {0, size}:
            return []
        proof: list[bytes] = []
        start, stop, known = 0, size, True
        while old_size != stop:
            middle = start + _left_size(stop - start)
            if old_size <= middle:
                proof.append(self._root_between(middle, stop))
                stop = middle
            else:
                proof.append(self._root_between(start, middle))
                start, known = middle, False
        if not known:
            # The verifier does not know this subtree; the whole old tree it does.
            proof.append(self._root_between(start, stop))
        return proof[::-1]

    def _root_between(self, start: int, stop: int) -> bytes:
        """Returns the root of the leaves between two places; the recursion of RFC 6962 asks for aligned ones alone."""
        count = stop - start
        if count & (count - 1) == 0:
            height = count.bit_length() - 1
            return self._node(height, start >> height)
        middle = start + _left_size(count)
        return _node_hash(self._root_between(start, middle), self._root_between(middle, stop))

    def _node(self, height: int, place: int) -> bytes:
        return bytes(self._levels[height][place * HASH_BYTES : (place + 1) * HASH_BYTES])


def verify_inclusion(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Returns when a leaf is in the tree of a root.

    Args:
        leaf: Hash of the leaf.
        index: Its place, from 0.
        size: Leaves of the tree.
        proof: What `Tree.inclusion_proof` gave.
        root: The root hash that is trusted.

    Raises:
        AuditLogError: If it is not shown to be there.

    References:
        RFC 9162, section 2.1.3.2.
    """
    if not 0 <= index < size:
        raise AuditLogError(f"the proof is for entry {index} of {size}, which cannot be")
    position, last, joined = index, size - 1, leaf
    for hash_ in proof:
        if last == 0:
            raise AuditLogError("the proof of inclusion is longer than the tree is high")
        if position & 1 or position == last:
            joined = _node_hash(hash_, joined)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            joined = _node_hash(joined, hash_)
        position, last = position >> 1, last >> 1
    if last or joined != root:
        raise AuditLogError(
            f"what was given as entry {index} is not in the log of {size} entries that the checkpoint signs"
        )


def verify_consistency(*, old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Returns when the tree of one root begins with that of another: nothing was changed or taken out.

    Args:
        old_size: Leaves of the smaller tree.
        old_root: Its root hash.
        size: Leaves of the larger tree.
        root: Its root hash.
        proof: What `Tree.consistency_proof` gave.

    Raises:
        AuditLogError: If that is not shown.

    References:
        RFC 9162, section 2.1.4.2.
    """
    refusal = AuditLogError(
        f"the log of {size} entries is not shown to go on from the one of {old_size}: the log was rewritten, or the "
        "proof was changed"
    )
    if not 0 <= old_size <= size:
        raise refusal
    if old_size in {0, size}:
        expected = EMPTY_ROOT if old_size == 0 else root
        if proof or old_root != expected:
            raise refusal
        return
    position, last = old_size - 1, size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    rest = list(proof)
    # An old tree that is one complete subtree is its own first node, which the proof leaves out.
    old_joined = new_joined = old_root if not position else (rest.pop(0) if rest else b"")
    for hash_ in rest:
        if last == 0:
            raise refusal
        if position & 1 or position == last:
            old_joined, new_joined = _node_hash(hash_, old_joined), _node_hash(hash_, new_joined)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new_joined = _node_hash(new_joined, hash_)
        position, last = position >> 1, last >> 1
    if last or old_joined != old_root or new_joined != root:
        raise refusal


def _left_size(size: int) -> int:
    """Returns the largest power of two below a size of at least 2."""
    return 1 << (size - 1).bit_length() - 1
