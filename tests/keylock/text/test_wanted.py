"""What a schema asks for is said in words, for every kind of value that a setting can have."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, SecretStr, TypeAdapter

from keylock.text.wanted import wanted


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Annotated[int, Field(ge=0, le=65535)], "a whole number from 0 to 65535"),
        (Annotated[int, Field(ge=1)] | None, "a whole number of at least 1"),
        (Annotated[float, Field(gt=0, allow_inf_nan=False)], "a number above 0"),
        (Annotated[float, Field(gt=0, le=0.5)], "a number above 0 and of at most 0.5"),
        (Annotated[float, Field(ge=0, lt=1)], "a number of at least 0 and below 1"),
        (float, "a number"),
        (bool, "true or false"),
        (Literal["auto", "cpu", "cuda"], "auto, cpu or cuda"),
        (Literal["one"], "one"),
        (str, "a text"),
        (SecretStr | None, "a text"),
        (Annotated[str, Field(min_length=1)], "a text that is not empty"),
        (Path, "a path"),
        (tuple[str, ...], "a list of texts"),
        (Path | tuple[Path, ...] | None, "a path or a list of paths"),
        (tuple[Annotated[int, Field(ge=1)], ...], "a list of values, each of them a whole number of at least 1"),
        (dict[str, Annotated[int, Field(ge=0, le=9)]], "names, each with a whole number from 0 to 9"),
    ],
)
def test_a_schema_is_said_in_words(kind, words):
    assert wanted(TypeAdapter(kind).json_schema()) == words


def test_a_schema_of_another_kind_is_said_to_want_another_value():
    assert wanted({}) == "another value"
