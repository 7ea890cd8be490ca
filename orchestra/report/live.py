"""What the page of a run that goes on shows besides: the stage in progress, and how old the page is."""

from __future__ import annotations

import base64
import hashlib
import time
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING

from orchestra.run.folder import in_progress
from orchestra.run.state import Current, current_stage

if TYPE_CHECKING:
    from orchestra.report.data import RunRecord

RELOAD_SECONDS = 30
"""Between two reloads of an open page: half of what lies between two pages, so that a new one is seen soon."""
MISSED = 5
"""Where so many pages in a row did not come, the run is said to be gone. One may be late: on a busy machine a page,
which is made at a low priority, takes a minute or two."""


@dataclass(frozen=True)
class Live:
    """Of a run that goes on.

    Fields:
        written: seconds since 1970; every: seconds until the next page.
        current: the stage in progress; None between stages.
        script: tells the page's age while it is open; its hash is what the page's policy lets run, and nothing else.
    """

    written: float
    every: float
    current: Current | None
    script: str
    reload: int = RELOAD_SECONDS

    @property
    def script_hash(self) -> str:
        """As a content security policy names it."""
        return "sha256-" + base64.b64encode(hashlib.sha256(self.script.encode()).digest()).decode()

    @property
    def old_after(self) -> int:
        """Seconds after which a page without a successor is that of a run which ended without a word."""
        return round(MISSED * self.every)

    @staticmethod
    def moment(seconds: float) -> str:
        """`2027-03-01 14:02:11 CET`, in the zone of the machine on which the run is."""
        return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def live_of(run: RunRecord, every: float) -> Live | None:
    """None where no process works on the run, or all its stages are finished: then the page is its files' alone."""
    if run.finished or not in_progress(run.path):
        return None
    # not by the ledger: what the page shows as finished is finished
    current = current_stage(run.path, frozenset(stage.name for stage in run.stages if stage.status == "finished"))
    script = (files("orchestra.report") / "templates" / "live.js").read_text(encoding="utf-8")
    return Live(time.time(), every, current, script)


def settled_notes(notes: tuple[str, ...], live: Live | None) -> tuple[str, ...]:
    """What could not be read, without the files that the stage in progress is writing."""
    if live is None or live.current is None:
        return notes
    return tuple(note for note in notes if not note.startswith(f"{live.current.folder}/"))
