"""Dashboard and alerts ask for metrics that servers have, with labels that they have; systemd takes the unit."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from keylock.errors import LicenseReason
from keylock_server.operations.metrics import Metrics
from keylock_server.transport import statuses

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).parents[3] / "deploy"
OTHERS = {"up"}


def expressions():
    """Every question that the dashboard and the alerts ask."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "keylock.json").read_text("utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text("utf-8"))["groups"]
    return found + [rule["expr"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def served():
    """The labels of every metric of a server, by its name, read from a page."""
    from prometheus_client import generate_latest

    metrics = Metrics(pending=lambda: 0, checks=lambda: {"store": False}, log_entries=lambda: 0)
    metrics.count("/a", "OK", "OK", 0.1)
    metrics.count_guarded("other", 1)
    metrics.count_units("model", "grad_cam", 1)
    metrics.observe_run("grad_cam", 1)
    labels = {}
    for line in generate_latest(metrics._registry).decode().splitlines():
        if not line.startswith("#"):
            name, inside = re.match(r"(\w+)(?:\{(.*?)\})? ", line).groups()
            labels.setdefault(name, set()).update(re.findall(r"(\w+)=", inside or ""))
    return labels


@pytest.mark.parametrize("expression", expressions())
def test_every_question_is_about_metrics_that_there_are(expression, served):
    asked = re.findall(r"\b(keylock_\w+|up)(?=[\[{\s)]|$)(?:\{(.*?)\})?", expression)
    assert asked
    grouped = re.findall(r"\b(?:by|without) \(([^)]*)\)", expression)
    for name, inside in asked:
        if name in OTHERS:
            continue
        assert name in served, name
        known = served[name] | {"instance", "job"}
        assert set(re.findall(r"(\w+)\s*[=!]", inside)) <= known
        assert {label.strip() for group in grouped for label in group.split(",")} <= known


def test_reasons_and_codes_that_are_asked_for_exist():
    text = " ".join(expressions())
    reasons = {row.reason for row in statuses.STATUSES.values()} | {str(reason) for reason in LicenseReason}
    for named in re.findall(r'reason=~"([^"]+)"', text):
        assert set(named.split("|")) <= reasons


def test_every_alert_is_described():
    page = (DEPLOY.parent / "docs" / "operating.md").read_text("utf-8")
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]:
        assert f"| {rule['alert']} |" in page
        assert rule["annotations"]["summary"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_takes_the_unit(tmp_path):
    program = tmp_path / "keylock"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "keylock.service"
    unit.write_text((DEPLOY / "keylock.service").read_text("utf-8").replace("/opt/keylock/bin/keylock", str(program)))
    run = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert str(unit.name) not in run.stderr


def test_the_unit_gives_secrets_that_the_settings_may_name():
    text = (DEPLOY / "keylock.service").read_text("utf-8")
    given = set(re.findall(r"^LoadCredential=([^:]+):", text, re.MULTILINE))
    assert {"server.pem", "model.sealed", "receipts.pem", "receipts.cert", "tokens.pem"} <= given
    assert "Environment=" not in text.replace("Environment=KEYLOCK_HOME", "")
