#!/usr/bin/env bash
# onnxscript's optimiser, which torch.onnx.export runs by default, takes time that grows with the square of the graph.
#
# Versions: onnxscript 0.7.2, onnx 1.23.2, onnx-ir 1.1.0, Python 3.11. Date: 2026-11-29.
# One would guess: peephole rules look at each node and its neighbours, so that twice the nodes take twice the time; and
#   a rule about Slice costs nothing in a graph without one.
# What is true: one of the default rules, the one that turns two slices into a Split, has two outputs. For such a rule
#   the matcher lists every node of the graph again at every node it looks at, whatever the node is. In a chain of
#   additions four times the nodes take about ten times as long, and without that rule about four times. On the graph
#   of a small vision transformer with its way back (1,900 nodes) it was the longest part of the export.
# Why our users meet it: a graph that explains has two to four times the nodes of the one that predicts, and deep
#   networks of small layers have thousands.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check onnxscript==0.7.2 onnx==1.23.2 onnx-ir==1.1.0
cd "$place"
"$place/venv/bin/python" - <<'PY'
import time

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnxscript import rewriter
from onnxscript.rewriter.rules import common


def chain(length):
    """A graph of additions, each of the one before and a constant, without any Slice."""
    one = numpy_helper.from_array(np.ones(3, np.float32), "one")
    names = ["x", *(f"v{index}" for index in range(length - 1)), "y"]
    nodes = [helper.make_node("Add", [names[index], "one"], [names[index + 1]]) for index in range(length)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], [one])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def seconds(rules, length):
    best = float("inf")
    for _ in range(2):
        model = chain(length)
        began = time.process_time()
        rewriter.rewrite(model, rules)
        best = min(best, time.process_time() - began)
    return best


default = list(rewriter._DEFAULT_REWRITE_RULES)
slices = [rule for rule in default if rule.name == common.slice_split_rule.name]
others = [rule for rule in default if rule not in slices]
print(f"{len(default)} default rules, of which {[rule.name for rule in slices]} has two outputs")
assert len(slices) == 1

growth = {}
for what, rules in (("default rules", None), ("without the rule about slices", others), ("that rule alone", slices)):
    few, many = seconds(rules, 500), seconds(rules, 2000)
    growth[what] = many / few
    print(f"{what}: 500 nodes {few:.2f} s, 2,000 nodes {many:.2f} s, {many / few:.1f} times as long")
assert growth["that rule alone"] > 9
assert growth["default rules"] > growth["without the rule about slices"] * 1.3
assert growth["without the rule about slices"] < 6
PY
