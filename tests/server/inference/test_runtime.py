"""The served model: rows with and without the key share a batch, and a bad graph is refused at start."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from keylock.bundle import Architecture, ExplainerEntry, open_bundle, write_bundle
from keylock.bundle.manifest import VariantEntry
from keylock.errors import BundleError, UnknownNameError
from keylock_server.inference.runtime import ServedModel
from keylock_server.inference.sessions import Sessions
from keylock_server.inference.ways import Ways
from keylock_server.transport.statuses import NoKeyError


@pytest.fixture(scope="module")
def model(vendor) -> ServedModel:
    bundle = open_bundle(vendor.bundle, trusted=None)
    return ServedModel(bundle.manifest, bundle.read, key=vendor.key)


def test_licensed_and_unlicensed_rows_share_a_batch(model, vendor, tiny):
    images = tiny.images(6)
    keyed = np.array([True, False, False, True, True, False])
    targets = np.array([-1, -1, 2, 3, 0, 1])
    explained = model.explain(images, explainer="brightness", targets=targets, keyed=keyed)
    seen = np.where(keyed[:, None, None, None], images + vendor.key.reveal(), images)
    np.testing.assert_allclose(explained.maps, tiny.maps(seen, targets), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(explained.logits, tiny.logits(seen), rtol=1e-4, atol=1e-6)


def test_a_row_is_the_same_in_any_company(model, tiny):
    images = tiny.images(4)
    targets = np.full(4, -1)
    together = model.explain(images, explainer="coarse", targets=targets, keyed=np.array([True, False, True, False]))
    for i, keyed in enumerate([True, False, True, False]):
        alone = model.explain(images[i : i + 1], explainer="coarse", targets=targets[:1], keyed=np.array([keyed]))
        np.testing.assert_allclose(alone.maps[0], together.maps[i], rtol=1e-5)


def test_images_of_the_caller_stay_as_they_are(model, tiny):
    images = tiny.images(2)
    before = images.copy()
    model.explain(images, explainer="brightness", targets=np.full(2, -1), keyed=np.ones(2, bool))
    np.testing.assert_array_equal(images, before)


def test_the_wanted_numbers_are_served_where_the_bundle_has_them(vendor, tiny, tmp_path, server_log):
    # The coarse graph stands in for one in reduced precision, because its maps have another shape.
    smaller = VariantEntry(graph="graphs/coarse.onnx", agreement=1.0, keyed_pcc=0.999, leakage=0.0, leakage_float32=0.0)
    entries = (
        ExplainerEntry(name="brightness", graph="graphs/fine.onnx", variants={"int8": smaller}),
        ExplainerEntry(name="exact", graph="graphs/fine.onnx"),
    )
    write_bundle(tmp_path / "variants", vendor.content(explainers=entries), signing_key=vendor.signing_key)
    bundle = open_bundle(tmp_path / "variants", trusted=None)
    shapes = {}
    for variant in ("float32", "int8"):
        ways = Ways(Sessions("cpu", threads=1), variant=variant)
        model = ServedModel(bundle.manifest, bundle.read, key=vendor.key, ways=ways)
        for name in model.explainers:
            explained = model.explain(tiny.images(2), explainer=name, targets=np.full(2, -1), keyed=np.zeros(2, bool))
            shapes[variant, name] = explained.maps.shape[1:]
    assert shapes == {
        ("float32", "brightness"): (8, 8),
        ("float32", "exact"): (8, 8),
        ("int8", "brightness"): (4, 4),
        ("int8", "exact"): (8, 8),
    }
    assert "no int8 graph for exact, which is served in float32" in server_log.text
    assert "no int8 graph for predictions" in server_log.text


def test_predictions_are_keyless(model, tiny):
    images = tiny.images(5)
    np.testing.assert_allclose(model.predict(images), tiny.logits(images), rtol=1e-5)


def test_without_a_key_keyed_rows_are_refused(vendor, tiny):
    bundle = open_bundle(vendor.bundle, trusted=None)
    model = ServedModel(bundle.manifest, bundle.read, key=None)
    images, targets = tiny.images(2), np.full(2, -1)
    keyless = model.explain(images, explainer="brightness", targets=targets, keyed=np.zeros(2, bool))
    np.testing.assert_allclose(keyless.maps, tiny.maps(images, targets), rtol=1e-5)
    with pytest.raises(NoKeyError):
        model.explain(images, explainer="brightness", targets=targets, keyed=np.array([False, True]))


def test_unknown_explainers_are_refused(model):
    with pytest.raises(UnknownNameError, match="brightness, coarse"):
        model.explainer("only_torch")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("garbage", "cannot be loaded"),
        ("prediction graph explains nothing", "takes"),
        ("wrong number of classes", "logits of shape"),
        ("wrong image size", "fails on a trial image"),
        ("map without batch", "maps of type"),
    ],
)
def test_bundles_with_unfit_graphs_are_refused_at_start(vendor, tiny, tmp_path, change, match):
    content = vendor.content()
    files, fields = dict(content.files), {}
    if change == "garbage":
        files["graphs/fine.onnx"] = b"no graph"
    elif change == "prediction graph explains nothing":
        files["graphs/fine.onnx"] = tiny.prediction_graph()
    elif change == "wrong number of classes":
        fields = {
            "classes": ("a", "b", "c"),
            "architecture": Architecture(name="x", num_classes=3, module="graph_only"),
        }
    elif change == "wrong image size":
        nodes, constants = tiny.prediction_nodes()
        files["graphs/predict.onnx"] = tiny.graph(nodes, constants, explains=False, shape=(3, 16, 4))
    else:
        nodes, constants = tiny.prediction_nodes()
        nodes += [
            helper.make_node("Cast", ["target"], ["unused"], to=1),
            helper.make_node("Unsqueeze", ["logits", "axis"], ["wide"]),
            helper.make_node("Transpose", ["wide"], ["map"], perm=[1, 2, 0]),
        ]
        constants.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
        files["graphs/fine.onnx"] = tiny.graph(nodes, constants, explains=True)
    changed = vendor.content(files=files, explainers=(ExplainerEntry(name="x", graph="graphs/fine.onnx"),), **fields)
    write_bundle(tmp_path / "bad.klb", changed, signing_key=vendor.signing_key)
    bundle = open_bundle(tmp_path / "bad.klb", trusted=None)
    with pytest.raises(BundleError, match=match):
        ServedModel(bundle.manifest, bundle.read, key=vendor.key)
