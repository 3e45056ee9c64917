#!/usr/bin/env bash
# ONNX Runtime sums a row of a batch in another order when the batch has one row than when it has several.
#
# Versions: onnxruntime 1.31.1, onnx 1.23.2, numpy 2.4.6, Python 3.11. Date: 2026-11-29.
# One would guess: where a graph treats every row by itself, a row comes out the same, bit for bit, in any batch; the
#   documentation of ReduceSum says nothing of the batch.
# What is true: ReduceSum over the channels of (batch, channels, height, width) gives other last bits for a batch of 1
#   than for the same row in a batch of 2. Batches of 2 and of more agree with each other. Relu on the same input is the
#   same in any batch.
# Why our users meet it: a saliency map such as Grad-CAM ends with a sum over channels. A digest of a map that was
#   computed alone does not fit the map that a server computed in a batch, although nothing is wrong with either.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

SHAPE = (64, 8, 8)


def session_of(nodes, initializers, output_shape):
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *SHAPE])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *output_shape])
    graph = helper.make_graph(nodes, "one", [given], [answer], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
summing = session_of([helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)], [axes], SHAPE[1:])
masking = session_of([helper.make_node("Relu", ["x"], ["y"])], [], SHAPE)
rows = np.random.default_rng(0).standard_normal((4, *SHAPE), dtype=np.float32)


def differing(session, small, large):
    """Return how many values of the first `small` rows differ between batches of two sizes."""
    few, many = (session.run(None, {"x": rows[:count]})[0][:small] for count in (small, large))
    assert np.allclose(few, many, rtol=1e-4, atol=1e-5), "the values differ by more than rounding"
    return int((few != many).sum()), few.size


alone, total = differing(summing, 1, 2)
together, _ = differing(summing, 2, 4)
relu, _ = differing(masking, 1, 2)
print(f"ReduceSum: {alone} of {total} values differ between batches of 1 and 2, {together} between 2 and 4")
print(f"Relu: {relu} values differ between batches of 1 and 2")
assert alone > 0, "a row alone is what it is in a batch now"
assert together == 0, "rows of larger batches differ as well now"
assert relu == 0, "Relu differs as well now"
PY
echo "as described"
