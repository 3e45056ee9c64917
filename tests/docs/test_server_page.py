"""docs/server.md says which settings a server has, and what they are where nothing is set."""

import re

import documentation

from keylock_server import ServerSettings

ROWS = dict(
    re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|([^|]*)\|", (documentation.ROOT / "docs/server.md").read_text(), re.M)
)
DEFAULTS = {name: default.strip() for names, default in ROWS.items() for name in re.findall(r"\w+", names)}


def test_every_setting_is_in_the_table():
    unnamed = {"config", "key_passphrase"}
    assert ServerSettings.model_fields.keys() - DEFAULTS.keys() == unnamed


def test_the_budgets_of_the_query_guard_are_those_of_the_table():
    fields = ServerSettings.model_fields
    for name in ("query_guard_window_s", "query_guard_scores", "query_guard_labels"):
        assert float(DEFAULTS[name]) == fields[name].default
    assert DEFAULTS["query_guard_memory_bytes"] == f"{fields['query_guard_memory_bytes'].default / 2**20:g} MiB"
    assert DEFAULTS["query_guard"] == f"`{fields['query_guard'].default}`"
