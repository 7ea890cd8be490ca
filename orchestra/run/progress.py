"""Bars with rate and time left on a terminal, an occasional plain line elsewhere; and chatter kept out of both."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from orchestra.text import clock

PLAIN_WIDTH = 160
"""Where the output is not a terminal, so that tables are not cut."""
PLAIN_SECONDS = 20.0
"""Between two plain lines of one bar."""


@dataclass(frozen=True)
class Done:
    """How far one long step is.

    Fields:
        unit: of `done` and `total`, a plural; rate: units a second, 0 where nothing is known of it yet.
        note: such as `reward 0.41`.
    """

    label: str
    done: int
    total: int
    unit: str = "items"
    rate: float = 0.0
    note: str = ""

    @property
    def left(self) -> float | None:
        """Seconds to its end at this rate; None where that is not known."""
        return max(0, self.total - self.done) / self.rate if self.rate > 0 else None

    @property
    def rate_text(self) -> str:
        """`1.3 s/step`, `12.4 problems/s`."""
        return f"{self.rate:,.1f} {self.unit}/s" if self.rate >= 1 else f"{1 / self.rate:,.1f} s/{self.unit[:-1]}"

    def text(self) -> str:
        """`explore: 12/30 steps, 1.3 s/step, 0:24 left, reward 0.41`."""
        parts = [f"{self.label}: {self.done:,}/{self.total:,} {self.unit}"]
        if self.left is not None:
            parts += [self.rate_text, f"{clock(self.left)} left"]
        return ", ".join([*parts, self.note] if self.note else parts)


class Bar:
    """One long step. `advance(n)` after n items; a note (such as `reward 0.41`) is shown beside the rate."""

    def __init__(self, progress: Progress, label: str, total: int, unit: str) -> None:
        self._progress, self.label, self.total, self.unit = progress, label, total, unit
        self.done, self.note = 0, ""
        self._start = self._said = time.monotonic()
        self._first = 0
        self._told = False
        rich = progress._rich
        self._task = rich.add_task(label, total=total, rate="", note="") if rich is not None else None

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """n more items are done."""
        self.done += n
        self.note = self.note if note is None else note
        if self._progress.quiet:
            return
        if self._task is not None and self._progress._rich is not None:
            self._progress._rich.update(self._task, completed=self.done, rate=self._rate_text(), note=self.note)
        elif time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            self._progress.say(f"  {self.text()}")

    def resume_at(self, done: int) -> None:
        """So many items were done by an earlier process; they do not count for the rate."""
        self.done = self._first = done
        if self._task is not None and self._progress._rich is not None:
            self._progress._rich.update(self._task, completed=done)

    def at(self, done: int, note: str | None = None) -> None:
        """So many items are done in all; what the first call says was done by an earlier process."""
        if not self._told:
            self.resume_at(done)
            self._told = True
        else:
            self.advance(done - self.done, note)

    @property
    def rate(self) -> float:
        """Items a second since the start of this process's part."""
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def _rate_text(self) -> str:
        return self.state.rate_text if self.rate > 0 else ""

    @property
    def state(self) -> Done:
        """How far it is now."""
        return Done(self.label, self.done, self.total, self.unit or "items", self.rate, self.note)

    def text(self) -> str:
        """In words; see `Done.text`."""
        return self.state.text()


class Progress:
    """What the user sees of a run. `quiet` shows nothing (processes other than the first)."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console if console is not None else terminal()
        self.quiet = quiet
        self._rich: RichProgress | None = None
        self._bars: list[Bar] = []

    @property
    def bars(self) -> list[Done]:
        """How far the long steps are that are being done now, the outermost first; also from another thread."""
        return [bar.state for bar in tuple(self._bars)]

    def say(self, text: str) -> None:
        """One line, as it is."""
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str = "items") -> Iterator[Bar]:
        """A bar for one long step; bars may be nested. `unit` is a plural, such as `steps` or `problems`."""
        if self.console.is_terminal and not self.quiet and self._rich is None:
            self._rich = RichProgress(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
                redirect_stdout=False,  # what libraries print goes to the stage's log, see chatter_to
                redirect_stderr=False,
            )
            self._rich.start()
        bar = Bar(self, label, total, unit)
        self._bars.append(bar)
        try:
            yield bar
        finally:
            self._bars.remove(bar)
            if self._rich is not None:
                if bar._task is not None:
                    self._rich.remove_task(bar._task)
                if not self._bars:
                    self._rich.stop()
                    self._rich = None


def terminal() -> Console:
    """A console on a copy of standard output, which stays the user's while `chatter_to` redirects the original."""
    try:
        copy = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace", buffering=1)
    except (OSError, ValueError):  # not a real file, as under a test runner
        return _console(sys.stdout)
    return _console(copy)


def _console(file: TextIO) -> Console:
    console = Console(file=file)
    return console if console.is_terminal else Console(file=file, width=PLAIN_WIDTH)


@contextlib.contextmanager
def chatter_to(path: Path) -> Iterator[None]:
    """Send what libraries print, from Python or from C, to a log file."""
    with open(path, "a", encoding="utf-8", errors="replace", buffering=1) as log:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = [(fd, os.dup(fd)) for fd in (1, 2)]
        try:
            for fd, _ in saved:
                os.dup2(log.fileno(), fd)
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
        finally:
            for fd, copy in saved:
                os.dup2(copy, fd)
                os.close(copy)
