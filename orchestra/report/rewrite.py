"""The process that writes the page of a run that goes on; see orchestra/run/live.py, which starts it.

It gives way to everything else, leaves Ctrl-C to the run, and ends when the run does. On standard output it says what
it took, in seconds of processor time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from orchestra.report.html import partial_page

NICE = 10
"""Added to the run's own: it gets a tenth of what the run gets where both want the same core. At the lowest priority a
page that costs 2 seconds would take minutes beside a run that leaves no core idle."""
LIMIT_SECONDS = 600
"""After which it is killed by the kernel, whatever it hangs in."""


def main() -> None:
    """Arguments: the run's folder; seconds until the next page."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.alarm(LIMIT_SECONDS)
    os.nice(NICE)
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    from orchestra.report.page import write_report

    folder, every = sys.argv[1:]
    write_report(Path(folder), float(every))
    print(time.process_time())


def _end_with_the_run() -> None:
    """Standard input is a pipe in which nothing ever comes, until the process at the other end is gone."""
    os.read(sys.stdin.fileno(), 1)
    partial_page(Path(sys.argv[1]), os.getpid()).unlink(missing_ok=True)
    os._exit(1)
