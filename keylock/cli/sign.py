"""`keylock sign`: a signature over a bundle that tools of others verify, beside the bundle's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, note, print_json
from keylock.cli._home import DEFAULT_HOME, HomeOption, open_home

if TYPE_CHECKING:
    from keylock.crypto.ecdsa import EcdsaSigningKey

__all__ = ["sign"]


def sign(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: a folder or a .klb file.")],
    oms: Annotated[bool, typer.Option("--oms", help="Sign as OpenSSF Model Signing 1.0 says, in model.sig.")] = False,
    oms_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Private key on P-256, P-384 or P-521 (PEM). [HOME/oms.pem, made where it is missing]"
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Add a signature to a bundle that tools which know nothing of keylock verify.

    It fits the bundle and every copy of it, public or not. The bundle's own signature stays, and is what keylock itself
    trusts. Tools of others read folders: for them, export a .klb file to a folder.
    """
    from keylock.bundle import add_model_signature, open_bundle
    from keylock.errors import InputError

    if not oms:
        raise InputError(
            "say --oms: a signature of OpenSSF Model Signing is the only kind that is added to a finished bundle"
        )
    opened = open_bundle(bundle, trusted=None)
    key, public = _find_key(oms_key, home)
    add_model_signature(opened, key)
    if as_json:
        print_json(
            {
                "bundle": bundle,
                "model_digest": opened.manifest.model_digest,
                "key": key.verifying_key.hint,
                "public_key_file": public,
            }
        )
        return
    if public is not None:
        note(f"whoever verifies it needs the public key: {public}")
    typer.echo(f"signed {bundle} with the key {key.verifying_key.hint[:16]}")


def _find_key(path: Path | None, home: Path) -> "tuple[EcdsaSigningKey, Path | None]":
    """Returns the key, and the file of its public half where it is the vendor's directory that has it."""
    from keylock.crypto.ecdsa import EcdsaSigningKey

    if path is not None:
        return EcdsaSigningKey.load(path), None
    opened = open_home(home)
    private, public = opened.oms_key_path, opened.oms_public_key_path
    if not private.exists():
        EcdsaSigningKey.generate().write(private)
        note(f"made a new key on P-256 for signatures of this kind: {private} (keep it secret, and a copy of it)")
    key = EcdsaSigningKey.load(private)
    if not public.exists():
        key.verifying_key.write(public)
    return key, public
