"""Images of more than eight bits are scaled by the server as its model was trained."""

import io

import numpy as np
import pytest
from PIL import Image

from keylock.errors import ImageError
from keylock.images import ImageLimits
from keylock.preprocessing import Preprocessing
from keylock.v1 import explanation_pb2 as pb
from keylock_server.requests import decoding_steps

PIXELS = np.random.default_rng(3).integers(0, 256, (8, 8)).astype(np.uint8)
PIXELS[0, 0] = 255


def prepared(values, *, bits, format_name):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format_name)
    (step,) = decoding_steps(
        [pb.Image(encoded=buffer.getvalue())],
        preprocessing=Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, bits=bits),
        limits=ImageLimits(),
    )
    return step(lambda _: None)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_a_model_of_12_bits_takes_files_of_12_bits(format_name):
    deep = PIXELS.astype(np.uint16) << 4

    found = prepared(deep, bits=12, format_name=format_name)

    np.testing.assert_array_equal(found, prepared(PIXELS, bits=None, format_name="PNG"))
    with pytest.raises(ImageError, match="nearly black"):
        prepared(deep, bits=None, format_name=format_name)
    with pytest.raises(ImageError, match="12 bits do not hold"):
        prepared(deep << 4, bits=12, format_name=format_name)
