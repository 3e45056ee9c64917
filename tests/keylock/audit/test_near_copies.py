"""A query guard stops attackers by near copies who win without one, and what was refused is said and costs no more."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from test_attacks import PATIENCE, audited, keyed, openly
from toys import BUDGET, PREPROCESSING, Constant, draw, make_case

from keylock.audit import ATTACKS, LocalOracle
from keylock.audit.answered import Answer, NearCopiesError
from keylock.audit.contract import NotApplicableError, Steps
from keylock.audit.copies import ATTACKERS, FITS, MASKS, Attacker, Pixels, ask_about
from keylock.audit.copies.disguises import DISGUISES, LEARNED
from keylock.audit.copies.fits import fit_map
from keylock.audit.guarded import Guarded
from keylock.audit.oracle import Oracle
from keylock.audit.scoring import recoveries
from keylock.audit.views import PublicView
from keylock.training import Silent
from keylock_server.guard import GuardLimits

# These toys are blurred, turned and moved without harm, and the guard does not recognise what is disguised so; few
# large patches, and the labels that it answers, tell nearly all there is. Who answers no near copy stops those too.
SLIPPING = {
    name
    for name, one in ATTACKERS.items()
    if one.disguise or one.learns or one.windows > 1 or one.masks in {"halves", "pieces"} or not one.scores
}


class Closed(Oracle):
    """Answers about the first image and those of one colour, and takes all others for near copies."""

    has_guard = True

    def __init__(self, oracle):
        super().__init__(oracle.names)
        self.oracle, self.first = oracle, None

    def _predict(self, images):
        if self.first is None:
            self.first = images[:1].clone()
        if not all(torch.equal(image, self.first[0]) or image.std() == 0 for image in images):
            raise NearCopiesError(labels_left=False)
        return self.oracle.predict(images)

    def _explain(self, name, images, targets):
        raise NearCopiesError(labels_left=False)


def found_by(name, view, case, **spent):
    """How close an attack comes to the truth, and what it says."""
    budget = replace(BUDGET, copied_images=5, **{**PATIENCE.get(f"near_copies/{name}", {}), **spent})
    generator = torch.Generator().manual_seed(0)
    outcome = ATTACKS[f"near_copies/{name}"].run(view, budget, generator, Steps(name, Silent()))
    return max(one.found for one in recoveries(outcome.maps, case.truths(), {})), outcome


@pytest.mark.parametrize("name", ATTACKERS)
def test_a_guard_stops_an_attacker_who_wins_without_one(name):
    case = openly(name)()
    without, freely = found_by(name, case.view(PublicView), case)
    view = replace(case, guarded=True).view(PublicView)
    if name in SLIPPING:
        view = replace(view, served=partial(Closed, view.oracle))
    guarded, outcome = found_by(name, view, case)
    assert guarded < without - 0.15
    assert outcome.notes["answered with scores"] < max(1, freely.notes["answered with scores"])
    assert outcome.notes["answered with scores"] + outcome.notes["answered with labels"] == outcome.cost.queries


@pytest.mark.parametrize("name", ["climb_hill", "climb_nes"])
def test_a_guard_stops_a_climb_to_the_key(name):
    case = keyed()
    guarded, outcome = found_by(name, case.view(PublicView), case, climb_steps=60)
    assert guarded < 0.3
    assert outcome.notes["refused"] > outcome.notes["answered with scores"]


def test_an_attacker_who_learns_gets_more_scores_than_one_who_does_not():
    case = make_case(Constant())
    notes = {name: found_by(name, case.view(PublicView), case)[1].notes for name in ("occlusion", "learning")}
    assert notes["learning"]["answered with scores"] > 3 * notes["occlusion"]["answered with scores"]


def test_the_report_says_what_got_through(tmp_path):
    judged = audited("near_copies/occlusion", make_case(Constant()), tmp_path)
    assert judged.finding.status == "done"
    notes = judged.finding.notes
    assert {"pictures", "answered with scores", "answered with labels", "refused"} == notes.keys()
    assert judged.advantage is not None


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("size", [(16, 16), (24, 17)])
def test_masks_have_the_size_of_the_picture_and_differ(name, size):
    masks = MASKS[name](9, size, np.random.default_rng(0))
    assert masks.dtype == np.float32
    assert masks.shape == (9, *size)
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert len(np.unique(masks.reshape(9, -1), axis=0)) == 9


def test_as_many_patches_are_covered_as_are_wanted():
    for count in (49, 100, 400):
        assert len(np.unique(MASKS["occlusion"](count, (32, 32), np.random.default_rng(0)), axis=0)) == count


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (24, 18)])
@pytest.mark.parametrize("name", [*DISGUISES, *LEARNED])
def test_disguises_keep_the_shape_and_change_pictures(name, size, channels):
    pictures = np.random.default_rng(1).random((3, *size, channels), np.float32)
    made = [
        change(pictures, *strength, np.random.default_rng(0))
        for change, strength in ((DISGUISES.get(name), ()), (LEARNED.get(name), (0.5,)))
        if change is not None
    ]
    for disguised in made:
        assert disguised.dtype == np.float32
        assert disguised.shape == pictures.shape
        assert not np.allclose(disguised, pictures, atol=1e-3)


@pytest.mark.parametrize("name", LEARNED)
def test_learned_disguises_begin_at_nothing(name):
    pictures = np.random.default_rng(1).random((2, 16, 16, 3), np.float32)
    np.testing.assert_allclose(LEARNED[name](pictures, 0.0, np.random.default_rng(0)), pictures, atol=1e-6)


def test_a_regression_on_the_masks_is_that_of_least_squares():
    generator = np.random.default_rng(0)
    masks, kinds = generator.random((40, 3, 4)).astype(np.float32), np.full(40, Answer.SCORES)
    weights = generator.normal(size=12)
    answers = masks.reshape(40, 12) @ weights + 5
    # The second implementation: the same ridge in the space of pixels, with the offset as a column.
    shown = masks.reshape(40, 12) - masks.reshape(40, 12).mean(axis=0)
    wanted = np.linalg.solve(shown.T @ shown / 12 + 1e-2 * np.eye(12), shown.T @ (answers - answers.mean()) / 12)
    found = fit_map("fitted", masks, answers, kinds)
    np.testing.assert_allclose(found.ravel(), wanted * 12 / answers.std(), rtol=1e-4)
    assert np.corrcoef(found.ravel(), weights)[0, 1] > 0.99


@pytest.mark.parametrize("fit", FITS)
def test_scores_and_labels_make_one_map(fit):
    generator = np.random.default_rng(0)
    masks = generator.random((200, 4, 4)).astype(np.float32)
    told = masks[:, 0, 0].astype(np.float64)
    answers, kinds = 1e-3 * told + 0.9, np.full(200, Answer.SCORES)
    answers[::2], kinds[::2] = told[::2] > 0.5, Answer.LABEL
    found = fit_map(fit, masks, answers, kinds)
    assert found.argmax() == 0
    answers[::3] = np.nan
    assert np.isfinite(fit_map(fit, masks, answers, kinds)).all()
    assert not fit_map(fit, masks, np.full(200, np.nan), kinds).any()
    assert not fit_map(fit, masks, np.ones(200), kinds).any()


def test_pixels_and_images_are_the_same_pictures():
    images, _ = draw(3, 0)
    pixels = Pixels(PREPROCESSING)
    inside = pixels.images(pixels.pictures(images))
    torch.testing.assert_close(pixels.images(pixels.pictures(inside)), inside)


class Watched(LocalOracle):
    """Counts what it was told beside questions."""

    def __init__(self, module):
        super().__init__(module, {})
        self.calls, self.waits, self.asked = 0, 0, []

    def ask(self, images, **kinds):
        self.asked.append(len(images))
        return super().ask(images, **kinds)

    def wait(self):
        self.waits += 1

    def call_anew(self):
        self.calls += 1


@pytest.mark.parametrize(
    ("attacker", "waits", "calls", "asked"),
    [
        (Attacker(summary=""), 0, 0, [1] * 2 * 9),
        (Attacker(summary="", batch=4), 0, 0, [1, 4, 4] * 2),
        (Attacker(summary="", shows_picture=False), 0, 0, [1] * 2 * 8),
        (Attacker(summary="", windows=2), 1, 0, [1] * 2 * 9),
        (Attacker(summary="", calls_anew=True), 0, 16, [1] * 2 * 9),
        (Attacker(summary="", flood=3), 0, 0, [1, *[3, 1] * 8] * 2),
    ],
)
def test_attackers_call_as_they_are_described(attacker, waits, calls, asked):
    oracle, pixels = Watched(Constant().eval()), Pixels(PREPROCESSING)
    images = draw(2, 0)[0]
    copied = ask_about(
        oracle,
        images,
        attacker,
        copies=8,
        others=pixels.pictures(images).repeat(3, axis=0),
        pixels=pixels,
        generator=np.random.default_rng(0),
    )
    assert (oracle.waits, oracle.calls, oracle.asked) == (waits, calls, asked)
    for one in copied:
        assert (one.kinds == Answer.SCORES).all()
        assert ((one.answers >= 0) & (one.answers <= 1)).all()


def test_who_is_refused_for_long_gives_a_picture_up():
    oracle, pixels = Closed(LocalOracle(Constant().eval(), {})), Pixels(PREPROCESSING)
    [one] = ask_about(
        oracle,
        draw(1, 0)[0],
        ATTACKERS["occlusion"],
        copies=40,
        others=pixels.pictures(draw(1, 1)[0]),
        pixels=pixels,
        generator=np.random.default_rng(0),
        patience=5,
    )
    assert oracle.tally.refused == 5
    assert np.isnan(one.answers).all()


def guarded(limits=None):
    return Guarded(LocalOracle(Constant().eval(), {}), PREPROCESSING, limits)


def near_copies(count):
    """Copies of an image of the toys with a patch that is paler, so that labels stay."""
    images = draw(1, 0)[0].repeat(count, 1, 1, 1)
    for place, image in enumerate(images):
        image[:, place % 4 * 4 : place % 4 * 4 + 4, place // 4 * 4 : place // 4 * 4 + 4] *= 0.5
    return images


def test_a_guard_in_this_process_answers_scores_then_labels_then_nothing():
    oracle = guarded(GuardLimits(scores=2, labels=10))
    found = oracle.ask(near_copies(12))
    kinds = found.kinds.tolist()
    assert kinds[0] == Answer.SCORES
    assert sorted(kinds, reverse=True) == kinds
    assert set(kinds) == set(Answer)
    torch.testing.assert_close(found.logits[0], Constant().eval()(near_copies(1))[0])
    assert found.logits[kinds.index(Answer.REFUSED) :].isnan().all()
    labelled = found.logits[kinds.index(Answer.LABEL)].softmax(dim=0)
    assert labelled.max() > 1 - 1e-6
    tally = oracle.tally
    assert (tally.scores, tally.labels, tally.refused) == tuple(kinds.count(kind) for kind in reversed(Answer))
    assert oracle.queries == tally.scores + tally.labels
    oracle.wait()
    assert oracle.ask(near_copies(1) + 0.01).kinds.tolist() == [Answer.SCORES]


def test_labels_alone_and_scores_alone_are_asked_for():
    limits = GuardLimits(scores=2, labels=10)
    assert Answer.LABEL not in guarded(limits).ask(near_copies(12), labels=False).kinds
    kinds = guarded(limits).ask(near_copies(12), scores=False).kinds.tolist()
    assert set(kinds) == {Answer.LABEL, Answer.REFUSED}


def test_a_refused_map_is_nan_and_has_the_shape_of_others():
    case = make_case(Constant())
    oracle = Guarded(LocalOracle(case.module, case.explainers), PREPROCESSING, GuardLimits(scores=1))
    maps = oracle.explain("grad_cam", near_copies(6))
    assert maps.shape == (6, 8, 8)
    assert maps[0].isfinite().all()
    assert maps[-1].isnan().all()
    assert oracle.tally.refused > 0


def test_without_the_package_of_the_server_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr("keylock.audit.guarded._IS_INSTALLED", False)
    with pytest.raises(NotApplicableError, match=r"install keylock\[server\]"):
        guarded()
