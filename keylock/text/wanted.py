"""What a value must be, in words, from the JSON schema of what it is part of: for people who gave another."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

__all__ = ["part", "wanted"]


def part(schema: Mapping[str, Any], place: Iterable[str | int]) -> Mapping[str, Any]:
    """Return the schema of a part of what a schema describes.

    Args:
        schema: As pydantic writes it, with its definitions.
        place: Names and numbers that lead to the part, as pydantic gives the place of an error.

    Returns:
        The schema of the part; one that says nothing where there is no such part.
    """
    found = [schema]
    for step in place:
        found = [below for one in found for whole in _branches(one, schema) if (below := _below(whole, step))]
    if found and "$ref" in found[0]:
        return _branches(found[0], schema)[0]
    return found[0] if found else {}


def _branches(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what a schema refers to, or what each of several that it allows refers to."""
    if "anyOf" in schema:
        return [branch for one in schema["anyOf"] for branch in _branches(one, root)]
    if "$ref" in schema:
        return _branches(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    return [schema]


def _below(schema: Mapping[str, Any], step: str | int) -> Mapping[str, Any] | None:
    found = schema.get("items") if isinstance(step, int) else schema.get("properties", {}).get(step)
    if found is None and isinstance(step, str):
        found = schema.get("additionalProperties")
    return found if isinstance(found, Mapping) else None


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
    if kind == "object" and "properties" in schema:
        return f"a table of {', '.join(schema['properties'])}"
    if kind == "object":
        return f"names, each with {wanted(schema.get('additionalProperties') or {})}"
    if kind == "string":
        return ("a path" if schema.get("format") == "path" else "a text") + _length(schema)
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


def _length(schema: Mapping[str, Any]) -> str:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if most is not None:
        return f" of {least} to {most} characters"
    return "" if not least else " that is not empty" if least == 1 else f" of at least {least} characters"


def _number(value: float) -> str:
    """Return a number without an exponent and without zeros at its end."""
    return f"{Decimal(repr(value)).normalize():f}"
