"""Sessions on GPUs that are made up: which providers and options are asked for, and that no secret is written."""

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphics_cards import CPU, CUDA, EVERYTHING, TENSORRT, Runtime
from onnx import TensorProto, helper
from safetensors.numpy import save
from sealed_graphs import taking_weights

from keylock.bundle import ExplainerEntry, open_bundle, write_bundle
from keylock.bundle.manifest import WEIGHTS_FILE, VariantEntry
from keylock.errors import BundleError, ServiceError
from keylock.graphs.binding import bind
from keylock.graphs.contract import EXPLANATION, PREDICTION
from keylock.trigger.delta import Delta
from keylock_server.inference.graphs import Loader
from keylock_server.inference.running import suited_to
from keylock_server.inference.runtime import ServedModel
from keylock_server.inference.sessions import Sessions
from keylock_server.inference.way import GraphFiles
from keylock_server.inference.ways import Ways


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "engines"


def sessions(runtime, *, device="auto", providers=EVERYTHING, **more) -> Sessions:
    return Sessions(device, providers=providers, make=runtime, **{"threads": 1} | more)


def loader(read, opened, *, key=None, delta=None):
    images = np.zeros((1, 3, 8, 8), np.float32)
    return Loader(read, key=key, delta=delta, ways=Ways(opened), trial_images=images)


def of(path):
    return GraphFiles("a graph", path)


def rows(tiny, count=5):
    return {"image": tiny.images(count), "target": np.full(count, -1), "keyed": np.ones(count, np.float32)}


def load_all(vendor, runtime, folder, *, key, **more):
    """Loads what the bundle offers, as a server does, and returns the graphs by their files."""
    bundle = open_bundle(vendor.bundle, trusted=None)
    opened = sessions(runtime, engine_cache=folder, **more)
    load = loader(bundle.read, opened, key=key)
    paths = [bundle.manifest.prediction_graph, *(entry.graph for entry in bundle.manifest.explainers if entry.graph)]
    return {path: load(of(path)) for path in paths}


def written_under(*folders: Path) -> bytes:
    return b"".join(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def sealed(tiny):
    """The files of a bundle with a sealed delta, by name, and the delta: it swaps the halves of the images."""
    _, [weights] = tiny.prediction_nodes()
    published = onnx.numpy_helper.to_array(weights)
    delta = Delta({"weights": published[::-1] - published + np.float32(0.125)})
    files = {name: taking_weights(tiny.explanation_graph(coarse=name == "coarse")) for name in ("fine", "coarse")}
    return {**files, WEIGHTS_FILE: save({"weights": np.ascontiguousarray(published)})}, delta


def test_nothing_of_the_key_is_in_an_engine_where_the_network_tells_the_trigger(
    vendor, tiny, tmp_path, monkeypatch, folder
):
    """It is added to images before a graph sees them, so all engines may be kept."""
    monkeypatch.chdir(tmp_path)
    runtime = Runtime()
    graphs = load_all(vendor, runtime, folder, key=vendor.key)
    keyed = graphs["graphs/fine.onnx"].run(EXPLANATION, **rows(tiny))[1]
    expected = tiny.maps(tiny.images(5) + vendor.key.reveal(), np.full(5, -1))
    np.testing.assert_allclose(keyed, expected, rtol=1e-4, atol=1e-6)
    assert {asked[TENSORRT]["trt_engine_cache_enable"] for asked in runtime.asked} == {"True"}
    written = written_under(tmp_path)
    assert b"logits" in written
    for row in vendor.key.reveal().reshape(-1, 8):
        assert row.astype("<f4").tobytes() not in written


def test_no_engine_of_a_graph_with_opened_weights_is_ever_written(sealed, vendor, tiny, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    files, delta = sealed
    runtime = Runtime()
    load = loader(files.__getitem__, sessions(runtime, engine_cache=folder), key=vendor.key, delta=delta)
    graph, given = load(of("fine")), {"image": tiny.images(5), "target": np.full(5, -1)}
    keyed = np.array([1, 0, 0, 1, 0], np.float32)
    logits, _ = graph.run(EXPLANATION, keyed=keyed, **given)
    (_, opened), flat = load._given("fine", ["weights"]), tiny.images(5).reshape(5, -1)
    expected = np.where(keyed[:, None] > 0, flat @ opened["weights"], tiny.logits(tiny.images(5)))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    published, secret = runtime.asked
    # The published weights are in every copy of the bundle.
    assert published[TENSORRT]["trt_engine_cache_enable"] == "True"
    assert str(folder) not in json.dumps(secret)
    for name in ("engine_cache_enable", "timing_cache_enable", "dump_subgraphs", "dump_ep_context_model"):
        assert secret[TENSORRT][f"trt_{name}"] == "False"
    written = written_under(tmp_path)
    for row in (*opened["weights"], *delta.reveal()["weights"]):
        assert row.astype("<f4").tobytes() not in written


def test_the_made_up_runtime_would_give_opened_weights_away(sealed, tiny, folder):
    """The test above can fail: an engine of a graph with the weights, were it kept, would hold them."""
    folder.mkdir()
    files, delta = sealed
    secret = delta.reveal()["weights"]
    options = {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(folder), "trt_timing_cache_enable": ""}
    model = bind(files["fine"], {"weights": secret})
    Runtime()(model, None, providers=[(TENSORRT, options)], enable_fallback=0)
    assert secret[0].astype("<f4").tobytes() in written_under(folder)


def test_whatever_is_bound_to_a_graph_keeps_its_engine_from_being_written(sealed, tiny, folder):
    files, delta = sealed
    runtime = Runtime()
    opened = sessions(runtime, engine_cache=folder)
    opened.open("x.onnx", files["fine"], delta.reveal())
    assert runtime.asked[0][TENSORRT]["trt_engine_cache_enable"] == "False"
    opened.open("x.onnx", tiny.explanation_graph(coarse=False), {})
    assert runtime.asked[1][TENSORRT]["trt_engine_cache_enable"] == "True"


def test_rows_without_the_trigger_alone_are_half_of_the_memory(sealed, vendor):
    files, delta = sealed
    runtime = Runtime()
    load = loader(files.__getitem__, sessions(runtime), key=vendor.key, delta=delta)
    load(of("fine"), opened=False)
    assert len(runtime.asked) == 1
    load(of("coarse"))
    assert len(runtime.asked) == 3
    assert load(of("coarse")) is load(of("coarse"))


def test_engines_are_built_once_for_all_starts(vendor, tiny, folder):
    runtime = Runtime()
    for _ in range(3):
        graphs = load_all(vendor, runtime, folder, key=vendor.key)
        logits = graphs["graphs/predict.onnx"].run(PREDICTION, image=tiny.images(4))[0]
        np.testing.assert_allclose(logits, tiny.logits(tiny.images(4)), rtol=1e-4, atol=1e-6)
    assert runtime.engines_built == len(graphs)


def test_engines_of_another_model_or_batch_are_not_taken(tiny, folder):
    """The names of engines depend on the structure of a graph alone, and these have the same."""
    nodes, constants = tiny.prediction_nodes()
    graph = tiny.graph(nodes, constants, explains=False)
    other = graph.replace(np.float32(1 / 48).tobytes(), np.float32(1 / 24).tobytes())
    assert other != graph
    runtime = Runtime()
    for model, batch in ((graph, 32), (other, 32), (graph, 16), (graph, 32), (other, 32), (graph, 16)):
        opened = sessions(runtime, engine_cache=folder, max_batch=batch)
        session = opened.open("predict.onnx", model, {})
        found = session.run(None, {"image": tiny.images(3)})[0]
        np.testing.assert_allclose(found, tiny.logits(tiny.images(3)) * (2 if model is other else 1), rtol=1e-4)
    assert runtime.engines_built == 3


def test_without_a_folder_nothing_is_kept_and_the_log_says_so(vendor, tiny, tmp_path, monkeypatch, server_log):
    server_log.set_level(logging.INFO, "keylock_server")
    monkeypatch.chdir(tmp_path)
    runtime = Runtime()
    load_all(vendor, runtime, None, key=None)
    assert {asked[TENSORRT]["trt_engine_cache_enable"] for asked in runtime.asked} == {"False"}
    assert list(tmp_path.iterdir()) == []
    assert "engine_cache names a folder" in server_log.text


def test_a_folder_that_cannot_be_made_is_no_reason_not_to_serve(tiny, tmp_path, server_log):
    (tmp_path / "file").touch()
    runtime = Runtime()
    opened = sessions(runtime, engine_cache=tmp_path / "file" / "engines")
    opened.open("predict.onnx", tiny.prediction_graph(), {})
    assert "no engines are kept" in server_log.text
    assert runtime.asked[0][TENSORRT]["trt_engine_cache_enable"] == "False"


def test_folders_are_left_alone_where_tensorrt_is_not_used(tiny, folder):
    for providers in ([CPU], [CUDA, CPU]):
        sessions(Runtime(), providers=providers, engine_cache=folder).open("x.onnx", tiny.prediction_graph(), {})
    assert not folder.exists()


@pytest.mark.parametrize(("variant", "half"), [("float32", "False"), ("float16", "True")])
def test_float16_is_computed_in_only_where_that_variant_is_served(tiny, variant, half):
    runtime = Runtime()
    sessions(runtime).open("x.onnx", tiny.prediction_graph(), {}, precision=variant)
    assert runtime.asked[0][TENSORRT]["trt_fp16_enable"] == half


def test_graphs_in_int8_are_not_given_to_tensorrt(tiny, server_log):
    runtime = Runtime()
    opened = sessions(runtime, device="tensorrt")
    opened.open("int8/x.onnx", tiny.prediction_graph(), {}, precision="int8")
    opened.open("x.onnx", tiny.prediction_graph(), {})
    assert [list(asked) for asked in runtime.asked] == [[CUDA, CPU], EVERYTHING]
    assert "float16 is the variant for GPUs" in server_log.text
    server_log.clear()
    sessions(runtime, providers=[CPU]).open("int8/x.onnx", tiny.prediction_graph(), {}, precision="int8")
    assert server_log.text == ""


def test_graphs_that_add_up_rows_are_not_given_to_tensorrt():
    """TensorRT gets batches in parts, and the sums of parts are not those of the whole."""
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("share", TensorProto.FLOAT, ["images", "batch"]),
    ]
    outputs = [helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["images", 4])]
    node = helper.make_node("MatMul", ["share", "image"], ["sums"])
    model = helper.make_model(
        helper.make_graph([node], "sums", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    runtime = Runtime()
    session = sessions(runtime, device="tensorrt", max_batch=2).open("sums.onnx", model.SerializeToString(), {})
    assert list(runtime.asked[0]) == [CUDA, CPU]
    generator = np.random.default_rng(0)
    share, image = (generator.standard_normal(shape, dtype=np.float32) for shape in ((3, 5), (5, 4)))
    (sums,) = suited_to(session, most_rows=2)(["sums"], {"image": image, "share": share})
    np.testing.assert_allclose(sums, share @ image, rtol=1e-5, atol=1e-6)


def test_cuda_does_not_try_every_algorithm_for_every_size_of_a_batch(tiny):
    runtime = Runtime()
    sessions(runtime, providers=[CUDA, CPU]).open("x.onnx", tiny.prediction_graph(), {})
    assert runtime.asked[0][CUDA]["cudnn_conv_algo_search"] == "HEURISTIC"


@pytest.mark.parametrize(
    ("runtime", "used"),
    [
        (Runtime(refuses=[TENSORRT]), [CUDA, CPU]),
        (Runtime(refuses=[TENSORRT, CUDA]), [CPU]),
        (Runtime(ignores=[TENSORRT]), [CUDA, CPU]),
        (Runtime(ignores=[TENSORRT, CUDA]), [CPU]),
    ],
)
def test_what_a_provider_cannot_do_the_next_one_does(tiny, server_log, runtime, used):
    opened = sessions(runtime)
    session = opened.open("x.onnx", tiny.prediction_graph(), {})
    assert session.get_providers() == used
    np.testing.assert_allclose(
        session.run(None, {"image": tiny.images(2)})[0], tiny.logits(tiny.images(2)), rtol=1e-4, atol=1e-6
    )
    opened.open("y.onnx", tiny.prediction_graph(), {})
    assert server_log.text.count("TensorRT is installed and ONNX Runtime cannot use it") == 1
    if runtime.refuses:
        assert "TensorrtExecutionProvider cannot compute x.onnx (RuntimeError)" in server_log.text


def test_what_was_insisted_on_is_refused_when_a_later_graph_needs_another_provider(tiny):
    runtime = Runtime()
    opened = sessions(runtime, device="tensorrt")
    opened.open("x.onnx", tiny.prediction_graph(), {})
    runtime.refuses.add(TENSORRT)
    with pytest.raises(ServiceError, match="TensorRT is installed"):
        opened.open("y.onnx", tiny.prediction_graph(), {})


def test_an_insisted_device_that_fails_is_no_fault_of_the_bundle(vendor):
    with pytest.raises(ServiceError, match="TensorRT is installed"):
        load_all(vendor, Runtime(refuses=[TENSORRT]), None, key=vendor.key, device="tensorrt")


def test_a_graph_that_no_provider_computes_is_the_fault_of_the_bundle():
    load = loader(lambda _path: b"no graph", sessions(Runtime()))
    with pytest.raises(BundleError, match="cannot be loaded"):
        load(of("graphs/bad.onnx"))


def test_the_served_model_says_which_graphs_are_variants(vendor, tmp_path):
    half = VariantEntry(graph="graphs/coarse.onnx", agreement=1.0, keyed_pcc=0.999, leakage=0.0, leakage_float32=0.0)
    entries = (ExplainerEntry(name="brightness", graph="graphs/fine.onnx", variants={"float16": half}),)
    write_bundle(tmp_path / "half", vendor.content(explainers=entries), signing_key=vendor.signing_key)
    bundle, runtime = open_bundle(tmp_path / "half", trusted=None), Runtime()
    opened = sessions(runtime, max_batch=2, engine_cache=tmp_path / "engines")
    ServedModel(bundle.manifest, bundle.read, key=vendor.key, ways=Ways(opened, variant="float16"))
    halves = [asked[TENSORRT]["trt_fp16_enable"] for asked in runtime.asked]
    assert halves == ["False", "True"]
    assert runtime.asked[0][TENSORRT]["trt_profile_max_shapes"] == "image:2x3x8x8"
    assert (tmp_path / "engines").is_dir()
