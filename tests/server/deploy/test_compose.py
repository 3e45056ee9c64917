"""What runs on one machine by compose: its files are there, its commands too, and no secret stands in it."""

import re
from pathlib import Path

import pytest
from command_lines import parse

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).parents[3] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVERS = ("keylock-1", "keylock-2", "keylock-3")


def test_services_are_those_of_the_configurations():
    assert set(COMPOSE["services"]) == {*SERVERS, "migrate", "database", "balancer", "prometheus", "grafana"}
    balancer = COMPOSE["services"]["balancer"]
    assert balancer["environment"] == {f"KEYLOCK_{n}": f"keylock-{n}:8470" for n in (1, 2, 3)}
    (job, _) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"{server}:9464" for server in SERVERS]}]


def test_every_file_that_is_mounted_is_there():
    made = {"./models"}
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert source in made or (DEPLOY / source).exists()
            else:
                assert source in COMPOSE["volumes"]
        for secret in service.get("secrets", ()):
            assert secret in COMPOSE["secrets"]
        for name in service.get("depends_on", ()):
            assert name in COMPOSE["services"]


def test_without_a_folder_of_secrets_nothing_begins_and_the_reason_is_said():
    """As compose reads `${NAME:?why}`; where a file is missing in the folder, it names that file by itself."""
    files = [secret["file"] for secret in COMPOSE["secrets"].values()]
    read = [re.fullmatch(r"\$\{(\w+)(?::\?([^}]+))?\}/[\w.]+", file).groups() for file in files]
    names, reasons = zip(*read, strict=True)
    assert set(names) == {"KEYLOCK_SECRETS"}
    [why] = filter(None, reasons)
    assert "docs/operating.md" in why
    assert "KEYLOCK_SECRETS=./secrets" in why


def test_every_secret_is_a_file_that_the_page_names():
    page = (DEPLOY.parent / "docs" / "operating.md").read_text("utf-8")
    for secret in COMPOSE["secrets"].values():
        assert f"`{secret['file'].rpartition('/')[2]}`" in page


@pytest.mark.parametrize("name", [*SERVERS, "migrate"])
def test_servers_write_nowhere_and_may_do_nothing_more(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_commands_are_those_that_there_are():
    parse(COMPOSE["services"]["migrate"]["command"])


def test_a_server_may_drain_before_it_is_killed():
    import tomllib

    settings = tomllib.loads((DEPLOY / "server.toml").read_text("utf-8"))
    grace = COMPOSE["services"]["keylock-1"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > settings["notice_s"] + settings.get("drain_s", 20)


def test_nothing_listens_beyond_this_machine():
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
