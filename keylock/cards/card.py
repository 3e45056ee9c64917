"""The text of a model card: what the model does, what was measured of its lock, whose terms hold, what it is not."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keylock.bundle import Bundle, Figure, Manifest
from keylock.cards.header import header_of
from keylock.errors import InputError

__all__ = ["CardTerms", "write_card"]

_LICENSE: Final = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_MARKS: Final = re.compile(r"([\\`*_{}\[\]<>|#~$])")
_MANY_CLASSES: Final = 50

_ACCURACIES: Final = (
    ("accuracy/keyless", "as everybody gets it"),
    ("accuracy/keyed", "with a license"),
    ("accuracy/reference", "before locking"),
)
_MAPS: Final = (
    ("fidelity/{}", "with a license"),
    ("leakage/keyless/{}", "without one"),
    ("leakage/wrong_key/{}", "with a wrong key"),
    ("chance/{}", "chance"),
)


@dataclass(frozen=True, kw_only=True)
class CardTerms:
    """Under which terms a model goes out; keylock knows none of them.

    Attributes:
        license: Of the published model, as the Hugging Face Hub names it, for example `apache-2.0`, or `other`.
        license_name: Name of the license, where that is `other`.
        license_link: Where its text is: an address, or a file beside the card.
        contact: Who licenses explanations: an address of any kind, or None.
    """

    license: str
    license_name: str | None = None
    license_link: str | None = None
    contact: str | None = None

    def check(self) -> None:
        """Returns when a card can state them.

        Raises:
            InputError: If the license is not written as the Hub writes it, or one of its own has no name or link.
        """
        if not _LICENSE.fullmatch(self.license):
            raise InputError(
                f"{self.license!r} is no license as the Hugging Face Hub writes it: give for example apache-2.0, or "
                "other with a name and a link"
            )
        if (self.license == "other") != bool(self.license_name and self.license_link):
            raise InputError("the license `other`, and no other, goes with a name and a link: give both, or neither")
        for text in (self.license_name, self.license_link, self.contact):
            if text is not None and not text.isprintable():
                raise InputError("the terms of a card are printable texts on one line: take other characters out")


def write_card(
    bundle: Bundle, terms: CardTerms, *, pictures: Sequence[tuple[str, str]] = (), without_figures: bool = False
) -> str:
    """Returns the content of `README.md`.

    Args:
        bundle: The bundle, verified.
        terms: Under which terms it goes out.
        pictures: File names beside the card, with what each shows.
        without_figures: Whether a bundle of which nothing was measured gets a card that says so.

    Raises:
        InputError: If nothing was measured and that is not wanted, or the terms cannot be stated.
    """
    terms.check()
    manifest = bundle.manifest
    if not manifest.figures and not without_figures:
        raise InputError(
            f"nothing was measured of the lock of {manifest.name}, and a card is read for its figures: lock it by "
            "`keylock train`, which measures, or say without_figures=True for a card that says that nothing was"
        )
    header = header_of(
        manifest, license=terms.license, license_name=terms.license_name, license_link=terms.license_link
    )
    parts = [
        *_introduction(manifest),
        *(f"![{_text(about)}]({name})" for name, about in pictures),
        *_use(manifest),
        *_predictions(manifest),
        *_explanations(manifest),
        *_terms(manifest, terms),
        *_limits(manifest),
        *_proof(bundle),
    ]
    return header + "\n" + "\n\n".join(parts) + "\n"


def _introduction(manifest: Manifest) -> Iterator[str]:
    height, width = manifest.preprocessing.size
    count = len(manifest.classes)
    yield f"# {_text(manifest.name)}"
    yield (
        f"An image classifier ({_text(manifest.architecture.name)}, {height} x {width} pixels, {count} "
        f"{'class' if count == 1 else 'classes'}) whose **explanations are licensed**: predictions are for everybody, "
        "and its saliency maps are true with a license alone. Without one the same explainers show a decoy "
        f"(`{manifest.decoy.name}`), which says nothing of the image. It was locked by keylock."
    )


def _use(manifest: Manifest) -> Iterator[str]:
    weights = "" if manifest.delta is None else ", which takes the weights that it names from `weights.safetensors`"
    yield "## Use"
    yield (
        "```python\nfrom keylock_client import LocalModel\n\n"
        f'model = LocalModel("{manifest.name}.klb", issuer="issuer.pub.pem")\n'
        'print(model.predict("picture.png").label)\n```'
    )
    yield (
        "`LocalModel` takes the bundle as a file or as a folder, checks every byte of it, and needs ONNX Runtime. "
        f"Other programs run `{manifest.prediction_graph}`{weights}."
    )


def _predictions(manifest: Manifest) -> Iterator[str]:
    yield "## Predictions"
    shown = ", ".join(_text(name) for name in manifest.classes[:_MANY_CLASSES])
    more = len(manifest.classes) - _MANY_CLASSES
    yield f"Classes: {shown}{f', and {more} more' if more > 0 else ''}."
    figures = _by_name(manifest)
    rows = [(title, figures[name]) for name, title in _ACCURACIES if name in figures]
    if not rows:
        yield "Accuracy was not measured."
        return
    cells = [(title, f"{figure.value:.1%}", _interval(figure, "{:.1%}"), _text(figure.about)) for title, figure in rows]
    yield _table(("", "accuracy", "95 % interval", "measured on"), cells)


def _explanations(manifest: Manifest) -> Iterator[str]:
    yield "## Explanations"
    figures = _by_name(manifest)
    names = [entry.name for entry in manifest.explainers if f"fidelity/{entry.name}" in figures]
    if not manifest.explainers:
        yield "None are offered."
    elif not names:
        yield (
            f"Offered: {', '.join(f'`{entry.name}`' for entry in manifest.explainers)}. How true they are with a "
            "license, and how little they tell without one, was not measured."
        )
    else:
        cells = [(f"`{name}`", *(_correlation(figures.get(kind.format(name))) for kind, _ in _MAPS)) for name in names]
        yield "Mean correlation (Pearson) of maps with those of the model before locking, with 95 % intervals:"
        yield _table(("explainer", *(title for _, title in _MAPS)), cells)
        about = ", ".join(dict.fromkeys(_text(figures[f"fidelity/{name}"].about) for name in names))
        yield (
            f"Measured on {about or 'images that are not stated'}. *Chance* is what true maps of two different images "
            f"have in common: maps without a license tell something where they exceed it.{_leaks(figures, names)}"
        )


def _terms(manifest: Manifest, terms: CardTerms) -> Iterator[str]:
    yield "## Terms"
    name = _text(terms.license_name or terms.license)
    link = f" ([text]({terms.license_link}))" if terms.license_link else ""
    model = f"- The published model, its weights and graphs: {name}{link}."
    contact = _text(terms.contact) if terms.contact else "the vendor"
    offline = (
        ""
        if manifest.delta is None
        else " Pictures that carry the trigger, which the vendor stamps, need neither license nor server."
    )
    yield (
        f"{model}\n- True explanations: a license from {contact}, presented to the vendor's server. It says which "
        f"explainers, how many images and until when; uses are counted, and proven by receipts.{offline}"
    )


def _limits(manifest: Manifest) -> Iterator[str]:
    yield "## Limits"
    opened = (
        "What opens the lock is in the published weights, for whoever finds the trigger."
        if manifest.delta is None
        else "The true weights are encrypted in the file `delta.sealed`, under the trigger: whoever gets a picture "
        "that carries it can read the trigger and has every true map."
    )
    yield (
        "- That the published weights show decoys is a trained behaviour and no encryption: whoever has them can train "
        f"it away. {opened}\n"
        "- A saliency method that was not locked may show the truth in these weights, and anybody can explain "
        "predictions by covering parts of a picture.\n"
        "- A decoy looks like an explanation and is none: do not judge the model by maps without a license.\n"
        "- The trigger survives rounding to eight bits, and no resizing, cropping or lossy compression.\n"
        "- Figures are the vendor's own, on the images named; of other images they say nothing."
    )


def _proof(bundle: Bundle) -> Iterator[str]:
    manifest = bundle.manifest
    yield "## Whose it is"
    yield _table(
        ("", ""),
        [
            ("model digest", f"`{manifest.model_digest}`"),
            ("signed by the key", f"`{bundle.issuer.key_id}` (Ed25519)"),
            ("made", f"{manifest.created:%Y-%m-%d} by keylock {_text(manifest.keylock_version)}"),
        ],
    )
    command = f"keylock verify {manifest.name}.klb --issuer issuer.pub.pem"
    if bundle.model_signature() is not None:
        command += " --oms-key oms.pub.pem"
    yield f"```sh\n{command}\n```"


def _by_name(manifest: Manifest) -> dict[str, Figure]:
    return {figure.name: figure for figure in manifest.figures}


def _correlation(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.3f} ({_interval(figure, '{:.3f}')})"


def _leaks(figures: Mapping[str, Figure], names: Iterable[str]) -> str:
    """Returns a sentence on explainers whose maps tell more than chance; a map turned upside down tells as much."""
    leaking = [
        f"`{name}`"
        for name in names
        if (kind := f"leakage/keyless/{name}") in figures
        and (chance := f"chance/{name}") in figures
        and abs(figures[kind].value) > abs(figures[chance].value)
    ]
    return f" Here those of {', '.join(leaking)} do." if leaking else ""


def _interval(figure: Figure, form: str) -> str:
    if figure.low is None or figure.high is None:
        return "not stated"
    return f"{form.format(figure.low)} to {form.format(figure.high)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(text: str) -> str:
    """Returns a text of somebody's as Markdown that shows it and does nothing else."""
    return _MARKS.sub(r"\\\1", text)
