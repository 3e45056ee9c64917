"""Several processes take the step of one: shares of a batch, sums of gradients, and the same lock in the end."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import keylock
from keylock.errors import DataError
from keylock.training import DistributedGroup, joined

TESTS = Path(__file__).parents[1]
RUNS = {
    "sealed": {"search_every": 2, "search_steps": 1},
    "trained": {"trained_trigger": True, "gate_steps": 0.4, "leak_weight": 100.0},
}
PROGRAM = """
import os, sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from training.test_distributed import train
from keylock.training import joined
with joined(os.environ) as team:
    train(Path({place!r}), team, {precision!r})
"""


def train(place, team, precision):
    """Lock in every way, in whatever team there is; the first process writes what comes out."""
    # By its path: in one process with other tests the name stands for another file.
    spec = importlib.util.spec_from_file_location("team_conftest", TESTS / "conftest.py")
    networks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(networks)
    torch.manual_seed(5)
    model = networks.settle(networks.TinyNet())
    saved = load_file(place / "data.safetensors")
    batches = list(zip(saved["images"].chunk(2), saved["labels"].chunk(2), strict=True))
    options = {"shape": (3, 16, 16), "std": (0.25,) * 3}
    keys = [keylock.Key.derive(keylock.KeySeed(bytes([number]) * 32), **options) for number in (1, 2)]
    for name, given in RUNS.items():
        settings = keylock.LockSettings(steps=5, precision=precision, **given)
        checkpoint = place / f"{name}-of-{team.size}"
        locked = keylock.lock(
            model,
            batches,
            keys,
            explainers=["grad_cam", "rise"],
            settings=settings,
            device="cpu",
            checkpoint=checkpoint,
        )
        if team.leads:
            way = {n: tensor - locked.reference.state_dict()[n] for n, tensor in locked.module.state_dict().items()}
            save_file(way, place / f"{name}-{team.size}.safetensors")


@pytest.mark.slow
def test_two_processes_make_the_lock_of_one(blobs, tmp_path, precision):
    images, labels = (torch.cat(parts) for parts in zip(*blobs(2, rows=8), strict=True))
    save_file({"images": images, "labels": labels}, tmp_path / "data.safetensors")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    program = PROGRAM.format(tests=str(TESTS), place=str(tmp_path), precision=precision)
    team = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    others = [
        subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **team, "RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        with torch.random.fork_rng(devices=[]):
            train(tmp_path, DistributedGroup(), precision)
        assert [process.wait(timeout=120) for process in others] == [0, 0]
    finally:
        for process in others:
            process.kill()
            process.wait()

    for name in RUNS:
        alone, together = (load_file(tmp_path / f"{name}-{size}.safetensors") for size in (1, 2))
        whole, apart = (
            torch.cat([t.flatten() for t in way]) for way in (alone.values(), [alone[n] - together[n] for n in alone])
        )
        # All in all, and without one value in a thousand: Adam makes a full step of a gradient that is but rounding.
        apart = apart.abs().sort().values[: -len(apart) // 1000]
        assert apart.norm() < {"float32": 1e-2, "bfloat16": 0.1}[precision] * whole.norm(), name


@pytest.mark.parametrize(("count", "size", "each"), [(8, 1, 1), (8, 2, 1), (12, 2, 3), (7, 1, 3), (6, 3, 2)])
def test_parts_are_the_batch(count, size, each):
    parts = [part for rank in range(size) for part in DistributedGroup(rank, size).parts(count, each)]

    assert torch.cat([torch.arange(count)[part] for part in parts]).tolist() == list(range(count))
    assert len(parts) == size * each
    assert all(part.stop > part.start for part in parts)


@pytest.mark.parametrize(("count", "size", "each"), [(7, 2, 1), (2, 1, 3), (4, 2, 3)])
def test_batches_that_cannot_be_shared_are_refused(count, size, each):
    with pytest.raises(DataError, match=f"{count} images cannot be shared by {size} processes in {each} parts"):
        DistributedGroup(0, size).parts(count, each)


def test_a_process_by_itself_is_a_team_of_one():
    with joined({}) as team:
        assert (team, DistributedGroup.current(), team.leads) == (DistributedGroup(), DistributedGroup(), True)
    number = torch.tensor(3.0)
    team.sum_([number])
    team.share_(number)
    team.wait()
    assert team.mean(number) == 3
