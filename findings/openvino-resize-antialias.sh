#!/usr/bin/env bash
# OpenVINO takes ONNX's Resize with antialias for one without.
#
# Versions: openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6, Python 3.11. Date: 2026-11-30.
# One would guess: an attribute that the frontend cannot compute is refused when the model is read.
# What is true: antialias=1 (opset 18 and later) is passed over without a warning, for linear and for cubic. Stripes
#   that antialiasing pales keep all of their contrast, bit for bit as without the attribute. ONNX Runtime and ONNX's
#   own reference implementation average. Enlarging is the same with and without the attribute, as it should be.
# Why our users meet it: preprocessing that is exported with the network. torchvision resizes with antialiasing by
#   default, and both the prediction and the saliency map are of another image without it.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
export HOME="$place"
cd "$place"
"$place/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

STRIPES = np.tile(np.repeat(np.array([0, 1], np.float32), 2), 8)[:32]
IMAGE = np.broadcast_to(STRIPES, (1, 1, 32, 32)).copy()


def middle(mode, antialias, size):
    """Return the middle of a row of the resized stripes: from ONNX's reference, ONNX Runtime and OpenVINO."""
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode=mode, antialias=antialias)
    sizes = numpy_helper.from_array(np.array([1, 1, size, size]), "sizes")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, side, side])
        for name, side in (("x", 32), ("y", size))
    ]
    graph = helper.make_graph([node], "one", values[:1], values[1:], [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "model.onnx")
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model("model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = [
        ReferenceEvaluator(model).run(None, {"x": IMAGE})[0],
        session.run(None, {"x": IMAGE})[0],
        compiled([IMAGE])[compiled.output(0)],
    ]
    return [np.asarray(one)[0, 0, size // 2, 3:-3] for one in found]


for mode in ("linear", "cubic"):
    reference, runtime, seen = middle(mode, 1, 14)
    _, _, plain = middle(mode, 0, 14)
    for name, row in (("ONNX's reference", reference), ("ONNX Runtime", runtime), ("OpenVINO", seen)):
        print(f"{mode}, antialias, {name}: contrast {np.ptp(row):.2f},", *(f"{value:.2f}" for value in row))
    print(f"{mode}, no antialias, OpenVINO: contrast {np.ptp(plain):.2f}")
    assert np.allclose(reference, runtime, atol=1e-4), "ONNX Runtime and ONNX's reference differ"
    assert np.ptp(runtime) < 0.5 * np.ptp(seen), "OpenVINO averages now"
    assert np.array_equal(seen, plain), "the attribute changes something now"
    large = [middle(mode, antialias, 64)[2] for antialias in (0, 1)]
    assert np.array_equal(*large), "enlarging depends on the attribute now"
PY
echo "as described"
