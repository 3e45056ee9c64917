#!/usr/bin/env bash
# OpenVINO multiplies by the wrong matrix where one square weight is used once as it is and once transposed.
#
# Versions: openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.31.1, Python 3.11. Date: 2026-11-30.
# One would guess: x @ w and x @ w.T may stand in one model, for weights of any shape.
# What is true: in float32 on a processor, whichever product comes second is computed with the layout that was made for
#   the first: the second output is x @ w where x @ w.T was asked for, or the other way round. The model loads without a
#   warning, and no value is out of range. Only square weights are affected, because other shapes tell the two apart.
#   In bfloat16 (on processors that have it) the answers are right, and so they are where the second product is given a
#   copy of the weight. The same model is right in ONNX Runtime.
# Why our users meet it: a gradient multiplies by the transpose of each weight that the forward pass multiplied by. The
#   hidden layers of AlexNet and VGG are square, and so is the projection behind every attention layer: maps of a small
#   vision transformer correlated by -.07 with the right ones.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.31.1
cd "$place"
"$place/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)


def compute(rows, columns, copied=False):
    """Return how far both products are from the truth, in ONNX Runtime and in OpenVINO."""
    weight = RANDOM.standard_normal((rows, columns), np.float32)
    first, second = (RANDOM.standard_normal((4, size), np.float32) for size in (rows, columns))
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["plain"]),
        helper.make_node("Transpose", ["v" if copied else "w"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["b", "turned"], ["transposed"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [value("a", TensorProto.FLOAT, [4, rows]), value("b", TensorProto.FLOAT, [4, columns])]
    outputs = [value("plain", TensorProto.FLOAT, [4, columns]), value("transposed", TensorProto.FLOAT, [4, rows])]
    weights = [numpy_helper.from_array(weight, name) for name in ("wv" if copied else "w")]
    graph = helper.make_graph(nodes, "two", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, "model.onnx")
    truth = [first @ weight, second @ weight.T]
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model("model.onnx", "CPU", settings)
    found = compiled({"a": first, "b": second})
    answers = {
        "ONNX Runtime": session.run(None, {"a": first, "b": second}),
        "OpenVINO": [found[name] for name in ("plain", "transposed")],
    }
    errors = {name: max(float(np.abs(x - y).max()) for x, y in zip(seen, truth)) for name, seen in answers.items()}
    what = f"weight {rows} x {columns}{', its transpose from a copy' if copied else ''}"
    print(what, {name: f"{error:.1e}" for name, error in errors.items()})
    assert errors["ONNX Runtime"] < 1e-3
    return errors["OpenVINO"]


assert compute(64, 64) > 1, "a square weight is right now"
assert compute(64, 96) < 1e-3, "a weight that is not square is wrong now"
assert compute(64, 64, copied=True) < 1e-3, "a copy is wrong now"
PY
echo "as described"
