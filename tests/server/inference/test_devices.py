"""The best device that is really there is chosen; what is insisted on and missing is refused by name."""

import logging

import pytest
from graphics_cards import CPU, CUDA, DRIVER, EVERYTHING, TENSORRT, loader

from keylock.errors import ServiceError
from keylock_server.inference.devices import check_providers, choose_providers, cuda_device_count

INFER, PARSER = "libnvinfer.so.10", "libnvonnxparser.so.10"


@pytest.fixture(autouse=True)
def _built_for_tensorrt_10(monkeypatch):
    monkeypatch.setattr("keylock_server.inference.tensorrt.library_names", lambda: (INFER, PARSER))
    monkeypatch.setattr("keylock_server.inference.devices.sys.platform", "linux")
    # The libraries of CUDA may be installed here, and loading them takes seconds.
    monkeypatch.setattr("keylock_server.inference.devices._load_cuda_libraries", lambda: None)


@pytest.mark.parametrize(
    ("available", "libraries", "chosen"),
    [
        (EVERYTHING, (DRIVER, INFER, PARSER), [TENSORRT, CUDA, CPU]),
        (EVERYTHING, (DRIVER,), [CUDA, CPU]),
        (EVERYTHING, (DRIVER, PARSER), [CUDA, CPU]),
        (EVERYTHING, (DRIVER, INFER), [CUDA, CPU]),
        (EVERYTHING, (DRIVER, "libnvinfer.so.8", "libnvonnxparser.so.8"), [CUDA, CPU]),
        (EVERYTHING, (INFER, PARSER), [CPU]),
        ([CUDA, CPU], (DRIVER, INFER, PARSER), [CUDA, CPU]),
        ([CPU], (DRIVER, INFER, PARSER), [CPU]),
    ],
)
def test_the_best_device_there_is_is_chosen(available, libraries, chosen):
    assert choose_providers("auto", available=available, load=loader(*libraries)) == chosen


def test_a_driver_without_a_device_is_no_gpu():
    load = loader(DRIVER, INFER, PARSER, devices=0)
    assert cuda_device_count(load) == 0
    assert choose_providers("auto", available=EVERYTHING, load=load) == [CPU]
    assert cuda_device_count(loader(DRIVER, devices=2)) == 2


def test_lesser_devices_can_be_asked_for():
    load = loader(DRIVER, INFER, PARSER)
    assert choose_providers("cuda", available=EVERYTHING, load=load) == [CUDA, CPU]
    assert choose_providers("cpu", available=EVERYTHING, load=load) == [CPU]
    assert choose_providers("tensorrt", available=EVERYTHING, load=load) == [TENSORRT, CUDA, CPU]


@pytest.mark.parametrize(
    ("device", "available", "libraries", "missing"),
    [
        ("tensorrt", EVERYTHING, (DRIVER, PARSER), r"no libnvinfer\.so\.10, .* built for: use device=cuda"),
        ("tensorrt", EVERYTHING, (DRIVER, INFER), r"no libnvonnxparser\.so\.10, .*: use device=cuda"),
        ("tensorrt", [CUDA, CPU], (DRIVER, INFER, PARSER), "an ONNX Runtime without TensorRT: use device=cuda"),
        ("tensorrt", EVERYTHING, (INFER, PARSER), "the device tensorrt .* no CUDA device: use device=cpu"),
        ("cuda", EVERYTHING, (INFER, PARSER), "the device cuda .* no CUDA device: use device=cpu"),
        ("cuda", [CPU], (DRIVER,), "without CUDA, where onnxruntime-gpu is needed: use device=cpu"),
    ],
)
def test_what_is_insisted_on_and_missing_is_named(device, available, libraries, missing):
    with pytest.raises(ServiceError, match=missing):
        choose_providers(device, available=available, load=loader(*libraries))


def test_the_log_says_why_a_better_device_is_not_used(server_log):
    server_log.set_level(logging.INFO, "keylock_server")
    choose_providers("auto", available=EVERYTHING, load=loader())
    choose_providers("auto", available=EVERYTHING, load=loader(DRIVER))
    assert "computing on the CPU: this machine has no CUDA device" in server_log.text
    assert "on CUDA without TensorRT: this machine has no libnvinfer.so.10" in server_log.text
    server_log.clear()
    choose_providers("auto", available=EVERYTHING, load=loader(DRIVER, INFER, PARSER))
    assert server_log.text == ""


def test_this_machine_is_looked_at_where_nothing_else_is_said():
    assert choose_providers("cpu") == [CPU]
    if cuda_device_count():
        pytest.skip("this machine has a GPU")
    assert choose_providers("auto") == [CPU]
    for device in ("cuda", "tensorrt"):
        with pytest.raises(ServiceError, match="use device=cpu"):
            choose_providers(device)


@pytest.mark.parametrize(
    ("asked", "used", "insisted", "text", "place"),
    [
        ([CUDA, CPU], [CPU], "cuda", "cuDNN", "Serving on the CPU"),
        ([TENSORRT, CUDA, CPU], [CUDA, CPU], "tensorrt", "TensorRT is installed", "Serving on CUDA"),
        ([TENSORRT, CUDA, CPU], [CPU], "tensorrt", "TensorRT is installed", "Serving on the CPU"),
    ],
)
def test_a_fall_back_is_told_or_refused(server_log, asked, used, insisted, text, place):
    check_providers("auto", asked=asked, used=asked)
    assert server_log.text == ""
    check_providers("auto", asked=asked, used=used)
    assert text in server_log.text
    assert place in server_log.text
    with pytest.raises(ServiceError, match=text):
        check_providers(insisted, asked=asked, used=used)
