"""The benchmark for GPUs in small, on the CPU: it measures nothing here, and must work where it is needed."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("captum")
pytest.importorskip("onnxscript")

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "serving"))
gpu = importlib.import_module("gpu")

SMALL = ["--device", "cpu", "--network", "resnet18_cifar", "--size", "32", "--seconds", "0.01", "--rounds", "1"]


def test_a_dry_run_compares_all_rivals_on_the_same_maps(tmp_path, capsys):
    results = tmp_path / "gpu.json"
    rivals = ["--rivals", "captum", "captum_class_given", "torch_compile", "keylock", "keylock_locked"]
    # Without the compiler of torch.compile, which takes minutes here.
    gpu.main([*SMALL, *rivals, "--batches", "2", "--torch-backend", "eager", "--results", str(results)])
    result = json.loads(results.read_text("utf-8"))
    assert json.loads(capsys.readouterr().out) == result
    assert result["left_out"] == {}
    assert result["dry_run"]
    assert "gpu" not in result["hardware"]
    names = ["captum", "captum_class_given", "torch_compile", "keylock, cpu", "keylock_locked, cpu"]
    assert list(result["images_per_s"]) == list(result["best"]) == names
    assert all(set(rates) == {"2"} and min(rates.values()) > 0 for rates in result["images_per_s"].values())
    assert result["pcc_to_the_first"] == dict.fromkeys(names, pytest.approx(1, abs=1e-3))
    best = result["best"]
    assert result["ratios"]["keylock, cpu"] == {
        name: pytest.approx(best["keylock, cpu"] / best[name], abs=2e-3) for name in names[:3]
    }


@pytest.mark.parametrize("device", ["auto", "cuda", "tensorrt"])
def test_without_a_gpu_it_says_so_in_a_sentence(device, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit, match=r"^nothing is measured: [^\n]*--device cpu[^\n]*$"):
        gpu.main(["--device", device])
    assert capsys.readouterr().out == ""


def test_networks_that_it_cannot_divide_are_refused():
    with pytest.raises(SystemExit, match="small-cnn is no ResNet"):
        gpu.main([*SMALL, "--network", "small-cnn", "--rivals", "captum"])


def test_keylock_is_measured_on_every_device_there_is(monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    for providers, devices in (
        (["TensorrtExecutionProvider", "CUDAExecutionProvider"], ("tensorrt", "cuda")),
        (["CUDAExecutionProvider"], ("cuda",)),
    ):
        monkeypatch.setattr(gpu, "choose_providers", lambda _device, providers=providers: providers)
        assert gpu.keylock_devices("auto") == devices
    assert gpu.keylock_devices("cuda") == ("cuda",)
    assert list(gpu.choose_rivals(["keylock", "captum"], ("tensorrt", "cuda"))) == [
        "captum",
        "keylock, tensorrt",
        "keylock, cuda",
    ]


def test_the_best_batches_are_compared():
    figures = {"captum": {1: 10.0, 8: 40.0}, "keylock, cuda": {1: 90.0, 8: 60.0}, "keylock, tensorrt": {1: 100.0}}
    assert gpu.compare(figures) == {"keylock, cuda": {"captum": 2.25}, "keylock, tensorrt": {"captum": 2.5}}


def test_other_maps_are_noticed():
    generator = np.random.default_rng(0)
    first = generator.standard_normal((3, 7, 7))
    other = first.copy()
    other[1] = generator.standard_normal((7, 7))
    found = gpu.agreement({"first": first, "scaled": 3 * first, "other": other})
    assert found["first"] == found["scaled"] == 1
    assert found["other"] < 0.5


def test_a_rival_that_fails_is_left_out_and_the_others_go_on(capsys):
    def fail(_bench, _batch):
        raise MemoryError("too large")

    bench = gpu.Bench(torch.nn.Identity(), "", np.zeros((2, 3, 4, 4), np.float32), {}, {}, torch.device("cpu"), "eager")
    works = {"fails": fail, "works": lambda _bench, _batch: lambda images: images[:, 0]}
    options = gpu.parse([*SMALL, "--batches", "2"])
    figures, maps, left_out = gpu.measure(bench, works, options)
    assert list(figures) == list(maps) == ["works"]
    assert left_out == {"fails, 2": "MemoryError"}
