"""The bare loops: read a line `[task, count, show]`, explain that many images, answer `done`, or the first map.

python benchmarks/serving/loop.py KIND FOLDER SIDE
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from material import Material
from numpy.typing import NDArray

Answer: TypeAlias = Callable[[str, NDArray[np.float32]], NDArray[np.float32] | None]
"""Takes a task and images (batch, 3, side, side), gives maps (batch, height, width), or None for predictions."""


def main() -> None:
    """Answer until the input ends."""
    kind, folder, side = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    material = Material(folder, side)
    images, answer = material.images(), KINDS[kind](material)
    for line in sys.stdin:
        task, count, show = json.loads(line)
        maps = answer(task, images[:count])
        print(json.dumps(maps[0].tolist()) if show and maps is not None else "done", flush=True)


def captum(material: Material) -> Answer:
    """Captum, which needs the predicted class."""
    from eager import Eager

    model = Eager(material)
    return lambda task, images: model.answer(task, images)[1]


def captum_bfloat16(material: Material) -> Answer:
    """Captum under autocast to bfloat16."""
    from eager import Eager

    model = Eager(material, bfloat16=True)
    return lambda task, images: model.answer(task, images)[1]


def captum_target_given(material: Material) -> Answer:
    """Captum, which is told the class."""
    from eager import Eager

    model = Eager(material, target_given=True)
    return lambda task, images: model.answer(task, images)[1]


def torch_compile(material: Material, *, bfloat16: bool = False) -> Answer:
    """The gradient of the largest logit, compiled forwards and backwards."""
    import torch
    from eager import load_network

    layout = torch.channels_last if bfloat16 else torch.contiguous_format
    network = torch.compile(load_network(material).to(memory_format=layout), dynamic=False)

    def answer(_task: str, images: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = torch.from_numpy(images.copy()).to(memory_format=layout).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = network(inputs)
        (gradient,) = torch.autograd.grad(logits.float().amax(dim=1).sum(), inputs)
        maps: NDArray[np.float32] = gradient.abs().mean(dim=1).numpy()
        return maps

    return answer


def torch_compile_bfloat16(material: Material) -> Answer:
    """The same in bfloat16."""
    return torch_compile(material, bfloat16=True)


def onnxruntime(material: Material) -> Answer:
    """ONNX Runtime alone, every row as with a license: on the weights that the server makes of the delta."""
    import onnxruntime as ort
    from safetensors.numpy import load

    from keylock.bundle import WEIGHTS_FILE, KeyFile, open_bundle
    from keylock.crypto.signing import Home
    from keylock.graphs.binding import bind, inputs_of

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with open_bundle(material.bundle, trusted=(Home(material.home).verifying_key(),)) as bundle:
        graphs = {"predict": bundle.manifest.prediction_graph}
        graphs |= {entry.name: entry.graph for entry in bundle.manifest.explainers if entry.graph is not None}
        delta = bundle.delta(bundle.unseal(KeyFile(material.key_file)))
        assert delta is not None, "the lock has a sealed delta"
        weights = delta.added_to(load(bundle.read(WEIGHTS_FILE)))
        sessions = {}
        for task, path in graphs.items():
            graph = bundle.read(path)
            taken = {name: weights[name] for name in inputs_of(graph) if name in weights}
            sessions[task] = ort.InferenceSession(bind(graph, taken), options, providers=["CPUExecutionProvider"])

    def answer(task: str, images: NDArray[np.float32]) -> NDArray[np.float32] | None:
        if task == "predict":
            sessions[task].run(["logits"], {"image": images})
            return None
        rows = {"image": images, "target": np.full(len(images), -1, np.int64)}
        _, maps = sessions[task].run(["logits", "map"], rows)
        found: NDArray[np.float32] = maps
        return found

    return answer


def openvino_xai(material: Material) -> Answer:
    """OpenVINO XAI, one image at a time, which is all its maps of a pass take, in the numbers OpenVINO prefers here."""
    import openvino

    # OpenVINO XAI 1.1 asks for this module, which OpenVINO had until 2025: its maps are the same, and computed faster.
    sys.modules.setdefault("openvino.runtime", openvino)
    openvino.runtime = openvino
    from openvino_xai import Method, Task, insert_xai

    core = openvino.Core()
    network = core.read_model(material.network)
    explained = insert_xai(network, task=Task.CLASSIFICATION, explain_method=Method.RECIPROCAM)
    model = core.compile_model(explained, "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1})
    request = model.create_infer_request()

    def answer(_task: str, images: NDArray[np.float32]) -> NDArray[np.float32]:
        maps = []
        for image in images:
            logits, of_classes = request.infer({0: image[None]}).to_tuple()
            maps.append(of_classes[0, logits[0].argmax()])
        return np.stack(maps).astype(np.float32)

    return answer


KINDS: dict[str, Callable[[Material], Answer]] = {
    kind.__name__: kind
    for kind in (
        captum,
        captum_bfloat16,
        captum_target_given,
        torch_compile,
        torch_compile_bfloat16,
        onnxruntime,
        openvino_xai,
    )
}

if __name__ == "__main__":
    main()
