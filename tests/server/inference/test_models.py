"""Several models and versions in one server: each is found by its name, and licensed by itself."""

import gc
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import grpc
import numpy as np
import pytest
from support import refusal, wait_for

from keylock.bundle import ExplainerEntry, KeyFile, open_bundle, write_bundle
from keylock.crypto.signing import SigningKey
from keylock.errors import BundleError, InputError, ServiceError
from keylock.inference import inference_pb2, inference_pb2_grpc
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
    code, details = refusal(call)
    field = details["BadRequest"].field_violations[0].field if "BadRequest" in details else ""
    return code.name, details["ErrorInfo"].reason, field


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


@pytest.fixture
def operated(start_server, vendor, more_bundles, tls_files, tmp_path):
    """A server of two models whose bundles can be replaced, and what its operators call."""
    paths = {"tiny": tmp_path / "tiny.klb", "other": tmp_path / "other.klb"}
    shutil.copy(vendor.bundle, paths["tiny"])
    shutil.copy(more_bundles["other"], paths["other"])
    calls = start_server(
        bundle=tuple(paths.values()),
        key_file=None,
        key_seed_file=vendor.seed_file,
        admin_port=0,
        admin_certificate=tls_files / "server.pem",
        admin_key=tls_files / "server.key",
        admin_client_ca=tls_files / "client.pem",
    )
    roots, *shown = ((tls_files / name).read_bytes() for name in ("server.pem", "client.key", "client.pem"))
    credentials = grpc.ssl_channel_credentials(roots, *shown)
    with grpc.secure_channel(f"localhost:{calls.server.admin_port}", credentials) as channel:
        yield calls, inference_pb2_grpc.GRPCInferenceServiceStub(channel), paths
    calls.stop(drain_s=0).result(timeout=30)


def load(stub, name):
    return stub.RepositoryModelLoad(inference_pb2.RepositoryModelLoadRequest(model_name=name), timeout=20)


def unload(stub, name):
    return stub.RepositoryModelUnload(inference_pb2.RepositoryModelUnloadRequest(model_name=name), timeout=20)


def states(stub, **fields):
    answer = stub.RepositoryIndex(inference_pb2.RepositoryIndexRequest(**fields), timeout=20)
    return {one.name: one.state for one in answer.models}


def test_an_unloaded_model_is_refused_until_it_is_loaded_again(operated, tiny):
    calls, operators, _ = operated
    image = tiny.tensor_image(tiny.images(1)[0])
    before = calls.explain(image, model_name="tiny")
    assert states(calls.inference) == {"tiny": "READY", "other": "READY"}
    assert unload(operators, "tiny").is_unloaded
    assert states(calls.inference) == {"tiny": "UNAVAILABLE", "other": "READY"}
    assert states(calls.inference, ready=True) == {"other": "READY"}
    assert not calls.inference.ModelReady(inference_pb2.ModelReadyRequest(name="tiny")).ready
    assert refused(lambda: calls.explain(image, model_name="tiny"))[:2] == ("UNAVAILABLE", "MODEL_NOT_LOADED")
    assert refused(lambda: calls.inference.ModelMetadata(inference_pb2.ModelMetadataRequest(name="tiny")))[0] == (
        "UNAVAILABLE"
    )
    assert calls.explain(image, model_name="other").results
    unload(operators, "tiny")
    load(operators, "tiny")
    assert calls.explain(image, model_name="tiny").results == before.results


def test_a_new_version_takes_over_without_an_interruption(operated, more_bundles, tiny):
    calls, operators, paths = operated
    image = tiny.tensor_image(tiny.images(1)[0])
    before = calls.explain(image, model_name="tiny").model.version
    failures, versions = [], set()
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            try:
                versions.add(calls.explain(image, model_name="tiny").model.version)
            except grpc.RpcError as error:
                failures.append(error)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(ask) for _ in range(4)]
        shutil.copy(more_bundles["newer"], paths["tiny"])
        load(operators, "tiny")
        answer = calls.explain(image, model_name="tiny")
        stop.set()
        for one in running:
            one.result(timeout=20)
    assert failures == []
    assert answer.model.version == version_of(more_bundles["newer"])
    assert versions <= {before, answer.model.version}
    assert list(answer.results[0].map.shape) == [4, 4]


def test_unloading_waits_for_running_calls_and_refuses_new_ones(operated, monkeypatch, tiny):
    calls, operators, _ = operated
    image = tiny.tensor_image(tiny.images(1)[0])
    model = calls.server.model
    entered, go = threading.Event(), threading.Event()
    real = type(model).explain

    def wait(self, *arguments, **options):
        entered.set()
        go.wait(20)
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(model), "explain", wait)
    gone = weakref.ref(model)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(calls.explain, image, model_name="tiny")
        assert entered.wait(20)
        unloading = pool.submit(unload, operators, "tiny")
        wait_for(lambda: states(calls.inference)["tiny"] == "UNLOADING")
        assert refused(lambda: calls.explain(image, model_name="tiny"))[1] == "MODEL_NOT_LOADED"
        assert not unloading.done()
        go.set()
        assert running.result(timeout=20).results
        unloading.result(timeout=20)
    assert states(calls.inference)["tiny"] == "UNAVAILABLE"
    del model
    monkeypatch.undo()
    wait_for(lambda: gc.collect() is not None and gone() is None)


def test_a_bundle_that_cannot_be_used_leaves_what_was_loaded(operated, more_bundles, tiny):
    calls, operators, paths = operated
    image = tiny.tensor_image(tiny.images(1)[0])
    before = calls.explain(image, model_name="tiny")
    for make in (
        lambda: paths["tiny"].write_bytes(b"no bundle"),
        lambda: shutil.copy(more_bundles["other"], paths["tiny"]),
        lambda: paths["tiny"].unlink(),
    ):
        make()
        code, reason, _ = refused(lambda: load(operators, "tiny"))
        assert (code, reason) == ("FAILED_PRECONDITION", "MODEL_NOT_LOADABLE")
        assert calls.explain(image, model_name="tiny").results == before.results
    unload(operators, "tiny")
    assert refused(lambda: load(operators, "tiny"))[1] == "MODEL_NOT_LOADABLE"
    index = {
        kind: stub.RepositoryIndex(inference_pb2.RepositoryIndexRequest()).models[0]
        for kind, stub in (("public", calls.inference), ("operators", operators))
    }
    assert str(paths["tiny"]) in index["operators"].reason
    assert index["public"].reason == "not loaded at the moment"


def test_only_operators_load_and_unload(operated):
    calls, operators, _ = operated
    for method, request in (
        ("RepositoryModelLoad", inference_pb2.RepositoryModelLoadRequest(model_name="tiny")),
        ("RepositoryModelUnload", inference_pb2.RepositoryModelUnloadRequest(model_name="tiny")),
    ):
        assert refused(lambda m=method, r=request: getattr(calls.inference, m)(r)) == (
            "PERMISSION_DENIED",
            "OPERATORS_ONLY",
            "",
        )
    assert states(calls.inference) == {"tiny": "READY", "other": "READY"}
    assert operators.ServerReady(inference_pb2.ServerReadyRequest()).ready
    assert refused(lambda: operators.ModelInfer(inference_pb2.ModelInferRequest(model_name="tiny")))[0] == (
        "INVALID_ARGUMENT"
    )


def test_wrong_requests_of_operators_are_refused(operated, server_log):
    _, operators, _ = operated
    assert refused(lambda: load(operators, "third")) == ("NOT_FOUND", "UNKNOWN_NAME", "model_name")
    assert "third" not in server_log.text
    assert refused(lambda: load(operators, "")) == ("INVALID_ARGUMENT", "INVALID_INPUT", "model_name")
    # As KServe has it: the name of the model in the first field.
    request = inference_pb2.RepositoryModelLoadRequest(repository_name="tiny")
    assert operators.RepositoryModelLoad(request).model_name == "tiny"
    assert "the operator 'client' loads the model 'tiny'" in server_log.text
    request = inference_pb2.RepositoryModelLoadRequest(repository_name="elsewhere", model_name="tiny")
    assert refused(lambda: operators.RepositoryModelLoad(request))[2] == "repository_name"
    request = inference_pb2.RepositoryModelLoadRequest(model_name="tiny")
    request.parameters["config"].string_param = "{}"
    assert refused(lambda: operators.RepositoryModelLoad(request))[2] == "parameters"
    assert refused(lambda: states(operators, repository_name="elsewhere"))[2] == "repository_name"
