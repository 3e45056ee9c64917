"""`keylock inspect`, `verify` and `export`: what a bundle says, whether it is whole, and its public copy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, note, print_json, print_pairs, print_table
from keylock.cli._home import DEFAULT_HOME, HomeOption, IssuerOption, own_issuers, read_issuers
from keylock.cli._verdict import verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keylock.bundle import Bundle, ExplainerEntry, Figure, Manifest
    from keylock.bundle.manifest import VariantEntry

__all__ = ["export", "inspect", "verify"]

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: a folder or a .klb file.")]


def inspect(
    bundle: BundleArgument,
    issuer: IssuerOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show what is in a bundle: model, lock, explainers, measured figures.

    The bundle is verified first; a changed one is refused and not shown. The first line says what it is worth.
    """
    opened, trusted = _open(bundle, issuer, home)
    manifest = opened.manifest
    worth = verdict(opened, trusted=trusted)
    if as_json:
        document = manifest.model_dump(mode="json")
        about = {"issuer_trusted": trusted, "has_sealed_key": opened.has_key, "verdict": worth._asdict()}
        print_json(document | about)
        return
    typer.echo(worth.text)
    for title, pairs in _groups(opened, trusted=trusted):
        typer.echo(f"\n{title}")
        print_pairs(pairs, indent=2)
    typer.echo("\nexplainers")
    rows = [_explainer_row(entry, manifest) for entry in manifest.explainers]
    print_table(("  name", "runtime", "parameters", "PCC to reference"), rows)
    if manifest.figures:
        typer.echo("\nfigures")
        print_table(("  name", "value", "95 % interval", "unit", "about"), map(_figure_row, manifest.figures))


def verify(
    bundle: BundleArgument,
    issuer: IssuerOption = None,
    oms: Annotated[
        bool, typer.Option("--oms", help="Check the signature of OpenSSF Model Signing too, in model.sig.")
    ] = False,
    oms_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Public key that made it (PEM). [HOME/oms.pub.pem]")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Check the signature and every file of a bundle.

    With --issuer the bundle must be signed by one of these keys. Without it any issuer is accepted, and the answer
    says whether it is the one of the vendor's directory. With --oms a second signature, which tools of others verify,
    must be there as well and be made with the key of --oms-key.
    """
    opened, trusted = _open(bundle, issuer, home)
    manifest = opened.manifest
    oms_hint = _verify_oms(opened, oms_key, home) if oms or oms_key is not None else None
    if as_json:
        print_json(
            {
                "bundle": bundle,
                "name": manifest.name,
                "model_digest": manifest.model_digest,
                "issuer": opened.issuer.key_id,
                "issuer_trusted": trusted,
                "files": len(manifest.files),
                "has_sealed_key": opened.has_key,
                "has_sealed_delta": opened.has_delta,
                "has_model_signature": opened.model_signature() is not None,
                "model_signature_key": oms_hint,
            }
        )
        return
    print_pairs(
        [
            ("signature", "good"),
            ("issuer", _describe_issuer(opened, trusted=trusted)),
            ("files", f"{len(manifest.files)}, all as signed"),
            ("sealed key", "as signed" if opened.has_key else "none"),
            ("sealed delta", "as signed" if opened.has_delta else "none"),
            ("model.sig", _describe_model_signature(opened, oms_hint)),
            ("model", f"{manifest.name} {manifest.model_digest}"),
        ]
    )


def export(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option(metavar="PATH", help="Where the copy goes: a folder, or a file *.klb.")],
    public: Annotated[bool, typer.Option("--public", help="Leave the sealed key out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    issuer: IssuerOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Copy a bundle without its key, to give to others; the signature stays good."""
    from keylock.bundle import export_public
    from keylock.errors import InputError

    if not public:
        raise InputError("say --public: a copy without the key is the only kind there is (to keep the key, use cp)")
    opened, _ = _open(bundle, issuer, home)
    export_public(opened, out, overwrite=overwrite)
    if as_json:
        print_json({"bundle": out, "model_digest": opened.manifest.model_digest, "has_sealed_key": False})
        return
    note("the copy predicts for everybody; its explanations are true for images with the trigger alone")
    typer.echo(str(out))


def _open(path: Path, issuer: list[Path] | None, home: Path) -> "tuple[Bundle, bool]":
    """Returns the verified bundle, and whether its issuer is one that the user trusts."""
    from keylock.bundle import open_bundle

    trusted = read_issuers(issuer)
    opened = open_bundle(path, trusted=trusted)
    return opened, opened.trusted or opened.issuer in own_issuers(home)


def _verify_oms(opened: "Bundle", path: Path | None, home: Path) -> str:
    """Returns the hint of the key that made the second signature, which is good."""
    from keylock.bundle import verify_model_signature
    from keylock.crypto.ecdsa import EcdsaVerifyingKey
    from keylock.crypto.signing import Home
    from keylock.errors import InputError

    if path is None:
        path = Home(home.expanduser()).oms_public_key_path
        if not path.exists():
            raise InputError(f"say whose signature it should be: --oms-key FILE, for there is no {path}")
    key = EcdsaVerifyingKey.load(path)
    verify_model_signature(opened, key)
    return key.hint


def _describe_model_signature(opened: "Bundle", hint: str | None) -> str:
    if hint is not None:
        return f"good, by the key {hint[:16]} (OpenSSF Model Signing)"
    return "none" if opened.model_signature() is None else "there, not checked: --oms checks it"


def _groups(opened: "Bundle", *, trusted: bool) -> "list[tuple[str, list[tuple[str, object]]]]":
    """Returns what a bundle says of itself, by subject."""
    manifest = opened.manifest
    height, width = manifest.preprocessing.size
    return [
        (
            "bundle",
            [
                ("name", manifest.name),
                ("model digest", manifest.model_digest),
                ("created", f"{manifest.created:%Y-%m-%d %H:%M:%S} UTC by keylock {manifest.keylock_version}"),
                ("issuer", _describe_issuer(opened, trusted=trusted)),
                ("files", len(manifest.files)),
            ],
        ),
        (
            "model",
            [
                ("architecture", f"{manifest.architecture.name} ({manifest.architecture.module})"),
                ("classes", _describe_classes(manifest.classes)),
                ("input", f"{height} x {width} pixels, {manifest.preprocessing.channels} channels"),
                ("predictions", _with_variants("compiled", manifest.prediction_variants)),
            ],
        ),
        (
            "lock",
            [
                ("key", _describe_key(opened)),
                ("opens", _describe_delta(opened)),
                ("decoy", manifest.decoy.name),
                ("trained in", _describe_precision(manifest)),
            ],
        ),
    ]


def _describe_issuer(bundle: "Bundle", *, trusted: bool) -> str:
    if trusted:
        return f"{bundle.issuer.key_id} (trusted)"
    return f"{bundle.issuer.key_id} (not checked: give --issuer with the vendor's public key)"


def _describe_classes(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:10])
    return f"{len(classes)}: {shown}" + (", ..." if len(classes) > 10 else "")


def _describe_key(bundle: "Bundle") -> str:
    key = bundle.manifest.key
    where = "sealed in the bundle" if bundle.has_key else "not in this copy"
    return f"{key.id}, strength {key.strength * 255:.3g}/255, tile {key.tile}, {where}"


def _describe_delta(opened: "Bundle") -> str:
    delta = opened.manifest.delta
    if delta is None:
        return "in the network, which itself tells the trigger"
    keys = "the trigger of one key" if delta.keys == 1 else f"the triggers of {delta.keys} keys"
    there = "" if opened.has_delta else ", which is not in this copy"
    return f"a sealed delta of {delta.entries} entries of the weights, by {keys}{there}"


def _describe_precision(manifest: "Manifest") -> str:
    settings = manifest.training.get("lock")
    precision = settings.get("precision") if isinstance(settings, dict) else None
    return precision if isinstance(precision, str) else "a precision that is not recorded"


def _explainer_row(entry: "ExplainerEntry", manifest: "Manifest") -> tuple[object, ...]:
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(entry.parameters.items())) or "-"
    correlation = "-" if entry.pcc_to_reference is None else f"{entry.pcc_to_reference:.5f}"
    return f"  {entry.name}", _describe_runtime(entry, manifest), parameters, correlation


def _describe_runtime(entry: "ExplainerEntry", manifest: "Manifest") -> str:
    """Returns how a server computes an explainer, in words."""
    if entry.runtime == "onnx":
        return _with_variants("compiled", entry.variants)
    if entry.runtime == "loop":
        from keylock.errors import InputError
        from keylock.iterative import make_loop

        try:
            loop = make_loop(entry.name, **entry.parameters)
        except InputError:
            return "loop of another version, not served"
        answers = "predictions" if loop.reads == "logits" else "gradients"
        return f"loop over {loop.passes(manifest.preprocessing.shape)} {answers}"
    if manifest.architecture.module == "registry":
        return "torch, not served without it"
    return "torch, not served"


def _with_variants(runtime: str, variants: "Mapping[str, VariantEntry]") -> str:
    return ", ".join([runtime, *variants])


def _figure_row(figure: "Figure") -> tuple[object, ...]:
    interval = "-" if figure.low is None or figure.high is None else f"{figure.low:.4g} to {figure.high:.4g}"
    return f"  {figure.name}", f"{figure.value:.4g}", interval, figure.unit or "-", figure.about or "-"
