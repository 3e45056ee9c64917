"""Checkpoints come back as they were, and damaged ones are refused."""

import pytest
import torch
from torch import nn

from keylock.errors import ResumeError
from keylock.training.checkpoint import (
    optimiser_tensors,
    prefixed,
    read_checkpoint,
    restore_module,
    restore_optimiser,
    write_checkpoint,
)


def trained(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.9, 0.99))
    step(model, optimiser)
    return model, optimiser


def step(model, optimiser):
    optimiser.zero_grad()
    model(torch.arange(12.0).view(4, 3)).square().sum().backward()
    optimiser.step()


def test_round_trip_goes_on_as_if_nothing_had_happened(tmp_path):
    model, optimiser = trained(0)
    tensors = prefixed("model", model.state_dict()) | optimiser_tensors(optimiser)
    write_checkpoint(tmp_path / "deep/er/state.safetensors", tensors, {"step": 1, "loader": None})
    other, fresh = trained(1)

    found, state = read_checkpoint(tmp_path / "deep/er/state.safetensors")
    restore_module(other, "model", found)
    restore_optimiser(fresh, found)
    step(model, optimiser)
    step(other, fresh)

    assert state == {"step": 1, "loader": None}
    assert found.keys() == tensors.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["state.safetensors"]


def test_an_interrupted_write_leaves_the_last_good_one(tmp_path):
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, {"a": torch.ones(2)}, {"step": 1})

    with pytest.raises(TypeError):
        write_checkpoint(path, {"a": torch.zeros(2)}, {"step": object()})

    assert read_checkpoint(path)[1] == {"step": 1}


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "no state", "not json"])
def test_damaged_checkpoints_are_refused(damage, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "state.safetensors"
    write_checkpoint(path, {"a": torch.ones(200)}, {"step": 1})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not a checkpoint at all")
    else:
        save_file({"a": torch.ones(2)}, path, metadata=None if damage == "no state" else {"state": "{"})

    with pytest.raises(ResumeError, match="is damaged: remove it and start without resume=True"):
        read_checkpoint(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ResumeError, match=r"no checkpoint at .*none.safetensors: start without resume=True"):
        read_checkpoint(tmp_path / "none.safetensors")


def test_another_architecture_is_refused():
    with pytest.raises(ResumeError, match="another architecture"):
        restore_module(nn.Linear(2, 2), "model", prefixed("model", nn.Linear(3, 2).state_dict()))
