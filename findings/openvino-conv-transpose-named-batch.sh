#!/usr/bin/env bash
# OpenVINO computes ConvTranspose of an ONNX model otherwise where the batch has a name than where it has a number.
#
# Versions: openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6, Python 3.11. Date: 2026-11-30.
# One would guess: a batch that is called "batch" gives what the same model gives for a fixed batch of that size.
# What is true: with `output_shape` the size is right and the values lie one pixel off; with `auto_pad` SAME_UPPER the
#   answer is a row and a column too large. Both hold although all other sizes are fixed numbers and the padding does
#   not depend on the batch. There is no warning. With the padding written out (`pads`, `output_padding`) the answers
#   are right, and so they all are with a fixed batch. ONNX Runtime gives the same for both.
# Why our users meet it: the gradient of a convolution with respect to its input is a ConvTranspose, and `output_shape`
#   is the obvious way to say which of the possible sizes is meant. A map that is shifted by a pixel looks right.
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

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((2, 3, 3, 3), dtype=np.float32)
INPUT = RANDOM.standard_normal((2, 2, 5, 5), dtype=np.float32)
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}


def answers(batch, **attributes):
    """Return what ONNX Runtime and OpenVINO answer, of shape (2, 3, 10, 10) where they are right."""
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], **attributes)
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 2, 5, 5])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3, 10, 10])
    graph = helper.make_graph([node], "one", [given], [answer], [numpy_helper.from_array(WEIGHT, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "model.onnx")
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    [expected] = session.run(None, {"x": INPUT})
    compiled = openvino.Core().compile_model("model.onnx", "CPU", SETTINGS)
    return expected, compiled([INPUT])[compiled.output(0)]


def compare(name, **attributes):
    """Return how OpenVINO's answers for a fixed and for a named batch compare with ONNX Runtime's."""
    found = []
    expected, fixed = answers(2, **attributes)
    again, named = answers("batch", **attributes)
    assert np.array_equal(expected, again), "ONNX Runtime tells a named batch from a fixed one now"
    for seen in (fixed, named):
        if seen.shape != expected.shape:
            found.append(f"of shape {seen.shape} instead of {expected.shape}")
        else:
            found.append("right" if np.allclose(seen, expected, atol=1e-5) else "wrong values")
    print(f"{name}: fixed batch {found[0]}, named batch {found[1]}")
    return expected, named, found


expected, named, found = compare("output_shape", output_shape=[10, 10])
assert found == ["right", "wrong values"], "output_shape behaves otherwise now"
moved = np.allclose(expected[:, :, :-1, :-1], named[:, :, 1:, 1:], atol=1e-5)
print(f"  what lies at (row, column) lies at (row + 1, column + 1): {moved}")
assert moved, "the values are wrong in another way now"
_, named, found = compare("auto_pad SAME_UPPER", auto_pad="SAME_UPPER")
assert found[0] == "right", "SAME_UPPER is wrong with a fixed batch now"
assert named.shape == (2, 3, 11, 11), "SAME_UPPER has another size now"
_, _, found = compare("pads and output_padding", pads=[0, 0, 1, 1])
assert found == ["right", "right"]
_, _, found = compare("pads and output_padding", pads=[1, 1, 1, 1], output_padding=[1, 1])
assert found == ["right", "right"]
PY
echo "as described"
