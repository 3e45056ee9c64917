#!/usr/bin/env bash
# OpenVINO reads an ONNX HardSigmoid with beta 0 as if beta were .5.
#
# Versions: openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.31.1, Python 3.11. Date: 2026-11-28.
# One would guess: an attribute that is written into the file is used, whatever its value.
# What is true: beta = 0 is computed as the operator's default, .5. The graph loads without a warning, and every other
#   value is right: a tiny beta (1e-30) gives what 0 should give. The same model is right in ONNX Runtime.
# Why our users meet it: HardSigmoid with a steep slope and beta 0 is a step function in one node, which is how masks of
#   ReLU are often written into gradient graphs. With .5 added the mask is wrong for every negative input near 0.
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
from onnx import TensorProto, helper

INPUT = np.array([[-1.0, -0.25, 0.0, 0.25, 1.0]], np.float32)


def compute(alpha, beta):
    node = helper.make_node("HardSigmoid", ["x"], ["y"], alpha=alpha, beta=beta)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 5]) for name in "xy"]
    graph = helper.make_graph([node], "one", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, "model.onnx")
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    [expected] = session.run(None, {"x": INPUT})
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model("model.onnx", "CPU", settings)
    seen = compiled([INPUT])[compiled.output(0)]
    truth = np.clip(alpha * INPUT + beta, 0, 1)
    assert np.allclose(expected, truth, atol=1e-6), "ONNX Runtime differs from the definition"
    print(f"alpha {alpha}, beta {beta}: defined {truth[0].tolist()}, OpenVINO {np.round(seen[0], 6).tolist()}")
    return truth, seen


truth, seen = compute(1.0, 0.0)
assert np.allclose(seen, np.clip(INPUT + 0.5, 0, 1), atol=1e-6), "beta = 0 is no longer read as .5"
truth, seen = compute(1.0, 1e-30)
assert np.allclose(seen, truth, atol=1e-6), "a tiny beta is wrong now"
truth, seen = compute(1.0, 0.25)
assert np.allclose(seen, truth, atol=1e-6), "beta = .25 is wrong now"
PY
echo "as described"
