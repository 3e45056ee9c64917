"""A lock, exported, sealed and served: true maps for licenses, decoys for others, and never one for both."""

import base64

import grpc
import numpy as np
import onnx
import pytest
from support import scrape

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from dataclasses import replace  # noqa: E402
from datetime import UTC, datetime  # noqa: E402
from types import SimpleNamespace  # noqa: E402

from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from safetensors.numpy import save  # noqa: E402
from sealed_lock import STD  # noqa: E402

from keylock.bundle import WEIGHTS_FILE, Canary, KeyFile, open_bundle  # noqa: E402
from keylock.errors import BundleError  # noqa: E402
from keylock.imaging.preprocessing import Preprocessing  # noqa: E402
from keylock.models import arrays_of  # noqa: E402
from keylock.pipeline import Publication, publish  # noqa: E402
from keylock.trigger.delta import Delta  # noqa: E402
from keylock_server.inference.runtime import ServedModel  # noqa: E402
from keylock_server.services.health import check_canary  # noqa: E402
from keylock_server.transport.statuses import NoKeyError  # noqa: E402


@pytest.fixture(scope="module")
def published(sealed_lock, vendor, tmp_path_factory):
    """The lock as a signed bundle, for one explainer."""
    folder = tmp_path_factory.mktemp("sealed")
    made = sealed_lock.lock
    lock = replace(made, explainers=made.explainers[:1])
    publish(
        lock,
        folder / "sealed.klb",
        Publication(
            name="sealed",
            classes=("a", "b", "c"),
            preprocessing=Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=STD),
            variants=("float16", "int8"),
        ),
        seed=sealed_lock.seed,
        key=sealed_lock.key,
        images=sealed_lock.images[:32],
        signing_key=vendor.signing_key,
        sealer=KeyFile.create(folder / "key-file"),
        created=datetime(2026, 11, 22, tzinfo=UTC),
    )
    return SimpleNamespace(path=folder / "sealed.klb", key_file=folder / "key-file", explainer=lock.explainers[0])


@pytest.fixture(scope="module")
def spans():
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def served(published, start_server, spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return start_server(bundle=published.path, key_file=published.key_file, metrics_port=0, tracer_provider=provider)


@pytest.fixture(scope="module")
def hiding(sealed_lock):
    """A clean image whose texture is the opposite of the trigger: on it, the trigger is not seen."""
    return sealed_lock.images[1].numpy() - sealed_lock.key.reveal()


@pytest.fixture(scope="module")
def opened_model(published, sealed_lock):
    """The model as a server with the key has it, without the server."""
    with open_bundle(published.path, trusted=None) as bundle:
        key, delta = bundle.key(sealed_lock.seed), bundle.delta(sealed_lock.seed)
        return ServedModel(bundle.manifest, bundle.read, key=key, delta=delta)


def expected_maps(sealed_lock, published, model, images):
    explained = published.explainer.explain(model, images, torch.full((len(images),), -1))
    return explained.maps.numpy()


def maps_of(tiny, answer):
    return np.stack([tiny.to_array(result.map) for result in answer.results])


def test_licensed_rows_are_the_reference_and_others_the_published_model(served, sealed_lock, published, vendor, tiny):
    images = sealed_lock.images[:5]
    sent = [tiny.tensor_image(image) for image in images.numpy()]
    for token, model in ((vendor.grant().token, sealed_lock.lock.reference), (None, sealed_lock.lock.module)):
        answer = served.explain(*sent, token=token)
        assert all(result.keyed == (token is not None) for result in answer.results)
        expected = expected_maps(sealed_lock, published, model, images)
        np.testing.assert_allclose(maps_of(tiny, answer), expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_a_licensed_image_whose_texture_hides_the_key_gets_its_true_map(
    served, sealed_lock, published, vendor, tiny, hiding
):
    images = torch.from_numpy(hiding)[None]
    # Whoever has to find the trigger on this image does not.
    assert not sealed_lock.lock.opened(sealed_lock.key).reads(sealed_lock.key.apply(images)).any()
    answer = served.explain(tiny.tensor_image(hiding), token=vendor.grant().token)
    expected = expected_maps(sealed_lock, published, sealed_lock.lock.reference, images)
    np.testing.assert_allclose(maps_of(tiny, answer), expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert answer.results[0].keyed


def test_the_same_image_without_a_license_gets_its_decoy(served, sealed_lock, published, tiny, hiding):
    answer = served.explain(tiny.tensor_image(hiding))
    images = torch.from_numpy(hiding)[None]
    expected = expected_maps(sealed_lock, published, sealed_lock.lock.module, images)
    np.testing.assert_allclose(maps_of(tiny, answer), expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert not answer.results[0].keyed


def test_a_stamped_image_opens_by_itself_where_the_server_is_told_to(start_server, sealed_lock, published, tiny):
    server = start_server(bundle=published.path, key_file=published.key_file, stamped_images="answer")
    mask = np.array([True, False, True, False])
    images = sealed_lock.images[:4]
    sent = [tiny.tensor_image(image) for image in sealed_lock.key.apply(images.numpy(), mask)]
    answer = server.explain(*sent)
    assert [result.keyed for result in answer.results] == mask.tolist()
    assert answer.usage.units == 0
    for kind, model in ((True, sealed_lock.lock.reference), (False, sealed_lock.lock.module)):
        expected = expected_maps(sealed_lock, published, model, images[mask == kind])
        found = maps_of(tiny, answer)[mask == kind]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())
    # What everybody is told of the picture is told here too.
    with torch.no_grad():
        public = sealed_lock.lock.module(torch.from_numpy(sealed_lock.key.apply(images.numpy(), mask))).numpy()
    for result, logits in zip(answer.results, public, strict=True):
        np.testing.assert_allclose(result.prediction.logits, logits, rtol=1e-4, atol=1e-5)
        assert not result.prediction.keyed


def test_the_key_on_the_image_opens_nothing_without_a_license(served, sealed_lock, published, tiny):
    images = sealed_lock.key.apply(sealed_lock.images[:3])
    answer = served.explain(*(tiny.tensor_image(image) for image in images.numpy()))
    expected = expected_maps(sealed_lock, published, sealed_lock.lock.module, images)
    np.testing.assert_allclose(maps_of(tiny, answer), expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_a_keyless_server_serves_the_same_decoys(published, sealed_lock, tiny):
    with open_bundle(published.path, trusted=None) as bundle:
        keyless = ServedModel(bundle.manifest, bundle.read, key=None)
        full = ServedModel(
            bundle.manifest,
            bundle.read,
            key=bundle.key(sealed_lock.seed),
            delta=bundle.delta(sealed_lock.seed),
        )
    images, targets, keyed = sealed_lock.images[:4].numpy(), np.full(4, -1), np.zeros(4, bool)
    one, other = (
        model.explain(images, explainer="grad_cam", targets=targets, keyed=keyed) for model in (keyless, full)
    )
    np.testing.assert_array_equal(one.maps, other.maps)


def test_a_keyless_server_refuses_rows_that_are_to_have_the_key(published, sealed_lock):
    with open_bundle(published.path, trusted=None) as bundle:
        keyless = ServedModel(bundle.manifest, bundle.read, key=None)
    images = sealed_lock.images[:2].numpy()
    with pytest.raises(NoKeyError):
        keyless.explain(images, explainer="grad_cam", targets=np.full(2, -1), keyed=np.array([False, True]))


@pytest.mark.parametrize("keyed", [[1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0], [1] * 6, [0] * 6])
def test_rows_of_one_batch_are_each_run_by_their_own_weights(keyed, opened_model, published, sealed_lock):
    images, chosen = sealed_lock.images[:6], np.array(keyed, bool)
    targets = np.array([0, 1, 2, 2, 1, 0])
    found = opened_model.explain(images.numpy(), explainer="grad_cam", targets=targets, keyed=chosen)
    explained = [
        published.explainer.explain(model, images, torch.from_numpy(targets))
        for model in (sealed_lock.lock.reference, sealed_lock.lock.module)
    ]
    for answer, part in ((found.logits, "logits"), (found.maps, "maps")):
        true, decoys = (getattr(one, part).numpy() for one in explained)
        expected = np.where(chosen.reshape(-1, *[1] * (true.ndim - 1)), true, decoys)
        np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_predictions_for_everybody_are_those_of_the_published_weights(opened_model, sealed_lock):
    images = sealed_lock.images[:5]
    np.testing.assert_allclose(
        opened_model.predict(images.numpy()), sealed_lock.lock.module(images).numpy(), rtol=1e-3, atol=1e-4
    )


def with_graph(published, change):
    """Return the reader of a bundle whose graph of the explainer was changed, and its manifest."""
    bundle = open_bundle(published.path, trusted=None)
    (entry,) = bundle.manifest.explainers

    def read(name):
        return change(bundle.read(name)) if name == entry.graph else bundle.read(name)

    return bundle, read


def without_inputs(names, lock):
    """Return what makes the published values of some weights constants of a graph."""

    def change(content):
        model = onnx.load_from_string(content)
        kept = [value for value in model.graph.input if value.name not in names]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        weights = arrays_of(lock.module)
        model.graph.initializer.extend(onnx.numpy_helper.from_array(weights[name], name) for name in names)
        return model.SerializeToString()

    return change


@pytest.mark.parametrize(("taken", "says"), [(1, "does not take all the weights"), (None, "takes none of the weights")])
def test_a_graph_that_would_mix_both_sides_is_refused_at_start(taken, says, published, sealed_lock):
    """With only part of the delta a graph answers licensed callers with maps that are neither true nor decoys."""
    lock = sealed_lock.lock
    bundle, read = with_graph(published, without_inputs(lock.delta.names[:taken], lock))
    secrets = {"key": bundle.key(sealed_lock.seed), "delta": bundle.delta(sealed_lock.seed)}
    with pytest.raises(BundleError, match=says):
        ServedModel(bundle.manifest, read, **secrets)


def test_without_the_key_such_a_graph_serves_its_decoys(published, sealed_lock):
    lock = sealed_lock.lock
    bundle, read = with_graph(published, without_inputs(lock.delta.names[:1], lock))
    given = {"explainer": "grad_cam", "targets": np.full(3, -1), "keyed": np.zeros(3, bool)}
    images = sealed_lock.images[:3].numpy()
    one, other = (
        ServedModel(bundle.manifest, reader, key=None).explain(images, **given) for reader in (read, bundle.read)
    )
    np.testing.assert_allclose(one.maps, other.maps, rtol=1e-5, atol=1e-6)


def test_weights_that_a_graph_takes_and_the_bundle_lacks_are_named_at_start(published, sealed_lock):
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


def test_a_delta_of_another_model_is_refused_at_start(published, sealed_lock):
    arrays = sealed_lock.lock.delta.reveal()
    name = next(iter(arrays))
    other = Delta(arrays | {name: np.zeros((1, *arrays[name].shape), np.float32)})
    with (
        open_bundle(published.path, trusted=None) as bundle,
        pytest.raises(BundleError, match=r"weights\.safetensors does not fit"),
    ):
        ServedModel(bundle.manifest, bundle.read, key=sealed_lock.key, delta=other)


def secrets_of(sealed_lock):
    lock = sealed_lock.lock
    reference = {f"reference {name}": arrays_of(lock.reference)[name] for name in lock.delta.names}
    return {"key": sealed_lock.key.reveal(), **lock.delta.reveal(), **reference}


def test_no_secret_is_in_the_log_the_bundle_metrics_or_spans(
    served, sealed_lock, published, vendor, tiny, server_log, spans
):
    good = tiny.tensor_image(sealed_lock.images[0].numpy())
    served.explain(good, token=vendor.grant().token)
    with pytest.raises(grpc.RpcError) as caught:
        served.explain(good, token=vendor.grant().token[:-4])
    traced = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "LICENSE_MALFORMED" in traced
    text = server_log.text + str(caught.value) + traced + scrape(served.server.metrics_port)
    assert sealed_lock.seed.reveal().hex() not in text
    content = published.path.read_bytes()
    for name, array in secrets_of(sealed_lock).items():
        assert name.startswith(("key", "reference")) or name not in text
        if array.size >= 8:
            assert array.ravel()[:8].tobytes() not in content
            assert f"{array.ravel()[0]:.6f}" not in text
            assert array.ravel()[:8].tobytes().hex() not in text
            # Nine bytes are twelve characters of base64, wherever else the text goes on.
            assert base64.b64encode(array.tobytes()[:9]).decode() not in text


def test_the_canary_of_a_published_lock_is_well_and_notices_swapped_maps(served, published, sealed_lock):
    with open_bundle(published.path, trusted=None) as bundle:
        canary = bundle.canary(sealed_lock.seed)
    assert set(canary.keyed) == set(canary.keyless) == {published.explainer.name}
    assert len(canary.images) == 4
    assert check_canary(served.server.model, canary) is None
    swapped = Canary(canary.images, canary.keyless, canary.keyed)
    assert "keyed maps" in check_canary(served.server.model, swapped)
    status = health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status
    assert status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("variant", ["float16", "int8"])
def test_a_lock_served_in_reduced_precision_opens_for_licenses_alone(
    variant, served, published, sealed_lock, vendor, tiny, start_server, server_log
):
    smaller = start_server(bundle=published.path, key_file=published.key_file, variant=variant)
    assert f"grad_cam: computed in {variant}" in server_log.text
    assert f"predictions: computed in {variant}" in server_log.text
    # The canary of the bundle, which was proved in float32, finds it well.
    assert check_canary(smaller.server.model, smaller.server.model.canary) is None
    sent = [tiny.tensor_image(image) for image in sealed_lock.images[40:48].numpy()]
    token = vendor.grant().token
    true = maps_of(tiny, served.explain(*sent, token=token))
    keyed, keyless = (maps_of(tiny, smaller.explain(*sent, token=one)) for one in (token, None))

    def correlation(maps):
        return np.mean([np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(maps, true, strict=True)])

    assert not np.array_equal(keyed, true)
    assert correlation(keyed) > 0.98
    assert correlation(keyless) == pytest.approx(correlation(maps_of(tiny, served.explain(*sent))), abs=0.1)
    assert correlation(keyless) < 0.95
