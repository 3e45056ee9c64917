"""`keylock verify-audit`: check the report of an audit, with what the client's install has."""

from pathlib import Path
from typing import Annotated

import typer

from keylock.cli._console import JsonOption, print_json, print_pairs
from keylock.cli._home import IssuerOption, read_issuers
from keylock.cli._receipts import read_small_text
from keylock.errors import SignatureError

__all__ = ["verify_audit"]


def verify_audit(
    report: Annotated[Path, typer.Argument(metavar="AUDIT.JSON", help="The audit.json of a report.")],
    issuer: IssuerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that the report of an audit is as the vendor signed it.

    With --issuer it must be signed by one of these keys. Where report.html is beside it, that is checked too.
    """
    from keylock.auditreport import PAGE_FILE
    from keylock.auditreport import verify_audit as verify
    from keylock.crypto.digests import digest_of

    found = verify(read_small_text(report, "signed audit"), trusted=read_issuers(issuer))
    page = report.with_name(PAGE_FILE)
    beside = page.is_file()
    if beside and digest_of(page.read_bytes()) != found.page:
        raise SignatureError(f"{page} is not the page that was signed with these figures")
    record = found.record
    failed = [one.finding.attack for one in record.judged if one.verdict == "fail"]
    if as_json:
        print_json(
            {
                "model_digest": record.model_digest,
                "created": record.created,
                "suite": record.suite,
                "issuer": found.key_id,
                "issuer_trusted": found.trusted,
                "page": page if beside else None,
                "failed": failed,
            }
        )
        return
    print_pairs(
        [
            ("signature", "good"),
            ("issuer", found.key_id + (" (trusted)" if found.trusted else " (not checked: give --issuer)")),
            ("page", "as signed" if beside else "not beside it"),
            ("model", f"{record.model} {record.model_digest}"),
            ("audit", f"suite {record.suite}, {record.created:%Y-%m-%d %H:%M} UTC, {record.about}"),
            ("failed", ", ".join(failed) or "none"),
        ]
    )
