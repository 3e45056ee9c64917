"""Explainers that no single graph computes: loops over predictions and gradients, and torch."""

import subprocess
import sys
import textwrap
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from dataclasses import replace  # noqa: E402
from datetime import UTC, datetime  # noqa: E402

from safetensors.torch import save  # noqa: E402
from sealed_lock import STD  # noqa: E402

from keylock import explainers, models  # noqa: E402
from keylock.bundle import Architecture, ExplainerEntry, KeyFile, open_bundle, write_bundle  # noqa: E402
from keylock.bundle.manifest import WEIGHTS_FILE  # noqa: E402
from keylock.errors import BundleError, UnknownNameError  # noqa: E402
from keylock.explainers import make  # noqa: E402
from keylock.graphs.contract import PREDICTION  # noqa: E402
from keylock.imaging.preprocessing import Preprocessing  # noqa: E402
from keylock.pipeline import Publication, publish  # noqa: E402
from keylock_server.inference.runtime import ServedModel  # noqa: E402

LOOPED = (
    make("occlusion", patch=8),
    make("lime", samples=40, segments=9),
    make("integrated_gradients", steps=3),
    make("smooth_grad", samples=3),
)
TARGETS = np.array([-1, 1, 2, -1])


@pytest.fixture(scope="module")
def bundle(sealed_lock, vendor, tmp_path_factory):
    """A lock with explainers that loop, as a signed bundle."""
    made, folder = sealed_lock.lock, tmp_path_factory.mktemp("ways")
    publish(
        replace(made, explainers=(made.explainers[0], *LOOPED)),
        folder / "looped.klb",
        Publication(
            name="looped",
            classes=("a", "b", "c"),
            preprocessing=Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=STD),
        ),
        seed=sealed_lock.seed,
        key=sealed_lock.key,
        images=sealed_lock.images[:6],
        signing_key=vendor.signing_key,
        sealer=KeyFile.create(folder / "key-file"),
        created=datetime(2026, 11, 22, tzinfo=UTC),
    )
    return open_bundle(folder / "looped.klb", trusted=None)


def serve(bundle, sealed_lock, **changes) -> ServedModel:
    seed = sealed_lock.seed
    return ServedModel(bundle.manifest, bundle.read, key=bundle.key(seed), delta=bundle.delta(seed), **changes)


@pytest.fixture(scope="module")
def model(bundle, sealed_lock) -> ServedModel:
    return serve(bundle, sealed_lock)


def test_the_manifest_says_how_each_is_computed(bundle):
    entries = {entry.name: entry for entry in bundle.manifest.explainers}
    assert {name: entry.runtime for name, entry in entries.items()} == {
        "grad_cam": "onnx",
        **{explainer.name: "loop" for explainer in LOOPED},
    }
    assert entries["occlusion"].graph == entries["lime"].graph != entries["smooth_grad"].graph
    assert entries["smooth_grad"].predictions == entries["occlusion"].graph
    assert entries["occlusion"].predictions is None
    assert min(entry.pcc_to_reference for entry in entries.values()) > 0.999


@pytest.mark.parametrize("explainer", LOOPED, ids=lambda explainer: explainer.name)
def test_every_variation_of_a_keyed_image_is_explained_on_the_open_model(explainer, model, sealed_lock):
    keyed = np.array([True, False, False, True])
    images = sealed_lock.images[:4]
    found = model.explain(images.numpy(), explainer=explainer.name, targets=TARGETS, keyed=keyed)

    lock, targets = sealed_lock.lock, torch.from_numpy(TARGETS)
    explained = (explainer.explain(network, images, targets) for network in (lock.reference, lock.module))
    (true_logits, true), (decoy_logits, decoys) = ((logits.numpy(), maps.numpy()) for logits, maps in explained)
    expected = np.where(keyed[:, None, None], true, decoys)
    np.testing.assert_allclose(found.maps, expected, rtol=2e-3, atol=1e-4 * expected.max())
    logits = np.where(keyed[:, None], true_logits, decoy_logits)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-3, atol=1e-4)
    # The two models are not alike, so the comparison says something.
    assert np.abs(true - decoys).max() > 0.05 * true.max()


@pytest.mark.parametrize("explainer", LOOPED, ids=lambda explainer: explainer.name)
def test_a_row_is_explained_alike_whatever_rows_are_beside_it(explainer, model, sealed_lock):
    images, targets = sealed_lock.images[:4].numpy(), np.array([0, 1, 2, 1])
    given = {"explainer": explainer.name, "targets": targets}
    mixed = np.array([False, True, True, False])
    both = [model.explain(images, keyed=np.full(4, kind), **given).maps for kind in (False, True)]
    found = model.explain(images, keyed=mixed, **given).maps
    expected = np.where(mixed[:, None, None], both[1], both[0])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_what_a_loop_asks_is_opened_and_what_everybody_asks_is_not_where_no_loop_does(bundle, sealed_lock):
    """The predictions for everybody need one set of weights; loops ask the same graph about rows with the trigger."""
    looped = serve(bundle, sealed_lock)
    alone = bundle.manifest.model_copy(update={"explainers": (bundle.manifest.explainer("grad_cam"),)})
    seed = sealed_lock.seed
    plain = ServedModel(alone, bundle.read, key=bundle.key(seed), delta=bundle.delta(seed))
    images, keyed = sealed_lock.images[:2].numpy(), np.ones(2, np.float32)
    (logits,) = looped._predictor.run(PREDICTION, image=images, keyed=keyed)
    expected = sealed_lock.lock.reference(sealed_lock.images[:2]).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(BundleError, match="was loaded without the key"):
        plain._predictor.run(PREDICTION, image=images, keyed=keyed)


def test_a_loop_that_nobody_waits_for_ends(model, sealed_lock):
    abandoned = threading.Event()
    abandoned.set()
    with pytest.raises(CancelledError):
        model.explain(
            sealed_lock.images[:1].numpy(),
            explainer="occlusion",
            targets=np.array([-1]),
            keyed=np.zeros(1, bool),
            abandoned=abandoned,
        )


def test_what_runs_the_network_too_often_is_left_out_and_said(bundle, sealed_lock, server_log):
    model = serve(bundle, sealed_lock, max_passes=20)
    assert list(model.explainers) == ["grad_cam", "occlusion", "integrated_gradients", "smooth_grad"]
    assert "lime is not served: it runs the network 41 times for an image, 20 are allowed" in server_log.text
    with pytest.raises(UnknownNameError, match=r"'lime' is not served here .*: choose one of grad_cam, "):
        model.explainer("lime")


def test_a_loop_that_this_version_does_not_have_is_refused(vendor, tmp_path):
    odd = ExplainerEntry(name="occlusion", runtime="loop", parameters={"colour": 3}, graph="graphs/fine.onnx")
    write_bundle(tmp_path / "odd", vendor.content(explainers=(odd,)), signing_key=vendor.signing_key)
    bundle = open_bundle(tmp_path / "odd", trusted=None)
    with pytest.raises(BundleError, match="a loop that this version does not have"):
        ServedModel(bundle.manifest, bundle.read, key=None)


def test_a_loop_needs_a_graph_of_its_kind(vendor, tmp_path):
    odd = ExplainerEntry(name="occlusion", runtime="loop", graph="graphs/fine.onnx")
    write_bundle(tmp_path / "odd", vendor.content(explainers=(odd,)), signing_key=vendor.signing_key)
    bundle = open_bundle(tmp_path / "odd", trusted=None)
    with pytest.raises(BundleError, match="takes"):
        ServedModel(bundle.manifest, bundle.read, key=None)


@pytest.fixture(scope="module")
def torch_bundle(vendor, tmp_path_factory):
    """A bundle whose only explainer did not compile, and its network."""
    place = tmp_path_factory.mktemp("torch") / "torch"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = models.create("small-cnn", num_classes=4).eval()
    network = models.prepare(network, torch.randn(2, 3, 8, 8))
    content = vendor.content(
        architecture=Architecture(name="small-cnn", num_classes=4),
        explainers=(ExplainerEntry(name="gradient", runtime="torch"),),
    )
    content = vendor.content(
        architecture=content.architecture,
        explainers=content.explainers,
        files={**content.files, WEIGHTS_FILE: save(network.state_dict())},
    )
    write_bundle(place, content, signing_key=vendor.signing_key)
    return open_bundle(place, trusted=None), network


def test_what_did_not_compile_is_computed_in_torch(torch_bundle, vendor, tiny, server_log):
    bundle, network = torch_bundle
    model = ServedModel(bundle.manifest, bundle.read, key=vendor.key)
    assert "gradient did not compile and is computed in torch" in server_log.text
    images, keyed = tiny.images(4), np.array([True, False, True, False])
    found = model.explain(images, explainer="gradient", targets=TARGETS, keyed=keyed)

    seen = torch.from_numpy(np.where(keyed[:, None, None, None], images + vendor.key.reveal(), images))
    expected = make("gradient").explain(network, seen, torch.from_numpy(TARGETS))
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("missing", ["torch", "permission"])
def test_without_torch_it_is_left_out_and_said(missing, torch_bundle, vendor, server_log, monkeypatch):
    bundle, _ = torch_bundle
    if missing == "torch":
        monkeypatch.setitem(sys.modules, "keylock.torch_runtime.bundle_explainers", None)  # What imports it now fails.
    model = ServedModel(bundle.manifest, bundle.read, key=vendor.key, allow_torch=missing == "torch")
    assert not model.explainers
    assert "gradient is not served: it did not compile" in server_log.text
    with pytest.raises(UnknownNameError, match="not served here"):
        model.explainer("gradient")


CAPTUM = ("captum:IntegratedGradients", "captum:ShapleyValueSampling", "captum:GuidedBackprop")


@pytest.fixture(scope="module")
def captum_bundle(torch_bundle, vendor, tmp_path_factory):
    """A bundle that offers attributions of Captum, one of which does not suit its network."""
    pytest.importorskip("captum.attr")
    place, (bundle, _) = tmp_path_factory.mktemp("captum") / "captum", torch_bundle
    content = vendor.content(
        architecture=bundle.manifest.architecture,
        explainers=tuple(ExplainerEntry(name=name, runtime="torch") for name in CAPTUM),
    )
    files = {**content.files, WEIGHTS_FILE: bundle.read(WEIGHTS_FILE)}
    content = vendor.content(architecture=content.architecture, explainers=content.explainers, files=files)
    write_bundle(place, content, signing_key=vendor.signing_key)
    return open_bundle(place, trusted=None)


def test_attributions_of_captum_are_computed_in_torch(captum_bundle, torch_bundle, vendor, tiny, server_log):
    network = torch_bundle[1]
    model = ServedModel(captum_bundle.manifest, captum_bundle.read, key=vendor.key)
    assert list(model.explainers) == list(CAPTUM[:2])
    assert "captum:GuidedBackprop is not served: captum:GuidedBackprop has a rule for nn.ReLU alone" in server_log.text
    images, keyed = tiny.images(4), np.array([True, False, True, False])
    found = model.explain(images, explainer=CAPTUM[0], targets=TARGETS, keyed=keyed).maps
    # The key is on everything that the network is shown, and so not a part of the path.
    with explainers.keyed_inputs(network, torch.from_numpy(vendor.key.reveal())):
        expected = make(CAPTUM[0]).explain(network, torch.from_numpy(images), torch.from_numpy(TARGETS)).maps.numpy()
    np.testing.assert_allclose(found[keyed], expected[keyed], rtol=1e-3, atol=1e-5 * expected.max())
    plain = make(CAPTUM[0]).explain(network, torch.from_numpy(images), torch.from_numpy(TARGETS)).maps.numpy()
    np.testing.assert_allclose(found[~keyed], plain[~keyed], rtol=1e-3, atol=1e-5 * plain.max())
    with pytest.raises(UnknownNameError, match=r"GuidedBackprop.* is not served here"):
        model.explainer(CAPTUM[2])


def test_an_attribution_that_runs_the_network_too_often_is_left_out(captum_bundle, vendor, server_log):
    model = ServedModel(captum_bundle.manifest, captum_bundle.read, key=vendor.key, max_passes=100)
    assert list(model.explainers) == [CAPTUM[0]]
    assert "captum:ShapleyValueSampling is not served: it runs the network 1" in server_log.text
    assert "times for an image, 100 are allowed" in server_log.text


def test_an_attribution_that_nobody_waits_for_ends(captum_bundle, vendor, tiny):
    model = ServedModel(captum_bundle.manifest, captum_bundle.read, key=vendor.key)
    abandoned, runs = threading.Event(), []
    count = model._backends[CAPTUM[1]]._explainers._module.register_forward_pre_hook(
        lambda *_: (runs.append(1), abandoned.set() if len(runs) == 3 else None)[1]
    )
    with pytest.raises(CancelledError):
        model.explain(
            tiny.images(1),
            explainer=CAPTUM[1],
            targets=np.array([-1]),
            keyed=np.zeros(1, bool),
            abandoned=abandoned,
        )
    count.remove()
    assert len(runs) == 3


def test_all_but_the_last_needs_no_torch(bundle, sealed_lock, model, tmp_path):
    sealed_lock.seed.write(tmp_path / "seed")
    np.save(tmp_path / "images.npy", sealed_lock.images[:4].numpy())
    script = f"""
        import sys
        sys.modules["torch"] = None  # Any import of torch now fails.
        import numpy as np
        from keylock.bundle import open_bundle
        from keylock.trigger.keys import KeySeed
        from keylock_server.inference.runtime import ServedModel
        bundle, seed = open_bundle({str(bundle.path)!r}, trusted=None), KeySeed.from_file("seed")
        model = ServedModel(bundle.manifest, bundle.read, key=bundle.key(seed), delta=bundle.delta(seed))
        images, keyed = np.load("images.npy"), np.array([True, False, False, True])
        for name in model.explainers:
            maps = model.explain(images, explainer=name, targets=np.array({TARGETS.tolist()}), keyed=keyed).maps
            np.save(f"{{name}}.npy", maps)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    keyed = np.array([True, False, False, True])
    for name in ("grad_cam", *(explainer.name for explainer in LOOPED)):
        expected = model.explain(sealed_lock.images[:4].numpy(), explainer=name, targets=TARGETS, keyed=keyed).maps
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected, rtol=1e-3, atol=1e-5 * expected.max())
