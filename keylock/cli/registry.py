"""`keylock push` and `keylock pull`: bundles in OCI registries, as model artefacts of CNCF ModelPack."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, note, print_json
from keylock.cli._home import DEFAULT_HOME, HomeOption, IssuerOption, own_issuers, read_issuers

if TYPE_CHECKING:
    from keylock.registries import Reference, Registry

__all__ = ["pull", "push"]

ReferenceArgument = Annotated[
    str, typer.Argument(metavar="REFERENCE", help="HOST/NAME:TAG, for example registry.example.com/acme/shapes:1.")
]
PublicOption = Annotated[
    bool, typer.Option("--public", help="Leave the sealed key and the sealed delta out: predictions and decoys alone.")
]
PlainOption = Annotated[
    bool,
    typer.Option("--plain-http", help="Without TLS, to another machine too; this machine is asked without anyway."),
]


def push(
    reference: ReferenceArgument,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: a folder or a .klb file.")],
    public: PublicOption = False,
    plain_http: PlainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Send a bundle to an OCI registry, under a tag, as a model artefact of CNCF ModelPack.

    Every file is a layer; what the registry has already is not sent again. The tag is set at the end. A login comes
    from KEYLOCK_REGISTRY_USER and KEYLOCK_REGISTRY_PASSWORD, or from docker login.
    """
    from keylock.bundle import open_bundle
    from keylock.errors import InputError
    from keylock.registries import Reference, push_bundle

    place = Reference.parse(reference)
    if place.digest is not None:
        raise InputError("a digest cannot be pushed to, it comes out of what is pushed: give a tag")
    opened = open_bundle(bundle, trusted=None)
    with _asking(place, plain_http=plain_http) as registry, _counting("send the files") as progress:
        pushed = push_bundle(opened, registry, public=public, progress=progress)
    if as_json:
        print_json(
            {
                "reference": str(place),
                "digest": pushed.digest,
                "model_digest": opened.manifest.model_digest,
                "files": pushed.files,
                "files_sent": pushed.sent,
                "bytes_sent": pushed.bytes_sent,
                "has_sealed_key": pushed.has_key,
            }
        )
        return
    if pushed.sent < pushed.files:
        note(f"sent {pushed.sent} of {pushed.files} files, the registry had the others")
    if pushed.has_key:
        note(
            "the sealed key is among them: whoever may read the registry can copy it, and opens it with its secret; "
            "push a public copy if they should not"
        )
    typer.echo(f"{place.host}/{place.name}@{pushed.digest}")


def pull(
    reference: ReferenceArgument,
    out: Annotated[Path, typer.Option(metavar="PATH", help="Where the bundle goes: a folder, or a file *.klb.")],
    public: PublicOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    issuer: IssuerOption = None,
    plain_http: PlainOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Fetch a bundle from an OCI registry and verify it; it is in its place when all of it is right, and not before.

    With --issuer the bundle must be signed by one of these keys, which is checked before anything large is fetched.
    """
    from keylock.registries import Reference, pull_bundle

    place = Reference.parse(reference)
    trusted = read_issuers(issuer)
    with _asking(place, plain_http=plain_http) as registry, _counting("fetch the files") as progress:
        pulled = pull_bundle(registry, out, public=public, overwrite=overwrite, trusted=trusted, progress=progress)
    opened = pulled.bundle
    known = opened.trusted or opened.issuer in own_issuers(home)
    if as_json:
        print_json(
            {
                "bundle": out,
                "digest": pulled.digest,
                "name": opened.manifest.name,
                "model_digest": opened.manifest.model_digest,
                "issuer": opened.issuer.key_id,
                "issuer_trusted": known,
                "bytes_fetched": pulled.bytes_fetched,
                "has_sealed_key": opened.has_key,
                "has_sealed_delta": opened.has_delta,
                "left_out": pulled.left,
            }
        )
        return
    if pulled.left:
        note(f"left in the registry: {', '.join(pulled.left)}; the copy predicts, and shows decoys")
    if not known:
        note(f"signed by {opened.issuer.key_id}, which was not checked: give --issuer with the vendor's public key")
    typer.echo(str(out))


@contextmanager
def _asking(place: "Reference", *, plain_http: bool) -> "Iterator[Registry]":
    """Yields the registry, with the login that there is for it."""
    from keylock.cli._secrets import take_environment
    from keylock.registries import Registry, find_credentials

    credentials = find_credentials(place.host, take_environment())
    with Registry(place, credentials=credentials, plain_http=plain_http) as registry:
        yield registry


@contextmanager
def _counting(title: str) -> Iterator[Callable[[int, int], None]]:
    """Shows on a terminal how many files are done, and lets SIGTERM end the block as Ctrl-C does."""
    from keylock.cli._progress import shown_progress

    with shown_progress() as display:

        def tell(done: int, total: int) -> None:
            if done:
                display.advance({})
            else:
                display.start(title, total, 0)

        yield tell
