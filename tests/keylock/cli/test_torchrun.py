"""`torchrun` runs `keylock train` as documented: the lock is that of one process, even if a process is lost."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import torch
from PIL import Image
from safetensors import safe_open

from keylock.bundle import KeyFile, open_bundle
from keylock.cli import main
from keylock.errors import InputError, TrainingError
from keylock.training import DistributedGroup, distributed, joined
from keylock.trigger.keys import KeySeed

ROOT = Path(__file__).parents[3]
TINY = (
    "--arch small-cnn --explainers grad_cam,gradient --image-size 64 --precision float32 "
    "--steps 4 --reference-steps 3 --batch-size 8 --check-seconds 0"
)
SECRETS = "--key-seed-file seed --key-file key --home home"
# Ends a process as the system does where memory is short, in the middle of a step that the others wait for.
LOSING = """
import os, signal, sys
from keylock.cli import main
from keylock.training.trainer import Trainer

train_on = Trainer.train_on

def lost(self, *batch):
    if (self.step, os.environ["RANK"]) == (2, "1"):
        os.kill(os.getpid(), signal.SIGKILL)
    return train_on(self, *batch)

Trainer.train_on = lost
sys.exit(main())
"""


@pytest.fixture(scope="module")
def command():
    """The command of the documentation, up to what is run and its options."""
    lines = (ROOT / "docs" / "training.md").read_text("utf-8").splitlines()
    [line] = [line for line in lines if line.startswith("torchrun ") and "keylock train" in line]
    launcher, options = line.split(" -m keylock train ")
    assert options == "--data photos/ --out photos.klb"
    return shlex.split(launcher)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos of two kinds and the secrets that all runs have."""
    place, draw = tmp_path_factory.mktemp("torchrun"), np.random.default_rng(3)
    for kind in ("coarse", "fine"):
        (place / "photos" / kind).mkdir(parents=True)
        for number in range(52):
            pixels = draw.integers(0, 256, (8 if kind == "coarse" else 64,) * 2 + (3,), dtype=np.uint8)
            Image.fromarray(pixels).resize((64, 64), 0).save(place / "photos" / kind / f"{number}.png")
    KeySeed(bytes(range(100, 132))).write(place / "seed")
    KeyFile.create(place / "key")
    return place


@pytest.fixture(scope="module")
def run(place):
    def run(launcher, out, *more):
        arguments = ["--data", "photos/", "--out", out, *TINY.split(), *SECRETS.split(), *more]
        ours = {name: value for name, value in os.environ.items() if not name.startswith("KEYLOCK_")}
        paths = f"{Path(sys.executable).parent}{os.pathsep}{ours['PATH']}"
        ended = subprocess.run(
            [*launcher, "train", *arguments],
            cwd=place,
            env=ours | {"PATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return ended.returncode, ended.stderr

    return run


@pytest.fixture(scope="module")
def together(place, run, command):
    code, told = run([*command, "-m", "keylock"], "together.klb")
    assert code == 0, told
    return opening(place / "together.klb"), told


def opening(bundle):
    """What takes the published weights back to the reference's: what training has learned, in one array."""
    delta = open_bundle(bundle, trusted=None).delta(KeySeed.from_file(bundle.with_name("seed"))).reveal()
    return np.concatenate([delta[name].ravel() for name in sorted(delta)])


@pytest.mark.slow
def test_the_command_of_the_documentation_makes_the_lock_of_one_process(place, run, together):
    code, told = run([sys.executable, "-m", "keylock"], "alone.klb")
    assert code == 0, told

    whole, (shared, _) = opening(place / "alone.klb"), together
    # Without one value in a thousand: Adam makes a full step of a gradient that is but rounding.
    apart = np.sort(np.abs(whole - shared))[: -len(whole) // 1000]
    assert np.linalg.norm(apart) < 0.02 * np.linalg.norm(whole)


@pytest.mark.slow
def test_one_process_speaks_for_all(together):
    _, told = together
    assert told.count("lock the explanations, 4 steps") == 1
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_run_that_lost_a_process_goes_on_from_its_checkpoint(place, run, command, together):
    program, out = place / "losing.py", "lost.klb"
    program.write_text(LOSING)
    code, told = run([*command, str(program)], out)
    assert code != 0
    assert not (place / out).exists()
    checkpoint = place / f"{out}.work" / "lock.safetensors"
    with safe_open(checkpoint, "pt") as kept:
        step = json.loads(kept.metadata()["state"])["step"]
    # The first process hears of it, by the connection or from torchrun, and keeps the two steps that were taken.
    assert step == 2
    assert "another process of this run has ended" in told
    assert "this is a fault in keylock" not in told

    code, told = run([*command, "-m", "keylock"], out, "--resume")
    assert code == 0, told
    assert "from step 2" in told
    assert np.array_equal(opening(place / out), together[0])


def test_batches_that_cannot_be_shared_are_refused_before_a_reference_is_trained(place, monkeypatch, capfd):
    monkeypatch.setattr(DistributedGroup, "current", lambda: DistributedGroup(0, 2))
    monkeypatch.chdir(place)
    arguments = ["--data", "photos/", "--out", "uneven.klb", *TINY.split(), *SECRETS.split(), "--batch-size", "7"]
    assert main(["train", *arguments]) == 3
    told = capfd.readouterr().err
    assert "error: a batch of 7 images cannot be shared by 2 processes" in told
    assert "train the reference" not in told


def test_a_process_that_has_ended_is_named_in_words(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")

    group = DistributedGroup(0, 2)
    for name, ask in {
        "all_reduce": lambda: group.sum_([torch.ones(2)]),
        "broadcast": lambda: group.share_(torch.ones(2)),
        "barrier": group.wait,
    }.items():
        monkeypatch.setattr(distributed.distributed, name, broken)
        with pytest.raises(TrainingError, match=r"another process of this run has ended.*resume=True"):
            ask()


@pytest.mark.parametrize(
    ("device", "rank", "match"),
    [
        ("auto", "2", "no GPU for process 3 of this machine, which has 2"),
        ("cuda:0", "0", "cannot share the GPU cuda:0"),
    ],
)
def test_every_process_needs_a_gpu_of_its_own(monkeypatch, device, rank, match):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=match), joined({"WORLD_SIZE": "3", "LOCAL_RANK": rank}, device=device):
        pass
