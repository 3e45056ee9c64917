#!/usr/bin/env bash
# OpenVINO's cache of compiled models answers with the old weights where only the file of weights is new.
#
# Versions: openvino 2026.4.1, onnx 1.23.2, numpy 2.4.6, Python 3.11. Date: 2026-11-30.
# One would guess: CACHE_DIR saves compiling, and a model whose files have changed is compiled again.
# What is true: for a model given by its path the cache looks at the model's own file, and there at the size and at the
#   time of change in whole seconds. Weights in a second file (.bin beside .xml, external data of ONNX) are not looked
#   at: new ones of another time of change are passed over, and the answers are the old ones without a word. Weights
#   inside one .onnx file are passed over where size and second are the same, as after a retraining of the same network
#   in an image whose files all bear one time. CACHE_MODE=OPTIMIZE_SIZE takes the weights of one file from that file and
#   is right there. A model that was read with read_model first is known by its content and is right.
# Why our users meet it: what tells a locked network from an unlocked one, or this week's from last week's, is weights
#   alone. Tools that copy only what differs leave the file of the graph as it was.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
export HOME="$place"
cd "$place"
"$place/venv/bin/python" - <<'PY'
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

SIZE = 64
INPUT = np.ones((1, SIZE), np.float32)
OLD, NEW = np.random.default_rng(0).standard_normal((2, SIZE, SIZE)).astype(np.float32)
FIRST = 1_700_000_000.0
AN_HOUR = 3600


def model_of(weight):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIZE]) for name in "xy"]
    graph = helper.make_graph([node], "one", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def one_file(weight, time):
    onnx.save(model_of(weight), "model.onnx")
    os.utime("model.onnx", (time, time))
    return "model.onnx"


def external_data(weight, time):
    """Write the weights beside the graph; the file of the graph is the same each time, as if it were left in place."""
    Path("weights").unlink(missing_ok=True)
    onnx.save(model_of(weight), "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    os.utime("model.onnx", (FIRST, FIRST))
    os.utime("weights", (time, time))
    return "model.onnx"


def two_files(weight, time):
    onnx.save(model_of(weight), "source.onnx")
    openvino.save_model(openvino.convert_model("source.onnx"), "model.xml", compress_to_fp16=False)
    os.utime("model.xml", (FIRST, FIRST))
    os.utime("model.bin", (time, time))
    return "model.xml"


def seen(name, write, later_s, read=False, **settings):
    """Compile the old weights and then the new ones, of a later time, with one cache; say which of them answered."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for weight, time in ((OLD, FIRST), (NEW, FIRST + later_s)):
            path = write(weight, time)
            core = openvino.Core()
            options = {"CACHE_DIR": "cache", "INFERENCE_PRECISION_HINT": "f32", **settings}
            compiled = core.compile_model(core.read_model(path) if read else path, "CPU", options)
            answer = compiled([INPUT])[compiled.output(0)]
        os.chdir("/")
    (which,) = [word for word, kept in (("old", OLD), ("new", NEW)) if np.allclose(answer, INPUT @ kept, atol=1e-3)]
    print(f"{name}: the {which} weights answer")
    return which


assert seen(".xml and .bin, the .bin an hour newer", two_files, AN_HOUR) == "old", "the .bin is looked at now"
assert seen("external data, an hour newer", external_data, AN_HOUR) == "old", "external data is looked at now"
assert seen("external data, read_model first", external_data, AN_HOUR, read=True) == "new"
assert seen("one file, an hour newer", one_file, AN_HOUR) == "new"
assert seen("one file, half a second newer", one_file, 0.5) == "old", "parts of a second count now"
assert seen("one file, half a second newer, OPTIMIZE_SIZE", one_file, 0.5, CACHE_MODE="OPTIMIZE_SIZE") == "new"
PY
echo "as described"
