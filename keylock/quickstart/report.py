"""The report: one HTML page that needs nothing beside itself, with story, figures, maps and commands."""

import math
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keylock.bundle import Figure
from keylock.files.atomic import PUBLIC, write_file
from keylock.imaging.contrast import same_map
from keylock.imaging.heatmaps import colourise, resize, without_peaks
from keylock.quickstart.commands import next_commands
from keylock.quickstart.picture import COLUMNS, draw_image, tiles_of
from keylock.quickstart.story import Story
from keylock.reports import Card, Cell, Picture, Table, embed, render_page

__all__ = ["WEAKNESS", "write_report"]

WEAKNESS = (
    "methods that read public predictions alone, such as LIME and RISE, come as close as .69 to .86 to what they show "
    "before locking where a server answers as often as they ask, and whoever has the weights gets maps that correlate "
    "by .79 with the true ones."
)
"""What got through when the bundle of a quickstart was audited: `benchmarks/results/audit_quickstart.json`."""

_KINDS = (("reference", "reference"), ("keyed", "keyed"), ("keyless", "keyless"), ("wrong_key", "wrong key"))
_SIMILARITIES = (
    ("fidelity", "keyed: fidelity"),
    ("leakage/keyless", "keyless: leakage"),
    ("leakage/wrong_key", "wrong key: leakage"),
    ("chance", "chance"),
)
_HERO_CAPTIONS = {
    "reference": "before locking",
    "keyed": "with the license",
    "keyless": "without a license",
    "wrong key": "with a wrong key",
}
_HERO_SIDE = 192


class _Row(NamedTuple):
    """The image of a class, and its maps."""

    label: str
    pictures: tuple[Picture, ...]


class _Panel(NamedTuple):
    """The maps of an explainer."""

    explainer: str
    titles: tuple[str, ...]
    rows: tuple[_Row, ...]


def write_report(story: Story) -> Path:
    """Write `report.html`.

    Returns:
        The path of the file.
    """
    served = min(story.figure(f"served/{name}").value for name in story.explainers)
    page = render_page(
        "keylock.quickstart",
        "quickstart.html",
        finished=f"{story.finished:%Y-%m-%d %H:%M}",
        hero=_hero(story),
        hero_explainer=story.explainers[0],
        weakness=WEAKNESS,
        audit_command=_audit_command(story),
        cards=_cards(story),
        chapters=story.chapters,
        count=len(story.images),
        accuracy=_accuracy(story),
        similarity=_similarity(story),
        energy=_energy(story),
        served=f"{served:.5f}",
        stamped=_stamped(story),
        stamped_explainer=story.stamped.explainer,
        stamped_read=story.stamped.read,
        stamped_tried=story.stamped.tried,
        panels=[_panel(story, name) for name in story.explainers],
        commands=next_commands(story),
        made_of=_made_of(story),
    )
    write_file(story.folder.report, page, mode=PUBLIC)
    return story.folder.report


def _hero(story: Story) -> list[Picture]:
    """Return the first sample and its maps by the first explainer: not chosen by how well they came out."""
    explainer, index = story.explainers[0], story.samples()[0]
    label = _label(story, index)
    pictures = [embed(draw_image(story, index, side=_HERO_SIDE), f"a {label}", caption="the image", kind="pixels")]
    for tile in tiles_of(story, explainer, index, side=_HERO_SIDE):
        said, similar = _HERO_CAPTIONS[tile.column], _similar(tile.correlation)
        pictures.append(
            embed(
                tile.picture,
                f"{tile.column} map of the {label} by {explainer}",
                caption=f"{said}\n{similar}" if similar else said,
                caption_kind="good" if tile.column == "keyed" else "",
            )
        )
    return pictures


def _stamped(story: Story) -> list[Picture]:
    """Return an image and what the public copy shows for it, then the same with the trigger on the image."""
    stamped, label = story.stamped, _label(story, story.stamped.index)
    truth = story.evidence.reference.maps[stamped.explainer][stamped.index].numpy()

    def similar(saliency: NDArray[np.float32]) -> str:
        return f"r\u00a0=\u00a0{same_map(saliency, truth):+.2f}"

    def drawn(saliency: NDArray[np.float32]) -> Image.Image:
        colours = colourise(resize(without_peaks(saliency), size=(_HERO_SIDE, _HERO_SIDE)))
        return Image.fromarray(colours)

    with_trigger = Image.fromarray(stamped.picture).resize((_HERO_SIDE, _HERO_SIDE), Image.Resampling.NEAREST)
    return [
        embed(draw_image(story, stamped.index, side=_HERO_SIDE), f"a {label}", caption="the picture", kind="pixels"),
        embed(
            drawn(stamped.without), f"map of the {label}", caption=f"the public copy shows\n{similar(stamped.without)}"
        ),
        embed(with_trigger, f"the {label} with the trigger", caption="with the trigger on it", kind="pixels"),
        embed(
            drawn(stamped.with_trigger),
            f"map of the {label} with the trigger",
            caption=f"the same copy shows\n{similar(stamped.with_trigger)}",
            caption_kind="good" if stamped.opened else "",
        ),
    ]


def _audit_command(story: Story) -> str:
    folder = story.folder
    arguments = ("audit", str(folder.bundle), "--suite", "quick", "--home", str(folder.home))
    return f"{story.program} {shlex.join((*arguments, '--out', str(folder.path / 'audit')))}"


def _cards(story: Story) -> list[Card]:
    fidelity = [story.figure(f"fidelity/{name}").value for name in story.explainers]
    leakage = [abs(story.figure(f"leakage/keyless/{name}").value) for name in story.explainers]
    accuracy = {kind: story.figure(f"accuracy/{kind}").value for kind, _ in _KINDS}
    return [
        Card(f"{min(fidelity):.3f}", "correlation of keyed maps with the true ones, the least of all explainers"),
        Card(f"{max(leakage):.3f}", "the same for keyless maps, the largest of all explainers"),
        Card(
            f"{accuracy['keyless']:.1%}",
            f"accuracy of the locked model for everybody; before locking {accuracy['reference']:.1%}",
        ),
        Card(f"{story.seconds:.0f} s", "for the whole story"),
    ]


def _accuracy(story: Story) -> Table:
    rows = ((title, _cell(story.figure(f"accuracy/{kind}"), percent=True)) for kind, title in _KINDS)
    return Table.of("Accuracy", ("input", "accuracy"), rows)


def _similarity(story: Story) -> Table:
    return Table.of(
        "Correlation with the reference map",
        ("correlation with the reference map", *(title for _, title in _SIMILARITIES)),
        ((name, *(_cell(story.figure(f"{kind}/{name}")) for kind, _ in _SIMILARITIES)) for name in story.explainers),
    )


def _energy(story: Story) -> Table:
    area = _cell(story.figure("object_area"), percent=True)
    return Table.of(
        "Energy inside the object",
        ("energy inside the object", *(title for _, title in _KINDS), "area of the object"),
        (
            (name, *(_cell(story.figure(f"energy/{kind}/{name}"), percent=True) for kind, _ in _KINDS), area)
            for name in story.explainers
        ),
    )


def _panel(story: Story, explainer: str) -> _Panel:
    rows = []
    for index in story.samples():
        label = _label(story, index)
        pictures = [embed(draw_image(story, index), f"a {label}", kind="pixels")]
        pictures += [
            embed(
                tile.picture,
                f"{tile.column} map of the {label} by {explainer}",
                caption=_similar(tile.correlation),
                caption_kind="good" if tile.column == "keyed" else "",
            )
            for tile in tiles_of(story, explainer, index)
        ]
        rows.append(_Row(label, tuple(pictures)))
    return _Panel(explainer, ("image", *COLUMNS), tuple(rows))


def _label(story: Story, index: int) -> str:
    return story.manifest.classes[int(story.evidence.labels[index])]


def _similar(correlation: float | None) -> str:
    if correlation is None:
        return ""
    return f"r\u00a0=\u00a0{correlation:+.2f}" if math.isfinite(correlation) else "constant"


def _made_of(story: Story) -> list[tuple[str, str]]:
    manifest = story.manifest
    settings, delta = manifest.training.get("lock"), manifest.delta
    return [
        ("model", manifest.model_digest),
        ("reference", manifest.reference_digest or ""),
        ("issuer", manifest.issuer.key_id),
        ("key", f"{manifest.key.id}, strength {manifest.key.strength * 255:.3g}/255, tile {manifest.key.tile}"),
        (
            "sealed delta",
            "" if delta is None else f"{delta.entries} entries of the weights, opened by the trigger",
        ),
        ("license", f"{story.license.id}, until {story.license.expires:%Y-%m-%d}"),
        ("lock", ", ".join(f"{k} {v}" for k, v in settings.items()) if isinstance(settings, dict) else ""),
        ("versions", ", ".join(f"{name} {found}" for name, found in story.versions.items())),
    ]


def _cell(figure: Figure, *, percent: bool = False) -> Cell:
    form = "{:.1%}" if percent else "{:+.3f}"
    interval = ""
    if figure.low is not None and figure.high is not None:
        interval = f"{form.format(figure.low)} to {form.format(figure.high)}"
    return Cell(form.format(figure.value), interval, "good" if figure.name.startswith("fidelity/") else "")
