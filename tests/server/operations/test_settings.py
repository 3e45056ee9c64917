"""Settings come from file, environment and flags in this order, and say clearly what is wrong with them."""

import pickle
from pathlib import Path

import pytest

from keylock.errors import InputError
from keylock_server import ServerSettings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("KEYLOCK_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text('bundle = "a.klb"\nport = 1\nhost = "::1"\nissuers = ["a.pem", "b.pem"]\ndrain_s = 3.5\n')
    return path


def test_file_then_environment_then_flags(config, monkeypatch):
    assert ServerSettings.load(config=config).port == 1
    monkeypatch.setenv("KEYLOCK_SERVER_PORT", "2")
    assert ServerSettings.load(config=config).port == 2
    settings = ServerSettings.load(config=config, port=3, host=None)
    assert (settings.port, settings.host, settings.drain_s) == (3, "::1", 3.5)
    assert settings.issuers == (Path("a.pem"), Path("b.pem"))


def test_environment_alone_is_enough(monkeypatch):
    monkeypatch.setenv("KEYLOCK_SERVER_BUNDLE", "x.klb")
    monkeypatch.setenv("KEYLOCK_SERVER_ISSUERS", '["a.pem"]')
    monkeypatch.setenv("KEYLOCK_SERVER_KEYLESS", "true")
    settings = ServerSettings.load()
    assert (settings.bundle, settings.issuers, settings.keyless) == (Path("x.klb"), (Path("a.pem"),), True)


def test_passphrase_comes_from_its_own_variable_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("KEYLOCK_KEY_PASSPHRASE", "hunter2-hunter2")
    settings = ServerSettings.load(bundle="x")
    assert settings.key_passphrase.get_secret_value() == "hunter2-hunter2"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


def test_settings_are_frozen_and_default_to_the_local_machine():
    settings = ServerSettings.load(bundle="x")
    assert (settings.host, settings.port, settings.unlicensed_explanations) == ("127.0.0.1", 8470, "decoy")
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({}, "bundle"),
        ({"bundle": "x", "port": 70000}, "port"),
        ({"bundle": "x", "unlicensed_explanations": "maybe"}, "unlicensed_explanations"),
        ({"bundle": "x", "colour": "red"}, "colour"),
        ({"bundle": "x", "tls_key": "k.pem"}, "go together"),
        ({"bundle": "x", "tls_client_ca": "k.pem"}, "needs tls_certificate"),
        ({"bundle": "x", "key_file": "a", "key_seed_file": "b"}, "one way to the key"),
        ({"bundle": "x", "key_file": "a", "keyless": True}, "exclude each other"),
        ({"bundle": "x", "deadline_s": 0}, "deadline_s"),
        ({"bundle": "x", "queue": 16, "max_images": 17}, "has no room"),
    ],
)
def test_wrong_settings_are_named(values, match):
    with pytest.raises(InputError, match=match):
        ServerSettings.load(**values)


@pytest.mark.parametrize(
    ("file", "environment", "arguments", "said"),
    [
        ("", {}, {"port": 70000}, "port= is wrong: give a whole number from 0 to 65535"),
        ("port = 70000", {}, {}, "the server setting port is wrong: give a whole number from 0 to 65535"),
        ("", {"PORT": "many"}, {}, "the server setting port is wrong: give a whole number from 0 to 65535"),
        ("", {"port": "70000"}, {"port": -1}, "port= is wrong: give a whole number from 0 to 65535"),
        ("key_file = 3", {}, {}, "the server setting key_file is wrong: give a path or a list of paths"),
        (
            "[prices]\ngrad_cam = -1",
            {},
            {},
            "the server setting prices is wrong at 'grad_cam': give a whole number from 0 to 1000000",
        ),
        (
            "prices = 3",
            {},
            {},
            "the server setting prices is wrong: give names, each with a whole number from 0 to 1000000",
        ),
        ("issuers = 'a.pem'", {}, {}, "the server setting issuers is wrong: give a list of paths"),
        ("keyless = 3.5", {}, {}, "the server setting keyless is wrong: give true or false"),
        ("drain_s = 0", {}, {}, "the server setting drain_s is wrong: give a number above 0"),
        ("colour = 1", {}, {}, "there is no server setting 'colour': docs/server.md lists all of them"),
        ("", {"ISSUERS": "a.pem"}, {}, "KEYLOCK_SERVER_ISSUERS is malformed: lists are written as JSON"),
        (
            "",
            {},
            {"key_file": "a", "key_seed_file": "b"},
            "key_file= and key_seed_file= were given: one way to the key is enough",
        ),
        (
            "key_file = 'a'",
            {"KEY_SEED_FILE": "b"},
            {},
            "the server settings are wrong: key_file and key_seed_file were given: one way to the key is enough",
        ),
        ("key_file = 'a'", {}, {"key_seed_file": "b"}, "key_file and key_seed_file= were given"),
        ("", {"KEY_FILE": "a"}, {"keyless": True}, "keyless= and key_file exclude each other"),
        # What was given nowhere is called like what was.
        ("", {}, {"tls_client_ca": "c"}, "tls_client_ca= needs tls_certificate= and tls_key="),
        (
            "tls_client_ca = 'c'",
            {},
            {},
            "the server settings are wrong: tls_client_ca needs tls_certificate and tls_key",
        ),
        ("http_cors_origins = ['*']", {}, {}, "the server settings are wrong: http_cors_origins needs http_port"),
        ("http_port = 9000", {}, {"port": 9000}, "http_port and port= are the same"),
        ("", {}, {"queue": 1}, "queue= (1) has no room for a request of max_images= (32): raise the first"),
        (
            "queue = 1",
            {},
            {},
            "the server settings are wrong: queue (1) has no room for a request of max_images (32): raise the first",
        ),
    ],
)
def test_settings_are_called_as_they_were_given(tmp_path, monkeypatch, file, environment, arguments, said):
    config = tmp_path / "server.toml"
    config.write_text(file)
    for name, value in environment.items():
        monkeypatch.setenv(f"KEYLOCK_SERVER_{name}", value)
    with pytest.raises(InputError) as caught:
        ServerSettings.load(config=config, bundle="x", **arguments)
    assert caught.value.message.startswith(said)


def test_no_setting_is_described_in_the_words_of_pydantic(monkeypatch):
    # Nothing is of such a type, and every setting says what it takes in its place.
    for name in ServerSettings.model_fields:
        if name in ("config", "key_passphrase"):
            continue
        with pytest.raises(InputError) as caught:
            ServerSettings.load(**{"bundle": "x", name: object()})
        assert caught.value.message.startswith(f"{name}= is wrong: give "), name
        assert "another value" not in caught.value.message


def test_a_bundle_that_is_missing_is_asked_for():
    with pytest.raises(InputError, match=r"^no bundle is set: give one, or set it as KEYLOCK_SERVER_BUNDLE or in the"):
        ServerSettings.load()


def test_settings_know_which_of_them_were_arguments(config):
    settings = ServerSettings.load(config=config, port=3, host=None)
    assert [settings.called(name) for name in ("port", "host", "bundle")] == ["port=", "host", "bundle"]
    assert settings.model_copy(update={"workers": 2}).called("port") == "port="
    assert pickle.loads(pickle.dumps(settings)).called("port") == "port="  # noqa: S301 - our own


def test_values_are_not_repeated_in_errors():
    with pytest.raises(InputError) as caught:
        ServerSettings.load(bundle="x", port="secret-value")
    assert "secret-value" not in caught.value.message


def test_malformed_lists_in_the_environment_are_explained(monkeypatch):
    monkeypatch.setenv("KEYLOCK_SERVER_ISSUERS", "a.pem")
    with pytest.raises(InputError, match="JSON"):
        ServerSettings.load(bundle="x")


@pytest.mark.parametrize(
    ("text", "match"), [(None, "cannot read"), ("port = = 1", "no TOML"), ("colour = 1", "colour")]
)
def test_unusable_files_are_explained(tmp_path, text, match):
    path = tmp_path / "server.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=match):
        ServerSettings.load(config=path, bundle="x")
