"""The page of an audit, of records that were made up: the conclusion first, attacks in words, whatever is missing."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

pytest.importorskip("jinja2")

import torch
from html_page import Page

from keylock.audit import ATTACKS, Policy
from keylock.audit.comparisons import near_copies_table, own_network_said, own_network_table, toolkit_tables
from keylock.audit.conclusion import GROUPS, TRAINED_TRIGGER, conclude
from keylock.audit.families import FAMILIES, SEALED_DELTA
from keylock.audit.report import render
from keylock.audit.run import AuditResult
from keylock.audit.scoring import SELF
from keylock.auditreport.record import AuditRecord, CheckRecord, Finding, Judged, OwnNetwork, Point, Recovery

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


def judged(attack, verdict, *, found=None, truth="gradient", label=None, own=0.2, separation=None, **finding):
    known = ATTACKS[attack]
    recoveries = ()
    if found is not None:
        overlap = (0.3, 0.2, 0.4)
        recoveries = (
            Recovery(
                label=label or truth,
                truth=truth,
                pcc=(found, found - 0.1, found + 0.1),
                top_overlap=overlap,
                chance=0.1,
                chance_top_overlap=0.1,
                images=4,
            ),
        )
    return Judged(
        finding=Finding(
            attack=attack,
            group=known.group,
            summary=known.summary,
            status=verdict if verdict in {"skipped", "error"} else "done",
            recoveries=recoveries,
            separation=separation,
            cost={"queries": 1200, "labelled": 30, "seconds": 2.0},
            **finding,
        ),
        verdict=verdict,
        worst=0 if recoveries else None,
        own=own if recoveries else None,
        advantage=abs(found) - own if recoveries else None,
        limit="PCC - own model <= 0" if verdict in {"pass", "fail"} else "",
    )


CHECKS = (
    CheckRecord(name="errors", good=False, value="<trace>"),
    CheckRecord(name="time", good=None, value="3 ms"),
)
BAD = (
    judged("predictions/lime", "fail", found=0.86, truth=SELF, label="lime"),
    judged("low_rank/cut_1", "fail", found=-0.81, accuracy=0.8),
    judged("fine_tune/few_0.01", "fail", found=0.4),
    judged("service/errors", "fail", checks=CHECKS),
    judged("pairs/tuning", "measured", found=0.9),
    judged("detect/randomisation", "measured", separation=0.04),
    judged("key_climb/hill", "pass", found=0.05, curve=(Point(queries=0, pcc=0), Point(queries=9, pcc=0.1))),
    judged("base_model", "skipped", reason="needs a base model: give --base"),
    judged("prune/30", "error", reason="out of memory"),
)
GATE = {
    "chance": {"gradient": 0.3},
    "points": [{"sweep": "correlation", "explainer": "gradient", "at": at, "mean": at} for at in (0.0, 0.5, 1.0)],
}


def record_of(*found, **changes):
    policy = Policy.load().model_dump(mode="json", exclude_defaults=True)
    fixed = {"model": "toy", "model_digest": "sha256:0", "lock": "sealed delta", "suite": "quick", "seed": 0}
    return AuditRecord(
        **{
            **fixed,
            "created": NOW,
            "about": "4 test images of toys",
            "budget": {"steps": 3},
            "policy": policy,
            "versions": {"keylock": "0"},
            "judged": found,
            **changes,
        }
    )


def recovery(label, truth, found, chance=0.1):
    overlap = (0.3, 0.2, 0.4)
    pcc = (found, found - 0.1, found + 0.1)
    return Recovery(
        label=label, truth=truth, pcc=pcc, top_overlap=overlap, chance=chance, chance_top_overlap=0.1, images=4
    )


def toolkit(attack, **found):
    one = judged(attack, "fail")
    shown = tuple(recovery(label, truth, value) for label, value in found.items() for truth in ("gradient", SELF))
    return one.model_copy(update={"finding": one.finding.model_copy(update={"recoveries": shown}), "worst": 0})


def own_network(**changes):
    fixed = {"accuracy": 0.93, "wanted": 0.98, "images": 1000, "steps": 400}
    return OwnNetwork(**{**fixed, "recoveries": (recovery("gradient", "gradient", 0.55),), **changes})


def result_of(record, explainers=("gradient",), samples=None):
    maps = {name: torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)) for name in explainers}
    return AuditResult(judged=record.judged, gate=record.gate, samples=samples or {}, truths=maps, keyless=maps)


def read(record, result=None):
    page = Page(render(record, result or result_of(record), PIXELS))
    page.check()
    return page


def test_the_conclusion_and_what_to_do_come_first_and_figures_later():
    page = read(record_of(*BAD, gate=GATE))
    parts = ["does not hold what is promised: 4 of 5 attacks got through", "What to do", "Against whom", "T0: public"]
    parts += ["The worst of each kind", "Curves", "What attackers see", "Every attack", "What this was made of"]
    places = [page.shown.index(part) for part in parts]
    assert places == sorted(places)
    assert next(tag for tag, _ in page.elements if tag in {"ul", "table", "svg", "img"}) == "ul"


def test_every_attacker_is_explained_in_a_sentence_beside_what_it_got():
    found = {one.title: one for one in conclude(record_of(*BAD)).attackers}
    assert [one.title for one in found.values()] == [title for title, _ in GROUPS.values()]
    for one in found.values():
        assert one.meaning.endswith(".")
        assert one.meaning.count(".") == 1
    t0, t1, t2, detection, service = found.values()
    assert (t0.kind, t1.kind, t2.kind, detection.kind, service.kind) == ("bad", "bad", "", "", "bad")
    assert t0.result.startswith("1 of 2 attacks got through.")
    assert "0.86 with those of the same method on the unlocked model; 0.20" in t0.result
    # A map turned upside down tells as much.
    assert "0.81 with the true ones" in t1.result
    assert t2.result.startswith("Measured, not promised.")
    assert "probability of 0.96, where guessing has 0.50" in detection.result
    assert service.result == "1 of 1 attacks got through."


def test_advice_is_given_for_what_got_through_once_and_the_service_first():
    advice = conclude(record_of(*BAD)).advice
    assert advice[0] == FAMILIES["service"].advice[0]
    assert len(advice) == len(set(advice))
    assert set(FAMILIES["predictions"].advice + FAMILIES["low_rank"].advice) < set(advice)
    assert not set(FAMILIES["key_climb"].advice) & set(advice)
    searched = judged("key_search/move_tile", "fail", found=0.5)
    assert SEALED_DELTA not in conclude(record_of(searched)).advice
    assert SEALED_DELTA in conclude(record_of(searched, lock=TRAINED_TRIGGER)).advice


def test_a_lock_that_held_is_not_said_to_hold_against_more():
    held = conclude(record_of(*(one for one in BAD if one.verdict == "pass")))
    assert held.kind == "good"
    assert "held against the one attack" in held.verdict
    assert "says nothing" in held.verdict
    assert "Held: none of 1 attacks" in held.attackers[0].result
    nothing = conclude(record_of(*(one for one in BAD if one.verdict in {"skipped", "error", "measured"})))
    assert nothing.verdict.startswith("Nothing can be concluded")
    assert nothing.kind == ""
    assert (
        "1 could not be carried out (prune/30); 1 did not apply, or needed an option (base_model)" in nothing.left_out
    )


def test_methods_of_a_toolkit_are_one_table_the_closest_first_with_what_is_beyond_chance_marked():
    found = (toolkit("captum/input", Saliency=0.15, LRP=-0.9), toolkit("captum/last", LayerGradCam=0.4))
    [table] = toolkit_tables(record_of(*found))
    assert table.header == ("captum", "input", "last layer")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["LRP", "-0.90", "-"],
        ["LayerGradCam", "-", "+0.40"],
        ["Saliency", "+0.15", "-"],
    ]
    assert [row[1].kind for row in table.rows] == ["bad", "faint", ""]
    assert "chance +0.10" in read(record_of(*found)).shown


def test_fine_tuning_is_shown_beside_an_own_network_of_the_same_accuracy():
    tuned = (judged("fine_tune/few_0.01", "fail", found=0.4), judged("fine_tune/many_0.01", "fail", found=-0.7))
    shown = record_of(*tuned, own=own_network())
    assert [[cell.text for cell in row] for row in own_network_table(shown).rows] == [
        ["gradient", "-0.70", "+0.55", "+0.10"]
    ]
    assert "not reached" in own_network_said(shown)
    assert "not reached" not in own_network_said(record_of(*tuned, own=own_network(accuracy=0.99)))
    page = read(shown)
    assert "A network of one's own" in page.shown
    assert "93.0%" in " ".join(page.words)
    assert "A network of one's own" not in read(record_of(*tuned)).shown


def test_what_got_through_the_query_guard_stands_for_each_picture():
    notes = {"pictures": 4, "answered with scores": 10, "answered with labels": 48, "refused": 138}
    none = {**notes, "answered with scores": 4, "answered with labels": 0}
    attacks = (
        judged("near_copies/mix", "pass", found=0.05, label="fitted", notes=none),
        judged("near_copies/learning", "fail", found=0.5, label="averaged", notes=notes),
        judged("near_copies/windows", "skipped", reason="it takes hours"),
    )
    shown = record_of(*attacks)
    rows = [[cell.text for cell in row[1:]] for row in near_copies_table(shown).rows]
    assert rows == [
        ["2.5", "12.0", "34.5", "+0.50", "+0.10", "+0.40"],
        ["1.0", "0.0", "34.5", "+0.05", "+0.10", "-0.05"],
    ]
    assert "Near copies through the query guard" in read(shown).shown
    assert "Near copies through the query guard" not in read(record_of(*BAD)).shown


def test_every_attack_is_named_in_words_and_its_own_name_is_beside_them():
    page = read(record_of(*BAD))
    for one in BAD:
        assert one.finding.attack in page.shown
        words = " ".join(page.words)
        assert one.finding.summary.rstrip(".") in words
    for name in ("fails", "holds", "not promised", "not tried"):
        assert name in page.shown


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_has_a_family_in_words(attack):
    family = FAMILIES[attack.partition("/")[0]]
    assert family.name
    assert family.advice or ATTACKS[attack].group == "detection"


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "مدقق", "y" * 300, "a & 'b' \"c\""])
def test_names_and_texts_from_outside_are_text(name):
    record = record_of(*BAD, model=name, about=name, versions={name: name})
    page = read(record, result_of(record, (name,)))
    assert name in page.words
    assert not page.all("script")
    assert "<trace>" in page.shown


@pytest.mark.parametrize("explainers", [(), ("gradient",), tuple(f"explainer_{number}" for number in range(24))])
def test_any_number_of_explainers_and_of_missing_figures_gives_a_page(explainers):
    empty = record_of()
    assert "Nothing can be concluded" in read(empty, result_of(empty, explainers)).shown
    full = record_of(*BAD, gate=GATE, baseline=BAD[:2])
    page = read(full, result_of(full, explainers))
    assert len(page.all("img")) == 2 * 3 * len(explainers)
    assert "baseline lock" in page.shown


def test_of_each_kind_of_attack_its_closest_maps_are_shown():
    found = (
        judged("low_rank/cut_1", "fail", found=0.8),
        judged("low_rank/cut_2", "fail", found=0.7),
        judged("fine_tune/few_0.01", "fail", found=0.4),
        judged("pairs/tuning", "measured", found=0.9),
    )
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(2))
    record = record_of(*found)
    samples = {one.finding.attack: {"gradient": maps} for one in found}
    page = read(record, replace(result_of(record), samples=samples))
    assert [image["alt"] for image in page.all("img")[:5]] == [
        "image 1",
        "true map of image 1 by gradient",
        "keyless map of image 1 by gradient",
        f"{FAMILIES['low_rank'].name} of image 1 by gradient",
        f"{FAMILIES['fine_tune'].name} of image 1 by gradient",
    ]
