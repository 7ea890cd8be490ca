"""A disk that is full or not writable, in one line."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from orchestra.config.faults import UserError


class StageError(UserError):
    """A stage ended early. `exit_code` is the process's."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def disk_full(error: BaseException) -> bool:
    """Whether this, or what caused it, is a full disk; libraries in Rust and C++ only say so in words."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(seen) or "os error 28" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def no_space(place: Path) -> str:
    """What to tell of a full disk."""
    return f"the disk with {place} is full; make room and run the same command, finished stages are kept"


@contextlib.contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Our own files, too, may not fit the disk or not be writable."""
    try:
        yield
    except OSError as error:
        if disk_full(error):
            raise StageError(no_space(place)) from error
        raise StageError(f"{error.filename or place}: {error.strerror or error}") from error
