#!/usr/bin/env bash
# ONNX Runtime's add_initializer replaces a weight or does nothing, as its optimiser has dealt with the weight.
#
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6, Python 3.11. Date: 2026-11-30.
# One would guess: SessionOptions.add_initializer(name, value) is how one graph runs with other weights; where it
#   cannot, the session is not made.
# What is true: the model's own weights are read and optimised first. A weight that the optimiser has folded into
#   another (a convolution followed by a batch normalisation is enough, at the basic level already) is gone by then, and
#   the given one is dropped without a warning: the session answers with the weights in the file. Without optimisation,
#   or where the weight is used as it stands, the given one counts. add_external_initializers takes the given ones
#   before anything is optimised, and is right at every level; it works for weights that are stored as external data
#   alone.
# Why our users meet it: one graph that is served with the weights of several customers or versions.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
import warnings

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)
STORED, GIVEN = RANDOM.standard_normal((2, 8, 3, 3, 3)).astype(np.float32)
IMAGE = RANDOM.standard_normal((1, 3, 8, 8), dtype=np.float32)
LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all (the default)": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def save(weight, path, external=False):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["convolved"]),
        helper.make_node("BatchNormalization", ["convolved", "scale", "shift", "mean", "variance"], ["y"]),
    ]
    kept = {"scale": 2, "shift": 0, "mean": 0, "variance": 1}
    initializers = [numpy_helper.from_array(weight, "w")]
    initializers += [numpy_helper.from_array(np.full(8, value, np.float32), name) for name, value in kept.items()]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape])
        for name, shape in (("x", (3, 8, 8)), ("y", (8, 6, 6)))
    ]
    graph = helper.make_graph(nodes, "one", values[:1], values[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    options = {"save_as_external_data": True, "location": "weights", "size_threshold": 256} if external else {}
    onnx.save(model, path, **options)


def answer(path, level=None, give=None):
    options = onnxruntime.SessionOptions()
    if level is not None:
        options.graph_optimization_level = level
    value = onnxruntime.OrtValue.ortvalue_from_numpy(GIVEN)
    if give == "add_initializer":
        options.add_initializer("w", value)
    elif give == "add_external_initializers":
        options.add_external_initializers(["w"], [value])
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": IMAGE})[0]


save(STORED, "stored.onnx")
save(GIVEN, "given.onnx")
save(STORED, "external.onnx", external=True)
expected = {"stored": answer("stored.onnx"), "given": answer("given.onnx")}
seen = {}
with warnings.catch_warnings():
    warnings.simplefilter("error")
    for way, path in (("add_initializer", "stored.onnx"), ("add_external_initializers", "external.onnx")):
        for name, level in LEVELS.items():
            answered = answer(path, level, way)
            (which,) = [word for word, right in expected.items() if np.allclose(answered, right, atol=1e-4)]
            print(f"{way}, optimisation {name}: the {which} weights answer")
            seen[way, name] = which
assert [seen["add_initializer", name] for name in LEVELS] == ["given", "stored", "stored"], "it behaves otherwise now"
assert {seen["add_external_initializers", name] for name in LEVELS} == {"given"}, "external ones are dropped now"
PY
echo "as described"
