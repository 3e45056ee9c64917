"""`keylock audit-log`: the vendor's side of the log of everything charged, and checking a proof from it anywhere."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, new_app, note, print_json, print_pairs
from keylock.cli._home import DEFAULT_HOME, HomeOption, IssuerOption
from keylock.cli._receipts import TrustedLicenseOption, find_trust, read_revoked, read_small_text
from keylock.cli._store import StoreOption, open_store
from keylock.files.atomic import PUBLIC, write_file

if TYPE_CHECKING:
    from keylock.licensing.receipt_keys import ReceiptKey
    from keylock.transparency import Checkpoint

__all__ = ["app"]

app = new_app("Verify, prove and sign the log of everything charged.")

CheckpointOption = Annotated[
    list[Path] | None,
    typer.Option("--checkpoint", metavar="FILE", help="A checkpoint that was kept elsewhere; may be repeated."),
]


@app.command("verify")
def audit_log_verify(
    checkpoint: CheckpointOption = None,
    store: StoreOption = None,
    issuer: IssuerOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Verify every entry, the tree over them, and every checkpoint that was signed; name the first thing wrong.

    A log that was rewritten together with its checkpoints shows only against one that was kept elsewhere: --checkpoint.
    """
    from keylock.licensing.receipt_keys import open_checkpoint
    from keylock.licensing.receipts import parse_entry
    from keylock.store import log_table

    trusts = find_trust(issuer, home)
    known = [read_small_text(path, "checkpoint") for path in checkpoint or ()]
    with open_store(store, home) as opened, opened.database.transaction(snapshot=True) as connection:
        verified = log_table.verify(
            connection,
            open_checkpoint=lambda signed: open_checkpoint(signed, trusts),
            check_entry=parse_entry,
            known=known,
        )
    state = verified.checkpoint
    if as_json:
        print_json(
            {
                "origin": state.origin,
                "size": state.size,
                "root": state.root.hex(),
                "checkpoints": verified.checkpoints,
            }
        )
        return
    if not verified.checkpoints:
        note("no checkpoint was signed yet, so nothing but the log speaks for itself: keylock audit-log checkpoint")
    print_pairs(
        [
            ("log", state.origin),
            ("entries", f"{state.size}, none changed or missing"),
            ("root hash", state.root.hex()),
            ("checkpoints", f"{verified.checkpoints}, all of this log"),
        ]
    )


@app.command("checkpoint")
def audit_log_checkpoint(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write it to this file, replacing it.")] = None,
    receipt_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The receipt key that signs. [receipts.pem in --home]")
    ] = None,
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Sign the size and root hash of the log.

    Give checkpoints to customers and auditors: a log that was rewritten later does not go on from them.
    """
    from keylock.store import log_table
    from keylock.transparency import Checkpoint

    key = _receipt_key(receipt_key, home)
    now = datetime.now(UTC)
    with open_store(store, home) as opened, opened.database.transaction(writes=True) as connection:
        signed = log_table.sign_checkpoint(connection, lambda state: key.sign_checkpoint(state, at=now), at=now)
    if out is not None:
        write_file(out, signed, mode=PUBLIC)
    if as_json:
        state = Checkpoint.parse_unverified(signed)
        print_json({"origin": state.origin, "size": state.size, "root": state.root.hex(), "note": signed})
        return
    typer.echo(signed, nl=False)


@app.command("prove")
def audit_log_prove(
    receipt: Annotated[Path | None, typer.Argument(metavar="RECEIPT", help="A file with a receipt.")] = None,
    since: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An earlier checkpoint: prove that the log goes on from it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the proof to a file instead of the screen.")
    ] = None,
    store: StoreOption = None,
    issuer: IssuerOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Prove that a receipt is in the log, or that the log goes on from an earlier checkpoint.

    The proof leads to the newest checkpoint and carries it; whoever trusts the issuer can check it offline.
    """
    from keylock.errors import AuditLogError, InputError
    from keylock.licensing.receipt_keys import open_checkpoint
    from keylock.licensing.receipts import Receipt
    from keylock.store import log_table

    if (receipt is None) == (since is None):
        raise InputError("give a receipt or --since with an earlier checkpoint, one of them")
    trusts = find_trust(issuer, home)
    with open_store(store, home) as opened, opened.database.transaction(snapshot=True) as connection:
        latest = log_table.latest_checkpoint(connection)
        if latest is None:
            raise AuditLogError("no checkpoint was signed yet: keylock audit-log checkpoint")
        proof: object
        if receipt is not None:
            entry = Receipt.verify(read_small_text(receipt, "receipt"), trusts).entry
            proof = log_table.prove_inclusion(connection, entry, checkpoint=latest)
        elif since is not None:
            old = open_checkpoint(read_small_text(since, "checkpoint"), trusts)
            found = log_table.prove_consistency(connection, old.size, checkpoint=latest)
            found.verify(old, lambda signed: open_checkpoint(signed, trusts))
            proof = found
    if out is not None:
        write_file(out, str(proof), mode=PUBLIC)
    if as_json:
        print_json({"proof": str(proof), "file": out})
    elif out is not None:
        typer.echo(str(out))
    else:
        typer.echo(str(proof), nl=False)


@app.command("verify-proof")
def audit_log_verify_proof(
    proof: Annotated[Path, typer.Argument(metavar="PROOF", help="A file that keylock audit-log prove wrote.")],
    since: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The earlier checkpoint that the log must go on from.")
    ] = None,
    receipt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The receipt that must be in the log, in place of --since.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the newer checkpoint here, to keep in place of the old.")
    ] = None,
    revocations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The vendor's list of receipt keys that were taken back.")
    ] = None,
    issuer: IssuerOption = None,
    license_file: TrustedLicenseOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Check a proof offline, with the vendor's public key alone: no server and no store is asked.

    It shows that the log goes on from an earlier checkpoint, with nothing in it changed or taken out since, or that it
    holds a receipt.
    """
    from keylock.errors import InputError
    from keylock.licensing.receipt_keys import open_checkpoint
    from keylock.licensing.receipts import Receipt
    from keylock.transparency import ConsistencyProof, InclusionProof

    if (receipt is None) == (since is None):
        raise InputError("say what is to be shown: --since with the earlier checkpoint, or --receipt, one of them")
    trusts = find_trust(issuer, home, license_file)
    revoked = read_revoked(revocations, trusts)
    text = read_small_text(proof, "proof")

    def read(signed: str) -> "Checkpoint":
        return open_checkpoint(signed, trusts, revoked=revoked)

    shown: tuple[str, str]
    if since is not None:
        old = read(read_small_text(since, "checkpoint"))
        goes_on = ConsistencyProof.parse(text)
        state, signed = goes_on.verify(old, read), goes_on.checkpoint
        shown = "goes on", f"from {old.size} entries to {state.size}; none of the {old.size} was changed or taken out"
    elif receipt is not None:
        # Its key may have been taken back: the proof is what counts then.
        entry = Receipt.verify(read_small_text(receipt, "receipt"), trusts).entry
        holds = InclusionProof.parse(text)
        state, signed = holds.verify(entry, read), holds.checkpoint
        shown = "holds", f"the receipt, as entry {holds.index} of {state.size}"
    if out is not None:
        write_file(out, signed, mode=PUBLIC)
    if as_json:
        print_json({"log": state.origin, "size": state.size, "root": state.root.hex(), "checkpoint": signed})
        return
    print_pairs([("proof", "good"), ("log", state.origin), shown, ("root hash", state.root.hex())])


def _receipt_key(path: Path | None, home: Path) -> "ReceiptKey":
    from keylock.crypto.signing import Home
    from keylock.errors import SignatureError
    from keylock.licensing.receipt_keys import ReceiptKey

    default = Home(home.expanduser()).receipt_key_path
    if path is None and not default.is_file():
        raise SignatureError(f"there is no receipt key in {default.parent}: keylock issuer receipt-key makes one")
    return ReceiptKey.load(path or default)
