"""Where the vendor's commands take secrets from: options, files, the environment, or files beside the bundle.

A secret that is made here, for `keylock train`, goes to a new file of mode 0600. One that is there is used again and
never overwritten, so that a run that is repeated or resumed locks with the same key.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from keylock.cli._console import note
from keylock.crypto.secrecy import take_variable, variable_of
from keylock.errors import InputError

if TYPE_CHECKING:
    from keylock.bundle import Sealer
    from keylock.trigger.keys import KeySeed

__all__ = [
    "SEED_VARIABLE",
    "KeyOptions",
    "Secrets",
    "beside",
    "find_opener",
    "find_secrets",
    "find_secrets_again",
    "forget_environment",
    "take_environment",
    "without_seed",
]

SEED_VARIABLE = "KEYLOCK_KEY_SEED"
TOKEN_VARIABLE = "VAULT_TOKEN"  # noqa: S105 - the name of a variable
REGISTRY_VARIABLE = "KEYLOCK_REGISTRY_PASSWORD"
PASSPHRASE_VARIABLE = "KEYLOCK_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable

# What a command has taken out of the variables: it may look for one twice, as it opens a key and seals it again.
_TAKEN: Final[dict[str, str]] = {}


@dataclass(frozen=True, kw_only=True)
class KeyOptions:
    """What gives the key of a bundle that is there; the help says what each is. One of them at most may be given."""

    key_seed_file: Annotated[Path | None, typer.Option(metavar="FILE", help="File with the key seed.")] = None
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key file that opens the sealed key. [BUNDLE.key]")
    ] = None
    key_passphrase_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the passphrase that opens it. [env: KEYLOCK_KEY_PASSPHRASE]"),
    ] = None


class Secrets(NamedTuple):
    """What locks and what seals.

    Attributes:
        seed: The key seed.
        sealer: Opens the sealed key.
        seed_file: The file the seed is in, where it is in one.
        key_file: The key file that seals, where one does.
        passphrase_file: The file of the passphrase that seals, where one does.
    """

    seed: "KeySeed"
    sealer: "Sealer"
    seed_file: Path | None
    key_file: Path | None
    passphrase_file: Path | None


def beside(out: Path, what: str) -> Path:
    """Return the path of a file that belongs to a bundle: its own with a further suffix."""
    return out.with_name(f"{out.name}.{what}")


def find_secrets(
    out: Path,
    *,
    key_seed: str | None,
    key_seed_file: Path | None,
    key_file: Path | None,
    key_passphrase_file: Path | None,
    environment: Mapping[str, str] | None = None,
) -> Secrets:
    """Find the secrets of a run, and make those that are missing.

    Args:
        out: Where the bundle goes; new secrets go to `OUT.seed` and `OUT.key`.
        key_seed: `--key-seed`.
        key_seed_file: `--key-seed-file`.
        key_file: `--key-file`.
        key_passphrase_file: `--key-passphrase-file`.
        environment: Variables; those of the process, from which secrets are taken out, where it is left out.

    Raises:
        InputError: Two ways to one secret were given.
        KeySeedError: The seed is unusable.
        UnsealError: The key file or the passphrase is unusable.
    """
    environment = take_environment() if environment is None else environment
    if key_seed is not None and key_seed_file is not None:
        raise InputError("give --key-seed or --key-seed-file, not both")
    _require_one_sealer(key_file, key_passphrase_file)
    # What was given is read before anything new is written.
    seed, seed_file = _given_seed(key_seed, key_seed_file, environment)
    given = _given_sealer(key_file, key_passphrase_file, environment)
    if seed is None:
        seed_file = beside(out, "seed")
        seed = _own_seed(seed_file)
    if given is None:
        key_file = beside(out, "key")
        given = _own_key_file(key_file)
    return Secrets(seed, given, seed_file, key_file, key_passphrase_file)


def find_secrets_again(
    out: Path,
    before: Path,
    seed: "KeySeed",
    *,
    key_file: Path | None,
    key_passphrase_file: Path | None,
    environment: Mapping[str, str] | None = None,
) -> Secrets:
    """Find what seals a seed that is there into a new bundle, and make a key file where nothing was given.

    Args:
        out: Where the new bundle goes; a new key file goes to `OUT.key`.
        before: The bundle that has the seed; the seed's file is named where it lies beside that.
        seed: The key seed, which stays as it is.
        key_file: `--key-file`.
        key_passphrase_file: `--key-passphrase-file`.
        environment: Variables; those of the process, from which secrets are taken out, where it is left out.

    Raises:
        InputError: Two ways to one secret were given.
        UnsealError: The key file or the passphrase is unusable.
    """
    environment = take_environment() if environment is None else environment
    _require_one_sealer(key_file, key_passphrase_file)
    sealer = _given_sealer(key_file, key_passphrase_file, environment)
    if sealer is None:
        key_file = beside(out, "key")
        sealer = _own_key_file(key_file)
    seed_file = beside(before, "seed")
    return Secrets(seed, sealer, seed_file if seed_file.is_file() else None, key_file, key_passphrase_file)


def take_environment(*providers: str | None) -> dict[str, str]:
    """Return the variables of the process, which loses those that are secret: what it starts does not get them.

    Args:
        providers: Key providers as they were given, of which `environment:VARIABLE` names a further one.
    """
    named = [variable_of(text) for text in providers if text is not None]
    for name in filter(None, (SEED_VARIABLE, PASSPHRASE_VARIABLE, TOKEN_VARIABLE, REGISTRY_VARIABLE, *named)):
        value = take_variable(os.environ, name)
        if value is not None:
            _TAKEN[name] = value
    return {**_TAKEN, **os.environ}


def forget_environment() -> None:
    """Forget the secrets that were taken out of the variables, before another command begins in the same process."""
    _TAKEN.clear()


def without_seed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a process but the key seed, for a run that makes several."""
    return {name: value for name, value in environment.items() if name != SEED_VARIABLE}


def find_opener(
    bundle: Path, options: KeyOptions, *, environment: Mapping[str, str] | None = None
) -> "KeySeed | Sealer":
    """Find what gives the key of a bundle that is there: options, else the environment, else the file beside it.

    Args:
        bundle: The bundle; `BUNDLE.key` and `BUNDLE.seed` are where `keylock train` left its secrets.
        options: `--key-seed-file`, `--key-file` and `--key-passphrase-file`.
        environment: Variables; those of the process, from which secrets are taken out, where it is left out.

    Raises:
        InputError: Two ways to the key were given, or none is found.
        KeySeedError: The seed is unusable.
        UnsealError: The passphrase is unusable.
    """
    from keylock.bundle import KeyFile
    from keylock.trigger.keys import KeySeed

    environment = take_environment() if environment is None else environment
    if sum(file is not None for file in vars(options).values()) > 1:
        raise InputError("give one of --key-seed-file, --key-file and --key-passphrase-file")
    given: KeySeed | Sealer | None
    if options.key_seed_file is not None:
        return KeySeed.from_file(options.key_seed_file)
    if options.key_file is not None or options.key_passphrase_file is not None:
        given = _given_sealer(options.key_file, options.key_passphrase_file, {})
    else:
        given = _given_seed(None, None, environment)[0] or _given_sealer(None, None, environment)
    if given is not None:
        return given
    for file, read in ((beside(bundle, "key"), KeyFile), (beside(bundle, "seed"), KeySeed.from_file)):
        if file.is_file():
            note(f"using {file}")
            return read(file)
    raise InputError(
        f"the key of {bundle} is needed: give --key-seed-file, --key-file or --key-passphrase-file "
        f"({SEED_VARIABLE} and {PASSPHRASE_VARIABLE} are taken too)"
    )


def _require_one_sealer(key_file: Path | None, passphrase_file: Path | None) -> None:
    if key_file is not None and passphrase_file is not None:
        raise InputError("give --key-file or --key-passphrase-file, not both")


def _given_seed(
    text: str | None, file: Path | None, environment: Mapping[str, str]
) -> "tuple[KeySeed | None, Path | None]":
    from keylock.trigger.keys import KeySeed

    if text is not None:
        note(
            "warning: --key-seed shows in the list of processes and in the history of the shell; "
            f"--key-seed-file and {SEED_VARIABLE} do not"
        )
        return KeySeed.from_text(text), None
    if file is not None:
        return KeySeed.from_file(file), file
    if environment.get(SEED_VARIABLE):
        return KeySeed.from_text(environment[SEED_VARIABLE]), None
    return None, None


def _given_sealer(
    key_file: Path | None, passphrase_file: Path | None, environment: Mapping[str, str]
) -> "Sealer | None":
    from keylock.bundle import KeyFile, Passphrase

    if key_file is not None:
        return KeyFile(key_file)
    if passphrase_file is not None:
        return Passphrase.from_file(passphrase_file)
    if environment.get(PASSPHRASE_VARIABLE):
        return Passphrase(environment[PASSPHRASE_VARIABLE])
    return None


def _own_seed(path: Path) -> "KeySeed":
    from keylock.trigger.keys import KeySeed

    if path.exists():
        note(f"using the key seed in {path}")
        return KeySeed.from_file(path)
    seed = KeySeed.generate()
    seed.write(path)
    note(f"made a new key seed of 256 random bits: {path} (keep it secret, and a copy of it)")
    return seed


def _own_key_file(path: Path) -> "Sealer":
    from keylock.bundle import KeyFile

    if path.exists():
        note(f"sealing the key with the key file {path}")
        return KeyFile(path)
    note(f"made a new key file, which opens the sealed key when the bundle is served: {path}")
    return KeyFile.create(path)
