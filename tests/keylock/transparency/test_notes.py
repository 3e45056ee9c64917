"""Notes, checkpoints and proofs as files: the published example, and everything that may be wrong with one."""

import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rfc6962 import mth, path, subproof

from keylock.crypto.signing import SigningKey
from keylock.errors import AuditLogError
from keylock.transparency import (
    Checkpoint,
    ConsistencyProof,
    InclusionProof,
    NoteKey,
    open_note,
    sign_note,
)

# The example of the format's reference implementation.
NAME = "PeterNeumann"
VERIFIER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SIGNER = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NOTE = (
    TEXT
    + "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENTRIES = [f"entry {number}".encode() for number in range(11)]
ORIGIN = "example.com/log"
KEY = SigningKey.generate()
TRUSTED = [NoteKey(ORIGIN, KEY.verifying_key)]


def checkpoint(size=11, *, origin=ORIGIN, key=KEY):
    return Checkpoint(origin, size, mth(ENTRIES[:size])).sign(key)


def test_the_published_example_opens():
    key = NoteKey.parse(VERIFIER)
    assert key.name == NAME
    assert str(key) == VERIFIER
    assert open_note(NOTE, [key]) == TEXT


def test_the_published_example_is_what_its_key_signs():
    secret = base64.b64decode(SIGNER)
    assert secret[0] == 1
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(secret[1:]))
    assert str(NoteKey(NAME, key.verifying_key)) == VERIFIER
    assert sign_note(TEXT, name=NAME, key=key) == NOTE


def test_further_signatures_of_unknown_keys_do_not_count():
    other = SigningKey.generate()
    second = sign_note(TEXT, name="somebody", key=other).rpartition("\n\n")[2]
    assert open_note(NOTE + second, [NoteKey.parse(VERIFIER)]) == TEXT
    assert open_note(NOTE + second, [NoteKey("somebody", other.verifying_key)]) == TEXT


@pytest.mark.parametrize(
    ("note", "what"),
    [
        (NOTE.replace("cryptography", "Cryptography"), "changed"),
        (NOTE.replace("\n— ", "— "), "malformed"),
        (NOTE[:-1], "malformed"),
        (NOTE.replace("— ", "- "), "malformed"),
        (NOTE.replace("x08go", "x08go="), "malformed"),
        (NOTE.replace("nAM=", "nAN="), "malformed"),
        (NOTE.replace("x08go/ZJ", "x08go/ZK"), "changed"),
        (NOTE.replace("— PeterNeumann", "— Somebody"), "not signed"),
        (TEXT, "malformed"),
        ("", "malformed"),
        (TEXT.replace("your", "your\t") + NOTE[len(TEXT) :], "control"),
        ("x" * 70_000 + "\n" + NOTE, "too long"),
        (TEXT + "\n" + NOTE[len(TEXT) + 1 :] * 101, "malformed"),
        (NOTE.replace("\n\n—", "\n\n\n—"), "changed"),
    ],
)
def test_a_note_that_was_changed_is_refused(note, what):
    with pytest.raises(AuditLogError, match=what):
        open_note(note, [NoteKey.parse(VERIFIER)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PeterNeumann",
        VERIFIER.replace("c74f20a3", "c74f20a4"),
        VERIFIER.replace("PeterNeumann", "Peter Neumann"),
        VERIFIER.replace("PeterNeumann", "Paul"),
        VERIFIER.replace("ARpc", "AhpC"),
        VERIFIER[:-4],
        VERIFIER + "=",
        VERIFIER.replace("PeterNeumann", ""),
    ],
)
def test_a_key_that_was_changed_is_refused(text):
    with pytest.raises(AuditLogError):
        NoteKey.parse(text)


@pytest.mark.parametrize("text", ["no newline", "a\ttab\n", "", "a\r\n"])
def test_a_text_that_is_no_note_is_not_signed(text):
    with pytest.raises(AuditLogError, match="newline"):
        sign_note(text, name="log", key=KEY)


def test_a_checkpoint_says_what_it_was_made_of():
    note = checkpoint(7)
    assert note.startswith(f"{ORIGIN}\n7\n{base64.b64encode(mth(ENTRIES[:7])).decode()}\n\n— {ORIGIN} ")
    assert Checkpoint.open(note, TRUSTED) == Checkpoint(ORIGIN, 7, mth(ENTRIES[:7]))


def test_extensions_of_a_checkpoint_are_signed():
    plain = Checkpoint(ORIGIN, 3, mth(ENTRIES[:3]))
    note = sign_note(plain.text() + "an extension\n", name=ORIGIN, key=KEY)
    assert Checkpoint.open(note, TRUSTED) == replace(plain, extensions=("an extension",))
    assert Checkpoint.open(note, TRUSTED).text() == plain.text() + "an extension\n"


ROOT = base64.b64encode(mth(ENTRIES)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{ORIGIN}\n",
        f"{ORIGIN}\n11\n",
        f"{ORIGIN}\n011\n{ROOT}\n",
        f"{ORIGIN}\n-1\n{ROOT}\n",
        f"{ORIGIN}\n{10**30}\n{ROOT}\n",
        f"{ORIGIN}\n٣\n{ROOT}\n",
        f"{ORIGIN}\n11\n{ROOT[:-4]}\n",
        f"{ORIGIN}\n11\nno base64\n",
        f"\n11\n{ROOT}\n",
        f"{ORIGIN}\n11\n{ROOT}",
        f"{ORIGIN}\n11\n{ROOT}\n\nmore\n",
    ],
)
def test_a_text_that_is_no_checkpoint_is_refused(text):
    with pytest.raises(AuditLogError, match="malformed"):
        Checkpoint.parse(text)


def opened(note):
    return Checkpoint.open(note, TRUSTED)


def inclusion(index=4, size=11):
    return InclusionProof(index, tuple(path(index, ENTRIES[:size])), checkpoint(size))


def consistency(old=6):
    return ConsistencyProof(old, tuple(subproof(old, ENTRIES, True)), checkpoint())


def test_proofs_survive_being_written():
    for proof in (inclusion(), inclusion(0, 1)):
        assert InclusionProof.parse(str(proof)) == proof
    assert ConsistencyProof.parse(str(consistency())) == consistency()
    extra = str(inclusion()).replace("\nindex", "\nextra aGVsbG8=\nindex")
    assert InclusionProof.parse(extra) == inclusion()


def test_a_proof_of_inclusion_holds_for_its_entry():
    assert inclusion().verify(ENTRIES[4], opened).size == len(ENTRIES)
    with pytest.raises(AuditLogError, match="entry 4 is not"):
        inclusion().verify(ENTRIES[5], opened)
    with pytest.raises(AuditLogError, match="not signed"):
        inclusion().verify(
            ENTRIES[4], lambda note: Checkpoint.open(note, [NoteKey(ORIGIN, SigningKey.generate().verifying_key)])
        )


def test_a_proof_of_consistency_holds_for_its_log():
    old = Checkpoint.open(checkpoint(6), TRUSTED)
    assert consistency().verify(old, opened).size == len(ENTRIES)
    with pytest.raises(AuditLogError, match="do not belong together"):
        consistency().verify(opened(checkpoint(7)), opened)
    with pytest.raises(AuditLogError, match="do not belong together"):
        consistency().verify(Checkpoint("elsewhere", old.size, old.root), opened)
    with pytest.raises(AuditLogError, match="rewritten"):
        consistency().verify(Checkpoint(ORIGIN, 6, mth(ENTRIES[1:7])), opened)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tlog-proof@v1", "tlog-proof@v2"),
        ("index 4", "index four"),
        ("index 4", "index -4"),
        ("index 4", "index " + "4" * 25),
        ("index 4", "old 4"),
        ("index 4\n", "index 4\nnot base64\n"),
        ("index 4\n", "index 4\nAAAA\n"),
        ("\n\n", "\n"),
        ("index 4\n", "index 4\n" + (ROOT + "\n") * 200),
    ],
)
def test_a_file_that_is_no_proof_is_refused(old, new):
    text = str(inclusion())
    assert old in text
    with pytest.raises(AuditLogError):
        InclusionProof.parse(text.replace(old, new)).verify(ENTRIES[4], opened)
