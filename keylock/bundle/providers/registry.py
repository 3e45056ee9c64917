"""Key providers by name: `KIND:ARGUMENT`, as the command line and the settings of a server give them."""

from collections.abc import Callable, Mapping
from typing import Annotated, Final

from pydantic import Field

from keylock.bundle.providers.aws_kms import AwsKms, AwsKmsEntry
from keylock.bundle.providers.base import Sealer
from keylock.bundle.providers.hpke import HpkeEntry, read_hpke
from keylock.bundle.providers.key_file import EnvironmentKey, KeyFile, KeyFileEntry
from keylock.bundle.providers.passphrase import Passphrase, PassphraseEntry
from keylock.bundle.providers.vault import VaultEntry, VaultTransit
from keylock.errors import InputError, UnknownNameError

__all__ = ["KEY_PROVIDERS", "AnyEntry", "key_provider"]

AnyEntry = Annotated[PassphraseEntry | KeyFileEntry | HpkeEntry | VaultEntry | AwsKmsEntry, Field(discriminator="name")]
"""What a sealed key may say about how it was sealed."""

KEY_PROVIDERS: Final[dict[str, Callable[[str, Mapping[str, str]], Sealer]]] = {
    "passphrase-file": lambda argument, _: Passphrase.from_file(argument),
    "key-file": lambda argument, _: KeyFile(argument),
    "environment": EnvironmentKey,
    "hpke": lambda argument, _: read_hpke(argument),
    "vault": VaultTransit,
    "aws-kms": lambda argument, _: AwsKms(argument),
}
"""Each makes a provider of the argument after the colon and the variables of the process."""


def key_provider(text: str, *, environment: Mapping[str, str]) -> Sealer:
    """Returns the key provider that a text names.

    Args:
        text: `KIND:ARGUMENT`, for example `key-file:shapes.klb.key` or `vault:transit/keylock`. It names where a secret
            is and never holds one.
        environment: The variables of the process.

    Raises:
        UnknownNameError: If there is no such kind.
        InputError: If the argument is missing.
        UnsealError: If the provider cannot be had.
    """
    kind, _, argument = text.partition(":")
    if kind not in KEY_PROVIDERS:
        raise UnknownNameError("key provider", kind, KEY_PROVIDERS)
    if not argument:
        raise InputError(f"the key provider {kind} needs an argument: {kind}:ARGUMENT")
    return KEY_PROVIDERS[kind](argument, environment)
