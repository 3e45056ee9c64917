"""Where logins come from: keylock's variables, then what `docker login` left, in each of its forms."""

import json
import pickle

import pytest
from oci_registry import basic

from keylock.errors import InputError
from keylock.registries import find_credentials

HOST = "registry.example.com"


@pytest.fixture
def docker(tmp_path):
    """Writes a config.json and gives the variables with which it is found."""

    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "config.json").write_text(text)
        return {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}

    return write


@pytest.fixture
def helper(tmp_path):
    """Makes a credential helper that answers with some shell commands."""

    def write(commands, name="tests"):
        path = tmp_path / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\nread host\n{commands}\n")
        path.chmod(0o755)

    return write


def login(environment, host=HOST):
    found = find_credentials(host, environment)
    return None if found is None else (found.user, found.reveal(), found.is_token)


def test_variables_come_first(docker):
    environment = docker({"auths": {HOST: {"auth": basic("other", "x")}}})
    both = {"KEYLOCK_REGISTRY_USER": "me", "KEYLOCK_REGISTRY_PASSWORD": "secret"}
    assert login(environment | both) == ("me", "secret", False)
    assert login(environment) == ("other", "x", False)
    for name in both:
        with pytest.raises(InputError, match="is not set: set both") as caught:
            login({**environment, name: both[name]})
        assert "secret" not in str(caught.value)


def test_there_may_be_none(tmp_path, docker):
    assert login({"HOME": str(tmp_path)}) is None
    assert login(docker({})) is None
    assert login(docker({"auths": {"another.example.com": {"auth": basic("a", "b")}}})) is None
    assert login(docker({"auths": {HOST: {}}})) is None


def test_the_home_folder_is_looked_into(tmp_path):
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(json.dumps({"auths": {HOST: {"auth": basic("a", "b:c")}}}))
    assert login({"HOME": str(tmp_path)}) == ("a", "b:c", False)


@pytest.mark.parametrize("name", [HOST, f"https://{HOST}", f"https://{HOST}/v1/"])
def test_an_entry_has_several_spellings(docker, name):
    assert login(docker({"auths": {name: {"auth": basic("a", "b")}}})) == ("a", "b", False)


def test_an_identity_token_is_one(docker):
    entry = {"auth": basic("00000000", ""), "identitytoken": "a.b.c"}
    assert login(docker({"auths": {HOST: entry}})) == ("", "a.b.c", True)


def test_a_helper_is_asked(docker, helper):
    helper('printf \'{"ServerURL": "%s", "Username": "who", "Secret": "%s-secret"}\' "$host" "$host"')
    assert login(docker({"credHelpers": {HOST: "tests"}})) == ("who", f"{HOST}-secret", False)
    assert login(docker({"credsStore": "tests", "auths": {HOST: {}}})) == ("who", f"{HOST}-secret", False)
    hub = docker({"credsStore": "tests", "auths": {}})
    assert login(hub, "docker.io") == ("who", "https://index.docker.io/v1/-secret", False)


def test_a_helper_may_give_a_token_or_nothing(docker, helper):
    helper('echo \'{"Username": "<token>", "Secret": "t"}\'')
    assert login(docker({"credsStore": "tests"})) == ("", "t", True)
    helper("echo credentials not found in native keychain; exit 1")
    assert login(docker({"credsStore": "tests"})) is None


def test_a_helper_that_fails_is_said_without_what_it_printed(docker, helper):
    for commands in ("echo secret; exit 3", "echo secret", "echo '{\"Username\": 1}'"):
        helper(commands)
        with pytest.raises(InputError, match="docker-credential-tests") as caught:
            login(docker({"credsStore": "tests"}))
        assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match=r"docker-credential-none.*is not installed"):
        login(docker({"credsStore": "none"}))
    with pytest.raises(InputError, match="is a path"):
        login(docker({"credsStore": "../../tmp/evil"}))


@pytest.mark.parametrize(
    "content", ["no json", "[]", '{"auths": 3}', '{"auths": {"registry.example.com": {"auth": "%%"}}}',
                '{"auths": {"registry.example.com": {"auth": "YWJj"}}}']
)  # fmt: skip
def test_a_damaged_file_is_said(docker, content):
    with pytest.raises(InputError, match=r"config\.json is not what `docker login` writes"):
        login(docker(content))


def test_credentials_are_opaque(docker):
    found = find_credentials(HOST, docker({"auths": {HOST: {"auth": basic("a", "secret")}}}))
    assert "secret" not in repr(found)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(found)
