"""Labels as a server sends them, and what is none."""

import pytest

from keylock.inference import inference_pb2 as oip
from keylock_client import BadAnswerError
from keylock_client._answers import labels

CLASSES = ("cat", "d\u00f6g", "cat d\u00f6g")


def packed(*names):
    return b"".join(len(name.encode()).to_bytes(4, "little") + name.encode() for name in names)


def answer(*raw, name="label", datatype="BYTES", shape=(2,)):
    made = oip.ModelInferResponse(raw_output_contents=raw)
    made.outputs.add(name=name, datatype=datatype, shape=shape)
    return made


def test_labels_are_read_in_their_order():
    for names in (("cat", "d\u00f6g"), ("cat d\u00f6g", "cat")):
        assert labels(answer(packed(*names)), count=2, classes=CLASSES) == list(names)


@pytest.mark.parametrize(
    "told",
    [
        answer(packed("cat", "dog")),
        answer(packed("cat")),
        answer(packed("cat", "cat", "cat")),
        answer(packed("cat", "cat") + b"\0"),
        answer(packed("cat", "cat")[:-1]),
        answer(b""),
        answer(),
        answer(bytes(2**24)),
        answer(b"\xff" * 64),
        answer(packed("cat", "cat"), name="logits"),
        answer(packed("cat", "cat"), shape=(3,)),
        answer(packed("cat", "cat"), datatype="FP32"),
        oip.ModelInferResponse(),
    ],
)
def test_what_is_no_label_of_each_image_is_an_error(told):
    with pytest.raises(BadAnswerError):
        labels(told, count=2, classes=CLASSES)
