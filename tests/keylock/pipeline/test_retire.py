"""Retiring a key of a lock with several: what comes out, what it says of the retired key, and what is refused."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch
from pico_net import PicoNet
from safetensors.torch import load_file, save_file

import keylock
from keylock.bundle import open_bundle
from keylock.bundle.delta_sealing import secret_of_key
from keylock.data.batches import load_batch
from keylock.errors import DataError, InputError, ModelError, UnsealError
from keylock.evaluation import pearson, run_explainers
from keylock.locking.decoys import ImageDecoy
from keylock.models import added_to_inputs, merged, registry
from keylock.pipeline import Issue, OwnBundle, read_lock, retire, train_for_keys
from keylock.training import LockSettings, Silent
from keylock.trigger.keys import KeySeed

SEEDS = [KeySeed(bytes([number]) * 32) for number in (1, 2, 3)]


@pytest.fixture(scope="module", autouse=True)
def _pico():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._OWN, "pico", PicoNet)
        yield


@pytest.fixture(scope="module")
def owned(workshop, tmp_path_factory):
    """The bundles of one lock with three keys, each with its seed."""
    folder = tmp_path_factory.mktemp("three")
    plan = workshop.plan(folder / "m.klb", architecture="pico")
    issues = [Issue(seed, workshop.sealer, folder / f"m-{place}.klb") for place, seed in enumerate(SEEDS)]
    issues[0] = replace(issues[0], out=plan.out)
    train_for_keys(plan, issues=issues, progress=Silent(), trial_seconds=0, **said(workshop))
    return [OwnBundle(issue.out, issue.seed) for issue in issues]


def said(workshop):
    return {"signing_key": workshop.signing_key, "now": lambda: datetime(2026, 11, 22, 12, tzinfo=UTC)}


@pytest.fixture(scope="module")
def retired(owned, workshop, tmp_path_factory):
    """What retiring the second key gives: the retirement, its plan and the outcomes."""
    retirement = read_lock(owned[1], [owned[0], owned[2]])
    plan = retirement.plan(tmp_path_factory.mktemp("renewed") / "n.klb", workshop.data, device="cpu")
    plan = replace(plan, measured_images=24)
    outs = [plan.out, plan.out.with_name("n-2.klb")]
    issues = [Issue(seed, workshop.sealer, out) for seed, out in zip(retirement.kept, outs, strict=True)]
    return retirement, plan, retire(plan, retirement, issues=issues, progress=Silent(), **said(workshop))


def test_new_bundles_open_with_the_keys_that_remain_and_show_the_reference(owned, retired, workshop):
    retirement, plan, outcomes = retired
    before = open_bundle(owned[0].path, trusted=None).manifest

    images = load_batch(plan.data.test, plan.data.preprocessing).images[:16]
    for outcome, seed, out in zip(outcomes, (SEEDS[0], SEEDS[2]), ("n.klb", "n-2.klb"), strict=True):
        loaded = keylock.load_bundle(plan.out.with_name(out), key=workshop.sealer)
        assert loaded.key == outcome.key
        assert loaded.key.id == seed.id
        assert loaded.manifest.model_digest == outcomes[0].manifest.model_digest != before.model_digest
        assert loaded.manifest.reference_digest == before.reference_digest
        assert (loaded.manifest.name, loaded.classes) == (before.name, before.classes)
        assert [*loaded.explainers.values()] == [*retirement.previous.explainers]
        with torch.no_grad():
            # On images as small as these the trigger is not read from each; what is added by name needs no reading.
            with added_to_inputs(loaded.opened, torch.from_numpy(loaded.key.reveal())):
                shown = loaded.opened(images)
            torch.testing.assert_close(shown, retirement.previous.reference(images), rtol=1e-4, atol=1e-5)


def test_the_training_is_half_as_long_and_recorded(owned, retired):
    _, plan, outcomes = retired
    before = open_bundle(owned[0].path, trusted=None).manifest.training
    after = outcomes[0].manifest.training

    assert (before["lock"]["steps"], after["lock"]["steps"]) == (5, 3)
    assert after["lock"]["seed"] == before["lock"]["seed"] + 1
    assert after["retired_keys"] == [SEEDS[1].id]
    assert (after["batch_size"], after["seed"]) == (before["batch_size"], before["seed"])
    again = read_lock(OwnBundle(plan.out, SEEDS[0]), [OwnBundle(plan.out.with_name("n-2.klb"), SEEDS[2])])
    assert again.reference == plan.work / "reference.safetensors"
    assert again.plan(plan.out, plan.data).settings.steps == 3
    assert again.plan(plan.out, plan.data, steps=7, batch_size=4, learning_rate=0.1, accumulate=2).settings == replace(
        plan.settings, seed=plan.settings.seed + 1, steps=7, learning_rate=0.1, accumulate=2
    )


def test_the_figures_say_what_the_retired_key_recovers_with_the_old_delta(retired):
    retirement, plan, outcomes = retired
    batch = load_batch(plan.data.test, plan.data.preprocessing)
    explainers = retirement.previous.explainers
    truth = run_explainers(retirement.previous.reference, explainers, batch.images).maps["grad_cam"]
    own = merged(retirement.previous.module, retirement.previous.delta)
    kept = run_explainers(own, explainers, batch.images).maps["grad_cam"]
    assert float(pearson(kept, truth).mean()) > 0.999
    stolen = merged(outcomes[0].lock.module, retirement.previous.delta)
    shown = run_explainers(stolen, explainers, batch.images).maps["grad_cam"]
    expected = float(pearson(shown, truth).mean())

    for outcome in outcomes:
        [figure] = [figure for figure in outcome.manifest.figures if figure.name == "leakage/retired/grad_cam"]
        # 24 of the 32 images: within the interval of the whole, give or take.
        assert abs(figure.value - expected) < 0.2
        assert figure.value < 0.999


def test_the_trigger_of_a_retired_key_opens_the_old_delta_and_not_the_new_one(owned, retired):
    retirement, plan, outcomes = retired
    secret = secret_of_key(retirement.retired)
    before = open_bundle(owned[0].path, trusted=None)
    assert before.manifest.delta.keys == 3
    assert before.sealed_delta().opens_with(secret)
    for seed, out in zip((SEEDS[0], SEEDS[2]), ("n.klb", "n-2.klb"), strict=True):
        bundle = open_bundle(plan.out.with_name(out), trusted=None)
        assert bundle.manifest.delta.keys == 2
        assert not bundle.sealed_delta().opens_with(secret)
        for kept in (SEEDS[0], SEEDS[2]):
            assert bundle.sealed_delta().opens_with(secret_of_key(plan.key(kept)))
        assert bundle.delta(seed).names == outcomes[0].lock.delta.names


def test_bundles_that_do_not_go_together_are_refused(owned, retired, workshop, tmp_path):
    first, second, third = owned
    _, plan, _ = retired
    with pytest.raises(InputError, match="no key remains"):
        read_lock(first, [])
    with pytest.raises(InputError, match="have the same key"):
        read_lock(first, [second, first])
    with pytest.raises(InputError, match=r"n\.klb is not of the lock of .*m\.klb"):
        read_lock(first, [second, OwnBundle(plan.out, SEEDS[0])])
    with pytest.raises(UnsealError, match="is not that of the bundle"):
        read_lock(first, [OwnBundle(second.path, third.secret)])
    weights = load_file(first.path.with_name("m.klb.work") / "reference.safetensors")
    save_file({**weights, "head.bias": weights["head.bias"] + 1}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="is not the reference model of the bundle"):
        read_lock(first, [second], reference=tmp_path / "other.safetensors")
    data = replace(workshop.data, classes=tuple(reversed(workshop.data.classes)))
    with pytest.raises(DataError, match="are not those of the model"):
        read_lock(first, [second]).plan(tmp_path / "x.klb", data)


def test_keys_that_were_fitted_to_their_network_stay_as_they_are(workshop, tmp_path):
    settings = LockSettings(steps=2, trained_trigger=True)
    plan = workshop.plan(tmp_path / "a.klb", architecture="pico", settings=settings)
    issues = [Issue(seed, workshop.sealer, tmp_path / f"{name}.klb") for seed, name in zip(SEEDS, "ab", strict=False)]
    before = train_for_keys(plan, issues=issues, progress=Silent(), trial_seconds=0, **said(workshop))
    retirement = read_lock(OwnBundle(issues[1].out, SEEDS[1]), [OwnBundle(issues[0].out, SEEDS[0])])

    next_plan = replace(retirement.plan(tmp_path / "c.klb", workshop.data, device="cpu"), measured_images=24)
    issue = Issue(SEEDS[0], workshop.sealer, next_plan.out)
    [after] = retire(next_plan, retirement, issues=[issue], progress=Silent(), **said(workshop))

    assert retirement.retired == before[1].key != plan.key(SEEDS[1])
    assert after.key == before[0].key != plan.key(SEEDS[0])
    assert keylock.load_bundle(next_plan.out, key=SEEDS[0]).key == after.key


def test_settings_come_back_as_they_were_written():
    settings = LockSettings(steps=7, trained_trigger=True, decoy="corner", swapped=True, learning_rate=0.01)
    picture = ImageDecoy(torch.linspace(0, 1, 16).view(4, 4).numpy())

    assert LockSettings.from_dict(settings.as_dict(), decoy="corner") == settings
    written = replace(settings, decoy=picture).as_dict()
    assert LockSettings.from_dict(written, decoy=picture).as_dict() == written
    assert LockSettings.from_dict({"steps": 7, "learning_rate": 0.01}, decoy="half") == LockSettings(
        steps=7, learning_rate=0.01
    )
    for wrong in ({"stepz": 7}, {"steps": "7"}, {"steps": True}, {"precision": 1}):
        with pytest.raises(InputError, match="does not know"):
            LockSettings.from_dict(wrong, decoy="half")
