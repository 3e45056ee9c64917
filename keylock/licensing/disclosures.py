"""Disclosures: explanations that somebody has a right to. Why one is made, and about whom, without saying who it is."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final, Self

from keylock.errors import InputError, UnknownNameError
from keylock.v1 import explanation_pb2 as pb

__all__ = ["DISCLOSURE_REASONS", "Disclosure", "reason_of", "subject_digest"]

DISCLOSURE_REASONS: Final[dict[str, "pb.DisclosureReason.ValueType"]] = {
    "affected_person": pb.DISCLOSURE_REASON_AFFECTED_PERSON,
    "authority": pb.DISCLOSURE_REASON_AUTHORITY,
    "court": pb.DISCLOSURE_REASON_COURT,
    "review": pb.DISCLOSURE_REASON_REVIEW,
}
"""Why something is disclosed, as the audit log has it; the names never change."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_LONGEST: Final = 200


@dataclass(frozen=True, slots=True)
class Disclosure:
    """What makes an explanation a disclosure.

    Attributes:
        reason: A name in `DISCLOSURE_REASONS`.
        subject: `sha256:` and the digest of a pseudonym of the one it is about; see `subject_digest`.
    """

    reason: str
    subject: str

    @classmethod
    def of(cls, message: pb.DiscloseRequest) -> Self:
        """Reads why a request is made, and about whom.

        Raises:
            InputError: If it does not say so; `field` says which field of the message is wrong.
        """
        names = {number: name for name, number in DISCLOSURE_REASONS.items()}
        if message.reason not in names:
            error = InputError(
                "a disclosure needs a reason: set it to AFFECTED_PERSON, AUTHORITY, COURT or REVIEW, as it is"
            )
            error.field = "reason"
            raise error
        if not _DIGEST.fullmatch(message.subject_digest):
            error = InputError(
                "a disclosure is about somebody: set subject_digest to 'sha256:' and the digest of a pseudonym, and "
                "keep the pseudonym to yourself"
            )
            error.field = "subject_digest"
            raise error
        return cls(names[message.reason], message.subject_digest)

    @classmethod
    def read(cls, said: Any) -> Self:  # noqa: ANN401 - any JSON
        """Reads what `said` writes.

        Raises:
            ValueError: If it is something else.
        """
        if not isinstance(said, dict) or said.keys() != {"reason", "subject"}:
            raise ValueError("no disclosure")
        made = cls(said["reason"], said["subject"])
        if made.reason not in DISCLOSURE_REASONS or not isinstance(made.subject, str):
            raise ValueError("no disclosure")
        if not _DIGEST.fullmatch(made.subject):
            raise ValueError("no disclosure")
        return made

    def said(self) -> dict[str, Any]:
        """Returns it as entries of the audit log and digests have it."""
        return {"reason": self.reason, "subject": self.subject}


def reason_of(name: str) -> "pb.DisclosureReason.ValueType":
    """Returns the value in messages of a reason.

    Args:
        name: Its name; hyphens count as underscores.

    Raises:
        InputError: If it is empty: a disclosure needs a reason.
        UnknownNameError: If there is no such reason.
    """
    plain = name.replace("-", "_").lower()
    if not plain:
        raise InputError(f"a disclosure needs a reason: one of {', '.join(DISCLOSURE_REASONS)}")
    if plain not in DISCLOSURE_REASONS:
        raise UnknownNameError("reason of a disclosure", name, DISCLOSURE_REASONS)
    return DISCLOSURE_REASONS[plain]


def subject_digest(subject: str, *, license_id: str) -> str:
    """Returns what a subject is called where it is not known: the digest of license and pseudonym.

    The license is part of it, so that one pseudonym with two customers has two digests. Whoever guesses a pseudonym
    finds it out from its digest: take a random one and keep the list, never a name or a number that others know.

    Args:
        subject: The pseudonym, 1 to 200 characters.
        license_id: Id of the caller's license.

    Raises:
        InputError: If there is none, or it is longer.
    """
    if not 0 < len(subject) <= _LONGEST:
        raise InputError(f"the subject of a disclosure is a pseudonym of 1 to {_LONGEST} characters")
    said = b"\0".join((b"keylock-subject", license_id.encode(), subject.encode("utf-8", "surrogatepass")))
    return "sha256:" + hashlib.sha256(said).hexdigest()
