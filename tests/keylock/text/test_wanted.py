"""What a schema asks for is said in words, for every kind of value that a setting can have."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr, TypeAdapter

from keylock.text.wanted import part, wanted


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Annotated[int, Field(ge=0, le=65535)], "a whole number from 0 to 65535"),
        (Annotated[int, Field(ge=1)] | None, "a whole number of at least 1"),
        (Annotated[float, Field(gt=0, allow_inf_nan=False)], "a number above 0"),
        (Annotated[float, Field(gt=0, le=0.5)], "a number above 0 and of at most 0.5"),
        (Annotated[float, Field(ge=0, lt=1)], "a number of at least 0 and below 1"),
        (float, "a number"),
        (Annotated[float, Field(ge=1e-6, le=1e6)], "a number from 0.000001 to 1000000"),
        (Annotated[int, Field(ge=0, le=2**53 - 1)], "a whole number from 0 to 9007199254740991"),
        (bool, "true or false"),
        (Literal["auto", "cpu", "cuda"], "auto, cpu or cuda"),
        (Literal["one"], "one"),
        (str, "a text"),
        (SecretStr | None, "a text"),
        (Annotated[str, Field(min_length=1)], "a text that is not empty"),
        (Annotated[str, Field(min_length=2)], "a text of at least 2 characters"),
        (Annotated[str, Field(min_length=1, max_length=9)], "a text of 1 to 9 characters"),
        (Path, "a path"),
        (tuple[str, ...], "a list of texts"),
        (Path | tuple[Path, ...] | None, "a path or a list of paths"),
        (tuple[Annotated[int, Field(ge=1)], ...], "a list of values, each of them a whole number of at least 1"),
        (dict[str, Annotated[int, Field(ge=0, le=9)]], "names, each with a whole number from 0 to 9"),
    ],
)
def test_a_schema_is_said_in_words(kind, words):
    assert wanted(TypeAdapter(kind).json_schema()) == words


class Inner(BaseModel):
    share: Annotated[float, Field(ge=0, le=1)] = 0


class Outer(BaseModel):
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}


@pytest.mark.parametrize(
    "place", [("inner", "share"), ("several", 3, "share"), ("named", "any", "share"), ("named", "inner", "share")]
)
def test_the_schema_of_a_part_is_found(place):
    assert wanted(part(Outer.model_json_schema(), place)) == "a number from 0 to 1"


def test_a_part_with_parts_is_a_table_of_their_names():
    class Wrapper(BaseModel):
        outer: Outer = Outer()

    assert wanted(part(Wrapper.model_json_schema(), ["outer"])) == "a table of inner, several, named"


@pytest.mark.parametrize("place", [("outer",), ("inner", "other"), ("inner", 0), ("several", "share"), ("named", 1)])
def test_what_is_no_part_has_a_schema_that_says_nothing(place):
    assert part(Outer.model_json_schema(), place) == {}


def test_a_schema_of_another_kind_is_said_to_want_another_value():
    assert wanted({}) == "another value"
