"""Images of more than eight bits are scaled by the server as its model was trained."""

import io

import numpy as np
import pytest
from PIL import Image

from keylock.bundle import KeyFile
from keylock.bundle.write import write_bundle
from keylock.errors import ImageError
from keylock.imaging.decoding import ImageLimits
from keylock.imaging.preprocessing import Preprocessing
from keylock.v1 import explanation_pb2 as pb
from keylock_client import Client
from keylock_server.services.requests import SentImage, decoding_steps

PIXELS = np.random.default_rng(3).integers(0, 256, (8, 8)).astype(np.uint8)
PIXELS[0, 0] = 255


def prepared(values, *, bits, format_name):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format_name)
    (step,) = decoding_steps(
        [SentImage.of(pb.Image(encoded=buffer.getvalue()))],
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


def test_get_model_tells_how_deep_images_are_scaled(vendor, tiny, start_server, tmp_path):
    write_bundle(
        tmp_path / "deep.klb",
        vendor.content(preprocessing=tiny.preprocessing.model_copy(update={"bits": 12})),
        signing_key=vendor.signing_key,
        seed=vendor.seed,
        sealer=KeyFile.create(tmp_path / "key-file"),
    )
    calls = start_server(bundle=tmp_path / "deep.klb", key_file=tmp_path / "key-file")
    assert calls.explanation.GetModel(pb.GetModelRequest()).preprocessing.bits == 12
    buffer = io.BytesIO()
    Image.fromarray(PIXELS.astype(np.uint16) << 4).save(buffer, "PNG")
    with Client(calls.server.target) as client:
        assert client.model().preprocessing.bits == 12
        assert client.predict(buffer.getvalue()).probability == client.predict(PIXELS).probability
