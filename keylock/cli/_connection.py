"""How `predict` and `explain` reach a server: the options they share, and the client made from them.

The license token itself is not an option, because every process of the machine can see arguments: it comes from a
file or from the environment.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from keylock.errors import KeylockError
    from keylock_client import Client

__all__ = [
    "BitsOption",
    "ImagesArgument",
    "LicenseFileOption",
    "MaxUnitsOption",
    "ServerOption",
    "TimeoutOption",
    "TlsCaOption",
    "TlsOption",
    "connect",
    "name_image",
    "read_images",
]

ImagesArgument = Annotated[list[str], typer.Argument(metavar="IMAGE", help="Image files; '-' reads one from stdin.")]
BitsOption = Annotated[
    int | None,
    typer.Option("--bits", metavar="N", help="Bits per value of images with more than 8. [what the model takes]"),
]
"""`bits: BitsOption = None`."""

ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="HOST:PORT", help="Address of the server. [env: KEYLOCK_TARGET; localhost:8470]"),
]
LicenseFileOption = Annotated[
    Path | None,
    typer.Option(
        "--license-file", metavar="FILE", help="License of the vendor. [env: KEYLOCK_LICENSE_FILE, KEYLOCK_LICENSE]"
    ),
]
MaxUnitsOption = Annotated[
    int | None,
    typer.Option(
        "--max-units", min=0, metavar="N", help="Spend at most N units; stop before the next might cost more."
    ),
]
"""Of every command that spends units of a license: `max_units: MaxUnitsOption = None`."""

ExplainIfOption = Annotated[
    str | None,
    typer.Option(
        "--explain-if",
        metavar="CONDITION",
        help="Explain and pay only where 'probability < 0.8', 'margin < 0.2' or 'class in cat, dog'; predict all.",
    ),
]
"""Of every command that explains on a condition: `explain_if: ExplainIfOption = None`."""

TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", help="Timeout of a request. [env: KEYLOCK_TIMEOUT_S; 30]"),
]
TlsOption = Annotated[
    bool | None,
    typer.Option("--tls/--no-tls", help="Encrypt the connection or not. [env: KEYLOCK_TLS; on unless local]"),
]
TlsCaOption = Annotated[
    Path | None,
    typer.Option("--tls-ca", metavar="FILE", help="Authorities to trust, as PEM. [env: KEYLOCK_TLS_CA]"),
]


def connect(
    *,
    server: str | None,
    timeout_s: float | None,
    tls: bool | None,
    tls_ca: Path | None,
    license_file: Path | None = None,
) -> "Client":
    """Make a client from options, with the environment for those that were not given.

    Args:
        server: `--server`.
        timeout_s: `--timeout`, in seconds.
        tls: `--tls` or `--no-tls`.
        tls_ca: `--tls-ca`.
        license_file: `--license-file`.

    Returns:
        The client, to be closed by the caller.

    Raises:
        InputError: An option or a variable is unusable.
        LicenseError: The license file is none.
    """
    from keylock.crypto.secrecy import take_variable
    from keylock.errors import InputError
    from keylock_client import Client, Tls

    if tls is False and tls_ca is not None:
        raise InputError("--no-tls and --tls-ca exclude each other: leave one out")
    given: dict[str, Any] = {
        "target": server,
        "timeout_s": timeout_s,
        "license": license_file,
        "tls": tls if tls_ca is None else Tls(ca=tls_ca),
    }
    client = Client.from_environment(**{name: value for name, value in given.items() if value is not None})
    take_variable(os.environ, "KEYLOCK_LICENSE")
    return client


def read_images(paths: list[str]) -> list[str | bytes]:
    """Replace `-` by what stands on standard input.

    Args:
        paths: The arguments.

    Returns:
        Paths, and the bytes of the image from standard input.
    """
    if "-" not in paths:
        return [*paths]
    data = typer.get_binary_stream("stdin").read()
    return [data if path == "-" else path for path in paths]


def name_image(error: "KeylockError", image: str) -> "KeylockError":
    """Return an error whose message says which image it is about.

    Args:
        error: What was wrong with the image.
        image: The argument.
    """
    if image not in error.message:
        error.message = f"{image}: {error.message}"
        error.args = (error.message,)
    return error
