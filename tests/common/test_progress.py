"""Progress: its lines, when they are shown, and the bar."""

import io

import pytest

from moe_jax.common import Progress, counting
from moe_jax.common.progress import clock, in_words


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def now(monkeypatch):
    """The time, in a list."""
    times = [0.0]
    monkeypatch.setattr("moe_jax.common.progress.time.monotonic", lambda: times[0])
    return times


def test_off_a_terminal_is_a_line_now_and_then(now):
    stream = io.StringIO()
    progress = Progress(10, 1010, stream)
    for step in range(11, 111):
        now[0] += 0.125
        progress.step(step)
        if step == 20:
            progress.metrics({"loss": 0.12345})
    progress.note("saved")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step 50/1010  loss 0.1235  8 steps/s  2:00 left",
        "step 90/1010  loss 0.1235  8 steps/s  1:55 left",
        "saved",
    ]


def test_the_last_step_is_shown(now):
    stream = io.StringIO()
    progress = Progress(0, 2, stream)
    progress.step(1)
    now[0] = 0.5
    progress.step(2)
    assert stream.getvalue() == "step 2/2  2 steps/s  0:00 left\n"


def test_on_a_terminal_is_a_bar():
    stream = Terminal()
    progress = Progress(0, 4, stream)
    for step in range(1, 5):
        progress.metrics({"loss": 2.5})
        progress.step(step)
        if step == 3:
            progress.note("[bold]halfway")
    progress.close()
    shown = stream.getvalue()
    assert "step 4/4  loss 2.5" in shown
    assert "━" * 20 in shown
    assert shown.index("[bold]halfway") < shown.index("4/4")
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is there again


def test_a_bar_that_is_closed_early_gives_the_cursor_back(now):
    stream = Terminal()
    progress = Progress(0, 100, stream)
    now[0] = 1.0
    progress.step(1)
    assert "\x1b[?25l" in stream.getvalue()
    assert "\x1b[?25h" not in stream.getvalue()
    progress.close()
    progress.close()
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def test_counted_things_by_hand(now, capsys):
    progress = counting("reading", "prompts")
    for time, done in ((4.0, 0.5), (5.0, 2), (11.0, 1_000.0), (300.0, 2_000)):
        now[0] = time
        progress(done, 2_000)
    assert capsys.readouterr().err.splitlines() == [
        "reading 2 of 2,000 prompts, 22 min left",
        "reading 1,000 of 2,000 prompts, 7 s left",
        "reading 2,000 of 2,000 prompts, 0 s left",
    ]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_work_of_under_three_seconds_is_silent(now, capsys, monkeypatch, stream):
    monkeypatch.setattr("sys.stderr", stream)
    progress = counting("reading", "prompts")
    for done in range(1, 6):
        now[0] += 0.55
        progress(done, 5)
    assert stream.getvalue() == ""


def test_details_are_shown_when_it_is_time(now):
    stream = io.StringIO()
    progress = Progress(0, 9, stream, every=10.0)
    progress.detail("reads")
    progress.step(1, at_once=True)
    now[0] = 9.0
    progress.detail("writes")
    now[0] = 11.0
    progress.detail("rests")
    progress.step(2, detail="", at_once=True)
    assert stream.getvalue().splitlines() == [
        "step 1/9  reads",
        "step 1/9  rests",
        "step 2/9  0.0909 steps/s  1:17 left",
    ]


def test_a_rate_of_recent_steps(now):
    stream = io.StringIO()
    progress = Progress(0, 100, stream, recent=2, fewest=2, every=0.0)
    for step, time in enumerate([0.0, 100.0, 101.0, 102.0]):
        now[0] = time
        progress.step(step)
    assert [line.split("  ")[1:] for line in stream.getvalue().splitlines()] == [
        [],
        [],
        ["0.0198 steps/s", "1:22:29 left"],
        ["1 steps/s", "1:37 left"],
    ]


def test_clock_and_words():
    assert [clock(s) for s in (0, 9.4, 725, 3600, 10807)] == [
        "0:00", "0:09", "12:05", "1:00:00", "3:00:07"
    ]  # fmt: skip
    assert [in_words(s) for s in (0, 119.4, 120, 3600)] == ["0 s", "119 s", "2 min", "60 min"]
