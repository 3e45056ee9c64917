"""Inputs of a graph become constants, without the package that wrote it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from keylock.graphs.binding import bind, bind_elsewhere, inputs_of, names_read, outputs_of


def model():
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Conv", ["image", "weight", "bias"], ["layer"], kernel_shape=[3, 3], pads=[1] * 4),
                helper.make_node("Mul", ["layer", "scale"], ["scaled"]),
                helper.make_node("Add", ["scaled", "fixed"], ["out"]),
            ],
            "small",
            [
                helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8]),
                helper.make_tensor_value_info("weight", TensorProto.FLOAT, [200, 3, 3, 3]),
                helper.make_tensor_value_info("bias", TensorProto.FLOAT, [200]),
                helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
            ],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 200, 8, 8])],
            [numpy_helper.from_array(np.ones((1, 200, 1, 1), np.float32), "fixed")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
        producer_name="tests",
    )


def tensors():
    generator = np.random.default_rng(0)
    shapes = {"weight": (200, 3, 3, 3), "bias": (200,), "scale": ()}
    return {name: np.asarray(generator.standard_normal(shape), np.float32) for name, shape in shapes.items()}


def run(content, **feed):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert {entry.name for entry in session.get_inputs()} == set(feed)
    return session.run(None, feed)[0]


def test_inputs_are_those_of_the_graph():
    found = inputs_of(model().SerializeToString())
    assert found == {"image": (0, 3, 8, 8), "weight": (200, 3, 3, 3), "bias": (200,), "scale": ()}
    assert outputs_of(model().SerializeToString()) == {"out"}
    assert names_read(model().SerializeToString()) == {*found, "layer", "scaled", "fixed"}


def test_what_a_graph_inside_a_graph_reads_is_read():
    found = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["bias"], ["inner"])], "branch", [], [found])
    changed = model()
    del changed.graph.node[:]
    changed.graph.node.append(helper.make_node("If", ["fixed"], ["out"], then_branch=branch, else_branch=branch))
    assert names_read(changed.SerializeToString()) == {"fixed", "bias"}


def test_a_bound_graph_computes_the_same_and_takes_the_rest():
    content, given = model().SerializeToString(), tensors()
    image = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    bound = bind(content, given)
    onnx.checker.check_model(onnx.load_from_string(bound), full_check=True)
    np.testing.assert_allclose(run(bound, image=image), run(content, image=image, **given), rtol=1e-4, atol=1e-5)


def test_values_that_stay_elsewhere_are_those_of_the_graph():
    content, given = model().SerializeToString(), tensors()
    image = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    bound = bind_elsewhere(content, given)
    assert given["weight"].tobytes() not in bound
    assert len(bound) < len(content) + 300
    options = onnxruntime.SessionOptions()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in given.values()]
    options.add_external_initializers(list(given), values)
    session = onnxruntime.InferenceSession(bound, options, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["image"]
    (found,) = session.run(None, {"image": image})
    np.testing.assert_allclose(found, run(content, image=image, **given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["float16", "uint8", "int8", "int32", "int64"])
def test_what_was_made_of_weights_is_bound_in_its_own_numbers(kind):
    value = (np.arange(6) - 2).reshape(2, 3).astype(kind)
    found = onnx.load_from_string(bind(model().SerializeToString(), {"made": value})).graph.initializer[-1]
    assert numpy_helper.to_array(found).dtype == value.dtype
    np.testing.assert_array_equal(numpy_helper.to_array(found), value)


def test_nothing_else_changes():
    content, given = model().SerializeToString(), tensors()
    assert bind(content, {}) == content
    found = onnx.load_from_string(bind(content, given))
    assert [entry.name for entry in found.graph.initializer] == ["fixed", "weight", "bias", "scale"]
    for entry in found.graph.initializer[1:]:
        np.testing.assert_array_equal(numpy_helper.to_array(entry), given[entry.name])
    expected = model()
    del expected.graph.input[1:]
    del found.graph.initializer[1:]
    assert found == expected


def test_what_is_cut_or_no_message_is_said_to_be():
    content = model().SerializeToString()
    for end in range(1, len(content)):
        try:
            inputs_of(content[:end])
        except ValueError:
            continue
        # Cut between two fields of the model: a message, without what came after.
        assert end < content.index(b"small") or end > content.rindex(b"out")
    for junk in (b"\xff" * 64, b"\x0b", b"\x3a\x05ab"):
        with pytest.raises(ValueError, match=r"cut|no protobuf"):
            inputs_of(junk)
