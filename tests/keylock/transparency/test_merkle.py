"""The tree against published vectors and against the recursive definitions of RFC 6962, written down naively."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rfc6962 import mth, path, subproof

from keylock.errors import AuditLogError
from keylock.transparency import EMPTY_ROOT, Frontier, Tree, leaf_hash, verify_consistency, verify_inclusion

# The entries and root hashes of the reference implementation of Certificate Transparency.
ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
INCLUSION_5_OF_8 = [
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
]
CONSISTENCY_6_TO_8 = [
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
]
CONSISTENCY_2_TO_5 = [
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
]


def numbered(size):
    return [size.to_bytes(2, "big") + index.to_bytes(2, "big") for index in range(size)]


def tree_of(leaves):
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf)
    return tree


TREE = tree_of(LEAVES)


def test_root_hashes_are_those_of_certificate_transparency():
    assert [TREE.root(size) for size in range(9)] == [mth(ENTRIES[:size]) for size in range(9)] == ROOTS
    assert ROOTS[0] == EMPTY_ROOT


def test_proofs_are_those_of_certificate_transparency():
    assert [hash_.hex() for hash_ in TREE.inclusion_proof(5, size=8)] == INCLUSION_5_OF_8
    assert TREE.inclusion_proof(2, size=3) == [ROOTS[2]]
    assert [hash_.hex() for hash_ in TREE.consistency_proof(6, size=8)] == CONSISTENCY_6_TO_8
    assert [hash_.hex() for hash_ in TREE.consistency_proof(2, size=5)] == CONSISTENCY_2_TO_5


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 31, 33])
def test_trees_and_proofs_are_those_of_the_definitions(size):
    entries = numbered(size)
    leaves = [leaf_hash(entry) for entry in entries]
    root, tree = mth(entries), tree_of(leaves)
    assert tree.root(size) == root
    for index in range(size):
        proof = tree.inclusion_proof(index, size=size)
        assert proof == path(index, entries)
        verify_inclusion(leaves[index], index=index, size=size, proof=proof, root=root)
    for old in range(1, size + 1):
        proof = tree.consistency_proof(old, size=size)
        assert proof == subproof(old, entries, True)
        verify_consistency(old_size=old, old_root=mth(entries[:old]), size=size, root=root, proof=proof)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 300), data=st.data())
def test_a_proof_of_inclusion_holds_for_its_entry_place_and_tree_alone(size, data):
    leaves = [leaf_hash(entry) for entry in numbered(size)]
    tree = tree_of(leaves)
    root = tree.root(size)
    index = data.draw(st.integers(0, size - 1))
    proof = tree.inclusion_proof(index, size=size)
    verify_inclusion(leaves[index], index=index, size=size, proof=proof, root=root)
    place = data.draw(st.integers(0, max(0, len(proof) - 1)))
    flipped = [*proof]
    if proof:
        flipped[place] = bytes([proof[place][0] ^ 1, *proof[place][1:]])
    other = (index + data.draw(st.integers(1, size))) % (size + 1)
    tampered = [
        {"leaf": leaf_hash(b"another entry")},
        {"proof": [*proof, root]},
        {"root": leaf_hash(root)},
        {"index": size},
        {"index": -1},
        *([{"proof": flipped}, {"proof": proof[:-1]}] if proof else []),
        *([{"index": other}] if other not in (index, size) else []),
    ]
    right = {"leaf": leaves[index], "index": index, "size": size, "proof": proof, "root": root}
    for change in tampered:
        wrong = right | change
        with pytest.raises(AuditLogError):
            verify_inclusion(wrong.pop("leaf"), **wrong)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(2, 300), data=st.data())
def test_a_proof_of_consistency_holds_for_its_two_trees_alone(size, data):
    leaves = [leaf_hash(entry) for entry in numbered(size)]
    tree = tree_of(leaves)
    old = data.draw(st.integers(1, size - 1))
    proof = tree.consistency_proof(old, size=size)
    right = {"old_size": old, "old_root": tree.root(old), "size": size, "root": tree.root(size), "proof": proof}
    verify_consistency(**right)
    other = [*leaves]
    other[data.draw(st.integers(0, old - 1))] = leaf_hash(b"rewritten")
    rewritten = tree_of(other)
    place = data.draw(st.integers(0, len(proof) - 1))
    tampered = [
        {"root": rewritten.root(size), "proof": rewritten.consistency_proof(old, size=size)},
        {"old_root": rewritten.root(old)},
        {"proof": [*proof, leaves[0]]},
        {"proof": proof[:-1]},
        {"proof": [*proof[:place], leaf_hash(b""), *proof[place + 1 :]]},
        {"old_size": size, "old_root": right["old_root"]},
        {"old_size": size + 1},
        {"old_size": 0},
    ]
    for change in tampered:
        with pytest.raises(AuditLogError, match="rewritten"):
            verify_consistency(**(right | change))


def test_every_log_goes_on_from_the_empty_one_and_from_itself():
    verify_consistency(old_size=0, old_root=EMPTY_ROOT, size=8, root=ROOTS[8], proof=[])
    verify_consistency(old_size=8, old_root=ROOTS[8], size=8, root=ROOTS[8], proof=[])
    assert TREE.consistency_proof(0, size=8) == TREE.consistency_proof(8, size=8) == []
    with pytest.raises(AuditLogError):
        verify_consistency(old_size=8, old_root=ROOTS[7], size=8, root=ROOTS[8], proof=[])


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4))
def test_a_frontier_goes_on_from_its_state(sizes):
    entries, frontier = [], Frontier()
    for size in sizes:
        frontier = Frontier(frontier.size, frontier.state)
        for entry in numbered(size):
            entries.append(entry)
            frontier.append(leaf_hash(entry))
        assert frontier.size == len(entries)
        assert frontier.root() == mth(entries)


@pytest.mark.parametrize(("size", "state"), [(1, b""), (0, b"x" * 32), (3, b"x" * 32), (2, b"x" * 31), (-1, b"x" * 32)])
def test_a_state_of_another_size_is_refused(size, state):
    with pytest.raises(AuditLogError, match="does not belong"):
        Frontier(size, state)


@pytest.mark.parametrize("index", [-1, 8])
def test_there_is_no_proof_for_an_entry_that_is_not_there(index):
    with pytest.raises(AuditLogError, match="no entry"):
        TREE.inclusion_proof(index, size=8)
    with pytest.raises(AuditLogError, match="cannot go on"):
        TREE.consistency_proof(index + 1 if index > 0 else index, size=8)


def test_a_leaf_never_passes_for_a_node():
    # Without the prefixes, an entry made of two hashes would have the root of the tree of the two.
    assert leaf_hash(LEAVES[0] + LEAVES[1]) != TREE.root(2)


def test_a_tree_gives_the_roots_and_proofs_of_all_its_earlier_states():
    entries = numbered(70)
    tree = tree_of(map(leaf_hash, entries))
    for size in (1, 2, 3, 7, 8, 33, 64, 69, 70):
        first = entries[:size]
        assert tree.root(size) == mth(first)
        for index in range(size):
            assert tree.inclusion_proof(index, size=size) == path(index, first)
            assert tree.consistency_proof(index + 1, size=size) == subproof(index + 1, first, True)
    for wrong in (lambda: tree.root(71), lambda: tree.inclusion_proof(70, size=99), lambda: tree.root(-1)):
        with pytest.raises(AuditLogError):
            wrong()
