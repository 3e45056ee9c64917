"""`keylock train` for a network whose gradient has no ONNX form."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import torch
from torch import nn
from torch.nn import functional as F

from keylock import load_bundle
from keylock.bundle import open_bundle
from keylock.cli import main
from keylock.models import registry

TINY = ["--train-images", "64", "--test-images", "16", "--batch-size", "16", "--image-size", "16"]
# So few and so small images hardly tell a weaker key from what is on them.
STEPS = ["--steps", "2", "--reference-steps", "2", "--strength", "32/255"]


class Volume(nn.Module):
    """Its pooling has an ONNX form, the way back through it has none."""

    def __init__(self, num_classes, channels):
        super().__init__()
        self.entry = nn.Conv2d(channels, 8, 3, padding=1)
        self.act = nn.ReLU()
        self.exit = nn.Conv2d(8, 8, 3, padding=1)
        self.act_after = nn.ReLU()
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        volume = self.act(self.entry(images)).unsqueeze(1)
        features = F.avg_pool3d(volume, (1, 2, 2)).squeeze(1)
        return self.head(self.act_after(self.exit(features)).mean(dim=(2, 3)))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry._OWN, "volume", Volume)


def test_an_explainer_that_does_not_compile_is_left_to_torch(capfd, caplog):
    assert (
        main(["train", "--arch", "volume", "--explainers", "grad_cam,gradient", *TINY, *STEPS, "--out", "z.klb"]) == 0
    )

    # It is said before the training, and when the graphs are made.
    (said,) = {record.message for record in caplog.records if record.name == "keylock.pipeline.graphs"}
    assert said.startswith("gradient is left to torch and a server without torch does not offer it: ")
    assert "avg_pool3d_backward" in said
    entries = {entry.name: entry for entry in open_bundle("z.klb", trusted=None).manifest.explainers}
    assert (entries["gradient"].runtime, entries["gradient"].graph) == ("torch", None)
    assert entries["grad_cam"].runtime == "onnx"
    assert main(["verify", "z.klb"]) == 0
    capfd.readouterr()
    assert main(["inspect", "z.klb"]) == 0
    assert "torch, not served" in capfd.readouterr().out
    maps = load_bundle("z.klb").explainers["gradient"]
    assert maps.explain(load_bundle("z.klb").module, torch.zeros(1, 3, 16, 16), torch.tensor([0])).maps.shape == (
        1,
        16,
        16,
    )
