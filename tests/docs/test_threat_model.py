"""Every promise of the threat model names a test that tries to break it, and the test is there."""

import re

import documentation
import pytest

TABLE = "| promised | shown by |"
LINES = (documentation.ROOT / "docs" / "threat-model.md").read_text("utf-8").splitlines()


def promises():
    """Yields what is promised and what shows it, row by row."""
    for start, line in enumerate(LINES):
        if line != TABLE:
            continue
        for row in LINES[start + 2 :]:
            if not row.startswith("|"):
                break
            promised, shown = row.strip("| ").rsplit(" | ", 1)
            yield promised, shown


ROWS = list(promises())


def test_there_is_a_table_for_everybody_who_may_attack():
    headings = {line for line in LINES if line.startswith("## ")}
    assert LINES.count(TABLE) == 7
    assert len(ROWS) > 50
    assert {"## T0: a caller without a license", "## T1: has the model file, and no stamped picture"} < headings


@pytest.mark.parametrize(("promised", "shown"), ROWS, ids=[str(number) for number in range(len(ROWS))])
def test_a_promise_names_tests_that_exist(promised, shown):
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown)
    assert named, f"nothing tries to break this promise: {promised}"
    for file, name in named:
        path = documentation.ROOT / file
        assert path.is_file(), f"there is no {file}"
        assert re.search(rf"^(async )?def {name}\(", path.read_text("utf-8"), flags=re.MULTILINE), f"{file}: no {name}"
