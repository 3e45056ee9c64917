"""Users' weights in every form they come in, and files that are not what they say."""

import argparse
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from keylock.errors import ModelError
from keylock.models import load_weights


@pytest.fixture
def weights(tiny_net):
    return {name: tensor.clone() for name, tensor in tiny_net(seed=11).state_dict().items()}


def saved(path, weights, form):
    if form == "safetensors":
        save_file(weights, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    if form == "npz":
        np.savez(path.with_suffix(".npz"), **{name: tensor.numpy() for name, tensor in weights.items()})
        return path.with_suffix(".npz")
    contents = {
        "pt": weights,
        "state_dict": {"state_dict": weights, "epoch": 3},
        "model": {"model": weights, "optimizer": {"lr": 0.1}},
        "parallel": {f"module.{name}": tensor for name, tensor in weights.items()},
        "no counters": {name: tensor for name, tensor in weights.items() if "num_batches" not in name},
    }
    torch.save(contents[form], path.with_suffix(".pt"))
    return path.with_suffix(".pt")


@pytest.mark.parametrize("form", ["safetensors", "npz", "pt", "state_dict", "model", "parallel", "no counters"])
def test_weights_load_from(form, weights, tiny_net, tmp_path):
    model = tiny_net()
    assert not torch.equal(model.conv1.weight, weights["conv1.weight"])

    load_weights(model, saved(tmp_path / "weights", weights, form))

    for name, tensor in model.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(tensor, weights[name]), name


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_does_not_run(writer, weights, tiny_net, tmp_path):
    trace, path = tmp_path / "ran", tmp_path / "weights.pt"
    content = {**weights, "surprise": Payload(trace)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))

    with pytest.raises(ModelError, match="more than tensors"):
        load_weights(tiny_net(), path)

    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("w.pt", b""), ("w.pt", b"hello"), ("w.safetensors", b"\x00" * 20), ("w.npz", b"PK\x03\x04rest"), ("w.npz", b"")],
)
def test_damaged_files_are_refused(name, content, tiny_net, tmp_path):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ModelError, match=name):
        load_weights(tiny_net(), tmp_path / name)


def test_missing_files_and_folders_are_refused(tiny_net, tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        load_weights(tiny_net(), tmp_path / "none.pt")
    with pytest.raises(ModelError, match="not a weights file"):
        load_weights(tiny_net(), tmp_path)


def test_objects_in_an_npz_are_refused(tiny_net, tmp_path):
    np.savez(tmp_path / "w.npz", evil=np.array([{"a": 1}], dtype=object))

    with pytest.raises(ModelError, match="not a weights file"):
        load_weights(tiny_net(), tmp_path / "w.npz")


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_a_whole_model_or_a_list_is_refused(tiny_net, tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    torch.save(tiny_net(), tmp_path / "model.pt")

    with pytest.raises(ModelError, match="no state dict"):
        load_weights(tiny_net(), tmp_path / "list.pt")
    with pytest.raises(ModelError, match=r"whole module \(.*TinyNet\).* save its weights alone"):
        load_weights(tiny_net(), tmp_path / "model.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(ModelError, match="TorchScript archive"):
        load_weights(tiny_net(), tmp_path / "script.pt")


def test_weights_of_another_architecture_are_refused_and_change_nothing(weights, tiny_net, tmp_path):
    model = tiny_net()
    before = model.conv1.weight.clone()
    del weights["conv3.bias"]
    weights["extra"] = torch.ones(1)
    weights["head.weight"] = torch.ones(5, 16)

    with pytest.raises(ModelError) as caught:
        load_weights(model, saved(tmp_path / "weights", weights, "pt"))

    for part in (
        "missing: conv3.bias",
        "not of this architecture: extra",
        "of another shape: head.weight is (5, 16), not (3, 16)",
        "check arch= and the classes",
    ):
        assert part in str(caught.value)
    assert torch.equal(model.conv1.weight, before)


def under(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


def halved(weights):
    return {name: tensor / 2 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


LEFT_BY_SCRIPTS = {
    "torch.compile": (lambda w: under("_orig_mod.", w), ["'_orig_mod.'"]),
    "compiled and parallel": (lambda w: under("module._orig_mod.", w), ["'module._orig_mod.'"]),
    "parallel and compiled": (lambda w: under("_orig_mod.module.", w), ["'_orig_mod.module.'"]),
    "Lightning": (
        lambda w: {"state_dict": under("model.", w) | {"loss.weight": torch.ones(3)}, "hyper_parameters": {"lr": 0.1}},
        ["entry state_dict", "'model.'", "left out 1", "loss.weight"],
    ),
    "deep": (lambda w: {"state_dict": under("net.model.module._orig_mod.", w)}, ["'net.model.module._orig_mod.'"]),
    "net": (lambda w: {"net": under("module.", w), "acc": 93.1}, ["entry net", "'module.'"]),
    "weights": (lambda w: {"weights": w}, ["entry weights"]),
    "ema": (lambda w: {"ema": w, "optimizer": {"state": {}}}, ["entry ema"]),
    "averaged": (lambda w: {"model_ema": {"n_averaged": torch.tensor(1), **under("module.", w)}}, ["left out 1"]),
    "nested": (lambda w: {"state": {"model": w}, "epoch": 1}, ["entry state/model"]),
    "the same twice": (lambda w: {"state_dict": w, "state_dict_ema": dict(w)}, ["entry state_dict"]),
    "options": (lambda w: {"model": w, "args": argparse.Namespace(lr=0.1)}, ["entry model"]),
    "figures of NumPy": (lambda w: {"model": w, "acc": np.float64(0.9), "curve": np.ones(3)}, ["entry model"]),
    "profiled": (
        lambda w: {**w, "total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1)},
        ["left out 2", "total_ops", "conv1.total_params"],
    ),
    "compiled inside": (
        lambda w: {name.replace("conv1.", "conv1._orig_mod."): tensor for name, tensor in w.items()},
        ["'_orig_mod.'"],
    ),
    "in two parts": (
        lambda w: {
            "head": {name.removeprefix("head."): tensor for name, tensor in w.items() if name.startswith("head.")},
            "rest": {"metrics": {}},
            **{
                part: {
                    name.removeprefix(f"{part}."): tensor for name, tensor in w.items() if name.startswith(f"{part}.")
                }
                for part in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
            },
        },
        [],
    ),
}


@pytest.mark.parametrize("kind", LEFT_BY_SCRIPTS)
def test_checkpoints_as_scripts_leave_them_load_and_say_what_was_done(kind, weights, tiny_net, tmp_path, caplog):
    leave, told = LEFT_BY_SCRIPTS[kind]
    torch.save(leave(weights), tmp_path / "left.ckpt")

    model = load_weights(tiny_net(), tmp_path / "left.ckpt")

    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    for part in told:
        assert part in caplog.text
    assert bool(caplog.text) == bool(told)


@pytest.mark.parametrize(
    ("leave", "choices"),
    [
        (lambda w: {"student": halved(w), "teacher": w}, ("student", "teacher")),
        (lambda w: under("student.", halved(w)) | under("teacher.", w), ("student", "teacher")),
        (lambda w: {"model": halved(w), "model_ema": under("module.", w)}, ("model", "model_ema/module")),
        (lambda w: {"state_dict": under("net.", halved(w)) | under("ema.module.", w)}, ("state_dict/ema.module",)),
    ],
    ids=["entries", "prefixes", "averaged", "prefixes in an entry"],
)
def test_two_sets_of_weights_are_refused_until_one_is_named(leave, choices, weights, tiny_net, tmp_path):
    torch.save(leave(weights), tmp_path / "two.pt")
    model = tiny_net()
    before = model.conv1.weight.clone()

    with pytest.raises(ModelError, match="2 different sets of weights") as caught:
        load_weights(model, tmp_path / "two.pt")

    assert all(choice in str(caught.value) for choice in choices)
    assert torch.equal(model.conv1.weight, before)
    load_weights(model, tmp_path / f"two.pt#{choices[-1].split('/')[-1]}")
    assert torch.equal(model.conv1.weight, weights["conv1.weight"])
    with pytest.raises(ModelError, match="has no weights under 'nobody': there are"):
        load_weights(model, tmp_path / "two.pt#nobody")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value, weights, tiny_net, tmp_path):
    weights["bn2.running_var"][3] = value
    model = tiny_net()
    before = model.conv1.weight.clone()

    with pytest.raises(ModelError, match=r"'bn2.running_var' .* NaN or infinite"):
        load_weights(model, saved(tmp_path / "weights", weights, "npz"))

    assert torch.equal(model.conv1.weight, before)


def test_variances_below_zero_are_refused_by_name(weights, tiny_net, tmp_path):
    weights["bn2.running_var"][3] = -0.5

    with pytest.raises(ModelError, match=r"'bn2.running_var' .* variances below 0"):
        load_weights(tiny_net(), saved(tmp_path / "weights", weights, "npz"))


@pytest.mark.parametrize(
    ("form", "says"), [(torch.Tensor.to_sparse, "is stored as a sparse one"), (lambda t: t.to("meta"), "has no values")]
)
@pytest.mark.filterwarnings("ignore:(Sparse|Validating sparse)")
def test_tensors_of_other_kinds_are_refused_by_name(form, says, weights, tiny_net, tmp_path):
    weights["head.weight"] = form(weights["head.weight"])
    torch.save(weights, tmp_path / "weights.pt")

    with pytest.raises(ModelError, match=f"'head.weight' .* {says}"):
        load_weights(tiny_net(), tmp_path / "weights.pt")


def test_quantised_weights_are_refused_by_name(weights, tiny_net, tmp_path):
    weights["head.weight"] = weights["head.weight"].to(torch.int8)

    with pytest.raises(ModelError, match=r"'head.weight' .* int8"):
        load_weights(tiny_net(), saved(tmp_path / "weights", weights, "safetensors"))


def test_one_logit_becomes_two(tiny_net, tmp_path, smooth_images, caplog):
    single, images = tiny_net(classes=1), smooth_images(2, 16)
    torch.save(single.state_dict(), tmp_path / "single.pt")

    double = load_weights(tiny_net(classes=2), tmp_path / "single.pt")

    with torch.no_grad():
        torch.testing.assert_close(double(images).softmax(dim=1)[:, 1:], single(images).sigmoid())
    assert "one logit" in caplog.text
    with pytest.raises(ModelError, match="of another shape"):
        load_weights(tiny_net(classes=3), tmp_path / "single.pt")


def test_what_stands_beside_tensors_is_named(weights, tiny_net, tmp_path):
    torch.save({"model": weights, "surprise": Payload(tmp_path / "ran")}, tmp_path / "more.pt")

    with pytest.raises(ModelError, match=r"more than tensors \(.*open"):
        load_weights(tiny_net(), tmp_path / "more.pt")


def test_names_of_another_network_are_listed(tiny_net, tmp_path):
    torch.save({"state_dict": {"features.0.weight": torch.ones(3)}}, tmp_path / "other.pt")

    with pytest.raises(ModelError) as caught:
        load_weights(tiny_net(), tmp_path / "other.pt")

    for part in ("under state_dict", "missing: conv1.weight, bn1.weight, bn1.bias, ...", "features.0.weight"):
        assert part in str(caught.value)
