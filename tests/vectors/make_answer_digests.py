"""Prints the known-answer vectors of the digests of answers with `hashlib` and `struct` alone: no code of keylock runs.

Use: python tests/vectors/make_answer_digests.py > tests/vectors/answer_digests.json
"""

import hashlib
import json
import struct
import sys

ANSWERS = [
    {
        "prediction": {
            "index": 1,
            "label": "heart",
            "probability": 0.75,
            "logits": [-1.5, 3.25, 0.0],
            "top": [[1, "heart", 0.75], [2, "ring", 0.1875], [0, "cross", 0.0625]],
            "keyed": False,
        },
        "target": [1, "heart", 0.75],
        "map": {"dtype": "float32", "shape": [2, 2], "elements": [0.0, 0.5, 1.0, 0.25]},
        "scaling": None,
    },
    {
        "prediction": {
            "index": 0,
            "label": 'M\u00e4use "a\\b" \U0001f42d\u007f\t',
            "probability": 1.0,
            "logits": [1e30, -0.0],
            "top": [[0, 'M\u00e4use "a\\b" \U0001f42d\u007f\t', 1.0], [1, "", 1e-45]],
            "keyed": True,
        },
        "target": [1, "", 1e-45],
        "map": {"dtype": "uint8", "shape": [1, 3], "elements": [0, 128, 255]},
        "scaling": [0.1, 2.5],
    },
    {
        "prediction": {"index": 0, "label": "", "probability": 0.0, "logits": [], "top": [], "keyed": False},
        "target": [0, "", 0.0],
        "map": {"dtype": "float16", "shape": [3, 1], "elements": [0.0, 1.0, 0.333251953125]},
        "scaling": [1e-300, 0.0],
    },
]
FORMS = {"float32": "<f", "float16": "<e", "uint8": "<B"}
SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def text(value: str) -> str:
    """A JSON string as RFC 8785 writes it: as it is, but for quotes, backslashes and what is below a space."""
    return '"' + "".join(SHORT.get(c, f"\\u{ord(c):04x}" if c < " " else c) for c in value) + '"'


def bits(form: str, value: float) -> str:
    return text("".join(f"{byte:02x}" for byte in struct.pack(form, value)))


def array(dtype: str, shape: list[int], elements: list[float]) -> str:
    line = dtype + " " + ",".join(str(side) for side in shape) + "\n"
    return digest(line.encode("ascii") + b"".join(struct.pack(FORMS[dtype], one) for one in elements))


def score(one: list) -> str:
    return '{"index":' + str(one[0]) + ',"label":' + text(one[1]) + ',"probability":' + bits(">f", one[2]) + "}"


def prediction(told: dict) -> str:
    return digest(
        (
            '{"index":'
            + str(told["index"])
            + ',"keyed":'
            + ("true" if told["keyed"] else "false")
            + ',"label":'
            + text(told["label"])
            + ',"logits":'
            + text(array("float32", [len(told["logits"])], told["logits"]))
            + ',"probability":'
            + bits(">f", told["probability"])
            + ',"top":['
            + ",".join(score(one) for one in told["top"])
            + "]}"
        ).encode("utf-8")
    )


def scaling(told: list | None) -> str | None:
    if told is None:
        return None
    return digest(('{"offset":' + bits(">d", told[1]) + ',"scale":' + bits(">d", told[0]) + "}").encode("ascii"))


def main() -> None:
    found = [
        {
            "maps": array(one["map"]["dtype"], one["map"]["shape"], one["map"]["elements"]),
            "predictions": prediction(one["prediction"]),
            "scalings": scaling(one["scaling"]),
            "targets": digest(score(one["target"]).encode("utf-8")),
        }
        for one in ANSWERS
    ]
    whole = ",".join(
        text(part) + ":[" + ",".join("null" if one[part] is None else text(one[part]) for one in found) + "]"
        for part in ("maps", "predictions", "scalings", "targets")
    )
    vectors = {"answers": ANSWERS, "digests": found, "digest": digest(("{" + whole + "}").encode("ascii"))}
    json.dump(vectors, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
