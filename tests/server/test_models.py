"""Several models and versions in one server: each is found by its name, and licensed by itself."""

from datetime import timedelta

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from keylock.bundle import ExplainerEntry, KeyFile, open_bundle, write_bundle
from keylock.errors import BundleError, InputError, ServiceError
from keylock.inference import inference_pb2
from keylock.signing import SigningKey
from keylock.v1 import explanation_pb2 as pb
from keylock_server import ServerSettings


@pytest.fixture(scope="session")
def more_bundles(vendor, tiny, tmp_path_factory):
    """A newer version of the model `tiny`, whose maps are coarse, and a model `other` with a key file of its own."""
    folder = tmp_path_factory.mktemp("bundles")
    coarse = {"graphs/predict.onnx": tiny.prediction_graph(), "graphs/c.onnx": tiny.explanation_graph(coarse=True)}
    fine = {"graphs/predict.onnx": tiny.prediction_graph(), "graphs/f.onnx": tiny.explanation_graph(coarse=False)}
    made = {}
    for name, file, files, sealer in (
        ("tiny", "newer", coarse, KeyFile(vendor.key_file)),
        ("other", "other", fine, KeyFile.create(folder / "other-key")),
    ):
        graph = next(name for name in files if "predict" not in name)
        content = vendor.content(
            name=name,
            created=tiny.now + timedelta(days=1),
            explainers=(ExplainerEntry(name="brightness", graph=graph),),
            files=files,
        )
        path = folder / f"{file}.klb"
        write_bundle(path, content, signing_key=vendor.signing_key, seed=vendor.seed, sealer=sealer)
        made[file] = path
    return made | {"key_files": (vendor.key_file, vendor.key_file, folder / "other-key")}


@pytest.fixture(scope="module")
def several(start_server, vendor, more_bundles):
    bundles = (vendor.bundle, more_bundles["newer"], more_bundles["other"])
    return start_server(bundle=bundles, key_file=more_bundles["key_files"])


def version_of(path):
    with open_bundle(path, trusted=None) as bundle:
        return bundle.manifest.model_digest.removeprefix("sha256:")[:12]


def refused(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    found = {}
    for packed in rpc_status.from_call(caught.value).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest):
            if packed.Is(kind.DESCRIPTOR):
                found[kind.__name__] = kind()
                packed.Unpack(found[kind.__name__])
    field = found["BadRequest"].field_violations[0].field if "BadRequest" in found else ""
    return caught.value.code().name, found["ErrorInfo"].reason, field


def test_each_model_and_version_is_found_by_its_name(several, vendor, more_bundles, tiny):
    image = tiny.tensor_image(tiny.images(1)[0])
    old, new = version_of(vendor.bundle), version_of(more_bundles["newer"])
    for fields, version, side in (
        ({"model_name": "tiny", "model_version": old}, old, 8),
        ({"model_name": "tiny", "model_version": new}, new, 4),
        ({"model_name": "tiny"}, new, 4),
        ({"model_name": "other"}, version_of(more_bundles["other"]), 8),
    ):
        answer = several.explain(image, **fields)
        assert (answer.model.name, answer.model.version) == (fields["model_name"], version)
        assert list(answer.results[0].map.shape) == [side, side]
        described = several.explanation.GetModel(pb.GetModelRequest(**fields))
        assert described.model == answer.model
        request = inference_pb2.ModelInferRequest(**fields)
        request.inputs.add(name="image", datatype="FP32", shape=[1, 3, 8, 8])
        request.raw_input_contents.append(tiny.images(1).tobytes())
        assert several.inference.ModelInfer(request).model_version == version
        ready = inference_pb2.ModelReadyRequest(name=fields["model_name"], version=fields.get("model_version", ""))
        assert several.inference.ModelReady(ready).ready
    metadata = several.inference.ModelMetadata(inference_pb2.ModelMetadataRequest(name="tiny"))
    assert list(metadata.versions) == [old, new]


def test_what_is_not_there_is_refused_by_name(several, tiny):
    image = tiny.tensor_image(tiny.images(1)[0])
    for fields, expected in (
        ({}, ("INVALID_ARGUMENT", "INVALID_INPUT", "model_name")),
        ({"model_name": "third"}, ("NOT_FOUND", "UNKNOWN_NAME", "model_name")),
        ({"model_name": "tiny", "model_version": "1"}, ("NOT_FOUND", "UNKNOWN_NAME", "model_version")),
    ):
        assert refused(lambda fields=fields: several.explain(image, **fields)) == expected
        request = pb.EstimateExplainRequest(images=1, **fields)
        assert refused(lambda request=request: several.explanation.EstimateExplain(request)) == expected


def test_a_license_is_for_the_models_it_names(several, vendor, more_bundles, tiny):
    images = tiny.images(1)
    image = tiny.tensor_image(images[0])
    with open_bundle(more_bundles["newer"], trusted=None) as bundle:
        digest = bundle.manifest.model_digest
    token = vendor.grant(models=("other", digest)).token
    keyed = tiny.maps(images + vendor.key.reveal(), np.array([-1]))[0]
    answer = several.explain(image, token=token, model_name="other")
    assert answer.results[0].keyed
    np.testing.assert_allclose(tiny.to_array(answer.results[0].map), keyed, rtol=1e-4, atol=1e-6)
    assert several.explain(image, token=token, model_name="tiny").results[0].keyed
    old = version_of(vendor.bundle)
    assert refused(lambda: several.explain(image, token=token, model_name="tiny", model_version=old)) == (
        "PERMISSION_DENIED",
        "LICENSE_WRONG_MODEL",
        "",
    )


def test_one_request_id_is_not_for_two_models(several, vendor, tiny):
    image = tiny.tensor_image(tiny.images(1)[0])
    token = vendor.grant().token
    several.explain(image, token=token, request_id="r", model_name="tiny")
    assert refused(lambda: several.explain(image, token=token, request_id="r", model_name="other"))[1] == (
        "REQUEST_ID_REUSED"
    )


def test_the_same_model_twice_is_refused_at_the_start(start_server, vendor):
    with pytest.raises(ServiceError, match="hold the same model tiny"):
        start_server(bundle=(vendor.bundle, vendor.bundle))


def test_licenses_of_one_issuer_never_open_models_of_another(start_server, vendor, tiny, tmp_path):
    content = vendor.content(name="foreign")
    write_bundle(tmp_path / "foreign.klb", content, signing_key=SigningKey.generate())
    with pytest.raises(BundleError, match="name the public keys you trust"):
        start_server(bundle=(vendor.bundle, tmp_path / "foreign.klb"), issuers=(), key_file=None, keyless=True)


def test_ways_to_keys_are_for_all_bundles_or_one_for_each(vendor):
    settings = ServerSettings.load(bundle=("a.klb", "b.klb"), key_file="k")
    assert [(str(s.bundle), str(s.key_file)) for s in settings.sources] == [("a.klb", "k"), ("b.klb", "k")]
    settings = ServerSettings.load(bundle=("a.klb", "b.klb"), key_file=("k", "l"))
    assert [str(source.key_file) for source in settings.sources] == ["k", "l"]
    with pytest.raises(InputError, match="3 times for 2 bundles"):
        ServerSettings.load(bundle=("a.klb", "b.klb"), key_provider=("env:A", "env:B", "env:C"))
    with pytest.raises(InputError, match="one bundle"):
        ServerSettings.load(
            bundle=("a.klb", "b.klb"),
            offline_license="l",
            key_provider="env:A",
            license_store="sqlite:///x",
            issuers=("i",),
        )
