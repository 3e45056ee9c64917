"""conditions.py: what a condition says of a prediction, and that its one spelling is read back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylock.errors import InputError, UnknownNameError
from keylock.licensing.conditions import Condition
from keylock.v1 import explanation_pb2 as pb

CLASSES = ("cat", "dog", "great white shark, white shark")

below = st.floats(0, 1, exclude_min=True)
conditions = st.one_of(
    st.builds(Condition, st.sampled_from(["probability_below", "margin_below"]), below=below),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, unique=True).map(
        lambda found: Condition("predicted", classes=tuple(sorted(found)))
    ),
)


def told(*probabilities):
    """A prediction of as many classes, the most probable first in `top`."""
    order = sorted(range(len(probabilities)), key=lambda index: -probabilities[index])
    scores = [pb.ClassScore(index=index, probability=probabilities[index]) for index in order]
    return pb.Prediction(index=order[0], probability=probabilities[order[0]], top=scores)


@pytest.mark.parametrize(
    ("condition", "probabilities", "holds"),
    [
        (Condition("probability_below", below=0.75), (0.5, 0.25, 0.25), True),
        (Condition("probability_below", below=0.75), (0.75, 0.25, 0.0), False),
        (Condition("probability_below", below=1.0), (1.0, 0.0, 0.0), False),
        (Condition("margin_below", below=0.25), (0.25, 0.375, 0.375), True),
        (Condition("margin_below", below=0.25), (0.25, 0.5, 0.25), False),
        (Condition("margin_below", below=0.5), (1.0,), False),
        (Condition("predicted", classes=(0, 2)), (0.25, 0.25, 0.5), True),
        (Condition("predicted", classes=(0, 2)), (0.25, 0.5, 0.25), False),
    ],
)
def test_condition_holds_for_what_it_says(condition, probabilities, holds):
    assert condition.holds(told(*probabilities)) is holds


def test_probabilities_are_those_of_the_answer_in_single_precision():
    # In float32 it is a little more than 0.8, and so it is answered.
    assert pb.Prediction(probability=0.8).probability > 0.8
    assert not Condition("probability_below", below=0.8).holds(told(0.8, 0.2))


@given(conditions)
def test_what_a_condition_says_is_read_back(condition):
    said = condition.said()
    assert Condition.read(said) == condition
    assert all(not isinstance(value, float) for value in said.values())


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"probability_below": "3ff0000000000000", "margin_below": "3ff0000000000000"},
        {"probability_below": 0.5},
        {"probability_below": "3FE0000000000000"},
        {"probability_below": "3fe00000"},
        {"probability_below": "0000000000000000"},
        {"probability_below": "7ff8000000000000"},
        {"margin_below": "4000000000000000"},
        {"predicted": []},
        {"predicted": [2, 1]},
        {"predicted": [1, 1]},
        {"predicted": [-1]},
        {"predicted": [True]},
        {"predicted": ["cat"]},
        {"entropy_above": "3fe0000000000000"},
    ],
    ids=str,
)
def test_what_no_condition_says_is_refused(said):
    with pytest.raises(ValueError, match=r".*"):
        Condition.read(said)


def test_condition_of_a_message_names_classes_by_their_indices():
    chosen = pb.ClassSet(labels=["great white shark, white shark", " cat "], indices=[0, 1])
    assert Condition.of(pb.ExplainIf(predicted=chosen), CLASSES) == Condition("predicted", classes=(0, 1, 2))
    assert Condition.of(pb.ExplainIf(margin_below=0.5), CLASSES) == Condition("margin_below", below=0.5)


@pytest.mark.parametrize(
    ("message", "field", "said"),
    [
        (pb.ExplainIf(), None, "names no condition"),
        (pb.ExplainIf(probability_below=0), "probability_below", "above 0 and at most 1"),
        (pb.ExplainIf(probability_below=1.5), "probability_below", "is 1.5"),
        (pb.ExplainIf(margin_below=math.nan), "margin_below", "is nan"),
        (pb.ExplainIf(margin_below=-math.inf), "margin_below", "is -inf"),
        (pb.ExplainIf(predicted=pb.ClassSet()), "predicted", "names no class"),
        (pb.ExplainIf(predicted=pb.ClassSet(indices=[3])), "predicted.indices", "the model has 3 classes, 0 to 2"),
        (pb.ExplainIf(predicted=pb.ClassSet(indices=[-1])), "predicted.indices", "class -1 does not exist"),
    ],
    ids=str,
)
def test_message_that_is_no_condition_is_refused_with_its_field(message, field, said):
    with pytest.raises(InputError, match=said) as caught:
        Condition.of(message, CLASSES)
    assert caught.value.field == field


def test_unknown_class_is_refused_with_those_there_are():
    with pytest.raises(UnknownNameError, match="cat"):
        Condition.of(pb.ExplainIf(predicted=pb.ClassSet(labels=["cow"])), CLASSES)
