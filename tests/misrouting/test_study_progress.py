"""What a study says on stderr: run k of n, time left, what the run is doing."""

import io

import pytest

from moe_jax.misrouting.study_progress import StudyProgress


@pytest.fixture
def now(monkeypatch):
    """The time, in a list."""
    times = [0.0]
    monkeypatch.setattr("moe_jax.common.progress.time.monotonic", lambda: times[0])
    return times


def test_a_bar_on_a_terminal(now, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    progress = StudyProgress(2)
    for number, name in ((2, "a"), (3, "b"), (4, "c"), (5, "d"), (6, "[e]")):
        progress(number, 7, name)
        now[0] += 50
    progress(7, 7, "")
    shown = stream.getvalue()
    assert shown.startswith("going on: 2 of 7 runs were done\n")
    # The bar is drawn ten times a second: what it said last is there for sure.
    assert "run 7 of 7: [e], 50 s left" in shown
    assert progress.done == 7


def test_what_a_run_is_doing(now, capsys):
    progress = StudyProgress(0)
    progress(0, 9, "base/base")
    for time, answered in ((5.0, 8), (11.0, 16), (12.0, 24)):
        now[0] = time
        progress.detail(f"{answered} of 24 prompts answered")
    now[0] = 22.0
    progress(1, 9, "base/rerun")
    assert capsys.readouterr().err.splitlines() == [
        "run 1 of 9: base/base",
        "run 1 of 9: base/base: 16 of 24 prompts answered",
        "run 2 of 9: base/rerun",
    ]


def test_a_line_every_ten_seconds_elsewhere(now, capsys):
    # The first run takes long (it compiles); the last eight take 6 s each.
    progress = StudyProgress(0)
    for number, time in enumerate([0.0, 300.0, *(306.0 + 6 * i for i in range(10))]):
        now[0] = time
        progress(number, 900, f"run-{number}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "run 1 of 900: run-0",
        "run 2 of 900: run-1",
        "run 4 of 900: run-3, 1555 min left",
    ]
    assert lines[-1] == "run 12 of 900: run-11, 89 min left"


def test_all_runs_were_done(capsys):
    StudyProgress(9)(9, 9, "")
    assert capsys.readouterr().err == "all 9 runs were done: only the files are written anew\n"
