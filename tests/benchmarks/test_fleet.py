"""The benchmark of a fleet in small: three servers behind a balancer on PostgreSQL, restarted and killed under load."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks" / "fleet"), str(ROOT / "benchmarks" / "licensing")]

fleet = pytest.importorskip("fleet", reason="the benchmark needs what servers need")
world, balancer = sys.modules["world"], sys.modules["balancer"]


@pytest.fixture
def made(tmp_path, postgresql):
    with world.World.make(tmp_path, postgresql.new_url()) as made:
        yield made


@pytest.fixture(params=sorted(balancer.BALANCERS))
def kind(request):
    """Every balancer that is installed here."""
    kind = balancer.BALANCERS[request.param]
    if kind.where() is None:
        pytest.skip(f"{request.param} is not installed here")
    return kind


@pytest.mark.slow
def test_no_call_fails_while_all_servers_are_restarted_one_by_one(made, kind, loop_thread):
    found = fleet.restarts(made, times=1, callers=3, seed=2, kind=kind, run=loop_thread.run)
    assert (found["failed_calls"], found["failures"]) == (0, [])
    assert found["units_answered"] == found["units_charged"] > 50
    assert found["units_reserved_at_end"] == found["ledger_and_counters_differ"] == 0
    assert found["ledger_and_audit_log_differ"] == 0


@pytest.mark.slow
def test_nothing_is_charged_twice_or_lost_where_servers_are_killed(made, kind, loop_thread):
    found = fleet.kills(made, seconds=6, callers=6, seed=3, every_s=2, kind=kind, run=loop_thread.run)
    assert found["kills"] >= 2
    assert {fault: count for fault, count in found["faults"].items() if count} == {}
    assert found["books"]["receipts_held"] == found["books"]["requests_charged"] > 10
    others = found["never_tried_again"]
    assert others["calls"] > 10
    assert others["failed_calls_begun_after_a_kill"] == 0, others["failures"]


@pytest.mark.slow
def test_nothing_is_charged_twice_or_lost_where_the_database_is_restarted(made, kind, postgresql, loop_thread):
    found = fleet.database(
        made, postgresql, times=2, callers=6, seed=4, every_s=2, away_s=1, kind=kind, run=loop_thread.run
    )
    assert {fault: count for fault, count in found["faults"].items() if count} == {}
    assert found["books"]["receipts_held"] == found["books"]["requests_charged"] > 10
    assert found["usage_asked"]["UNAVAILABLE"] > 0
    assert found["most_seconds_until_licensed_again"] < 10
    others = found["without_a_license"]
    assert (others["failed_calls"], others["failures"]) == (0, [])
    assert others["calls"] > 10
