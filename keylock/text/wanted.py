"""What a value must be, in words, from the JSON schema of a setting: for people who gave another."""

from collections.abc import Mapping
from typing import Any

__all__ = ["wanted"]


def wanted(schema: Mapping[str, Any]) -> str:
    """Return what a schema asks for, to follow the word "give".

    Args:
        schema: As pydantic writes it for a type of text, number, truth value, choice, list or mapping, or for several
            of these.

    Returns:
        For example `a whole number from 0 to 65535`, or `a path or a list of paths`.
    """
    if "anyOf" in schema:
        return " or ".join(wanted(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        *others, last = map(str, schema["enum"])
        return f"{', '.join(others)} or {last}" if others else last
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    if kind == "boolean":
        return "true or false"
    if kind == "array":
        return f"a list of {_several(schema.get('items', {}))}"
    if kind == "object":
        return f"names, each with {wanted(schema.get('additionalProperties') or {})}"
    if kind == "string":
        text = "a path" if schema.get("format") == "path" else "a text"
        return f"{text} that is not empty" if schema.get("minLength") else text
    return "another value"


def _several(schema: Mapping[str, Any]) -> str:
    if schema.get("type") == "string":
        return "paths" if schema.get("format") == "path" else "texts"
    return f"values, each of them {wanted(schema)}"


def _range(schema: Mapping[str, Any]) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f" from {_number(least)} to {_number(most)}"
    bounds = [
        f" {words} {_number(bound)}"
        for words, bound in (("above", above), ("of at least", least), ("below", below), ("of at most", most))
        if bound is not None
    ]
    return " and".join(bounds)


def _number(value: float) -> str:
    return f"{value:.15g}"
