"""One run on several processes (`accelerate launch`): the first one writes, the others wait for it."""

from __future__ import annotations

import os


def rank() -> int:
    """0 for the process that writes ledger, reports and lines."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Number of processes in this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def barrier() -> None:
    """Wait until all processes are here; nothing with one process."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
