"""The whole store against a plain model of it: licenses, charges, receipts, the audit log, backups and the clock."""

import pytest

pytest.importorskip("sqlalchemy")

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from store_machine import StoreMachine
from store_places import PostgresqlPlace, SqlitePlace

# Always the same steps; benchmarks/licensing/model.py runs more of them, and others with every seed.
SMALL = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_store_in_sqlite_does_what_its_model_does(tmp_path):
    place = SqlitePlace(tmp_path)
    run_state_machine_as_test(lambda: StoreMachine(place), settings=SMALL)
    # Nothing passed by because nothing happened.
    assert {
        "restore done",
        "reserve answered",
        "reserve quota",
        "commit answered",
        "commit gives back",
        "disclose answered",
    } <= set(place.counted)


def test_store_in_postgresql_does_what_its_model_does(postgresql):
    place = PostgresqlPlace(postgresql)
    run_state_machine_as_test(lambda: StoreMachine(place), settings=settings(SMALL, max_examples=4))
    assert {"reserve answered", "commit answered"} <= set(place.counted)
