"""Progress of long commands, on a terminal and without one."""

import contextlib
import os
import pty

from keylock.cli._progress import shown_progress


def test_a_terminal_shows_the_stage_its_steps_and_the_figures(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    far, near = pty.openpty()
    with os.fdopen(far, "rb", buffering=0) as screen, os.fdopen(near, "w") as terminal:
        with contextlib.redirect_stderr(terminal), shown_progress() as progress:
            progress.start("lock", 3, 1)
            progress.advance({"fidelity": 0.5, "unlock/grad_cam": 0.25})
        terminal.flush()
        shown = screen.read(1 << 20).decode()
    assert "lock the explanations" in shown
    assert "2/3" in shown
    assert "fidelity +0.50   loss: unlock 0.250" in shown
    assert shown.endswith("\x1b[?25h"), "the cursor is not shown again"
