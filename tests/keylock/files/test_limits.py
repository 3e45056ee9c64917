"""What the system's files say that a process may use."""

import pytest

from keylock.files.limits import available_bytes, available_cores

KIB = 1024


def test_a_container_s_share_of_time_counts_as_cores(tmp_path):
    cores = available_cores(tmp_path / "none")
    assert cores >= 1
    quota = tmp_path / "cpu.max"
    for text, expected in (("max 100000", cores), ("100000 100000", 1), ("50000 100000", 1), ("9999999 100000", cores)):
        quota.write_text(text)
        assert available_cores(quota) == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, 3000 * KIB),
        ("max", 3000 * KIB),
        (f"{1500 * KIB}", 900 * KIB),
        (f"{500 * KIB}", 0),
        (f"{9000 * KIB}", 3000 * KIB),
    ],
)
def test_memory_is_what_is_free_or_what_a_container_leaves(tmp_path, limit, expected):
    memory, group = tmp_path / "meminfo", tmp_path / "group"
    memory.write_text("MemTotal:        8000 kB\nMemFree:          100 kB\nMemAvailable:    3000 kB\n")
    group.mkdir()
    if limit is not None:
        (group / "memory.max").write_text(limit)
        (group / "memory.current").write_text(f"{1000 * KIB}")
        (group / "memory.stat").write_text(f"anon {500 * KIB}\ninactive_file {400 * KIB}\n")
    assert available_bytes(memory, group) == expected


def test_where_nothing_says_how_much_memory_there_is_it_is_not_known(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 8000 kB\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) is None
