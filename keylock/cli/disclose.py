"""`keylock disclose IMAGE`: an explanation for somebody who has a right to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from keylock.cli._connection import (
    BitsOption,
    LicenseFileOption,
    ServerOption,
    TimeoutOption,
    TlsCaOption,
    TlsOption,
    connect,
    read_images,
)
from keylock.cli._console import JsonOption, print_json, print_pairs
from keylock.cli._options import takes

__all__ = ["disclose"]


@dataclass(frozen=True, kw_only=True)
class DiscloseOptions:
    """What `keylock disclose` was told; the help says what each is."""

    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image file; '-' reads one from stdin.")]
    reason: Annotated[
        str,
        typer.Option(
            "--reason", metavar="REASON", help="Why: affected-person, authority, court or review.", show_default=False
        ),
    ] = ""
    subject: Annotated[
        str,
        typer.Option(
            "--subject", metavar="PSEUDONYM", help="Whom it is about; its digest alone is sent.", show_default=False
        ),
    ] = ""
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="PATH", help="Where to write: overlay.png, map.npy or all.json."),
    ] = None
    receipt: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to save the receipt.")] = None
    explainer: Annotated[
        str | None,
        typer.Option("--explainer", "-e", metavar="NAME", help="Saliency method; the server's first if left out."),
    ] = None
    target: Annotated[
        str | None, typer.Option("--target", "-t", metavar="CLASS", help="Label or index of the class to explain.")
    ] = None
    request_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Id of the request; sent again under it, it counts once.")
    ] = None
    bits: BitsOption = None
    license_file: LicenseFileOption = None
    server: ServerOption = None
    timeout_s: TimeoutOption = None
    tls: TlsOption = None
    tls_ca: TlsCaOption = None
    as_json: JsonOption = False


@takes(DiscloseOptions)
def disclose(options: DiscloseOptions) -> None:
    """Explain an image to somebody who has a right to it: counted apart, at no units, as the license is entitled to.

    It is answered also where the quota is spent, and for some time where the license is suspended for non-payment. The
    map is the true one, or the command fails. The reason and the digest of the subject stand in the vendor's log: take
    a random pseudonym and keep the list of whom it stands for. Nothing here is legal advice.
    """
    from keylock.errors import ReceiptError

    [image] = read_images([options.image])
    with connect(
        server=options.server,
        timeout_s=options.timeout_s,
        tls=options.tls,
        tls_ca=options.tls_ca,
        license_file=options.license_file,
    ) as client:
        target: int | str | None = options.target
        if options.target is not None and options.target.isascii() and options.target.isdigit():
            target = options.target if options.target in client.model().classes else int(options.target)
        explanation = client.disclose(
            image,
            reason=options.reason,
            subject=options.subject,
            explainer=options.explainer,
            target=target,
            bits=options.bits,
            request_id=options.request_id,
        )
    file = None if options.out is None else explanation.save(options.out)
    saved = None
    if options.receipt is not None and explanation.receipt is not None:
        saved = explanation.receipt.save(options.receipt)
    if options.as_json:
        print_json({"image": options.image, **explanation.to_dict(), "file": file, "receipt_file": saved})
    else:
        seen = explanation.prediction
        pairs: list[tuple[str, object]] = [
            ("image", options.image),
            ("label", f"{seen.label}, {seen.probability:.1%}"),
            ("explained", f"{explanation.target.label} by {explanation.explainer.name}, true map"),
            ("request", explanation.request_id),
            ("reason", options.reason),
        ]
        print_pairs([*pairs, *((name, one) for name, one in (("file", file), ("receipt", saved)) if one is not None)])
    if options.receipt is not None and saved is None:
        raise ReceiptError(f"no receipt was saved for {options.image}: the server signs none")
