"""Progress of long commands, on a terminal and without one."""

import contextlib
import re
import signal

import pytest
from pseudo_terminal import Terminal, cursor_is_shown, on_terminal, plain, widest

from keylock.cli._bars import fit_lines
from keylock.cli._console import StoppedError
from keylock.cli._log_lines import Lines
from keylock.cli._progress import Display, counted, counted_while_taken, resumable_progress, shown_progress
from keylock.cli._stage import Stage, describe_figures, format_seconds

LIVE = {"fidelity": 0.5, "leakage": -0.25, "fidelity/grad_cam": 0.25, "fidelity/gradient": 0.5, "decoy/grad_cam": 0.125}
WORDS = "fidelity +0.50  leakage -0.25  loss: fidelity 0.750  decoy 0.125"


@pytest.fixture
def clock():
    """A clock that is set by hand."""

    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    return Clock()


@pytest.fixture
def terminal():
    """A terminal of 120 columns."""
    made = Terminal(columns=120)
    yield made
    made.close()


@contextlib.contextmanager
def drawn_on(terminal):
    """Progress that is shown on the terminal."""
    with on_terminal(terminal), shown_progress() as progress:
        yield progress


@pytest.fixture
def heard(clock, capfd):
    """Who writes where there is no terminal, and what was written."""
    return Display(Lines(clock=clock), clock=clock), lambda: capfd.readouterr().err.splitlines()


def step(display, clock, seconds, figures=None, *, times=1):
    for _ in range(times):
        clock.now += seconds
        display.advance(figures or {})


def test_the_time_left_is_known_from_the_first_step_on(clock):
    stage = Stage("lock", 2000, 5, clock=clock, told=True)
    assert stage.left_s is None
    clock.now += 46
    stage.advance({})
    assert stage.left_s == pytest.approx(46 * 1994)
    clock.now += 6
    assert stage.left_s == pytest.approx(46 * 1994 - 6), "it does not go down while a step is under way"


def test_the_time_left_is_the_mean_of_the_steps_without_the_first(clock):
    stage = Stage("lock", 10, 0, clock=clock, told=True)
    for seconds in (50, 1, 2, 3):
        clock.now += seconds
        stage.advance({})
    assert stage.left_s == pytest.approx(2 * 6)
    clock.now += 1000
    assert stage.left_s == pytest.approx(2 * 5), "a step that takes long is one step of six"
    assert stage.passed_s == pytest.approx(1056)


def test_no_time_is_left_at_the_end(clock):
    stage = Stage("lock", 2, 1, clock=clock, told=True)
    clock.now += 3
    stage.advance({})
    assert stage.left_s == 0
    assert stage.outcome == "lock: 2/2 in 0:00:03"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3599, "0:59:59"), (93600, "26:00:00")]
)
def test_durations_are_hours_minutes_and_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_figures_are_put_into_words():
    assert describe_figures({}) == []
    assert "  ".join(describe_figures(LIVE)) == WORDS
    assert describe_figures({"loss": 0.5}) == ["loss 0.500"]


def test_what_does_not_fit_on_a_line_goes_below_or_is_left_out_whole():
    parts = ["lock: 1/3 in 0:00:01", *describe_figures(LIVE)]
    assert fit_lines(parts, 100) == ["  ".join(parts)]
    assert fit_lines(parts, 40) == [parts[0], "  fidelity +0.50  leakage -0.25"]


def test_a_terminal_shows_the_stage_its_steps_and_the_figures(terminal):
    with drawn_on(terminal) as progress:
        progress.start("lock", 3, 1)
        progress.advance(LIVE)
        terminal.wait_for(r"lock the explanations  [━╸╺]+  2/3  \d:\d\d:\d\d passed, \d:\d\d:\d\d left")
        terminal.wait_for("\n  fidelity .0.50  leakage -0.25  loss: fidelity 0.750  decoy 0.125")
        progress.finish()
        progress.start("publish", 5, 0)
        progress.doing("compile grad_cam")
        terminal.wait_for("compile, sign and write.*0/5.* passed")
        terminal.wait_for("\n  compile grad_cam")
    assert f"  {WORDS}\n" in plain(terminal.text)
    assert re.search(r"lock the explanations: 2/3 in 0:00:\d\d  fidelity", plain(terminal.text))
    assert re.search(r"compile, sign and write: 0/5 in 0:00:\d\d\n", plain(terminal.text))
    assert cursor_is_shown(terminal.text)


@pytest.mark.parametrize("columns", [30, 60, 80, 200])
def test_no_line_is_as_wide_as_the_terminal(terminal, columns):
    terminal.resize(columns)
    with drawn_on(terminal) as progress:
        for stage in ("reference", "lock", "own model, 2000 images, 3000 steps"):
            progress.start(stage, 20000, 0)
            progress.advance(LIVE)
            terminal.wait_for(" 1/20000" if columns > 50 else stage.split(",")[0][:5])
            progress.finish()
    assert widest(terminal.text) < columns
    assert (WORDS in plain(terminal.text)) == (columns >= 80)


def test_a_resize_is_followed(terminal):
    with drawn_on(terminal) as progress:
        progress.start("lock", 300, 0)
        progress.advance(LIVE)
        terminal.wait_for("[━╸╺] .* 1/300")
        terminal.resize(60)
        before = len(terminal.text)
        progress.advance(LIVE)
        terminal.wait_for(" 2/300")
        terminal.wait_for("(?s) 2/300.* 2/300")
    assert widest(terminal.text[before:].partition("2/300")[2]) < 60


def test_lines_that_others_write_come_above(terminal):
    with drawn_on(terminal) as progress:
        progress.start("gate", 2, 0)
        terminal.wait_for("0/2")
        progress.say("a chapter with [brackets] in it")
        terminal.wait_for(r"a chapter with \[brackets\] in it\n")


def test_a_terminal_without_colours_gets_none(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with drawn_on(terminal) as progress:
        progress.start("lock", 3, 1)
        terminal.wait_for("1/3")
    assert "\x1b[3" not in terminal.text
    assert cursor_is_shown(terminal.text)


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_terminal_that_cannot_draw_gets_lines(terminal, monkeypatch, name):
    monkeypatch.setenv("TERM", name)
    with drawn_on(terminal) as progress:
        progress.start("lock", 3, 1)
        progress.advance(LIVE)
    terminal.wait_for("lock the explanations: 2/3")
    assert "\x1b" not in terminal.text
    assert "lock the explanations, 3 steps, from step 1" in terminal.text
    with drawn_on(terminal) as progress:
        progress.start("lock", 1, 0)
    terminal.wait_for("lock the explanations, 1 step")
    assert "1 steps" not in terminal.text


def test_ctrl_c_says_that_the_step_is_finished_first(terminal):
    with drawn_on(terminal) as progress:
        progress.start("lock", 3, 0)
        signal.raise_signal(signal.SIGINT)
        terminal.wait_for("stopping after this step; Ctrl-C again stops at once")
        with pytest.raises(KeyboardInterrupt):
            progress.advance(LIVE)
    terminal.wait_for("lock the explanations: 1/3")
    assert cursor_is_shown(terminal.text)


def test_a_second_ctrl_c_stops_at_once(terminal):
    with drawn_on(terminal) as progress:
        progress.start("lock", 3, 0)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    terminal.wait_for("lock the explanations: 0/3")


def test_a_closed_terminal_stops_after_the_step_unless_it_is_to_be_ignored():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with shown_progress() as progress:
            progress.start("lock", 3, 0)
            signal.raise_signal(signal.SIGHUP)
            progress.advance({})
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with shown_progress() as progress:
            progress.start("lock", 3, 0)
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                progress.advance({})
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_begins_nothing_more_and_lets_the_rest_be_done(terminal):
    done = []

    def work():
        with counted_while_taken(["a", "b", "c"], "explain") as (taken, advance):
            assert len(taken) == 3
            waiting = iter(taken)
            under_way = [next(waiting), next(waiting)]
            signal.raise_signal(signal.SIGINT)
            terminal.wait_for("stopping after what is under way; Ctrl-C again stops at once")
            assert list(waiting) == []
            for one in under_way:
                done.append(one)
                advance()
        done.append("more")

    before = signal.getsignal(signal.SIGINT)
    with on_terminal(terminal), pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["a", "b"]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_when_everything_is_under_way_leaves_nothing_out(terminal):
    with on_terminal(terminal), counted_while_taken(["a", "b"], "explain") as (taken, _):
        given = list(taken)
        signal.raise_signal(signal.SIGTERM)
    assert given == ["a", "b"]
    with on_terminal(terminal), counted_while_taken(["a", "b"], "explain"):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_many_images_are_counted_on_a_terminal(terminal):
    with on_terminal(terminal), counted(12, "explain") as advance:
        advance()
        terminal.wait_for("explain  [━╸╺]+   1/12  0:00:0. passed, 0:00:.. left")
    assert "explain: " not in terminal.text


def test_without_a_terminal_a_slow_first_step_tells_the_time_left(heard, clock):
    display, lines = heard
    display.start("lock", 2000, 0)
    step(display, clock, 46, LIVE)
    assert lines() == [
        "lock the explanations, 2000 steps",
        f"     1/2000  0:00:46 passed, 25:32:34 left  {WORDS}",
    ]


def test_without_a_terminal_there_is_a_line_for_a_tenth_and_for_a_minute(heard, clock):
    display, lines = heard
    display.start("lock", 100, 0)
    step(display, clock, 0.5, times=40)
    step(display, clock, 30, times=3)
    display.finish()
    written = lines()
    assert [line.split("  ")[1].strip() for line in written[1:-1]] == [
        "10/100",
        "20/100",
        "30/100",
        "40/100",
        "42/100",
    ]
    assert written[-1] == "  lock the explanations: 43/100 in 0:01:50"


def test_without_a_terminal_quick_stages_do_not_flood_the_log(heard, clock):
    display, lines = heard
    display.start("reference", 1000, 0)
    step(display, clock, 0.002, times=1000)
    display.finish()
    assert len(lines()) <= 4


def test_without_a_terminal_stages_of_attacks_are_heard_of_after_a_minute(heard, clock):
    display, lines = heard
    display.start("surrogate/pairs", 50, 0)
    step(display, clock, 2, times=31)
    display.finish()
    assert lines() == ["  surrogate/pairs: 30/50  0:01:00 passed, 0:00:40 left"]


def test_without_a_terminal_named_steps_are_named(heard, clock):
    display, lines = heard
    display.start("publish", 3, 0)
    for what in ("compile predictions", "compile grad_cam", "sign and write"):
        display.doing(what)
        clock.now += 20
        display.advance({})
    display.finish()
    assert lines() == [
        "compile, sign and write, 3 steps",
        "  1/3  0:00:20 passed, 0:00:40 left  compile grad_cam",
        "  2/3  0:00:40 passed, 0:00:20 left  sign and write",
        "  compile, sign and write: 3/3 in 0:01:00",
    ]


def test_a_stage_that_is_broken_off_says_how_far_it_was(capfd):
    def fail():
        with shown_progress() as progress:
            progress.start("publish", 3, 0)
            progress.advance({})
            raise ValueError("disk")

    with pytest.raises(ValueError, match="disk"):
        fail()
    assert "compile, sign and write: 1/3" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        (None, "nothing was reached yet: run the same command again to start anew"),
        ("secret.txt", "nothing was reached yet: run the same command again to start anew"),
        ("reference.part.safetensors", "run the same command with --resume to go on"),
        ("lock.safetensors", "run the same command with --resume to go on"),
    ],
)
def test_a_stop_advises_to_resume_where_that_will_find_something(tmp_path, state, advice):
    if state is not None:
        (tmp_path / state).touch()
    with pytest.raises(StoppedError) as caught, resumable_progress(tmp_path):
        raise KeyboardInterrupt
    assert str(caught.value).endswith(advice)
