"""Users' weights in every form they come in, and files that are not what they say."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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


def test_a_whole_model_or_a_list_is_refused(tiny_net, tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    torch.save(tiny_net(), tmp_path / "model.pt")

    with pytest.raises(ModelError, match="no state dict"):
        load_weights(tiny_net(), tmp_path / "list.pt")
    with pytest.raises(ModelError, match="more than tensors"):
        load_weights(tiny_net(), tmp_path / "model.pt")


def test_weights_of_another_architecture_are_refused_and_change_nothing(weights, tiny_net, tmp_path):
    model = tiny_net()
    before = model.conv1.weight.clone()
    del weights["conv3.bias"]
    weights["extra"] = torch.ones(1)
    weights["head.weight"] = torch.ones(5, 16)

    with pytest.raises(ModelError) as caught:
        load_weights(model, saved(tmp_path / "weights", weights, "pt"))

    for part in ("missing: conv3.bias", "not of this architecture: extra", "of another shape: head.weight", "--arch"):
        assert part in str(caught.value)
    assert torch.equal(model.conv1.weight, before)
