#!/usr/bin/env bash
# onnxconverter-common leaves a constant in float32 that a blocked and a converted node share, and the graph is invalid.
#
# Versions: onnxconverter-common 1.16.0, onnx 1.23.2, onnxruntime 1.31.1, numpy 2.4.6, Python 3.11. Date: 2026-11-29.
# One would guess: `node_block_list` keeps the named nodes in float32, and casts stand wherever they meet the others.
# What is true: casts are set for values that nodes make, not for initializers. One that a blocked and a converted node
#   both read stays float32 for both, the other input of the converted node is float16, and ONNX Runtime refuses the
#   graph that was returned without a warning. With nothing blocked, or with two copies of the constant, it loads.
# Why our users meet it: a graph in half precision keeps what reads the image in float32. In the gradient of a
#   classifier the same constant one is expanded to the image's shape there and added in the activations here.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    onnxconverter-common==1.16.0 onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxconverter_common import float16


def model_of(constants):
    """Add a constant to x, which is to stay in float32, and another to the exponential, which is to be converted."""
    nodes = [
        helper.make_node("Add", ["x", constants[0]], ["kept"], name="keep"),
        helper.make_node("Exp", ["kept"], ["exponential"], name="exponential"),
        helper.make_node("Add", ["exponential", constants[1]], ["y"], name="convert"),
    ]
    held = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in sorted(set(constants))]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def loads(constants, blocked):
    model = float16.convert_float_to_float16(model_of(constants), keep_io_types=True, node_block_list=blocked)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        print(f"{constants}, blocked {blocked}: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
        return False
    [found] = session.run(None, {"x": np.zeros(2, np.float32)})
    assert np.allclose(found, np.e + 1, rtol=1e-2), found
    print(f"{constants}, blocked {blocked}: loads")
    return True


assert not loads(("one", "one"), ["keep"]), "a shared constant is cast now"
assert loads(("one", "one"), []), "without a block list it fails now as well"
assert loads(("one", "another"), ["keep"]), "with two constants it fails now as well"
PY
echo "as described"
