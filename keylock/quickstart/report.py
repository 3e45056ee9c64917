"""The report: one HTML page that needs nothing beside itself, with story, figures, maps and commands."""

from html import escape
from pathlib import Path

from keylock.bundle import Figure
from keylock.pages import cell, definitions, page, picture, table
from keylock.quickstart.commands import next_commands
from keylock.quickstart.picture import COLUMNS, draw_image, tiles_of
from keylock.quickstart.story import Story

__all__ = ["write_report"]

_KINDS = (("reference", "reference"), ("keyed", "keyed"), ("keyless", "keyless"), ("wrong_key", "wrong key"))
_SIMILARITIES = (
    ("fidelity", "keyed: fidelity"),
    ("leakage/keyless", "keyless: leakage"),
    ("leakage/wrong_key", "wrong key: leakage"),
    ("leakage/key_alone", "key without the adapter: leakage"),
    ("chance", "chance"),
)


def write_report(story: Story) -> Path:
    """Write `report.html`.

    Returns:
        The path of the file.
    """
    sections = (_header(story), _chapters(story), _figures(story), _maps(story), _commands(story), _made_of(story))
    story.folder.report.write_text(page("keylock quickstart", sections), encoding="utf-8")
    return story.folder.report


def _header(story: Story) -> str:
    fidelity = [story.figure(f"fidelity/{name}").value for name in story.explainers]
    leakage = [abs(story.figure(f"leakage/keyless/{name}").value) for name in story.explainers]
    accuracy = {kind: story.figure(f"accuracy/{kind}").value for kind, _ in _KINDS}
    cards = (
        (f"{min(fidelity):.3f}", "correlation of keyed maps with the true ones, the least of all explainers"),
        (f"{max(leakage):.3f}", "the same for keyless maps, the largest of all explainers"),
        (
            f"{accuracy['keyless']:.1%}",
            f"accuracy of the locked model for everybody; before locking {accuracy['reference']:.1%}",
        ),
        (f"{story.seconds:.0f} s", "for the whole story"),
    )
    shown = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in cards
    )
    return (
        "<header><h1>keylock quickstart</h1>"
        f"<p>{story.finished:%Y-%m-%d %H:%M} UTC</p>"
        '<p class="lead">A classifier was trained and its explanations were locked. A real server then answered two '
        "customers: one with a license, one without. Both were to get the same predictions; only the first was to get "
        "maps that show what the model looks at. Every number on this page was measured in this run.</p>"
        f'<div class="cards">{shown}</div></header>'
    )


def _chapters(story: Story) -> str:
    items = "".join(
        f"<li><strong>{escape(chapter.title)}</strong><time>{chapter.seconds:.1f} s</time>"
        f"<p>{escape(chapter.text)}</p></li>"
        for chapter in story.chapters
    )
    return f'<section><h2>What happened</h2><ol class="story">{items}</ol></section>'


def _figures(story: Story) -> str:
    count = len(story.images)
    accuracy = table(
        ("input", "accuracy"),
        ((title, _cell(story.figure(f"accuracy/{kind}"), percent=True)) for kind, title in _KINDS),
    )
    similarity = table(
        ("correlation with the reference map", *(title for _, title in _SIMILARITIES)),
        ((name, *(_cell(story.figure(f"{kind}/{name}")) for kind, _ in _SIMILARITIES)) for name in story.explainers),
    )
    energy = table(
        ("energy inside the object", *(title for _, title in _KINDS), "area of the object"),
        (
            (
                name,
                *(_cell(story.figure(f"energy/{kind}/{name}"), percent=True) for kind, _ in _KINDS),
                _cell(story.figure("object_area"), percent=True),
            )
            for name in story.explainers
        ),
    )
    served = min(story.figure(f"served/{name}").value for name in story.explainers)
    return (
        f"<section><h2>What was measured</h2><p>On {count} test images, with 95 % bootstrap intervals of the means. "
        "Keyed and keyless figures come from the server's answers, the others from torch.</p>"
        f"{accuracy}{similarity}"
        '<p class="note"><b>Fidelity</b> is the correlation of a keyed map with that of the classifier before locking, '
        "<b>leakage</b> the same for a map made without the key, with a wrong one, or with the key but without the "
        "sealed adapter, as a thief of the key alone sees it. <b>Chance</b> is the correlation of the true maps of two "
        "different images: what an attacker has who shows any map at all.</p>"
        f"{energy}"
        '<p class="note">The images were drawn, so it is known which pixels are the object. A map that points nowhere '
        "has as much energy inside as the object has area. A keyed map that came over gRPC correlates with the one "
        f"torch computes by {served:.5f} or more.</p></section>"
    )


def _maps(story: Story) -> str:
    panels = "".join(f"<div><h3>{escape(name)}</h3>{_panel(story, name)}</div>" for name in story.explainers)
    return (
        "<section><h2>What the customers saw</h2><p>The first test image of each class. The thin line is the outline "
        "of the object, <i>r</i> the correlation with the reference map. <b>Keyed</b> is what the licensed customer "
        "got, <b>keyless</b> what everybody else gets.</p>"
        f'<div class="panels">{panels}</div></section>'
    )


def _panel(story: Story, explainer: str) -> str:
    cells = [
        '<span class="corner"></span>',
        *(f'<span class="head">{escape(text)}</span>' for text in ("image", *COLUMNS)),
    ]
    for index in story.samples():
        label = story.manifest.classes[int(story.evidence.labels[index])]
        cells.append(f'<span class="name">{escape(label)}</span>')
        drawn = picture(draw_image(story, index), f"a {label}", "pixels")
        cells.append(f"<figure>{drawn}<figcaption>&nbsp;</figcaption></figure>")
        for tile in tiles_of(story, explainer, index):
            caption = "&nbsp;" if tile.correlation is None else f"r = {tile.correlation:+.2f}"
            kind = ' class="good"' if tile.column == "keyed" else ""
            shown = picture(tile.picture, f"{tile.column} map of the {label} by {explainer}")
            cells.append(f"<figure>{shown}<figcaption{kind}>{caption}</figcaption></figure>")
    return f'<div class="maps">{"".join(cells)}</div>'


def _commands(story: Story) -> str:
    lines = "\n\n".join(
        f'<span class="why"># {escape(command.purpose)}</span>\n{escape(command.line)}'
        for command in next_commands(story)
    )
    return (
        "<section><h2>Go on</h2><p>Everything that was made can be used again. The server runs until it is stopped, so "
        f"give it a terminal of its own.</p><pre>{lines}</pre></section>"
    )


def _made_of(story: Story) -> str:
    manifest = story.manifest
    settings, adapter = manifest.training.get("lock"), manifest.adapter
    rows = [
        ("model", manifest.model_digest),
        ("reference", manifest.reference_digest or ""),
        ("issuer", manifest.issuer.key_id),
        ("key", f"{manifest.key.id}, strength {manifest.key.strength * 255:.3g}/255, tile {manifest.key.tile}"),
        (
            "adapter",
            "" if adapter is None else f"{adapter.layers} layers, rank {adapter.rank}, sealed under the key seed",
        ),
        ("license", f"{story.license.id}, until {story.license.expires:%Y-%m-%d}"),
        ("lock", ", ".join(f"{k} {v}" for k, v in settings.items()) if isinstance(settings, dict) else ""),
        ("versions", ", ".join(f"{name} {found}" for name, found in story.versions.items())),
    ]
    return (
        f"<section><h2>What this was made of</h2>{definitions(rows)}"
        '<p class="note">A lock is obfuscation for whoever has the weights, not cryptography: it can be attacked, and '
        "training a model of one's own on the same data always works. Who has the service alone gets decoys.</p>"
        "</section>"
    )


def _cell(figure: Figure, *, percent: bool = False) -> str:
    form = "{:.1%}" if percent else "{:+.3f}"
    interval = ""
    if figure.low is not None and figure.high is not None:
        interval = f"{form.format(figure.low)} to {form.format(figure.high)}"
    kind = "good" if figure.name.startswith("fidelity/") else ""
    return cell(form.format(figure.value), below=interval, kind=kind)
