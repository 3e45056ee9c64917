"""What the system's files say that a process may use."""

import os
import subprocess
import sys

import pytest

from keylock.files.limits import available_bytes, available_cores

KIB = 1024


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


SHARES = [("max 100000", 8), ("100000 100000", 1), ("50000 100000", 1), ("150000 100000", 2), ("9999999 100000", 8)]


@pytest.mark.parametrize(("text", "expected"), [*SHARES, ("", 8), ("5 0", 8), ("nonsense of it", 8)])
def test_a_container_s_share_of_time_counts_as_cores(text, expected, tmp_path, eight_cores):
    (tmp_path / "cpu.max").write_text(text)
    assert available_cores(tmp_path, tmp_path / "none") == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("250000", 3), ("50000", 1), ("?", 8)])
@pytest.mark.parametrize("inside", ["", "pods/one"])
def test_limits_of_the_first_version_count_too(inside, quota, expected, tmp_path, eight_cores):
    folder = tmp_path / "cpu" / inside
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text("100000")
    (tmp_path / "self").write_text(f"4:memory:/other\n2:cpu,cpuacct:/{inside}\n0::/\n")
    assert available_cores(tmp_path, tmp_path / "self") == expected


def test_the_tightest_limit_of_the_groups_above_counts(tmp_path, eight_cores):
    (tmp_path / "system" / "unit").mkdir(parents=True)
    (tmp_path / "self").write_text("0::/system/unit\n")
    (tmp_path / "system" / "unit" / "cpu.max").write_text("max 100000")
    assert available_cores(tmp_path, tmp_path / "self") == 8
    (tmp_path / "system" / "cpu.max").write_text("300000 100000")
    assert available_cores(tmp_path, tmp_path / "self") == 3
    (tmp_path / "system" / "unit" / "cpu.max").write_text("200000 100000")
    assert available_cores(tmp_path, tmp_path / "self") == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to cores")
def test_a_process_that_is_pinned_to_one_core_has_one(tmp_path):
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from keylock.files.limits import available_cores; print(available_cores())"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout.split() == [b"1"]


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
