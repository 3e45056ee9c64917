"""The receipt of an answer: verified when the answer is read, and again whenever its owner wants to know.

The license says whom to trust: its issuer certifies the keys that sign receipts. The modules behind this one are
imported when the first receipt comes, because callers without a license never need them.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from keylock.errors import AuditLogError, ReceiptError
from keylock.v1 import explanation_pb2 as pb
from keylock_client._checks import Asked, check_answer, check_receipt
from keylock_client.charges import Proof, Receipt
from keylock_client.errors import BadReceiptError

if TYPE_CHECKING:
    from keylock.crypto.signing import VerifyingKey
    from keylock.licensing.receipts import Receipt as VerifiedReceipt
    from keylock.licensing.revocations import Revocations
    from keylock.transparency import Checkpoint

__all__ = ["Question", "Trust", "newer", "question", "read_proof", "read_receipt", "verify_receipt"]


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose receipts to trust.

    Attributes:
        keys: Issuers that were named.
        key_id: Id of the key that issued the license, where none was named.
        licensed: Whether a license is presented.
        license_id: Its id; None where what is presented is not a license but was made of one.
    """

    keys: "tuple[VerifyingKey, ...]" = ()
    key_id: str | None = None
    licensed: bool = False
    license_id: str | None = None

    @classmethod
    def make(cls, issuers: "Sequence[VerifyingKey]", token: str | None) -> Self:
        """Returns the trust in the issuers named, or in the one that issued a license.

        Args:
            issuers: Public keys of trusted issuers.
            token: The license, unverified: it came from the vendor and not from the server.
        """
        key_id, license_id = (None, None) if token is None else _said_by(token)
        return cls(tuple(issuers), None if issuers else key_id, token is not None, license_id)

    @property
    def known(self) -> bool:
        """Whether there is anybody to trust."""
        return bool(self.keys) or self.key_id is not None

    def test(self) -> "Callable[[VerifyingKey], bool]":
        """Returns the test that receipts are verified with; where nobody is known, any issuer passes."""
        if self.keys:
            return lambda issuer: issuer in self.keys
        return lambda issuer: self.key_id is None or issuer.key_id == self.key_id


def newer(known: "Revocations | None", token: str, trust: Trust) -> "Revocations | None":
    """Returns the later of two lists of receipt keys that were taken back.

    A list that does not hold counts for nothing: who could send such a one could as well send none.

    Args:
        known: The list that is known; None where none is.
        token: The list that a server sent; empty where it has none.
        trust: Whose lists to trust.
    """
    from keylock.licensing.revocations import Revocations

    try:
        sent = Revocations.read(token, trust.test()) if token else Revocations.none()
    except ReceiptError:
        return known
    return sent if known is None or sent.issued_at > known.issued_at else known


def read_receipt(
    answer: pb.ExplainResponse,
    maps: Sequence[bytes | bytearray],
    asked: Asked,
    trust: Trust,
    *,
    revoked: Collection[str] = frozenset(),
    expected: bool = False,
) -> Receipt | None:
    """Returns the receipt of an answer, or None where it has none. It covers all that the answer says.

    Args:
        answer: The answer.
        maps: The elements of its maps.
        asked: What was asked.
        trust: Whose receipts to trust, and for which license.
        revoked: Ids of receipt keys that were taken back.
        expected: Whether the server signs a receipt for whatever it charges.

    Raises:
        BadReceiptError: If the receipt does not hold, is for another answer, or is missing.
        BadAnswerError: If the answer has no receipt and is not the one to what was asked.
    """
    if not answer.receipt:
        if expected and trust.licensed:
            raise BadReceiptError(
                "the answer has no receipt, and this server signs one for every answer with a license: do not rely on "
                "the answer",
                request_id=asked.request_id,
            )
        check_answer(answer, asked, licensed=trust.licensed, license_id=trust.license_id)
        return None
    try:
        if not trust.licensed:
            raise ReceiptError("the answer has a receipt, and no license was presented that could have been charged")
        verified = _verify(answer.receipt, trust, revoked)
        check_receipt(verified, answer, maps, asked, license_id=trust.license_id)
    except ReceiptError as error:
        hint = "" if ": " in error.message else ": do not rely on the answer, and ask the vendor"
        raise BadReceiptError(error.message + hint, request_id=asked.request_id) from None
    return _describe(verified, trust)


def verify_receipt(
    receipt: Receipt | str, trust: Trust, *, proof: str | None = None, revoked: Collection[str] = frozenset()
) -> Receipt:
    """Verifies a receipt that was kept.

    Args:
        receipt: The receipt, or its token.
        trust: Whose receipts to trust.
        proof: A proof that it is in the vendor's log; with it a receipt holds although its key was taken back.
        revoked: Ids of receipt keys that were taken back.

    Raises:
        ReceiptError: If it does not hold, or nobody is known who could be trusted.
        AuditLogError: If it is not shown to be in the log.
    """
    verified = _verify_known(receipt, trust, revoked if proof is None else ())
    if proof is not None:
        from keylock.transparency import InclusionProof

        InclusionProof.parse(proof).verify(verified.entry, lambda signed: _open(signed, trust, revoked))
    return _describe(verified, trust)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for a proof, and what its answer is compared with.

    Attributes:
        entry: What must be in the log.
        leaf: Its hash as a leaf.
        since: The checkpoint that the log must go on from; None where none was kept.
    """

    entry: bytes
    leaf: bytes
    since: "Checkpoint | None"


def question(receipt: Receipt | str, trust: Trust, *, since: str | None, revoked: Collection[str]) -> Question:
    """Prepares to ask for a proof.

    Args:
        receipt: The receipt, or its token.
        trust: Whose receipts to trust.
        since: A checkpoint that was kept.
        revoked: Ids of receipt keys that were taken back.

    Raises:
        ReceiptError: If the receipt does not hold, or nobody is known who could be trusted.
        AuditLogError: If the checkpoint is not to be trusted.
    """
    from keylock.transparency import leaf_hash

    # Its key may have been taken back: the proof is what counts then.
    entry = _verify_known(receipt, trust, ()).entry
    return Question(entry, leaf_hash(entry), None if since is None else _open(since, trust, revoked))


def read_proof(
    asked: Question, *, inclusion: str, consistency: str, trust: Trust, revoked: Collection[str] = frozenset()
) -> Proof:
    """Returns what a proof shows.

    Args:
        asked: What was asked.
        inclusion: The proof that the entry is in the log.
        consistency: The proof that the log goes on from the checkpoint that was kept.
        trust: Whose checkpoints to trust.
        revoked: Ids of receipt keys that were taken back.

    Raises:
        BadReceiptError: If it does not show that.
    """
    from keylock.transparency import ConsistencyProof, InclusionProof

    try:
        proof = InclusionProof.parse(inclusion)
        state = proof.verify(asked.entry, lambda signed: _open(signed, trust, revoked))
        if asked.since is not None:
            later = ConsistencyProof.parse(consistency).verify(
                asked.since, lambda signed: _open(signed, trust, revoked)
            )
            if later != state:
                raise AuditLogError("the two proofs lead to different checkpoints")
    except AuditLogError as error:
        raise BadReceiptError(f"the server does not prove the receipt: {error.message}", request_id="") from None
    return Proof(inclusion, index=proof.index, size=state.size, log=state.origin, checkpoint=proof.checkpoint)


def _open(note: str, trust: Trust, revoked: Collection[str]) -> "Checkpoint":
    from keylock.licensing.receipt_keys import open_checkpoint

    return open_checkpoint(note, trust.test(), revoked=revoked)


def _verify_known(receipt: Receipt | str, trust: Trust, revoked: Collection[str]) -> "VerifiedReceipt":
    if not trust.known:
        raise ReceiptError("nobody is known who could be trusted: give the client a license, or issuer=")
    return _verify(receipt if isinstance(receipt, str) else receipt.token, trust, revoked)


def _verify(token: str, trust: Trust, revoked: Collection[str]) -> "VerifiedReceipt":
    from keylock.licensing.receipts import Receipt as VerifiedReceipt

    return VerifiedReceipt.verify(token, trust.test(), revoked=revoked)


def _describe(verified: "VerifiedReceipt", trust: Trust) -> Receipt:
    charge = verified.charge
    return Receipt(
        token=verified.token,
        license_id=charge.license_id,
        request_id=charge.request_id,
        model_digest=charge.model_digest,
        explainer=charge.explainer,
        parameters=charge.parameters,
        keyed=charge.keyed,
        units=charge.units,
        time=charge.time,
        image_digests=charge.image_digests,
        map_digests=charge.answer.maps,
        target=charge.target,
        repeated=charge.repeats is not None,
        issuer=verified.certificate.issuer.key_id,
        trusted=trust.known,
    )


def _said_by(token: str) -> tuple[str | None, str | None]:
    """Returns the ids of the key and of the license that a license names, or None where the token is not a license."""
    from pydantic_core import from_json

    from keylock.crypto.jws import unverified_header
    from keylock.crypto.signing import decode_base64url

    header = unverified_header(token)
    key_id = header.get("kid")
    if header.get("typ") != "keylock-license+jws" or not isinstance(key_id, str):
        return None, None
    try:
        said = from_json(decode_base64url(token.split(".")[1]))
    except (ValueError, IndexError):
        return key_id, None
    license_id = said.get("jti") if isinstance(said, dict) else None
    return key_id, license_id if isinstance(license_id, str) else None
