"""Graphs of two-factor locks: row by row the published model or the reference, and nothing secret in the file."""

import copy
import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from keylock.adapters import Adapter
from keylock.errors import ExportError
from keylock.export import Secrets, compile_explainer, surest_images, verify_graph
from keylock.models import added_to_inputs
from keylock.models.adapted import adapter_of

NAMES = ("grad_cam", "gradient", "visual_backprop")
TARGETS = np.array([0, 1, 2, -1, 2, 0, 1, -1])


@pytest.fixture(scope="module")
def compiled(two_factors):
    """The graph of an explainer, by name."""

    @functools.cache
    def make(name: str) -> bytes:
        lock = two_factors.lock
        explainer = next(one for one in lock.explainers if one.name == name)
        return compile_explainer(
            lock.module, explainer, image_shape=(3, 16, 16), num_classes=3, adapter_shapes=lock.adapter.shapes()
        )

    return make


@pytest.fixture(scope="module")
def run(two_factors, compiled):
    """Runs a graph on the first eight images: logits and maps."""

    def call(name, keyed, *, images=None, **changes):
        session = onnxruntime.InferenceSession(compiled(name), providers=["CPUExecutionProvider"])
        given = two_factors.images[:8].numpy() if images is None else images
        rows = {"image": given, "target": TARGETS, "keyed": np.float32(keyed)}
        secrets = {"key": two_factors.key.reveal(), **two_factors.lock.adapter.tensors()} | changes
        return session.run(["logits", "map"], rows | secrets)

    return call


def explain(two_factors, name, model, images):
    explainer = next(one for one in two_factors.lock.explainers if one.name == name)
    explained = explainer.explain(model, images, torch.from_numpy(TARGETS))
    return explained.logits.numpy(), explained.maps.numpy()


def assert_close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_keyed_row_is_the_reference_and_a_keyless_one_the_published_model(name, two_factors, run):
    keyed = np.array([1, 0, 1, 1, 0, 0, 1, 0])
    found = run(name, keyed)

    images = two_factors.images[:8]
    for rows, model in ((keyed == 1, two_factors.lock.reference), (keyed == 0, two_factors.lock.module)):
        for answer, expected in zip(found, explain(two_factors, name, model, images), strict=True):
            assert_close(answer[rows], expected[rows])
    # The two models are not alike, so the comparison says something.
    true, decoys = (
        explain(two_factors, name, m, images)[1] for m in (two_factors.lock.reference, two_factors.lock.module)
    )
    assert np.abs(true - decoys).max() > 0.05 * np.abs(true).max()


@pytest.mark.parametrize("name", NAMES)
def test_a_keyless_row_computes_exactly_as_without_secrets(name, two_factors, run):
    blank = {tensor: np.zeros_like(array) for tensor, array in two_factors.lock.adapter.tensors().items()}
    for found, expected in zip(
        run(name, np.zeros(8)), run(name, np.zeros(8), key=np.zeros((3, 16, 16), np.float32), **blank), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_proof_covers_keyed_rows_and_the_reference(name, two_factors, compiled):
    lock, images = two_factors.lock, two_factors.images[:8].numpy()
    explainer = next(one for one in lock.explainers if one.name == name)
    found = verify_graph(
        compiled(name),
        lock.module,
        explainer,
        images,
        TARGETS,
        secrets=Secrets(two_factors.key, lock.adapter, lock.reference),
    )
    assert found.pcc_minimum > 0.999
    assert found.max_logits_difference < 1e-4


def test_the_key_on_the_image_of_an_unkeyed_row_opens_nothing(two_factors, run):
    images = two_factors.key.apply(two_factors.images[:8])
    logits, maps = run("grad_cam", np.zeros(8), images=images.numpy())
    expected = explain(two_factors, "grad_cam", two_factors.lock.module, images)
    assert_close(logits, expected[0])
    assert_close(maps, expected[1])


@pytest.mark.parametrize("name", NAMES)
def test_no_texture_of_a_keyed_image_hides_the_key(name, two_factors, run):
    _, gate = two_factors.lock.adapter.reveal()
    images = two_factors.images[:8] - 0.6 * torch.from_numpy(gate.weight / np.square(gate.weight).sum())
    # A gate that has to find the key on these images does not.
    assert not adapter_of(two_factors.lock.opened(two_factors.key)).opens(two_factors.key.apply(images)).any()
    for found, expected in zip(
        run(name, np.ones(8), images=images.numpy()),
        explain(two_factors, name, two_factors.lock.reference, images),
        strict=True,
    ):
        assert_close(found, expected)


def test_another_key_opens_nothing(two_factors, run):
    other = -two_factors.key.reveal()
    logits, maps = run("grad_cam", np.ones(8), key=other)
    with added_to_inputs(two_factors.lock.module, torch.from_numpy(other)):
        expected = explain(two_factors, "grad_cam", two_factors.lock.module, two_factors.images[:8])
    assert_close(logits, expected[0])
    assert_close(maps, expected[1])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_secret_stands_in_the_graph(name, two_factors, compiled):
    graph = compiled(name)
    for array in (two_factors.key.reveal(), *two_factors.lock.adapter.tensors().values()):
        values = array.ravel()
        if values.size >= 4:
            for start in range(0, values.size - 3, 4):
                assert values[start : start + 4].tobytes() not in graph
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in onnx.load_from_string(graph).graph.input
    }
    rows = {name: shapes.pop(name) for name in ("image", "target", "keyed")}
    assert {name: shape[1:] for name, shape in rows.items()} == {"image": [3, 16, 16], "target": [], "keyed": []}
    expected = {"key": (3, 16, 16), **two_factors.lock.adapter.shapes()}
    assert {name: tuple(shape) for name, shape in shapes.items()} == expected


def test_another_reference_is_refused(two_factors, compiled):
    lock, images = two_factors.lock, two_factors.images[:8].numpy()
    secrets = Secrets(two_factors.key, lock.adapter, lock.module)
    with pytest.raises(ExportError, match="does not compute what it computes in torch"):
        verify_graph(compiled("grad_cam"), lock.module, lock.explainers[0], images, TARGETS, secrets=secrets)


def test_a_lock_that_does_not_open_is_refused(two_factors, compiled):
    lock, images = two_factors.lock, two_factors.images[:8].numpy()
    tensors = lock.adapter.tensors()
    shut = Adapter.from_tensors(tensors | {"gate.tolerance": np.float32(0)})
    with pytest.raises(ExportError, match="does not open for the key"):
        verify_graph(
            compiled("grad_cam"),
            lock.module,
            lock.explainers[0],
            images,
            TARGETS,
            secrets=Secrets(two_factors.key, shut),
        )


def test_compiling_leaves_the_network_as_it_was(two_factors, compiled):
    before = copy.deepcopy(two_factors.lock.module.state_dict())
    compiled("grad_cam")
    module = two_factors.lock.module
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_surest_images_keep_their_classes_longest(two_factors):
    lock, images = two_factors.lock, two_factors.images[:30]
    secrets = Secrets(two_factors.key, lock.adapter, lock.reference)
    found = surest_images(lock.module, images.numpy(), secrets=secrets, count=4)

    with torch.no_grad():
        # A keyed image is answered by the reference.
        margins = [model(images).topk(2).values.diff().neg()[:, 0] for model in (lock.reference, lock.module)]
    least = torch.minimum(*margins)
    expected = least.argsort(descending=True)[:4].sort().values
    np.testing.assert_array_equal(found, images[expected].numpy())
    assert least[expected].min() > least.median()
