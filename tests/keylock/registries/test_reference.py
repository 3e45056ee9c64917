"""Places in registries, as container tools read them."""

import pytest

from keylock.errors import InputError
from keylock.registries import Reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "parts", "local"),
    [
        ("registry.example.com/acme/shapes:1", ("registry.example.com", "acme/shapes", "1", None), False),
        ("registry.example.com/shapes", ("registry.example.com", "shapes", "latest", None), False),
        (f"example.com:5000/a/b-c/d_e@{DIGEST}", ("example.com:5000", "a/b-c/d_e", "latest", DIGEST), False),
        (f"localhost:5000/m:v1.0@{DIGEST}", ("localhost:5000", "m", "v1.0", DIGEST), True),
        ("localhost/m", ("localhost", "m", "latest", None), True),
        ("127.0.0.1:80/m", ("127.0.0.1:80", "m", "latest", None), True),
        ("[::1]:5000/m", ("[::1]:5000", "m", "latest", None), True),
        ("localhost.example.com/m", ("localhost.example.com", "m", "latest", None), False),
    ],
)
def test_a_place_is_read(text, parts, local):
    found = Reference.parse(text)
    assert (found.host, found.name, found.tag, found.digest) == parts
    assert found.is_local is local
    assert Reference.parse(str(found)).manifest == found.manifest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "shapes",
        "acme/shapes:1",
        "https://example.com/a",
        "example.com/A",
        "example.com/a/../b",
        "example.com/a:",
        "example.com/a@sha256:12",
        "user:password@example.com/a",
        "example.com/" + "a" * 256,
        "example.com/a b",
        "example.com\n/a",
        "example.com:123456/a",
    ],
)
def test_what_is_no_place_is_refused(text):
    with pytest.raises(InputError, match="is no place in a registry: give HOST/NAME:TAG"):
        Reference.parse(text)
