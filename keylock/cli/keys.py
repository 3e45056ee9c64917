"""`keylock issuer`: the key that signs bundles and licenses."""

from typing import TYPE_CHECKING

import typer

from keylock.cli._console import JsonOption, new_app, note, print_json, print_pairs
from keylock.cli._home import DEFAULT_HOME, HomeOption, open_home

if TYPE_CHECKING:
    from keylock.signing import Home

__all__ = ["issuer_app"]

issuer_app = new_app("Make and show the issuer key that signs bundles and licenses.")


@issuer_app.command("init")
def issuer_init(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Make the issuer key, once; where there is one it is kept."""
    from keylock.signing import Home

    existed = Home(home.expanduser()).signing_key_path.exists()
    opened = open_home(home, create=True)
    if not as_json:
        note("there is an issuer key already; it is kept" if existed else "made a new issuer key; back it up")
    _show_issuer(opened, as_json=as_json)


@issuer_app.command("show")
def issuer_show(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show the id and the public key of the issuer."""
    _show_issuer(open_home(home), as_json=as_json)


def _show_issuer(home: "Home", *, as_json: bool) -> None:
    key = home.verifying_key()
    if as_json:
        print_json({"key_id": key.key_id, "public_key": key.to_jwk(), "public_key_file": home.verifying_key_path})
        return
    print_pairs([("issuer", key.key_id), ("public key", home.verifying_key_path)])
    typer.echo(key.to_pem().decode("ascii"), nl=False)
