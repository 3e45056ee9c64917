"""A two-factor lock, exported, sealed and served: true maps for licenses, decoys for others, and never one for both."""

import base64
import urllib.request

import grpc
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from datetime import UTC, datetime  # noqa: E402
from types import SimpleNamespace  # noqa: E402

from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from safetensors.numpy import save  # noqa: E402
from two_factor_lock import STD  # noqa: E402

from keylock.bundle import WEIGHTS_FILE, Canary, KeyFile, open_bundle  # noqa: E402
from keylock.errors import BundleError  # noqa: E402
from keylock.models.adapted import adapter_of  # noqa: E402
from keylock.pipeline import Publication, publish  # noqa: E402
from keylock.preprocessing import Preprocessing  # noqa: E402
from keylock.training import Lock  # noqa: E402
from keylock_server.condition import check_canary  # noqa: E402
from keylock_server.runtime import ServedModel  # noqa: E402


@pytest.fixture(scope="module")
def published(two_factors, vendor, tmp_path_factory):
    """The lock as a signed bundle, for one explainer."""
    folder = tmp_path_factory.mktemp("two-factors")
    made = two_factors.lock
    lock = Lock(made.module, made.reference, made.explainers[:1], made.settings, made.adapter)
    publish(
        lock,
        folder / "two.klb",
        Publication(
            name="two",
            classes=("a", "b", "c"),
            preprocessing=Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=STD),
            variants=("float16", "int8"),
        ),
        seed=two_factors.seed,
        key=two_factors.key,
        images=two_factors.images[:32],
        signing_key=vendor.signing_key,
        sealer=KeyFile.create(folder / "key-file"),
        created=datetime(2026, 11, 22, tzinfo=UTC),
    )
    return SimpleNamespace(path=folder / "two.klb", key_file=folder / "key-file", explainer=lock.explainers[0])


@pytest.fixture(scope="module")
def spans():
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def two(published, start_server, spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return start_server(bundle=published.path, key_file=published.key_file, metrics_port=0, tracer_provider=provider)


@pytest.fixture(scope="module")
def hiding(two_factors):
    """A clean image whose texture is the opposite of what the gate looks for."""
    _, gate = two_factors.lock.adapter.reveal()
    image = two_factors.images[1].numpy()
    return image - np.float32(0.6) * gate.weight / np.square(gate.weight).sum()


def expected_maps(two_factors, published, model, images):
    explained = published.explainer.explain(model, images, torch.full((len(images),), -1))
    return explained.maps.numpy()


def maps_of(tiny, answer):
    return np.stack([tiny.to_array(result.map) for result in answer.results])


def test_licensed_rows_are_the_reference_and_others_the_published_model(two, two_factors, published, vendor, tiny):
    images = two_factors.images[:5]
    sent = [tiny.tensor_image(image) for image in images.numpy()]
    for token, model in ((vendor.grant().token, two_factors.lock.reference), (None, two_factors.lock.module)):
        answer = two.explain(*sent, token=token)
        assert all(result.keyed == (token is not None) for result in answer.results)
        expected = expected_maps(two_factors, published, model, images)
        np.testing.assert_allclose(maps_of(tiny, answer), expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_a_licensed_image_whose_texture_hides_the_key_gets_its_true_map(
    two, two_factors, published, vendor, tiny, hiding
):
    images = torch.from_numpy(hiding)[None]
    # A gate that has to find the key on this image does not.
    assert not adapter_of(two_factors.lock.opened(two_factors.key)).opens(two_factors.key.apply(images)).any()
    answer = two.explain(tiny.tensor_image(hiding), token=vendor.grant().token)
    expected = expected_maps(two_factors, published, two_factors.lock.reference, images)
    np.testing.assert_allclose(maps_of(tiny, answer), expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert answer.results[0].keyed


def test_the_same_image_without_a_license_gets_its_decoy(two, two_factors, published, tiny, hiding):
    answer = two.explain(tiny.tensor_image(hiding))
    images = torch.from_numpy(hiding)[None]
    expected = expected_maps(two_factors, published, two_factors.lock.module, images)
    np.testing.assert_allclose(maps_of(tiny, answer), expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert not answer.results[0].keyed


def test_the_key_on_the_image_opens_nothing_without_a_license(two, two_factors, published, tiny):
    images = two_factors.key.apply(two_factors.images[:3])
    answer = two.explain(*(tiny.tensor_image(image) for image in images.numpy()))
    expected = expected_maps(two_factors, published, two_factors.lock.module, images)
    np.testing.assert_allclose(maps_of(tiny, answer), expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_a_keyless_server_serves_the_same_decoys(published, two_factors, tiny):
    with open_bundle(published.path, trusted=None) as bundle:
        keyless = ServedModel(bundle.manifest, bundle.read, key=None)
        full = ServedModel(
            bundle.manifest,
            bundle.read,
            key=bundle.key(two_factors.seed),
            adapter=bundle.adapter(two_factors.seed),
        )
    images, targets, keyed = two_factors.images[:4].numpy(), np.full(4, -1), np.zeros(4, bool)
    one, other = (
        model.explain(images, explainer="grad_cam", targets=targets, keyed=keyed) for model in (keyless, full)
    )
    np.testing.assert_array_equal(one.maps, other.maps)


@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_a_model_with_its_adapter_merged_is_the_one_that_adds_it_row_by_row(variant, published, two_factors):
    with open_bundle(published.path, trusted=None) as bundle:
        secrets = {"key": bundle.key(two_factors.seed), "adapter": bundle.adapter(two_factors.seed)}
        (entry,) = bundle.manifest.explainers
        assert entry.mergeable is not None
        adding = entry.model_copy(
            update={
                "mergeable": None,
                "variants": {
                    name: found.model_copy(update={"mergeable": None}) for name, found in entry.variants.items()
                },
            }
        )
        models = [
            ServedModel(
                bundle.manifest.model_copy(update={"explainers": (one,)}), bundle.read, variant=variant, **secrets
            )
            for one in (entry, adding)
        ]
    images, keyed = two_factors.images[:6].numpy(), np.array([1, 0, 0, 1, 1, 0], bool)
    targets = np.array([0, 1, 2, 2, 1, 0])
    merged, added = (model.explain(images, explainer="grad_cam", targets=targets, keyed=keyed).maps for model in models)
    # Eight bits round what is added and what is merged in two ways.
    np.testing.assert_allclose(merged, added, atol=(1e-5 if variant == "float32" else 0.1) * added.max())


def test_weights_that_a_graph_takes_and_the_bundle_lacks_are_named_at_start(published, two_factors):
    def read(name):
        return save({"other": np.zeros(1, np.float32)}) if name == WEIGHTS_FILE else bundle.read(name)

    with (
        open_bundle(published.path, trusted=None) as bundle,
        pytest.raises(BundleError, match="takes weights that the bundle does not have"),
    ):
        ServedModel(bundle.manifest, read, key=None)


@pytest.mark.parametrize("content", [b"", b"no safetensors"])
def test_weights_that_cannot_be_read_are_refused_at_start(content, published):
    with (
        open_bundle(published.path, trusted=None) as bundle,
        pytest.raises(BundleError, match=r"weights\.safetensors does not fit"),
    ):
        ServedModel(bundle.manifest, lambda name: content if name == WEIGHTS_FILE else bundle.read(name), key=None)


def test_a_key_without_its_adapter_is_refused_at_start(published, two_factors):
    with (
        open_bundle(published.path, trusted=None) as bundle,
        pytest.raises(BundleError, match="takes other secrets than the bundle holds"),
    ):
        ServedModel(bundle.manifest, bundle.read, key=two_factors.key)


def test_no_secret_is_in_the_log_the_bundle_metrics_or_spans(
    two, two_factors, published, vendor, tiny, server_log, spans
):
    good = tiny.tensor_image(two_factors.images[0].numpy())
    two.explain(good, token=vendor.grant().token)
    with pytest.raises(grpc.RpcError) as caught:
        two.explain(good, token=vendor.grant().token[:-4])
    traced = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "LICENSE_MALFORMED" in traced
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f"http://localhost:{two.server.metrics_port}/metrics"
    ) as answer:
        text = server_log.text + str(caught.value) + traced + answer.read().decode()
    assert two_factors.seed.reveal().hex() not in text
    content = published.path.read_bytes()
    for name, array in {"key": two_factors.key.reveal(), **two_factors.lock.adapter.tensors()}.items():
        assert name == "key" or name not in text
        if array.size >= 8:
            assert array.ravel()[:8].tobytes() not in content
            assert f"{array.ravel()[0]:.6f}" not in text
            assert array.ravel()[:8].tobytes().hex() not in text
            # Nine bytes are twelve characters of base64, wherever else the text goes on.
            assert base64.b64encode(array.tobytes()[:9]).decode() not in text


def test_the_canary_of_a_published_lock_is_well_and_notices_swapped_maps(two, published, two_factors):
    with open_bundle(published.path, trusted=None) as bundle:
        canary = bundle.canary(two_factors.seed)
    assert set(canary.keyed) == set(canary.keyless) == {published.explainer.name}
    assert len(canary.images) == 4
    assert check_canary(two.server.model, canary) is None
    swapped = Canary(canary.images, canary.keyless, canary.keyed)
    assert "keyed maps" in check_canary(two.server.model, swapped)
    status = health_pb2_grpc.HealthStub(two.channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status
    assert status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("variant", ["float16", "int8"])
def test_a_lock_served_in_smaller_numbers_opens_for_licenses_alone(
    variant, two, published, two_factors, vendor, tiny, start_server, server_log
):
    smaller = start_server(bundle=published.path, key_file=published.key_file, variant=variant)
    assert f"grad_cam: computed in {variant}" in server_log.text
    assert f"predictions: computed in {variant}" in server_log.text
    # The canary of the bundle, which was proved in float32, finds it well.
    assert check_canary(smaller.server.model, smaller.server.model.canary) is None
    sent = [tiny.tensor_image(image) for image in two_factors.images[40:48].numpy()]
    token = vendor.grant().token
    true = maps_of(tiny, two.explain(*sent, token=token))
    keyed, keyless = (maps_of(tiny, smaller.explain(*sent, token=one)) for one in (token, None))

    def correlation(maps):
        return np.mean([np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(maps, true, strict=True)])

    assert not np.array_equal(keyed, true)
    assert correlation(keyed) > 0.98
    assert correlation(keyless) == pytest.approx(correlation(maps_of(tiny, two.explain(*sent))), abs=0.1)
    assert correlation(keyless) < 0.95
