"""`keylock key`: seeds, and what seals the seed of a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, new_app, note, print_json
from keylock.cli._home import DEFAULT_HOME, HomeOption, open_home
from keylock.files.atomic import PRIVATE, PUBLIC, write_file

if TYPE_CHECKING:
    from keylock.bundle import Bundle, HpkeIdentity, Sealer
    from keylock.trigger.keys import KeySeed

__all__ = ["KeyFileOption", "ProviderOption", "SeedFileOption", "app", "open_seed"]

app = new_app("Make key seeds, and seal the key of a bundle.")

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a public copy of it.")]
ToOption = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="KIND:ARGUMENT",
        help="What will open it: hpke:FILE, key-file:FILE, passphrase-file:FILE, environment:NAME, vault:MOUNT/KEY, "
        "aws-kms:KEY.",
    ),
]
ProviderOption = Annotated[
    str | None, typer.Option(metavar="KIND:ARGUMENT", help="What opens the sealed key now, as for --to.")
]
KeyFileOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Key file that opens the sealed key now.")]
SeedFileOption = Annotated[Path | None, typer.Option(metavar="FILE", help="File with the key seed itself.")]


@app.command("new")
def key_new(
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new file; it gets mode 0600.")],
    as_json: JsonOption = False,
) -> None:
    """Write 256 random bits to a new file: a key seed, or a key file that seals one."""
    from keylock.trigger.keys import KeySeed

    seed = KeySeed.generate()
    seed.write(out)
    _show_key(seed.id, out, as_json=as_json)


@app.command("id")
def key_id(
    key_seed_file: Annotated[Path, typer.Option(metavar="FILE", help="File with the key seed.")],
    as_json: JsonOption = False,
) -> None:
    """Show the id of a key seed, as `keylock inspect` shows it for a bundle; the seed itself is never shown."""
    from keylock.trigger.keys import KeySeed

    _show_key(KeySeed.from_file(key_seed_file).id, key_seed_file, as_json=as_json)


@app.command("new-recipient")
def key_new_recipient(
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new file for the private key, for example server.pem.")],
    as_json: JsonOption = False,
) -> None:
    """Make a key to which others seal: run it on the server and give away the public half, FILE with .pub.pem.

    What is sealed to it opens on this machine alone, whoever carries it here.
    """
    public, identity = _make_identity(out)
    if as_json:
        print_json({"recipient": identity.recipient.key_id, "private_key_file": out, "public_key_file": public})
        return
    note(f"keep {out} on this machine; give {public} to whoever seals a key for it")
    typer.echo(identity.recipient.key_id)


@app.command("seal")
def key_seal(
    bundle: BundleArgument,
    to: ToOption,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new file for the sealed key.")],
    key_provider: ProviderOption = None,
    key_file: KeyFileOption = None,
    key_seed_file: SeedFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Seal the key of a bundle into a file of its own, for a server that has a public copy of the bundle.

    The bundle stays as it is. The server is started with --sealed-key and what opens it.
    """
    from keylock.bundle import key_provider as make_provider
    from keylock.bundle import open_bundle, seal_for
    from keylock.cli._secrets import take_environment
    from keylock.errors import InputError

    opened = open_bundle(bundle, trusted=None)
    seed = open_seed(opened, key_provider, key_file, key_seed_file)
    with make_provider(to, environment=take_environment(to)) as sealer:
        sealed = seal_for(opened, seed, sealer)
        how = sealer.name
    seed.close()
    try:
        write_file(out, sealed, mode=PRIVATE, new=True)
    except FileExistsError:
        raise InputError(f"{out} exists and is not overwritten: choose another path") from None
    if as_json:
        print_json({"sealed_key": out, "model_digest": opened.manifest.model_digest, "opens_with": how})
        return
    note(f"{how} opens it, for the model {opened.manifest.name} and no other")
    typer.echo(str(out))


@app.command("reseal")
def key_reseal(
    bundle: BundleArgument,
    to: ToOption,
    key_provider: ProviderOption = None,
    key_file: KeyFileOption = None,
    key_seed_file: SeedFileOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Seal the key in a bundle with something else, in place; what sealed it before opens this copy no more.

    Needs the issuer's key, because the signature covers the sealed key. The model, its digest and its key stay.
    """
    from keylock.bundle import key_provider as make_provider
    from keylock.bundle import open_bundle
    from keylock.cli._secrets import take_environment

    opened = open_bundle(bundle, trusted=None)
    seed = open_seed(opened, key_provider, key_file, key_seed_file)
    with make_provider(to, environment=take_environment(to)) as sealer:
        _reseal(opened, seed, sealer, home=home, as_json=as_json)


@app.command("rotate")
def key_rotate(
    bundle: BundleArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new file for the new secret; not for vault and aws-kms.")
    ] = None,
    key_provider: ProviderOption = None,
    key_file: KeyFileOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Replace the secret that seals the key of a bundle by a new one of the same kind, in place.

    A key file or a recipient's key is made anew in --out; a key of a vault or of AWS KMS is used in its newest version.
    The key seed itself cannot be rotated: the model was trained for its key, so a new seed means training again.
    """
    from keylock.bundle import open_bundle

    opened = open_bundle(bundle, trusted=None)
    with _opener(key_provider, key_file) as old:
        seed = opened.unseal(old)
        with _renew(old, out) as new:
            _reseal(opened, seed, new, home=home, as_json=as_json)


def _renew(old: "Sealer", out: Path | None) -> "Sealer":
    """Returns a provider of the same kind with a new secret."""
    from keylock.bundle import HpkeIdentity, KeyFile, Passphrase
    from keylock.errors import InputError

    if isinstance(old, (KeyFile, HpkeIdentity)):
        if out is None:
            raise InputError("say where the new secret goes: --out FILE")
        return KeyFile.create(out) if isinstance(old, KeyFile) else _make_identity(out)[1]
    if isinstance(old, Passphrase):
        raise InputError(
            "only you can think of a new passphrase: write it to a file and run keylock key reseal --to "
            "passphrase-file:FILE"
        )
    if out is not None:
        raise InputError(f"--out makes no sense here: {old.name} keeps its secret itself")
    return old


def _reseal(bundle: "Bundle", seed: "KeySeed", sealer: "Sealer", *, home: Path, as_json: bool) -> None:
    from keylock.bundle import reseal

    signed_for_others = bundle.model_signature() is not None
    resealed = reseal(bundle, seed, sealer, signing_key=open_home(home).signing_key())
    seed.close()
    if as_json:
        manifest = resealed.manifest
        print_json({"bundle": bundle.path, "model_digest": manifest.model_digest, "opens_with": sealer.name})
        return
    note("copies that were made before open with the old secret still: replace them")
    if signed_for_others:
        note("model.sig does not fit any more and was removed: run keylock sign --oms")
    typer.echo(f"{sealer.name} opens {bundle.path} now")


def open_seed(bundle: "Bundle", provider: str | None, key_file: Path | None, key_seed_file: Path | None) -> "KeySeed":
    """Returns the seed of a bundle by the one way that was given.

    Args:
        bundle: The bundle.
        provider: `--key-provider`.
        key_file: `--key-file`.
        key_seed_file: `--key-seed-file`.

    Raises:
        InputError: No way or several were given.
        KeySeedError: The file holds no usable seed.
        UnsealError: The key does not open.
    """
    from keylock.errors import InputError
    from keylock.trigger.keys import KeySeed

    if key_seed_file is not None:
        if provider is not None or key_file is not None:
            raise InputError("give one way to the key: --key-provider, --key-file or --key-seed-file")
        return KeySeed.from_file(key_seed_file)
    with _opener(provider, key_file) as opener:
        return bundle.unseal(opener)


def _opener(provider: str | None, key_file: Path | None) -> "Sealer":
    from keylock.bundle import KeyFile, Passphrase
    from keylock.bundle import key_provider as make_provider
    from keylock.cli._secrets import PASSPHRASE_VARIABLE, take_environment
    from keylock.errors import InputError

    if provider is not None and key_file is not None:
        raise InputError("give one way to the key: --key-provider or --key-file")
    if provider is not None:
        return make_provider(provider, environment=take_environment(provider))
    if key_file is not None:
        return KeyFile(key_file)
    passphrase = take_environment().get(PASSPHRASE_VARIABLE)
    if passphrase:
        return Passphrase(passphrase)
    raise InputError(f"say what opens the key now: --key-provider, --key-file or {PASSPHRASE_VARIABLE}")


def _make_identity(out: Path) -> "tuple[Path, HpkeIdentity]":
    """Makes a recipient's key; returns where its public half is, and the key."""
    from keylock.bundle import HpkeIdentity

    identity = HpkeIdentity.create(out)
    public = out.with_suffix(".pub.pem")
    write_file(public, identity.recipient.to_pem(), mode=PUBLIC)
    return public, identity


def _show_key(seed_id: str, path: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"key_id": seed_id, "file": path})
    else:
        typer.echo(seed_id)
