"""Write the figures of docs/operating.md from the measured ones in benchmarks/results/fleet.

    python benchmarks/render_fleet.py            writes docs/operating.md
    python benchmarks/render_fleet.py --check    exits 1 where the page does not agree with the figures

It works as `render_results.py` does, which writes another page.
"""

import sys
from collections.abc import Mapping
from typing import Any, Final

from render_results import RESULTS, ROOT, Tables, update

PAGE: Final = ROOT / "docs" / "operating.md"
FLEET: Final = RESULTS / "fleet"


def write_restarts(result: Mapping[str, Any]) -> str:
    """Return the line of `restarts.json` and its like, in Markdown."""
    wrong = result["ledger_and_counters_differ"] + result["ledger_and_audit_log_differ"]
    return (
        f"- {_balancer(result)}, {result['rolling_restarts']} rolling restarts of {result['servers']} servers under "
        f"{result['callers']} callers that never try again: {result['calls']:,} calls, "
        f"{result['failed_calls']} failed{_how(result)}, "
        f"{result['units_answered']:,} units answered, {result['units_charged']:,} charged, {wrong} differences in the "
        f"books. {_command(result)}\n"
    )


def write_kills(result: Mapping[str, Any]) -> str:
    """Return the line of `kills.json` and its like, in Markdown."""
    others = result["never_tried_again"]
    return (
        f"- {_balancer(result)}, `kill -9` of one of {result['servers']} servers {result['kills']} times in "
        f"{result['seconds']:.0f} s under {result['callers']} callers that try again: {result['calls']:,} calls, "
        f"{result['books']['requests_charged']:,} requests charged, {_faults(result)}. Of {others['calls']:,} calls of "
        f"callers that never try again {others['failed_calls']} failed, {others['failed_calls_begun_after_a_kill']} of "
        f"them begun after the server had ended. {_command(result)}\n"
    )


def write_database(result: Mapping[str, Any]) -> str:
    """Return the line of `database.json` and its like, in Markdown."""
    others = result["without_a_license"]
    return (
        f"- {_balancer(result)}, PostgreSQL stopped and killed in turns, {result['restarts_of_the_database']} times, "
        f"and away for {result['away_s']:g} s, under {result['callers']} callers that try again: "
        f"{result['calls']:,} calls, {result['books']['requests_charged']:,} requests charged, {_faults(result)}. "
        f"Licensed calls passed again {result['most_seconds_until_licensed_again']:.1f} s at most after it was back; "
        f"of {others['calls']:,} calls without a license {others['failed_calls']} failed meanwhile. "
        f"{_command(result)}\n"
    )


def write_throughput(result: Mapping[str, Any]) -> str:
    """Return the line of `throughput.json`, in Markdown."""
    return (
        f"- {_balancer(result)}, two servers over one, calls in a second of processor time, "
        f"{result['callers_of_a_server']} callers for each server: {result['ratio']:.2f} times, the median of "
        f"{', '.join(f'{ratio:.2f}' for ratio in result['ratios'])}. {_command(result)}\n"
    )


def _how(result: Mapping[str, Any]) -> str:
    failed = [f"{count} {code}" for code, count in result["outcomes"].items() if code != "OK"]
    return f" ({', '.join(failed)})" if failed else ""


def _balancer(result: Mapping[str, Any]) -> str:
    return {"haproxy": "HAProxy", "nginx": "nginx"}[result["balancer"]]


def _faults(result: Mapping[str, Any]) -> str:
    faults = result["faults"]
    doubled, lost = faults["double_charges"], faults["charges_without_answer"] + faults["answers_without_charge"]
    others = sum(faults.values()) - doubled - lost
    return f"{doubled} twice, {lost} lost, {others} other faults"


def _command(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"`{result['command']}`, {machine['finished'][:10]}, {machine['cpu_count']} cores of an "
        f"{machine['processor']}, load average {machine['load_average_at_end']:g}."
    )


TABLES: Final[Tables] = {
    "restarts": (write_restarts, "python benchmarks/fleet/fleet.py restarts"),
    "restarts_nginx": (write_restarts, "python benchmarks/fleet/fleet.py restarts --balancer nginx"),
    "kills": (write_kills, "python benchmarks/fleet/fleet.py kills"),
    "kills_nginx": (write_kills, "python benchmarks/fleet/fleet.py kills --balancer nginx"),
    "database": (write_database, "python benchmarks/fleet/fleet.py database"),
    "throughput": (write_throughput, "python benchmarks/fleet/fleet.py throughput"),
}


if __name__ == "__main__":
    sys.exit(update(PAGE, FLEET, TABLES, __doc__))
