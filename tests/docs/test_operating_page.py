"""docs/operating.md says what was measured of fleets, and what was measured is good."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

render_fleet = importlib.import_module("render_fleet")
render = importlib.import_module("render_results").render


def measured(name):
    return json.loads((render_fleet.FLEET / f"{name}.json").read_text("utf-8"))


def test_the_page_agrees_with_the_measured_figures():
    text = render_fleet.PAGE.read_text("utf-8")
    assert render(text, render_fleet.FLEET, render_fleet.TABLES) == text, "run python benchmarks/render_fleet.py"


@pytest.mark.parametrize("name", ["restarts", "restarts_nginx"])
def test_no_call_failed_while_servers_were_restarted(name):
    found = measured(name)
    assert found["rolling_restarts"] >= 3
    assert found["failed_calls"] == 0
    assert found["ledger_and_counters_differ"] == found["ledger_and_audit_log_differ"] == 0
    assert found["units_answered"] == found["units_charged"] > 1000


@pytest.mark.parametrize("name", ["kills", "kills_nginx", "database"])
def test_nothing_was_charged_twice_or_lost(name):
    found = measured(name)
    assert not any(found["faults"].values())
    assert found["books"]["receipts_held"] == found["books"]["requests_charged"] > 1000


@pytest.mark.parametrize("name", ["kills", "kills_nginx"])
def test_no_call_failed_that_was_begun_after_a_server_had_been_killed(name):
    assert measured(name)["never_tried_again"]["failed_calls_begun_after_a_kill"] == 0


def test_nobody_without_a_license_noticed_that_the_database_was_away():
    assert measured("database")["without_a_license"]["failed_calls"] == 0


def test_two_servers_serve_nearly_twice_what_one_does():
    assert measured("throughput")["ratio"] >= 1.9


def test_a_fault_is_written_into_the_page():
    found = measured("kills")
    found["faults"]["double_charges"] = 3
    assert "3 twice, 0 lost" in render_fleet.write_kills(found)
