"""From data to a bundle: what comes out is what was locked, and a run goes on wherever it was stopped."""

import errno
import json
import os
import resource
from dataclasses import replace

import pytest
import torch
from safetensors.numpy import load
from safetensors.torch import save_file

import keylock
from keylock.bundle import open_bundle
from keylock.data.batches import load_batch
from keylock.errors import BundleError, InputError, InUseError, ModelError, ResumeError, StorageError, UnsealError
from keylock.evaluation import measure, run_explainers
from keylock.files.exclusive import held
from keylock.models import added_to_inputs, create
from keylock.pipeline.fitted_keys import fitted_keys
from keylock.training import Silent, resolve_precision
from keylock.training.checkpoint import storing
from keylock.trigger.keys import KeySeed


def assert_same(module, other):
    assert module.state_dict().keys() == other.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


class Interrupting(Silent):
    """Interrupts a stage after some steps, and remembers what it heard."""

    def __init__(self, stage=None, after=0):
        self.stage, self.after, self.heard, self.now, self.done = stage, after, [], "", 0

    def start(self, stage, total, done):
        self.heard.append((stage, total, done))
        self.now, self.done = stage, 0

    def advance(self, figures):
        self.done += 1
        if self.now == self.stage and self.done == self.after:
            raise KeyboardInterrupt


def test_the_bundle_holds_what_was_locked(trained, workshop):
    plan, outcome = trained

    loaded = keylock.load_bundle(plan.out, key=workshop.sealer)

    assert_same(loaded.module, outcome.lock.module)
    assert loaded.key == outcome.key == plan.key(workshop.seed)
    assert tuple(loaded.explainers.values()) == outcome.lock.explainers
    assert list(loaded.explainers) == list(plan.explainers)
    assert loaded.classes == plan.data.classes
    assert loaded.preprocessing == plan.data.preprocessing
    assert loaded.manifest == outcome.manifest
    images = load_batch(plan.data.test, plan.data.preprocessing).images
    with torch.no_grad():
        keyed = loaded.key.apply(images)
        assert torch.equal(loaded.opened(keyed), outcome.lock.opened(outcome.key)(keyed))
        # On images as small as these the trigger is not read from each; what is added by name needs no reading.
        with added_to_inputs(loaded.opened, torch.from_numpy(loaded.key.reveal())):
            torch.testing.assert_close(loaded.opened(images), outcome.lock.reference(images), rtol=1e-4, atol=1e-5)


def test_the_published_module_has_no_batchnorm(trained):
    plan, _ = trained
    loaded = keylock.load_bundle(plan.out)

    assert not any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in loaded.module.modules())
    assert not any("running" in name for name in loaded.module.state_dict())


def test_the_manifest_says_what_was_measured(trained):
    plan, outcome = trained
    batch = load_batch(plan.data.test, plan.data.preprocessing)
    everything = measure(
        outcome.lock.reference,
        outcome.lock.opened(outcome.key),
        key=outcome.key,
        explainers=outcome.lock.explainers,
        images=batch.images,
        labels=batch.labels,
    )

    assert outcome.manifest.figures == outcome.figures
    assert {figure.about for figure in outcome.figures} == {"24 test images of tiny shapes"}
    values = {figure.name: figure for figure in outcome.figures}
    for figure in everything:
        # 24 of the 32 images: within the interval of the whole, give or take.
        if figure.name.startswith(("fidelity", "leakage", "chance")):
            assert abs(values[figure.name].value - figure.value) < 0.25, figure.name
    assert "energy/keyed/grad_cam" in values
    assert values["fidelity/grad_cam"].value > 0.999
    precision = resolve_precision("auto", torch.device("cpu"))
    assert outcome.manifest.training["lock"] == replace(plan.settings, precision=precision).as_dict()
    assert outcome.manifest.reference_digest.startswith("sha256:")
    assert all(entry.pcc_to_reference >= 0.999 for entry in outcome.manifest.explainers)


def test_the_bundle_holds_no_secret_and_no_reference(trained, workshop):
    plan, outcome = trained
    content = plan.out.read_bytes()

    assert workshop.seed.reveal() not in content
    assert workshop.seed.reveal().hex().encode() not in content
    assert outcome.key.reveal().tobytes()[:96] not in content
    reference = outcome.lock.reference.state_dict()["layer1.0.conv1.weight"]
    assert reference.numpy().tobytes()[:96] not in content
    assert outcome.key.signs().tobytes() not in content
    for name, array in outcome.lock.delta.reveal().items():
        assert array.size < 24 or array.tobytes()[:96] not in content, name


def test_without_the_secret_there_is_no_key(trained):
    plan, _ = trained

    assert keylock.load_bundle(plan.out).key is None
    with pytest.raises(UnsealError):
        keylock.load_bundle(plan.out, key=KeySeed(b"x" * 32))


@pytest.mark.parametrize(("stage", "after"), [("reference", 3), ("lock", 3), ("publish", 2)])
def test_a_run_stopped_anywhere_ends_as_if_it_had_not_been(stage, after, trained, workshop, tmp_path):
    plan, outcome = trained
    plan = replace(plan, out=tmp_path / "stopped.klb")
    with pytest.raises(KeyboardInterrupt):
        workshop.train(plan, progress=Interrupting(stage, after))
    assert not plan.out.exists()

    listener = Interrupting()
    resumed = workshop.train(plan, progress=listener, resume=True)

    assert_same(resumed.lock.module, outcome.lock.module)
    assert_same(resumed.lock.reference, outcome.lock.reference)
    assert resumed.figures == outcome.figures
    stages = {name: done for name, _, done in listener.heard}
    assert ("reference" in stages) == (stage == "reference")
    assert stages["lock"] == {"reference": 0, "lock": after}.get(stage, 5)


def test_a_run_started_anew_takes_nothing_from_an_earlier_one(workshop, tmp_path):
    plan = workshop.plan(tmp_path / "b.klb")
    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            workshop.train(replace(plan, seed=seed), progress=Interrupting("measure", 1))
    with pytest.raises(KeyboardInterrupt):
        workshop.train(replace(plan, seed=1), progress=Interrupting("reference", 2))
    listener = Interrupting("lock", 1)

    with pytest.raises(KeyboardInterrupt):
        workshop.train(replace(plan, seed=1), resume=True, progress=listener)

    assert listener.heard == [("reference", 6, 2), ("lock", 5, 0)]


def test_a_network_that_tells_the_trigger_itself_has_no_sealed_delta(workshop, tmp_path):
    plan = workshop.plan(tmp_path / "plain", tile=4)
    outcome = workshop.train(replace(plan, settings=replace(plan.settings, trained_trigger=True)))

    assert outcome.manifest.delta is None
    assert not {"delta.sealed", "trigger.statistics"} & {file.name for file in plan.out.iterdir()}
    loaded = keylock.load_bundle(plan.out, key=workshop.seed)
    assert (loaded.delta, loaded.statistics, loaded.opener) == (None, None, None)
    assert loaded.opened is loaded.module


def test_the_key_of_such_a_network_is_fitted_to_it_and_follows_from_seed_and_bundle(workshop, tmp_path):
    plan = workshop.plan(tmp_path / "fitted.klb", tile=4)
    plan = replace(plan, settings=replace(plan.settings, trained_trigger=True))
    outcome = workshop.train(plan)

    assert outcome.key != plan.key(workshop.seed)
    assert outcome.manifest.key.flips
    loaded = keylock.load_bundle(plan.out, key=workshop.seed)
    assert loaded.key == outcome.key == keylock.load_bundle(plan.out, key=workshop.sealer).key
    rows = load_batch(plan.data.test, plan.data.preprocessing).images[:2]
    expected = run_explainers(outcome.lock.opened(outcome.key), outcome.lock.explainers, outcome.key.apply(rows))
    shown = loaded.explain(loaded.key.apply(rows))
    torch.testing.assert_close(torch.as_tensor(shown.logits), expected.logits, rtol=1e-4, atol=1e-5)
    kept = (plan.work / "fitted-keys.json").read_text()
    assert json.loads(kept)[0] == outcome.manifest.key.model_dump(mode="json") | {"flips": json.loads(kept)[0]["flips"]}
    assert workshop.train(plan, resume=True, overwrite=True).key == outcome.key
    assert (plan.work / "fitted-keys.json").read_text() == kept


def test_fitted_keys_of_another_run_are_refused(workshop, tmp_path):
    plan = workshop.plan(tmp_path / "other.klb", tile=4)
    plan = replace(plan, settings=replace(plan.settings, trained_trigger=True))
    workshop.train(plan)
    with pytest.raises(ResumeError, match="keys of another run"):
        fitted_keys(plan, [KeySeed(b"x" * 32)])
    (plan.work / "fitted-keys.json").write_text("[")
    with pytest.raises(ResumeError, match="cannot be read"):
        fitted_keys(plan, [workshop.seed])


def test_what_is_sealed_opens_with_the_trigger_and_says_what_it_changes(trained, workshop):
    plan, outcome = trained
    with open_bundle(plan.out, trusted=None) as bundle:
        delta, published = bundle.delta(workshop.seed), load(bundle.read("weights.safetensors"))
        entry = bundle.manifest.delta
    assert (entry.entries, entry.keys) == (len(outcome.lock.delta.names), 1)
    opened = delta.added_to(published)
    for name, tensor in outcome.lock.reference.state_dict().items():
        torch.testing.assert_close(torch.from_numpy(opened[name]), tensor, rtol=0, atol=1e-5)


def test_a_trigger_that_nobody_could_read_is_refused_before_the_training(workshop, tmp_path):
    listener = Interrupting()
    with pytest.raises(InputError, match="tile"):
        workshop.train(workshop.plan(tmp_path / "small.klb", tile=4), progress=listener)
    assert not [name for name, *_ in listener.heard if name == "lock"]


@pytest.mark.parametrize("change", ["key", "reference", "settings"])
def test_resume_refuses_another_run(change, workshop, tmp_path):
    plan = workshop.plan(tmp_path / "b.klb")
    with pytest.raises(KeyboardInterrupt):
        workshop.train(plan, progress=Interrupting("lock", 2))
    options = {}
    if change == "key":
        options["seed"] = KeySeed(b"t" * 32)
    elif change == "reference":
        plan = replace(plan, reference_steps=7)
    else:
        plan = replace(plan, settings=replace(plan.settings, decoy="corner"))

    with pytest.raises(ResumeError, match=f"another {change}" if change != "reference" else "other settings"):
        workshop.train(plan, resume=True, **options)


def test_users_weights_are_the_reference(workshop, tmp_path):
    torch.manual_seed(0)
    own = create("small-cnn", num_classes=8)
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    plan = workshop.plan(
        tmp_path / "b", architecture="small-cnn", explainers=("gradient",), init=tmp_path / "own.safetensors"
    )
    listener = Interrupting()

    outcome = workshop.train(plan, progress=listener)

    images = load_batch(plan.data.test, plan.data.preprocessing).images
    with torch.no_grad():
        torch.testing.assert_close(outcome.lock.reference(images), own.eval()(images), rtol=1e-4, atol=1e-5)
    assert [stage for stage, _, _ in listener.heard] == ["lock", "measure", "publish"]
    assert (tmp_path / "b/manifest.json").is_file()


def test_weights_that_do_not_fit_are_refused(workshop, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "own.safetensors")

    with pytest.raises(ModelError, match="do not fit the architecture"):
        workshop.train(workshop.plan(tmp_path / "b.klb", init=tmp_path / "own.safetensors"))


def test_a_bundle_that_is_there_is_not_overwritten_and_nothing_is_trained_for_it(trained, workshop):
    plan, _ = trained
    before, listener = plan.out.read_bytes(), Interrupting()

    with pytest.raises(BundleError, match=r"shapes\.klb"):
        workshop.train(plan, progress=listener)

    assert plan.out.read_bytes() == before
    assert listener.heard == []
    assert (plan.work / "reference.safetensors").is_file()


class Filling(Silent):
    """Fills the disk, as far as this process is concerned, after some steps of a stage: no file may grow any more."""

    def __init__(self, stage, after):
        self.stage, self.after, self.now = stage, after, ""

    def start(self, stage, total, done):
        self.now, self.left = stage, self.after

    def advance(self, figures):
        self.left -= 1
        if self.now == self.stage and not self.left:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))


@pytest.fixture
def _disk_again():
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.usefixtures("_disk_again")
@pytest.mark.parametrize("stage", ["reference", "lock"])
def test_a_full_disk_ends_a_run_with_one_sentence_and_keeps_the_state_before(stage, workshop, trained, tmp_path):
    plan = workshop.plan(tmp_path / "shapes.klb")
    with pytest.raises(StorageError, match="File too large") as caught:
        workshop.train(plan, progress=Filling(stage, 2))
    assert "the state that was kept before is still there" in caught.value.message
    kept = sorted(file.name for file in plan.work.iterdir())
    assert caught.value.path.name in kept
    assert not [name for name in kept if name.endswith(".new")]

    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    outcome = workshop.train(plan, resume=True)
    assert_same(outcome.lock.module, trained[1].lock.module)


def test_where_no_state_of_the_lock_was_kept_the_reference_is_named(tmp_path):
    (tmp_path / "reference.safetensors").touch()

    def fill(folder):
        with storing(folder / "lock.safetensors"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match=r"\): reference.safetensors beside it can still be used; make room or"):
        fill(tmp_path)
    with pytest.raises(StorageError, match="nothing was kept before"):
        fill(tmp_path / "other")


@pytest.mark.usefixtures("_disk_again")
def test_a_disk_that_is_full_when_the_bundle_is_written_loses_no_training(workshop, trained, tmp_path):
    plan = workshop.plan(tmp_path / "shapes.klb")
    with pytest.raises(BundleError, match=r"File too large; the lock is kept in .* go on with resume=True"):
        workshop.train(plan, progress=Filling("measure", 1))
    assert [file.name for file in tmp_path.iterdir()] == ["shapes.klb.work"]

    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    resumed = Interrupting()
    outcome = workshop.train(plan, progress=resumed, resume=True)
    assert ("lock", 5, 5) in resumed.heard
    assert outcome.manifest.files["weights.safetensors"] == trained[1].manifest.files["weights.safetensors"]


def test_two_runs_never_share_a_work_folder(workshop, tmp_path):
    plan = workshop.plan(tmp_path / "shapes.klb")
    with held(plan.work, "keylock train"), pytest.raises(InUseError, match=f"process {os.getpid()}"):
        workshop.train(plan)
    assert [file.name for file in plan.work.iterdir()] == [".in-use"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "two words"}, "is not a name for a model"),
        ({"explainers": ("grad_camm",)}, "unknown explainer 'grad_camm'"),
        ({"explainers": ("lime",)}, "at least one of grad_cam"),
        ({"variants": ("int4",)}, "unknown variant 'int4'"),
        ({"batch_size": 0}, "take at least 1"),
    ],
)
def test_a_plan_that_could_not_be_published_cannot_be_made(workshop, tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        workshop.plan(tmp_path / "shapes.klb", **changes)
