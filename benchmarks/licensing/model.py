"""Many random histories of a store, each step compared with a plain model of what licensing promises.

python benchmarks/licensing/model.py sqlite --runs 2000 --steps 50
python benchmarks/licensing/model.py postgresql --runs 400 --steps 50 --seconds 1200

What a step is, and what is compared after it, is in `tests/store_machine.py`. The runs are made in blocks, each with a
seed of its own, and counted after every block, so that one that is cut off leaves a true number. A difference ends it:
Hypothesis shortens the history that shows it and prints that.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# The machine and its model are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import get_state_machine_test
from store_machine import StoreMachine
from store_places import PostgresqlPlace, SqlitePlace
from world import record

from keylock.errors import KeylockError

_BLOCK = 50


def block(place: SqlitePlace | PostgresqlPlace, *, runs: int, steps: int, number: int) -> None:
    """Runs some histories; raises where the store and its model differ."""
    rules = settings(
        max_examples=runs,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    seed(number)(get_state_machine_test(lambda: StoreMachine(place), settings=rules))()


def measure(place: SqlitePlace | PostgresqlPlace, database: str, options: argparse.Namespace) -> dict[str, object]:
    """Runs blocks until all runs are made or the time is over, and keeps the count after each."""
    began, done, differences, shown = time.monotonic(), 0, 0, Counter[str]()
    result: dict[str, object] = {}
    while done < options.runs and time.monotonic() - began < options.seconds and not differences:
        runs = min(_BLOCK, options.runs - done)
        try:
            block(place, runs=runs, steps=options.steps, number=options.seed + done)
        except (AssertionError, KeylockError) as error:
            print(error, *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
            differences += 1
        done += runs
        shown = Counter(place.counted)
        result = {
            "what": "model",
            "database": database,
            "complete": done >= options.runs,
            "runs": done,
            "steps": shown.pop("steps", 0),
            "steps_of_a_run": options.steps,
            "seed": options.seed,
            "seconds": round(time.monotonic() - began, 1),
            "differences": differences,
            "seen": dict(sorted(shown.items())),
        }
        record(f"model_{database}", result, shown=False)
    return result


def main() -> None:
    """Runs the histories, prints and keeps what was counted, and fails where the store and its model differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", choices=["sqlite", "postgresql"])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no block after so long")
    parser.add_argument("--folder", type=Path, help="where SQLite files lie; a folder in memory is quicker")
    options = parser.parse_args()
    if options.database == "sqlite":
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            result = measure(SqlitePlace(Path(folder)), options.database, options)
    else:
        from postgresql_cluster import Cluster

        cluster = Cluster()
        try:
            result = measure(PostgresqlPlace(cluster), options.database, options)
        finally:
            cluster.close()
    print(result)
    raise SystemExit(1 if result["differences"] else 0)


if __name__ == "__main__":
    main()
