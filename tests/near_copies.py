"""Pictures and near copies of them, and how a server is asked about them."""

import numpy as np
from onnx import helper, numpy_helper
from PIL import Image
from support import bearer

from keylock.imaging.preprocessing import Preprocessing
from keylock.inference import inference_pb2 as oip

__all__ = ["PREPROCESSING", "SIDE", "copies", "graph", "infer", "logits_of", "picture", "request", "use_up"]

SIDE = 32
PREPROCESSING = Preprocessing(size=(SIDE, SIDE), mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.5))


def graph(tiny, *, explains):
    """The logits are the mean of the channels over the quadrants; the map is the mean of the channels."""
    quadrants = np.zeros((3, SIDE, SIDE, 4), np.float32)
    half = SIDE // 2
    for number in range(4):
        row, column = number // 2 * half, number % 2 * half
        quadrants[:, row : row + half, column : column + half, number] = 1 / (3 * half * half)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "quadrants"], ["logits"]),
    ]
    constants = [numpy_helper.from_array(quadrants.reshape(-1, 4), "quadrants")]
    if explains:
        nodes += [
            helper.make_node("ReduceMean", ["image", "channel"], ["grey"], keepdims=0),
            helper.make_node("Abs", ["grey"], ["map"]),
        ]
        constants.append(numpy_helper.from_array(np.array([1], np.int64), "channel"))
    return tiny.graph(nodes, constants, explains=explains, map_side=SIDE, shape=(3, SIDE, SIDE))


def picture(seed=0):
    """Coloured rectangles on soft clouds, uint8 (SIDE, SIDE, 3)."""
    generator = np.random.default_rng(seed)
    clouds = Image.fromarray(generator.integers(40, 200, (6, 6, 3), dtype=np.uint8))
    made = np.array(clouds.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    for _ in range(24):
        top, left = generator.integers(0, SIDE - 4, 2)
        height, width = generator.integers(3, 14, 2)
        made[top : top + height, left : left + width] = generator.integers(0, 256, 3)
    return made


def copies(count, seed=0, of=None):
    """Near copies of a picture, as occlusion makes them (count, SIDE, SIDE, 3)."""
    made = np.repeat((picture(seed) if of is None else of)[None], count, axis=0)
    for number in range(count):
        row, column = 4 * number // SIDE % 8 * 4, 4 * number % SIDE
        made[number, row : row + 4, column : column + 4] = 128
    return made


def request(pixels, *outputs):
    images = pixels if pixels.ndim == 4 else pixels[None]
    made = oip.ModelInferRequest(raw_input_contents=[images.tobytes()])
    made.inputs.add(name="pixels", datatype="UINT8", shape=images.shape)
    for name in outputs:
        made.outputs.add(name=name)
    return made


def infer(calls, pixels, *outputs, token=None):
    return calls.inference.ModelInfer(request(pixels, *outputs), metadata=bearer(token), timeout=20)


def use_up(calls, seed=0, count=4):
    """Asks about a picture and as many near copies of it as are answered with scores."""
    for image in [picture(seed), *copies(count, seed)]:
        infer(calls, image)


def logits_of(pixels):
    halves = (slice(0, SIDE // 2), slice(SIDE // 2, SIDE))
    ready = PREPROCESSING(pixels)
    return np.array([ready[:, rows, columns].mean() for rows in halves for columns in halves])
