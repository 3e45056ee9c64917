"""conditions.py: a condition as a person writes it, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylock.errors import InputError
from keylock.text.conditions import parse_condition
from keylock.v1 import explanation_pb2 as pb


def classes(labels=(), indices=()):
    return pb.ExplainIf(predicted=pb.ClassSet(labels=labels, indices=indices))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("probability < 0.8", pb.ExplainIf(probability_below=0.8)),
        ("probability<1", pb.ExplainIf(probability_below=1.0)),
        ("  margin <.25 ", pb.ExplainIf(margin_below=0.25)),
        ("class in cat", classes(["cat"])),
        ("class in cat, dog,  7", classes(["cat", "dog"], [7])),
        ('class in "great white shark, white shark", tench', classes(["great white shark, white shark", "tench"])),
        ('class in "7", 8', classes(["7"], [8])),
        ("class in Katze, 猫", classes(["Katze", "猫"])),
    ],
)
def test_condition_is_read(text, expected):
    assert parse_condition(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write 'probability < 0.8'"),
        ("probability", "write"),
        ("probability > 0.8", "write"),
        ("confidence < 0.8", "write"),
        ("probability < often", "write"),
        ("probability < 0", "above 0 and at most 1"),
        ("margin < 1.5", "above 0 and at most 1"),
        ("margin < nan", "above 0 and at most 1"),
        ("class in ", "write"),
        ("class in cat,,dog", "is empty"),
        ('class in "cat', "double quotes"),
        ("class in cat\ndog", "double quotes"),
        ("x" * 200_000, r"\.\.\."),
    ],
)
def test_what_is_no_condition_is_refused(text, said):
    with pytest.raises(InputError, match=said) as caught:
        parse_condition(text)
    assert len(caught.value.message) < 300


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text):
    for form in (text, f"class in {text}", f"probability < {text}"):
        try:
            assert parse_condition(form).WhichOneof("condition")
        except InputError:
            continue
