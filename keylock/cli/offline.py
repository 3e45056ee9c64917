"""`keylock offline-license`: a license and the key of its model in one file, sealed to a customer's key."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from keylock.cli._console import JsonOption, note, print_json
from keylock.cli._home import DEFAULT_HOME, HomeOption, own_issuers, read_issuers
from keylock.cli._receipts import read_license
from keylock.cli.key import KeyFileOption, ProviderOption, SeedFileOption, open_seed
from keylock.files.atomic import PRIVATE, write_file

__all__ = ["offline_license"]


def offline_license(
    license: Annotated[Path, typer.Argument(metavar="LICENSE", help="A file with a license that has a total quota.")],
    bundle: Annotated[Path, typer.Option(metavar="BUNDLE", help="The bundle with the key.")],
    to: Annotated[str, typer.Option("--to", metavar="hpke:FILE", help="The customer's public key.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new file for the customer.")],
    key_provider: ProviderOption = None,
    key_file: KeyFileOption = None,
    key_seed_file: SeedFileOption = None,
    issuer: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Public key of the license's issuer. [that of --home]")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Make an offline license: for a customer that runs the public copy of a bundle on its own machine.

    The customer makes its key with keylock key new-recipient, and serves with --offline-license. Expiry and units are
    counted on the customer's machine, by the customer's clock: docs/threat-model.md says what that is worth.
    """
    from keylock.bundle import HpkeRecipient, open_bundle, seal_for
    from keylock.bundle import key_provider as make_provider
    from keylock.cli._secrets import take_environment
    from keylock.errors import InputError
    from keylock.licensing import check, verify_ignoring_time
    from keylock.licensing.offline import OfflineLicense, check_limits

    keys = read_issuers(issuer) or own_issuers(home)
    token = read_license(license)
    granted = verify_ignoring_time(token, keys)
    check_limits(granted)
    if granted.expires <= datetime.now(UTC):
        raise InputError(f"the license ended on {granted.expires:%Y-%m-%d}: renew it first, keylock license renew")
    if out.exists():
        raise InputError(f"{out} exists and is not overwritten: choose another path")
    opened = open_bundle(bundle, trusted=None)
    check(granted, model_name=opened.manifest.name, model_digest=opened.manifest.model_digest)
    with make_provider(to, environment=take_environment(to)) as recipient:
        if not isinstance(recipient, HpkeRecipient):
            raise InputError("seal to the customer's public key: --to hpke:FILE with the file FILE.pub.pem")
        seed = open_seed(opened, key_provider, key_file, key_seed_file)
        content = OfflineLicense(token, seal_for(opened, seed, recipient)).to_bytes()
    seed.close()
    try:
        write_file(out, content, mode=PRIVATE, new=True)
    except FileExistsError:
        raise InputError(f"{out} exists and is not overwritten: choose another path") from None
    if as_json:
        print_json({"file": out, "license": granted, "recipient": recipient.key_id})
        return
    note(f"{granted.quota.total} units for {granted.customer} until {granted.expires:%Y-%m-%d}, sealed to its key")
    typer.echo(str(out))
