"""Several processes share an audit: the same figures, whoever finds them; and none is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from toys import BUDGET, Constant, make_case

from keylock.audit import ATTACKS, AuditPlan, LocalOracle, can_share, capacity, run_audit, worker_count
from keylock.audit.contract import NotApplicableError
from keylock.audit.workers import Workers
from keylock.training import Silent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")

NAMES = ("keyless", "other_classes", "prune/30", "fine_tune/few_0.01", "surrogate/few", "detect/randomisation")


class Heard:
    def __init__(self):
        self.calls = []

    def start(self, stage, total, done):
        self.calls.append(("start", stage, total, done))

    def doing(self, what):
        self.calls.append(("doing", what))

    def advance(self, figures):
        self.calls.append(("advance", dict(figures)))

    def finish(self):
        self.calls.append(("finish",))


def plan_of(folder, only=NAMES):
    return AuditPlan(out=folder, suite="quick", only=only, budget=BUDGET)


def timeless(judged):
    cost = {**judged.finding.cost, "seconds": 0.0}
    return judged.model_copy(update={"finding": judged.finding.model_copy(update={"cost": cost})})


def done(_task, _progress):
    return True


def test_figures_do_not_depend_on_who_finds_them(tmp_path):
    case = make_case(Constant())
    alone, heard = run_audit(case, plan_of(tmp_path / "alone"), progress=Silent()), []
    shared = run_audit(case, plan_of(tmp_path / "shared"), progress=Silent(), workers=3, heard=heard.append)
    assert list(map(timeless, shared.judged)) == list(map(timeless, alone.judged))
    assert shared.own == alone.own
    for name, samples in alone.samples.items():
        assert samples.keys() == shared.samples[name].keys()
        assert all(torch.equal(maps, shared.samples[name][label]) for label, maps in samples.items())
    order = [name for name in ATTACKS if name in NAMES]
    assert [one.finding.attack for one in heard] == order


def test_other_processes_do_the_work_and_what_is_finished_is_not_done_again(tmp_path, monkeypatch):
    places = []

    def seen(view, budget, generator, steps):
        (tmp_path / f"ran-{os.getpid()}").touch()
        return ATTACKS["keyless"].run(view, budget, generator, steps)

    for name in ("other_classes", "prune/30"):
        monkeypatch.setitem(ATTACKS, name, replace(ATTACKS[name], run=seen))
    for _ in range(2):
        run_audit(make_case(Constant()), plan_of(tmp_path), progress=Silent(), workers=2)
        places.append({file.name for file in tmp_path.glob("ran-*")})
    assert places[0]
    assert places[0] == places[1]
    assert f"ran-{os.getpid()}" not in places[0]


def test_an_attack_that_does_not_apply_is_tried_once(tmp_path, monkeypatch):
    def never(*_arguments):
        (tmp_path / f"tried-{os.getpid()}").touch()
        raise NotApplicableError("not here")

    monkeypatch.setitem(ATTACKS, "prune/30", replace(ATTACKS["prune/30"], run=never))
    result = run_audit(make_case(Constant()), plan_of(tmp_path), progress=Silent(), workers=2)
    assert {one.finding.attack: one.finding.reason for one in result.judged}["prune/30"] == "not here"
    assert len(list(tmp_path.glob("tried-*"))) == 1


def test_a_fault_of_an_attack_is_met_where_the_audit_was_started(tmp_path, monkeypatch):
    def wrong(*_arguments):
        raise AssertionError("a fault")

    monkeypatch.setitem(ATTACKS, "prune/30", replace(ATTACKS["prune/30"], run=wrong))
    with pytest.raises(AssertionError, match="a fault"):
        run_audit(make_case(Constant()), plan_of(tmp_path), progress=Silent(), workers=2)
    assert not multiprocessing.active_children()
    assert (tmp_path / "outcomes" / "keyless.json").is_file()


def test_the_task_of_a_lost_process_is_left_and_the_others_are_done():
    def do(task, _progress):
        if task == "lost":
            os.kill(os.getpid(), signal.SIGKILL)
        return f"{task} is done"

    heard = Heard()
    with Workers(do, 2, heard) as workers:
        workers.start(["one", "lost", "two", "three"])
        assert workers.take("lost") is None
        assert [workers.take(task) for task in ("one", "two", "three")] == [
            f"{n} is done" for n in ("one", "two", "three")
        ]
        assert workers.take("never submitted") is None
    assert heard.calls.count(("advance", {})) == 4
    assert heard.calls[-1] == ("finish",)


def test_without_any_process_left_tasks_are_left_to_whoever_waits():
    with Workers(lambda *_arguments: os._exit(1), 2, Silent()) as workers:
        workers.start(["one", "two", "three"])
        workers.finish()
        assert [workers.take(task) for task in ("one", "two", "three")] == [None] * 3


def test_progress_tells_how_many_are_done_and_what_is_under_way():
    def do(task, progress):
        progress.start(task, 5, 0)
        progress.advance({})
        return True

    heard = Heard()
    with Workers(do, 1, heard, then=lambda task, _found: workers.submit("more", soon=True)) as workers:
        workers.start(["one", "two"])
        assert workers.take("one")
        assert workers.take("more")
        workers.finish()
    assert heard.calls[0] == ("start", "attacks", 2, 0)
    # What was added on the way is not counted: how much there is was said before.
    assert heard.calls.count(("advance", {})) == 2
    assert heard.calls.count(("finish",)) == 1
    assert ("doing", "one 0/5") in heard.calls


def test_each_process_computes_in_one_thread():
    with Workers(lambda _task, _progress: torch.get_num_threads(), 2, Silent()) as workers:
        workers.start(["one", "two"])
        assert [workers.take("one"), workers.take("two")] == [1, 1]


def test_what_breaks_off_the_block_ends_all_processes():
    with suppress(KeyboardInterrupt), Workers(lambda *_arguments: time.sleep(60), 2, Silent()) as workers:
        workers.start(["one", "two"])
        assert len(multiprocessing.active_children()) == 2
        raise KeyboardInterrupt
    assert not multiprocessing.active_children()


def test_processes_end_with_the_one_that_started_them(tmp_path):
    program = f"""
        import os, time
        from pathlib import Path
        from keylock.audit.workers import Workers
        from keylock.training import Silent

        def do(task, progress):
            Path({str(tmp_path)!r}, str(os.getpid())).touch()
            progress.start(task, 1000, 0)
            while True:
                time.sleep(0.3)
                progress.advance({{}})

        with Workers(do, 2, Silent()) as workers:
            workers.start(["one", "two"])
            workers.finish()
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)]) as first:
        assert soon(lambda: len(list(tmp_path.iterdir())) == 2)
        first.kill()
    others = [int(file.name) for file in tmp_path.iterdir()]
    assert soon(lambda: not any(map(is_alive, others)))


def soon(told, seconds=60):
    until = time.monotonic() + seconds
    while not told() and time.monotonic() < until:
        time.sleep(0.05)
    return told()


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_there_are_as_many_workers_as_cores_and_memory_suffice_for(monkeypatch):
    case = make_case(Constant())
    monkeypatch.setattr(capacity, "available_cores", lambda: 8)
    each = capacity._LEAST_BYTES + capacity._COPIES * 250 * capacity.bytes_of_outputs(case.module, case.images[:1])
    for free, expected in ((None, 8), (10**12, 8), (7 * each, 3), (each, 1), (0, 1)):
        monkeypatch.setattr(capacity, "available_bytes", lambda free=free: free)
        assert worker_count(case, BUDGET) == expected, free


def test_bytes_of_outputs_are_those_of_all_layers():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    )
    assert capacity.bytes_of_outputs(network, torch.zeros(1, 3, 8, 8)) == 4 * (3 * 144 + 2)


def test_where_a_server_is_asked_there_is_one_process(tmp_path, monkeypatch):
    case = make_case(Constant())
    asked = replace(case, asked=lambda: LocalOracle(case.module, case.explainers))
    assert can_share(case)
    assert not can_share(asked)
    assert worker_count(asked, BUDGET) == 1
    monkeypatch.setattr("keylock.audit.run.Workers", None)
    assert run_audit(asked, plan_of(tmp_path, ("keyless", "prune/30")), progress=Silent(), workers=4).judged
