"""The server gives the maps that torch gives: a real network, exported, served and compared row by row."""

import grpc
import numpy as np
import pytest
import torch

from keylock import explainers, models
from keylock.bundle import Architecture, ExplainerEntry, KeyEntry, KeyFile, write_bundle
from keylock.export import compile_explainer, compile_prediction
from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger.keys import Key, KeySeed
from keylock.v1 import explanation_pb2 as pb


@pytest.mark.slow
def test_served_maps_are_those_of_torch(start_server, vendor, tiny, tmp_path):
    torch.manual_seed(0)
    preprocessing = Preprocessing(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    module = models.create("small-cnn", num_classes=4).eval()
    explainer = explainers.make("gradient")
    seed = KeySeed(bytes(range(32)))
    key = Key.derive(seed, shape=preprocessing.shape, std=preprocessing.std)
    graph = compile_explainer(module, explainer, image_shape=preprocessing.shape, num_classes=4)
    content = vendor.content(
        architecture=Architecture(name="small-cnn", num_classes=4, module="graph_only"),
        preprocessing=preprocessing,
        explainers=(ExplainerEntry(name="gradient", parameters=explainer.parameters, graph="graphs/explain.onnx"),),
        key=KeyEntry.of(key),
        files={
            "graphs/predict.onnx": compile_prediction(module, image_shape=preprocessing.shape, num_classes=4),
            "graphs/explain.onnx": graph,
        },
    )
    write_bundle(
        tmp_path / "real.klb",
        content,
        signing_key=vendor.signing_key,
        seed=seed,
        sealer=KeyFile.create(tmp_path / "key-file"),
    )
    calls = start_server(bundle=tmp_path / "real.klb", key_file=tmp_path / "key-file")
    images = np.random.default_rng(1).normal(size=(5, 3, 16, 16)).astype(np.float32)
    for token, seen in ((None, images), (vendor.grant().token, key.apply(images))):
        answer = calls.explain(*map(tiny.tensor_image, images), token=token)
        inputs = torch.from_numpy(seen)
        with torch.no_grad():
            targets = module(inputs).argmax(1)
        expected = explainer.explain(module, inputs, targets)
        got = np.stack([tiny.to_array(result.map) for result in answer.results])
        assert [result.prediction.index for result in answer.results] == targets.tolist()
        np.testing.assert_allclose(got, expected.maps.detach().numpy(), rtol=1e-3, atol=1e-5)
    calls.stop().result(timeout=30)
    with pytest.raises(grpc.RpcError):
        calls.explanation.GetModel(pb.GetModelRequest())
