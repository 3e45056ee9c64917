"""`keylock issuer`: the key that signs bundles and licenses."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, new_app, note, print_json, print_pairs
from keylock.cli._home import DEFAULT_HOME, HomeOption, open_home
from keylock.files.atomic import PUBLIC, write_file

if TYPE_CHECKING:
    from keylock.crypto.signing import Home

__all__ = ["issuer_app"]

issuer_app = new_app("Make, show and change the issuer key that signs bundles and licenses.")


@issuer_app.command("init")
def issuer_init(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Make the issuer key, once; where there is one it is kept."""
    from keylock.crypto.signing import Home

    existed = Home(home.expanduser()).signing_key_path.exists()
    opened = open_home(home, create=True)
    if not as_json:
        note("there is an issuer key already; it is kept" if existed else "made a new issuer key; back it up")
    _show_issuer(opened, as_json=as_json)


@issuer_app.command("show")
def issuer_show(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show the id and the public key of the issuer, and the ids of its old keys."""
    _show_issuer(open_home(home), as_json=as_json)


@issuer_app.command("receipt-key")
def issuer_receipt_key(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new file, for a server elsewhere. [receipts.pem in --home]")
    ] = None,
    days: Annotated[float, typer.Option(min=1, metavar="N", help="Days of validity.")] = 366,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Make a key that signs receipts and checkpoints for a server, and certify it with the issuer's key.

    The certificate is written beside it, as FILE with .cert. The server needs both, and not the issuer's key.
    """
    from keylock.errors import InputError
    from keylock.licensing.receipt_keys import ReceiptKey, certificate_path

    opened = open_home(home)
    path = opened.receipt_key_path if out is None else out
    now = datetime.now(UTC)
    try:
        expires = now + timedelta(days=days)
    except OverflowError:
        raise InputError("--days is too large: no calendar reaches that far") from None
    made = ReceiptKey.create(path, opened.signing_key(), not_before=now, expires=expires)
    if as_json:
        print_json(
            {
                "key_id": made.key.key_id,
                "key_file": path,
                "certificate_file": certificate_path(path),
                "expires": made.certificate.expires,
            }
        )
        return
    note(f"it may sign until {made.certificate.expires:%Y-%m-%d}; then make another and start the server with it")
    print_pairs([("receipt key", made.key.key_id), ("file", path), ("certificate", certificate_path(path))])


@issuer_app.command("revoke-receipt-key")
def issuer_revoke_receipt_key(
    key_id: Annotated[
        str | None, typer.Argument(metavar="KEY_ID", help="Id of the receipt key; without it nothing is taken back.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Take a receipt key back that has become known, and show the list of those that were.

    Servers with the vendor's directory hand the signed list out at once, and clients refuse what the key signed; to
    servers elsewhere give the file. Then make another: keylock issuer receipt-key.
    """
    from keylock.crypto.issuers import home_keys
    from keylock.errors import InputError
    from keylock.licensing.receipts import trusts_any
    from keylock.licensing.revocations import RevocationFile

    opened = open_home(home)
    file = RevocationFile(opened.revocations_path)
    revocations = file.read(trusts_any(home_keys(opened)))
    if key_id is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{15}", key_id):
            raise InputError(f"{key_id!r} is not an id of a key: it has 16 letters and digits, as kid in a receipt")
        revocations = revocations.with_key(key_id, opened.signing_key(), now=datetime.now(UTC))
        file.write(revocations)
    if as_json:
        print_json({"keys": sorted(revocations.keys), "file": file.path})
        return
    print_pairs([*(("taken back", key) for key in sorted(revocations.keys)), ("file", file.path)])


@issuer_app.command("rotate")
def issuer_rotate(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Make a new issuer key. The old ones go on to verify what they signed, until they are retired.

    Servers that trust the directory, or its issuers.jwks, know the new key within seconds.
    """
    from keylock.crypto.issuers import rotate

    opened = open_home(home)
    rotate(opened)
    if not as_json:
        note("made a new issuer key; back it up. The old one verifies until: keylock issuer retire")
    _show_issuer(opened, as_json=as_json)


@issuer_app.command("retire")
def issuer_retire(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="Id of an old key.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """End the time of an old key: what it signed is refused from now on, and the key is removed."""
    from keylock.crypto.issuers import retire

    opened = open_home(home)
    retire(opened, key_id)
    _show_issuer(opened, as_json=as_json)


@issuer_app.command("jwks")
def issuer_jwks(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to a file instead of the screen.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Print the public keys of the issuer, that of today first, as a JWKS."""
    import json

    from keylock.crypto.issuers import home_keys, to_jwks

    document = to_jwks(home_keys(open_home(home)))
    if out is None:
        print_json(document)
    else:
        write_file(out, json.dumps(document, indent=2) + "\n", mode=PUBLIC)
        typer.echo(str(out))


def _show_issuer(home: "Home", *, as_json: bool) -> None:
    from keylock.crypto.issuers import home_keys

    key = home.verifying_key()
    old = [one.key_id for one in home_keys(home) if one != key]
    if as_json:
        shown = {"key_id": key.key_id, "public_key": key.to_jwk(), "public_key_file": home.verifying_key_path}
        print_json({**shown, "old_key_ids": old})
        return
    pairs: list[tuple[str, object]] = [("issuer", key.key_id), ("public key", home.verifying_key_path)]
    print_pairs([*pairs, ("old keys", ", ".join(old))] if old else pairs)
    typer.echo(key.to_pem().decode("ascii"), nl=False)
