"""A second runtime that is made up, beside ONNX Runtime, and a graph that is loaded in the better of both."""

import time
from dataclasses import replace

import numpy as np

from keylock_server.inference.graphs import Loader
from keylock_server.inference.sessions import Sessions
from keylock_server.inference.way import GraphFiles, Way
from keylock_server.inference.ways import Ways

IMAGES = np.random.default_rng(5).standard_normal((3, 3, 8, 8), np.float32)
FILES = GraphFiles("a graph", "whole", (("float16", "half"), ("int8", "small")))


class Other:
    """Stands in for OpenVINO: hands on what is opened in ONNX Runtime, changed and slowed down."""

    def __init__(self, *, change=lambda values: values, delay_s=0.0, has_bfloat16=True, fails=False):
        self.has_bfloat16, self._change, self._delay_s, self._fails = has_bfloat16, change, delay_s, fails
        self.opened: list[str] = []

    def open(self, model, given, *, numbers):
        if self._fails:
            raise RuntimeError("an operation is not known")
        self.opened.append(numbers)
        found = Ways(Sessions("cpu", threads=1)).open(Way("onnxruntime", "float32", ""), model, given, public=True)

        def run(outputs, rows):
            work_for(self._delay_s)
            return [self._change(values) for values in found.run(outputs, rows)]

        return replace(found, run=run, providers=("another",))


def work_for(seconds: float) -> None:
    """Takes time of the processor, by which ways are compared."""
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def slowed(ways: Ways, delay_s: float):
    """Makes what ONNX Runtime computes take longer."""

    def open_(way, model, given, *, public):
        opened = Ways.open(ways, way, model, given, public=public)
        if way.runtime != "onnxruntime":
            return opened
        return replace(opened, run=lambda outputs, rows: work_for(delay_s) or opened.run(outputs, rows))

    return open_


def loaded(tiny, ways: Ways, files=FILES):
    graph = tiny.explanation_graph(coarse=False)
    load = Loader(lambda _path: graph, key=None, delta=None, ways=ways, trial_images=IMAGES)
    return load(files)


def ways(other=None, **wanted) -> Ways:
    return Ways(Sessions("cpu", threads=1), openvino=other, **wanted)
