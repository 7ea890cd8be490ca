"""What the user sees while a stage runs, and what is kept from them."""

import os
import sys

import pytest
from rich.console import Console

from orchestra.run import progress as progresses
from orchestra.run.progress import Progress, chatter_to
from orchestra.text import clock


def test_clock():
    assert [clock(s) for s in (0, 5.4, 65, 3725)] == ["0:00", "0:05", "1:05", "1:02:05"]


def plain(tmp_path):
    file = open(tmp_path / "said.txt", "w", encoding="utf-8")  # noqa: SIM115  (closed with the test's process)
    return Progress(Console(file=file, width=200)), lambda: (file.flush(), (tmp_path / "said.txt").read_text())[1]


def test_plain_lines_are_occasional_and_have_rate_and_time_left(tmp_path, monkeypatch):
    progress, said = plain(tmp_path)
    now = [0.0]
    monkeypatch.setattr(progresses.time, "monotonic", lambda: now[0])
    with progress.bar("explore", 30, "steps") as bar:
        for _ in range(30):
            now[0] += 2.0
            bar.advance(note="reward 0.41")
    lines = said().splitlines()
    assert lines[0] == "  explore: 10/30 steps, 2.0 s/step, 0:40 left, reward 0.41" and len(lines) == 3


def test_what_was_done_before_does_not_count_for_the_rate(tmp_path, monkeypatch):
    progress, _ = plain(tmp_path)
    now = [0.0]
    monkeypatch.setattr(progresses.time, "monotonic", lambda: now[0])
    with progress.bar("explore", 30, "steps") as bar:
        bar.resume_at(20)
        now[0] = 10.0
        bar.advance(5)
        assert bar.rate == 0.5 and "25/30 steps, 2.0 s/step, 0:10 left" in bar.text()


def test_quiet_says_nothing(tmp_path):
    progress, said = plain(tmp_path)
    progress.quiet = True
    progress.say("a")
    with progress.bar("x", 1) as bar:
        bar.advance()
    assert said() == ""


def test_a_terminal_gets_bars_and_nothing_stays_of_them(tmp_path):
    with open(tmp_path / "said.txt", "w", encoding="utf-8") as file:
        progress = Progress(Console(file=file, width=100, force_terminal=True))
        before = sys.stdout
        with progress.bar("outer", 2, "steps") as outer:
            assert sys.stdout is before, "libraries' output must not be drawn above the bar"
            outer.advance()
            with progress.bar("inner", 1) as inner:
                inner.advance()
            outer.advance()
        assert progress._rich is None
    assert "outer" in (tmp_path / "said.txt").read_text()


def test_an_error_inside_a_bar_ends_the_bar(tmp_path):
    with open(tmp_path / "said.txt", "w", encoding="utf-8") as file:
        progress = Progress(Console(file=file, force_terminal=True))
        with pytest.raises(ValueError, match="odd"), progress.bar("x", 2):
            raise ValueError("odd")
        assert progress._rich is None


def test_chatter_is_kept_from_the_terminal_and_the_terminal_comes_back(tmp_path, capfd):
    with pytest.raises(ValueError, match="odd"), chatter_to(tmp_path / "log.txt"):
        print("from python")
        os.write(1, b"from C\n")
        os.system("echo from a child >&2")
        raise ValueError("odd")
    print("after")
    os.write(1, b"after, from C\n")
    out, err = capfd.readouterr()
    assert "from" not in out.replace("after, from C", "") and err == "" and "after, from C" in out
    log = (tmp_path / "log.txt").read_text()
    assert all(word in log for word in ("from python", "from C", "from a child"))
