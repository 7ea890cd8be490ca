"""A run's page while it goes on: rewritten when a stage begins, and every minute, by a process of its own.

The run pays for it with a timer thread that sleeps. The page is made by another process at a low priority
(orchestra/report/rewrite.py), one at a time, which reads files alone: it can neither change what is trained nor fail
it, and ends with the run, however that ends. What the files do not say, how far the bars are, is written down beside
them every few seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from orchestra.report.html import partial_page
from orchestra.run.state import BARS, bars_json

if TYPE_CHECKING:
    from orchestra.config.stage import Stage
    from orchestra.run.progress import Progress

PAGE_SECONDS = 60.0
"""Between two pages. A page costs 2 to 3 seconds of one core (most of it imports), a twentieth of this."""
SHARE = 0.05
"""Of one core, the most that pages may take: where one costs more, they come less often."""
AFTER_FAILURE = 10
"""A page that could not be written is tried again after so many times as long, and when the next stage begins."""
TICK_SECONDS = 2.0
"""Between two looks at the bars; a person who asks `orchestra show` does not see a bar that is older."""
END_SECONDS = 5.0
"""For a killed process to be gone: it is only waited for where it hangs in the kernel, on a dead network disk."""
START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from orchestra.report.rewrite import main; main()"
"""The packages are looked for where this process found them, whatever else is called so where the user works."""


class LiveReport:
    """Keeps `report.html` of a run up to date from `begin` until the end of the `with` block."""

    def __init__(self, run_dir: Path, progress: Progress) -> None:
        self.run_dir, self._progress = run_dir.resolve(), progress
        self._stage = ""
        self._due = self._over = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._next = self._started = 0.0
        self._every = PAGE_SECONDS
        self._told = False

    @property
    def began(self) -> bool:
        """Whether the run has come to a stage."""
        return self._thread is not None

    def begin(self, stage: Stage) -> None:
        """A stage begins, and what was before it is finished: time for another page."""
        self._stage, self._due = stage.name, True
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="live report", daemon=True)
            self._thread.start()
        self._wake.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(2 * END_SECONDS)

    # in the thread

    def _work(self) -> None:
        try:
            while not self._over:
                self._wake.clear()
                self._guarded(self._note_bars)
                self._guarded(self._see_to_pages)
                self._wake.wait(TICK_SECONDS)
        finally:
            self._guarded(self._end)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  (a page is not worth a run; said once, and logged)
            self._complain(f"{type(error).__name__}: {error}", traceback.format_exc())

    def _see_to_pages(self) -> None:
        self._collect()
        if self._process is None and (self._due or time.monotonic() >= self._next):
            self._start()

    def _note_bars(self) -> None:
        partial = self.run_dir / f".{BARS}.{os.getpid()}.tmp"
        try:
            # not synced, as the run's own files are: after a crash of the machine nobody wants it
            partial.write_text(bars_json(self._stage, self._progress.bars, time.time()), encoding="utf-8")
            os.replace(partial, self.run_dir / BARS)
        finally:
            partial.unlink(missing_ok=True)

    def _start(self) -> None:
        # also where it cannot be started it is not tried at every tick
        self._due, self._started = False, time.monotonic()
        self._next = self._started + AFTER_FAILURE * self._every
        command = [sys.executable, "-P", "-c", START, str(self.run_dir), str(self._every), json.dumps(sys.path)]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # whose end tells it that this process is gone
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    def _collect(self) -> None:
        process = self._process
        if process is None or process.poll() is None:
            return
        self._process = None
        seconds = process.stdout.read()
        self._close(process)
        if process.returncode:
            partial_page(self.run_dir, process.pid).unlink(missing_ok=True)  # the kernel may have killed it
            self._complain(f"exit code {process.returncode}")
        else:
            self._every = max(PAGE_SECONDS, float(seconds) / SHARE)
            self._next = self._started + self._every

    def _complain(self, reason: str, trace: str = "") -> None:
        if self._told:
            return
        self._told = True
        self._progress.say(f"    the report could not be rewritten ({reason}; see {self._log}); the run goes on")
        with contextlib.suppress(OSError), open(self._log, "a", encoding="utf-8") as log:  # the disk may be full
            log.write(trace)

    def _end(self) -> None:
        process = self._process
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            self._close(process)
            partial_page(self.run_dir, process.pid).unlink(missing_ok=True)
        (self.run_dir / BARS).unlink(missing_ok=True)

    @staticmethod
    def _close(process: subprocess.Popen[bytes]) -> None:
        process.stdin.close()
        process.stdout.close()

    @property
    def _log(self) -> Path:
        return self.run_dir / "log.txt"
