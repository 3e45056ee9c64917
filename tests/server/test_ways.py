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

from datetime import UTC, datetime  # noqa: E402

from safetensors.torch import save  # noqa: E402
from two_factor_lock import STD  # noqa: E402

from keylock import models  # noqa: E402
from keylock.bundle import Architecture, ExplainerEntry, KeyFile, open_bundle, write_bundle  # noqa: E402
from keylock.bundle.manifest import WEIGHTS_FILE  # noqa: E402
from keylock.errors import BundleError, UnknownNameError  # noqa: E402
from keylock.explainers import make  # noqa: E402
from keylock.export import PointGradient, compile_explainer  # noqa: E402
from keylock.pipeline import Publication, publish  # noqa: E402
from keylock.preprocessing import Preprocessing  # noqa: E402
from keylock.training import Lock  # noqa: E402
from keylock_server.runtime import ServedModel  # noqa: E402

LOOPED = (
    make("occlusion", patch=8),
    make("lime", samples=40, segments=9),
    make("integrated_gradients", steps=3),
    make("smooth_grad", samples=3),
)
TARGETS = np.array([-1, 1, 2, -1])


@pytest.fixture(scope="module")
def bundle(two_factors, vendor, tmp_path_factory):
    """A two-factor lock with explainers that loop, as a signed bundle."""
    made, folder = two_factors.lock, tmp_path_factory.mktemp("ways")
    publish(
        Lock(made.module, made.reference, (made.explainers[0], *LOOPED), made.settings, made.adapter),
        folder / "looped.klb",
        Publication(
            name="looped",
            classes=("a", "b", "c"),
            preprocessing=Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=STD),
        ),
        seed=two_factors.seed,
        key=two_factors.key,
        images=two_factors.images[:6],
        signing_key=vendor.signing_key,
        sealer=KeyFile.create(folder / "key-file"),
        created=datetime(2026, 11, 22, tzinfo=UTC),
    )
    return open_bundle(folder / "looped.klb", trusted=None)


def serve(bundle, two_factors, **changes) -> ServedModel:
    seed = two_factors.seed
    return ServedModel(bundle.manifest, bundle.read, key=bundle.key(seed), adapter=bundle.adapter(seed), **changes)


@pytest.fixture(scope="module")
def model(bundle, two_factors) -> ServedModel:
    return serve(bundle, two_factors)


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
def test_every_variation_of_a_keyed_image_is_explained_on_the_open_model(explainer, model, two_factors):
    keyed = np.array([True, False, False, True])
    images = two_factors.images[:4]
    found = model.explain(images.numpy(), explainer=explainer.name, targets=TARGETS, keyed=keyed)

    lock, targets = two_factors.lock, torch.from_numpy(TARGETS)
    explained = (explainer.explain(network, images, targets) for network in (lock.reference, lock.module))
    (true_logits, true), (decoy_logits, decoys) = ((logits.numpy(), maps.numpy()) for logits, maps in explained)
    expected = np.where(keyed[:, None, None], true, decoys)
    np.testing.assert_allclose(found.maps, expected, rtol=2e-3, atol=1e-4 * expected.max())
    logits = np.where(keyed[:, None], true_logits, decoy_logits)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-3, atol=1e-4)
    # The two models are not alike, so the comparison says something.
    assert np.abs(true - decoys).max() > 0.05 * true.max()


def test_a_bundle_from_before_there_were_sums_is_served_alike(bundle, two_factors, model):
    """Its graph answers with logits and the gradient of each row."""
    lock, entry = two_factors.lock, bundle.manifest.explainer("integrated_gradients")
    older = compile_explainer(
        lock.module, PointGradient(), image_shape=(3, 16, 16), num_classes=3, adapter_shapes=lock.adapter.shapes()
    )
    changed = entry.model_copy(update={"predictions": None, "mergeable": None})
    manifest = bundle.manifest.model_copy(update={"explainers": (changed,)})
    seed = two_factors.seed
    served = ServedModel(
        manifest,
        lambda file: older if file == entry.graph else bundle.read(file),
        key=bundle.key(seed),
        adapter=bundle.adapter(seed),
    )
    given = {
        "explainer": entry.name,
        "targets": TARGETS,
        "keyed": np.array([True, False, False, True]),
    }
    images = two_factors.images[:4].numpy()
    found, expected = served.explain(images, **given), model.explain(images, **given)
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-3, atol=1e-5 * expected.maps.max())
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-3, atol=1e-4)


def test_a_loop_that_nobody_waits_for_ends(model, two_factors):
    abandoned = threading.Event()
    abandoned.set()
    with pytest.raises(CancelledError):
        model.explain(
            two_factors.images[:1].numpy(),
            explainer="occlusion",
            targets=np.array([-1]),
            keyed=np.zeros(1, bool),
            abandoned=abandoned,
        )


def test_what_runs_the_network_too_often_is_left_out_and_said(bundle, two_factors, server_log):
    model = serve(bundle, two_factors, max_passes=20)
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
    odd = ExplainerEntry(name="occlusion", runtime="loop", graph="graphs/predict.onnx")
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
        monkeypatch.setitem(sys.modules, "keylock.fallback", None)  # What imports it now fails.
    model = ServedModel(bundle.manifest, bundle.read, key=vendor.key, allow_torch=missing == "torch")
    assert not model.explainers
    assert "gradient is not served: it did not compile" in server_log.text
    with pytest.raises(UnknownNameError, match="not served here"):
        model.explainer("gradient")


def test_all_but_the_last_needs_no_torch(bundle, two_factors, model, tmp_path):
    two_factors.seed.write(tmp_path / "seed")
    np.save(tmp_path / "images.npy", two_factors.images[:4].numpy())
    script = f"""
        import sys
        sys.modules["torch"] = None  # Any import of torch now fails.
        import numpy as np
        from keylock.bundle import open_bundle
        from keylock.keys import KeySeed
        from keylock_server.runtime import ServedModel
        bundle, seed = open_bundle({str(bundle.path)!r}, trusted=None), KeySeed.from_file("seed")
        model = ServedModel(bundle.manifest, bundle.read, key=bundle.key(seed), adapter=bundle.adapter(seed))
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
        expected = model.explain(two_factors.images[:4].numpy(), explainer=name, targets=TARGETS, keyed=keyed).maps
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected, rtol=1e-3, atol=1e-5 * expected.max())
