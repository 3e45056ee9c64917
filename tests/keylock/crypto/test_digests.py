"""Digests of images and maps: what anybody computes with sha256sum or NumPy."""

import hashlib

import numpy as np

from keylock.crypto.digests import digest_of, digest_of_array


def test_the_digest_of_a_file_is_that_of_sha256sum():
    # The example of FIPS 180-2, appendix B.1.
    assert digest_of(b"abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_an_array_covers_type_shape_and_elements():
    data = np.arange(6, dtype="<f4")
    found = digest_of_array("float32", (2, 3), data.tobytes())
    assert found == "sha256:" + hashlib.sha256(b"float32 2,3\n" + data.tobytes()).hexdigest()
    others = [
        digest_of_array("float32", (3, 2), data.tobytes()),
        digest_of_array("uint8", (2, 3), data.tobytes()),
        digest_of_array("float32", (2, 3), data[::-1].tobytes()),
        digest_of_array("float32", (6,), data.tobytes()),
    ]
    assert len({found, *others}) == 5
