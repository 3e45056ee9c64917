"""The benchmark of a fleet in small: three servers behind HAProxy on PostgreSQL, restarted and killed under load."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks" / "fleet"), str(ROOT / "benchmarks" / "licensing")]

fleet = pytest.importorskip("fleet", reason="the benchmark needs what servers need")
world = sys.modules["world"]

pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None and shutil.which("haproxy", path="/usr/sbin") is None,
    reason="HAProxy is not installed here",
)


@pytest.fixture
def made(tmp_path, postgresql):
    with world.World.make(tmp_path, postgresql.new_url()) as made:
        yield made


@pytest.mark.slow
def test_no_call_fails_while_all_servers_are_restarted_one_by_one(made, loop_thread):
    found = fleet.restarts(made, times=1, callers=3, seed=2, run=loop_thread.run)
    assert (found["failed_calls"], found["failures"]) == (0, [])
    assert found["units_answered"] == found["units_charged"] > 50
    assert found["units_reserved_at_end"] == found["ledger_and_counters_differ"] == 0
    assert found["ledger_and_audit_log_differ"] == 0


@pytest.mark.slow
def test_nothing_is_charged_twice_or_lost_where_servers_are_killed(made, loop_thread):
    found = fleet.kills(made, seconds=6, callers=6, seed=3, every_s=2, run=loop_thread.run)
    assert found["kills"] >= 2
    assert {fault: count for fault, count in found["faults"].items() if count} == {}
    assert found["books"]["receipts_held"] == found["books"]["requests_charged"] > 10
