"""The digests of answers, against vectors that a second implementation made."""

import json
from pathlib import Path

import numpy as np
import pytest

from keylock.crypto.digests import digest_of
from keylock.licensing.answers import digests_of, image_digest
from keylock.v1 import explanation_pb2 as pb

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "answer_digests.json").read_text("utf-8"))
DTYPES = {"float32": pb.DATA_TYPE_FLOAT32, "float16": pb.DATA_TYPE_FLOAT16, "uint8": pb.DATA_TYPE_UINT8}


def score(told):
    return pb.ClassScore(index=told[0], label=told[1], probability=told[2])


def explanation(told):
    said, saliency = told["prediction"], told["map"]
    elements = np.array(saliency["elements"], np.dtype(saliency["dtype"]).newbyteorder("<"))
    return pb.Explanation(
        prediction=pb.Prediction(**said | {"top": [score(one) for one in said["top"]]}),
        target=score(told["target"]),
        map=pb.Tensor(dtype=DTYPES[saliency["dtype"]], shape=saliency["shape"], data=elements.tobytes()),
        scaling=told["scaling"] and pb.Scaling(scale=told["scaling"][0], offset=told["scaling"][1]),
    )


def test_digests_of_answers_are_those_of_the_second_implementation():
    results = [explanation(told) for told in VECTORS["answers"]]
    found = digests_of(results)
    for part in ("maps", "predictions", "scalings", "targets"):
        assert list(getattr(found, part)) == [one[part] for one in VECTORS["digests"]], part
    assert found.digest() == VECTORS["digest"]


def test_maps_beside_their_messages_have_the_same_digests():
    results = [explanation(told) for told in VECTORS["answers"]]
    whole = digests_of(results)
    maps = [bytearray(one.map.data) for one in results]
    for one in results:
        one.map.ClearField("data")
    assert digests_of(results, maps) == whole


def test_an_image_is_named_by_its_file_or_by_type_shape_and_elements():
    assert image_digest(pb.Image(encoded=b"file")) == digest_of(b"file")
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[1, 2], data=b"ab")
    assert image_digest(pb.Image(tensor=tensor)) == digest_of(b"uint8 1,2\nab")
    tensor.dtype = pb.DATA_TYPE_FLOAT32
    assert image_digest(pb.Image(tensor=tensor)) == digest_of(b"float32 1,2\nab")


@pytest.mark.parametrize("told", VECTORS["answers"])
def test_zero_has_two_signs_and_a_scaling_that_changes_nothing_is_none_the_less_one(told):
    one, other = explanation(told), explanation(told)
    other.scaling.SetInParent()
    one.target.probability, other.target.probability = 0.0, -0.0
    first, second = digests_of([one]), digests_of([other])
    assert first.targets != second.targets
    assert second.scalings[0] is not None
