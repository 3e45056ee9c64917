"""`keylock receipt`: the customer's and the auditor's side. Receipts are shown and verified offline, proofs asked for.

What is shown may come from anybody: `print_pairs` escapes what does not print.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._connection import (
    LicenseFileOption,
    ServerOption,
    TimeoutOption,
    TlsCaOption,
    TlsOption,
    connect,
)
from keylock.cli._console import JsonOption, new_app, note, print_json, print_pairs
from keylock.cli._home import DEFAULT_HOME, HomeOption, IssuerOption
from keylock.cli._receipts import TrustedLicenseOption, find_trust, known_trust, read_revoked, read_small_text
from keylock.errors import InputError

if TYPE_CHECKING:
    from keylock.licensing.receipts import Receipt

__all__ = ["app"]

app = new_app("Show and check receipts: what was charged for what.")


ReceiptArgument = Annotated[Path, typer.Argument(metavar="RECEIPT", help="A file with a receipt.")]
RevocationsOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The vendor's list of receipt keys that were taken back.")
]


@app.command("show")
def receipt_show(
    receipt: ReceiptArgument,
    issuer: IssuerOption = None,
    license_file: TrustedLicenseOption = None,
    revocations: RevocationsOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show what a receipt says.

    It must be whole and signed by the key that it names. Whether that key is the vendor's is checked where the issuer
    is known: by --issuer, --license-file or the vendor's directory.
    """
    from keylock.licensing.receipts import Receipt

    trusts = known_trust(issuer, home, license_file)
    if trusts is None and revocations is not None:
        raise InputError("a list of receipt keys is checked with the issuer's key: give --issuer or --license-file")
    revoked = frozenset[str]() if trusts is None else read_revoked(revocations, trusts)
    read = Receipt.verify(read_small_text(receipt, "receipt"), trusts or (lambda _key: True), revoked=revoked)
    if as_json:
        print_json(
            {
                "charge": read.charge,
                "issuer": read.certificate.issuer.key_id,
                "issuer_trusted": trusts is not None,
            }
        )
        return
    by = read.certificate.issuer.key_id
    checked = f"good, certified by {by}"
    unknown = f"not checked: it names the issuer {by}; give --issuer, or --license-file with your license"
    print_pairs([("signature", unknown if trusts is None else checked), *_told(read), *_digests(read)])


@app.command("verify")
def receipt_verify(
    receipt: ReceiptArgument,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="An image file as it was sent, in the order of the request; repeat it."),
    ] = None,
    map_file: Annotated[
        list[Path] | None,
        typer.Option("--map", metavar="FILE.npy", help="A map as it was received, in the same order; repeat it."),
    ] = None,
    block: Annotated[
        Path | None,
        typer.Option(metavar="FILE.parquet", help="The block of keylock explain-many that it is for: images and maps."),
    ] = None,
    proof: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A proof that the receipt is in the vendor's log.")
    ] = None,
    revocations: RevocationsOption = None,
    issuer: IssuerOption = None,
    license_file: TrustedLicenseOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Check that a receipt is the vendor's, that it is for these images and maps, and that it is in the log.

    What is not given is not checked, and the answer says so.
    """
    from keylock.licensing.receipt_keys import open_checkpoint
    from keylock.licensing.receipts import Receipt
    from keylock.transparency import InclusionProof

    trusts = find_trust(issuer, home, license_file)
    revoked = read_revoked(revocations, trusts)
    # What is proven to be in the log holds although its key was taken back.
    verified = Receipt.verify(
        read_small_text(receipt, "receipt"), trusts, revoked=revoked if proof is None else frozenset()
    )
    charge = verified.charge
    images, maps = _given_digests(image, map_file, block)
    _check("images", charge.image_digests, images)
    # A block says which of its images have a map; maps that are given by themselves do not say whose they are.
    explained = tuple(one for one in charge.answer.maps if one is not None)
    _check("maps", explained if block is None else charge.answer.maps, maps)
    logged = None
    if proof is not None:
        read = InclusionProof.parse(read_small_text(proof, "proof"))
        logged = read.verify(verified.entry, lambda signed: open_checkpoint(signed, trusts, revoked=revoked))
    if as_json:
        print_json(
            {
                "charge": charge,
                "issuer": verified.certificate.issuer.key_id,
                "images_checked": images is not None,
                "maps_checked": maps is not None,
                "log": None if logged is None else {"origin": logged.origin, "size": logged.size},
            }
        )
        return
    for given, what in ((images, "--image"), (maps, "--map"), (proof, "--proof")):
        if given is None:
            note(f"not checked, because it was not given: {what}")
    good = f"good, certified by {verified.certificate.issuer.key_id}"
    log = [] if logged is None else [("log", f"entry of {logged.origin}, which had {logged.size}")]
    print_pairs([("receipt", good), *_told(verified), *log])


@app.command("prove")
def receipt_prove(
    receipt: Annotated[Path, typer.Argument(metavar="RECEIPT", help="A file with a receipt of your license.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the proof to a file instead of the screen.")
    ] = None,
    since: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A checkpoint that was kept: the log must go on from it."),
    ] = None,
    server: ServerOption = None,
    license_file: LicenseFileOption = None,
    timeout: TimeoutOption = None,
    tls: TlsOption = None,
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the server to prove that a receipt of your license is in the vendor's log, and verify the proof."""
    token = read_small_text(receipt, "receipt").strip()
    kept = None if since is None else read_small_text(since, "checkpoint")
    with connect(server=server, timeout_s=timeout, tls=tls, tls_ca=tls_ca, license_file=license_file) as client:
        proof = client.prove(token, since=kept)
    if out is not None:
        proof.save(out)
    if as_json:
        print_json({"index": proof.index, "size": proof.size, "log": proof.log, "proof": proof.text, "file": out})
    elif out is None:
        typer.echo(proof.text, nl=False)
    else:
        print_pairs([("log", f"{proof.log}, entry {proof.index} of {proof.size}"), ("file", out)])


def _told(receipt: "Receipt") -> list[tuple[str, object]]:
    charge = receipt.charge
    further: list[tuple[str, object]] = []
    if charge.disclosure is not None:
        further = [("disclosed for", charge.disclosure.reason), ("subject", charge.disclosure.subject)]
    return [
        ("license", charge.license_id),
        ("request", charge.request_id),
        ("time", f"{charge.time:%Y-%m-%d %H:%M:%S} UTC"),
        ("model", charge.model_digest),
        ("explainer", charge.explainer),
        ("maps", f"{sum(charge.answer.explained)}, {'true ones' if charge.keyed else 'decoys'}"),
        *(
            []
            if charge.explain_if is None
            else [("explained if", f"{charge.explain_if}, of {len(charge.answer.maps)}")]
        ),
        *further,
        ("units", charge.units if charge.repeats is None else f"{charge.units}, charged once: this is a repeat"),
    ]


def _digests(receipt: "Receipt") -> list[tuple[str, object]]:
    charge = receipt.charge
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(charge.parameters.items()))
    rows: list[tuple[str, object]] = [
        ("parameters", parameters or "-"),
        ("class", "the predicted one" if charge.target < 0 else f"number {charge.target}"),
    ]
    for number, (image, saliency) in enumerate(zip(charge.image_digests, charge.answer.maps, strict=False), start=1):
        rows += [(f"image {number}", image), (f"map {number}", saliency or "none: the image was not explained")]
    return rows


def _check(what: str, certified: Sequence[str | None], given: Sequence[str | None] | None) -> None:
    from keylock.errors import ReceiptError

    if given is None or tuple(given) == tuple(certified):
        return
    if len(given) != len(certified):
        raise ReceiptError(f"the receipt is for {len(certified)} {what} and {len(given)} were given")
    wrong = next(n for n, (one, other) in enumerate(zip(given, certified, strict=True), start=1) if one != other)
    raise ReceiptError(f"the receipt is not for these {what}: number {wrong} is another than was certified")


def _given_digests(
    image: list[Path] | None, map_file: list[Path] | None, block: Path | None
) -> tuple[Sequence[str] | None, Sequence[str | None] | None]:
    """Returns the digests of images and of maps; None for what was not given, and for an image without a map."""
    if block is None:
        images = [_digest_of_image(path) for path in image] if image else None
        return images, [_digest_of_map(path) for path in map_file] if map_file else None
    if image or map_file:
        raise InputError("--block has the images and the maps: leave out --image and --map")
    from keylock.bulk.parts import digest_of_map, read_charged

    try:
        rows = read_charged(block)
    except OSError as error:
        raise InputError(
            f"cannot read {block}: {error.strerror or 'it is not a block of keylock explain-many'}"
        ) from None
    return [digest for digest, _ in rows], [None if one is None else digest_of_map(one) for _, one in rows]


def _digest_of_image(path: Path) -> str:
    from keylock.crypto.digests import digest_of

    try:
        return digest_of(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _digest_of_map(path: Path) -> str:
    import numpy as np

    from keylock.crypto.digests import digest_of_array

    try:
        array = np.load(path, allow_pickle=False)
    except Exception:  # A damaged header raises almost anything.
        array = None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is not an array: give a map as keylock explain --out wrote it, as .npy")
    dtype = array.dtype.name
    if dtype not in ("float32", "float16", "uint8") or array.ndim != 2:
        raise InputError(
            f"{path} holds {dtype} of shape {array.shape}, and a map is (height, width) of float32, or of float16 or "
            "uint8 where it was sent so"
        )
    return digest_of_array(dtype, array.shape, np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
