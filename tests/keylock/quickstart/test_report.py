"""The page of the quickstart, of a story that was made up: what stands where, and that names are only text."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("jinja2")

import torch
from html_page import Page

from keylock.bundle import open_bundle
from keylock.evaluation import Measured
from keylock.licensing import License
from keylock.quickstart.customers import Answers
from keylock.quickstart.figures import Evidence, figures_of
from keylock.quickstart.folder import Folder
from keylock.quickstart.picture import COLUMNS
from keylock.quickstart.report import WEAKNESS, write_report
from keylock.quickstart.stamped import Stamped
from keylock.quickstart.story import Chapter, Story

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


@pytest.fixture
def story(untrained_bundle, tmp_path):
    """Four images of two classes, maps at random, as many explainers as a quickstart has."""
    generator = torch.Generator().manual_seed(0)

    def maps():
        return {name: torch.rand(4, 8, 8, generator=generator) for name in ("grad_cam", "gradient", "visual_backprop")}

    def measured():
        return Measured(torch.eye(2).repeat(2, 1), maps())

    def answers(keyed):
        return Answers(torch.arange(4) % 2, torch.arange(4) % 2, maps(), keyed)

    manifest = open_bundle(untrained_bundle.bundle, trusted=None).manifest
    entry = manifest.explainers[0]
    manifest = manifest.model_copy(
        update={
            "classes": ("circle", "square"),
            "explainers": tuple(entry.model_copy(update={"name": name}) for name in maps()),
        }
    )
    masks = torch.zeros(4, 16, 16, dtype=torch.bool)
    masks[:, 4:9, 4:9] = True
    evidence = Evidence(
        labels=torch.tensor([1, 0, 1, 0]),
        masks=masks,
        reference=measured(),
        keyed=answers(True),
        keyless=answers(False),
        wrong_key=measured(),
        local=measured(),
    )
    license = License(
        id="lic_00000000000000000000",
        customer="Acme",
        models=(manifest.model_digest,),
        explainers=("*",),
        issued_at=NOW,
        not_before=NOW,
        expires=NOW + timedelta(days=365),
    )
    return Story(
        folder=Folder(tmp_path),
        manifest=manifest,
        chapters=(Chapter("Draw a <data> set", "With & without.", 1.25),),
        figures=figures_of(evidence),
        evidence=evidence,
        stamped=Stamped(
            index=1,
            picture=np.zeros((16, 16, 3), dtype=np.uint8),
            explainer="grad_cam",
            without=np.eye(8, dtype=np.float32),
            with_trigger=np.eye(8, dtype=np.float32)[::-1].copy(),
            opened=True,
            tried=4,
            read=3,
        ),
        images=np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
        license=license,
        finished=NOW,
        versions={"torch": "2"},
        precision="float32",
    )


def read(story):
    page = Page(write_report(story).read_text("utf-8"))
    page.check()
    return page


def test_five_pictures_stand_directly_under_the_title(story):
    page = read(story)
    tags = [tag for tag, _ in page.elements]
    first = tags.index("h1")
    assert tags[first + 1 : first + 5] == ["p", "div", "div", "figure"]
    assert "h2" not in tags[first : [place for place, tag in enumerate(tags) if tag == "img"][4]]
    assert page.elements[first + 3][1] == {"class": "row"}
    alts = [image["alt"] for image in page.all("img")[:5]]
    # The first image of the first class is the second one.
    assert alts == ["a circle", *(f"{column} map of the circle by grad_cam" for column in COLUMNS)]
    sources = [image["src"] for image in page.all("img")[:5]]
    assert len(set(sources)) == 5


def test_every_class_and_explainer_has_its_row_of_five(story):
    page = read(story)
    assert len(page.all("img")) == 5 + 3 * 2 * 5 + 4
    assert page.shown.count("image reference keyed keyless wrong key") == 3


@pytest.mark.parametrize("name", ["<b>", "دائرة", "x" * 200, "a 'b' \"c\" & d"])
def test_names_of_classes_are_text(story, name):
    manifest = story.manifest.model_copy(update={"classes": (name, "square")})
    page = read(replace(story, manifest=manifest))
    assert page.words.count(name) == 3
    assert page.all("img")[0]["alt"] == f"a {name}"


def test_it_says_what_an_audit_would_not_let_pass_and_how_to_see(story):
    shown = read(story).shown
    assert WEAKNESS in shown
    assert shown.index(WEAKNESS) < shown.index("What happened")
    assert f"keylock audit {story.folder.bundle} --suite quick" in shown


def test_what_an_audit_would_not_let_pass_is_what_it_measured():
    audit = json.loads((RESULTS / "audit_quickstart.json").read_text("utf-8"))
    failed = {one["attack"]: one["pcc"][0] for one in audit["attacks"] if one["verdict"] == "fail" and "pcc" in one}
    found = [pcc for attack, pcc in failed.items() if attack.startswith("predictions/")]
    assert len(found) == 5
    assert f"{min(found):.2f} to {max(found):.2f}".replace("0.", ".") in WEAKNESS
    weights = {one["attack"]: one for one in audit["attacks"] if one["group"] == "T1" and one["verdict"] == "fail"}
    worst = max(abs(one["pcc"][0]) for one in weights.values())
    assert f"by {worst:.2f} with".replace("0.", ".") in WEAKNESS


def test_a_constant_map_has_no_correlation_to_show(story):
    keyless = replace(story.evidence.keyless, maps={name: torch.ones(4, 8, 8) for name in story.explainers})
    shown = read(replace(story, evidence=replace(story.evidence, keyless=keyless))).shown
    assert "nan" not in shown
