"""Whether the files that the settings name are there, all of them looked for at once.

Each of them is read somewhere, with an error of its own, which is enough where one is missing. A server in a container
that was started without its secrets would name one of them at each start.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from keylock.errors import InputError
from keylock_server.settings import ServerSettings

__all__ = ["check_files"]

_NAMED: Final = (
    "bundle",
    "key_file",
    "key_passphrase_file",
    "key_seed_file",
    "sealed_key",
    "offline_license",
    "issuers",
    "token_keys",
    "receipt_key",
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
    "admin_certificate",
    "admin_key",
    "admin_client_ca",
)
_HPKE: Final = "hpke:"


def check_files(settings: ServerSettings) -> None:
    """Returns where no more than one of the files that the settings name is missing, or may not be read.

    Raises:
        InputError: If several are; it names all of them, with their settings.
    """
    missing, closed = list[str](), list[str]()
    for setting, path in _files(settings):
        if not path.exists():
            missing.append(f"{path} ({setting})")
        elif not os.access(path, os.R_OK):
            closed.append(f"{path} ({setting})")
    if len(missing) + len(closed) < 2:
        return
    said = [f"files of the settings are missing: {', '.join(missing)}"] if missing else []
    if closed:
        said.append(f"the user that the server runs as may not read {', '.join(closed)}")
    raise InputError(f"{'; '.join(said)}. Put them there: docs/operating.md says what makes each of them")


def _files(settings: ServerSettings) -> Iterator[tuple[str, Path]]:
    """Yields each file that has to be there, with the setting that names it."""
    for setting in _NAMED:
        value = getattr(settings, setting)
        for path in value if isinstance(value, tuple) else (value,):
            if path is not None:
                yield settings.called(setting), path
    if settings.receipt_key is not None:
        yield f"beside {settings.called('receipt_key')}", settings.receipt_key.with_suffix(".cert")
    providers = settings.key_provider
    for text in providers if isinstance(providers, tuple) else (providers,):
        if text is not None and text.startswith(_HPKE):
            yield settings.called("key_provider"), Path(text.removeprefix(_HPKE))
