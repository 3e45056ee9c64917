"""What ONNX Runtime is told about TensorRT, and how its libraries are found. Nothing here needs a GPU or TensorRT."""

from pathlib import Path

import onnxruntime
import pytest
from graphics_cards import loader

from keylock_server.inference.tensorrt import library_names, library_version, missing_library, provider_options

INPUTS = {"image": (0, 3, 8, 8), "target": (0,), "keyed": (0,)}


def options(**changes):
    return provider_options(INPUTS, **{"max_batch": 32, "half": False, "engines": None} | changes)


def test_the_version_that_is_needed_is_read_from_the_provider(tmp_path):
    provider = tmp_path / "provider.so"
    provider.write_bytes(b"\0libcudart.so.13\0libnvonnxparser.so.11\0x\0libnvinfer.so.11\0libnvinfer_plugin.so.11\0")
    assert library_names(provider) == ("libnvinfer.so.11", "libnvonnxparser.so.11")
    provider.write_bytes(b"\0nvonnxparser_10.dll\0nvinfer_10.dll\0nvinfer_10.dll\0")
    assert library_names(provider) == ("nvinfer_10.dll", "nvonnxparser_10.dll")
    provider.write_bytes(b"nothing")
    assert library_names(provider) == ()
    assert library_names(tmp_path / "missing") == ()


def test_the_installed_runtime_says_what_it_needs():
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime without TensorRT")
    infer, parser = library_names()
    assert "infer" in infer
    assert "parser" in parser
    assert missing_library(loader()) == infer
    assert missing_library(loader(infer)) == parser
    assert missing_library(loader(infer, parser)) is None
    assert library_version(loader(infer)) == 101300
    assert library_version(loader()) == 0


def test_libraries_of_the_python_package_are_preferred(monkeypatch, tmp_path):
    folder = tmp_path / "tensorrt_libs"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("keylock_server.inference.tensorrt.library_names", lambda: ("libnvinfer.so.10",))
    assert missing_library(loader(str(folder / "libnvinfer.so.10"))) is None
    assert missing_library(loader("libnvinfer.so.10")) is None
    assert missing_library(loader(str(folder / "libnvinfer.so.8"))) == "libnvinfer.so.10"


def test_a_runtime_that_names_no_library_has_none(monkeypatch):
    monkeypatch.setattr("keylock_server.inference.tensorrt.library_names", tuple)
    assert missing_library(loader()) is not None


def test_batches_of_every_size_are_told_beforehand():
    told = options(max_batch=16)
    assert told["trt_profile_min_shapes"] == "image:1x3x8x8,target:1,keyed:1"
    assert told["trt_profile_opt_shapes"] == "image:16x3x8x8,target:16,keyed:16"
    assert told["trt_profile_max_shapes"] == told["trt_profile_opt_shapes"]
    fixed = provider_options(INPUTS | {"scale": (), "mean": (3, 1)}, max_batch=16, half=False, engines=None)
    assert fixed == told


def test_nothing_is_written_unless_a_folder_is_named():
    silent = options()
    for name in ("engine_cache_enable", "timing_cache_enable", "dump_subgraphs", "dump_ep_context_model"):
        # Said outright: where an option is left out, environment variables count.
        assert silent[f"trt_{name}"] == "False"
    assert not [name for name in silent if name.endswith("path")]
    kept = options(engines=Path("/engines"))
    assert kept["trt_engine_cache_enable"] == kept["trt_timing_cache_enable"] == "True"
    assert kept["trt_engine_cache_path"] == kept["trt_timing_cache_path"] == str(Path("/engines"))
    assert kept["trt_dump_subgraphs"] == kept["trt_dump_ep_context_model"] == "False"


def test_float16_is_for_graphs_that_compute_in_it():
    assert options()["trt_fp16_enable"] == "False"
    assert options(half=True)["trt_fp16_enable"] == "True"


def test_the_installed_runtime_knows_every_option():
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime without TensorRT")
    # It explains the values of the options that it takes, so their names stand in its file.
    (file,) = (Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*")
    content = file.read_bytes()
    unknown = [name for name in options(engines=Path("/x")) if f"value for the key '{name}'".encode() not in content]
    assert unknown == []
    assert b"value for the key 'trt_no_such_option'" not in content
