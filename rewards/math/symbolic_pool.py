"""The parent's side of the symbolic pool: started at first use, asked in batches, killed when late, closed at exit.

The work happens in symbolic_worker.py, a fresh interpreter (never a fork of the training process, whose threads and
accelerator state do not survive one, and never an import of its ``__main__``). The file is run, not imported, and
imports nothing of the project: wherever the project is installed, and whatever lies in the working directory or on
PYTHONPATH under the names of its packages, this is the worker that starts.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.math import symbolic_worker

WORKER = Path(symbolic_worker.__file__).resolve()
START_SECONDS = 60.0
GRACE_SECONDS = 2.0


@dataclass(frozen=True)
class PoolSettings:
    """slots: children side by side; seconds: deadline of one comparison; memory_mb: address space of a child."""

    slots: int = 2
    seconds: float = 1.2
    memory_mb: int = 480


class _Gone(OSError):
    """The keeper's end of the pipes is closed."""


class SymbolicPool:
    """Compares pairs of LaTeX expressions in processes of their own; safe to call from any thread and after a fork."""

    def __init__(self, settings: PoolSettings | None = None):
        self.settings = settings or PoolSettings()
        self.killed = 0
        self._process: subprocess.Popen | None = None
        self._owner = 0
        self._buffer = b""
        self._lock = threading.Lock()
        forget = weakref.WeakMethod(self._forget)  # the registration is for ever, the pool need not be
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    @property
    def pid(self) -> int | None:
        """The process that keeps the workers, while there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the workers now, instead of at the first comparison."""
        with self._lock:
            self._ensure()

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """equal, different, unknown, timeout or crash for each (gold, answer); never raises for their content."""
        outcomes: list[str] = ["crash"] * len(pairs)
        with self._lock:
            waiting = deque(range(len(pairs)))
            flying: set[int] = set()
            asked_again: set[int] = set()
            while waiting or flying:
                self._ensure()
                try:
                    # few in flight: a full pipe in both directions would be a deadlock
                    while waiting and len(flying) < self.settings.slots + 1:
                        index = waiting.popleft()
                        flying.add(index)
                        self._send(index, *pairs[index])
                    reply = self._receive(2 * self.settings.seconds + GRACE_SECONDS)
                except (OSError, TimeoutError) as error:
                    # the keeper itself is gone or stuck: what it was asked is asked once more, unless it was too slow
                    self._kill()
                    lost = flying & asked_again if isinstance(error, _Gone) else set(flying)
                    for index in lost:
                        outcomes[index] = "timeout"
                    self.killed += len(lost)
                    waiting.extend(flying - lost)
                    asked_again |= flying
                    flying.clear()
                    continue
                outcomes[reply["id"]] = reply["outcome"]
                self.killed += reply["outcome"] in ("timeout", "crash")
                flying.discard(reply["id"])
        return outcomes

    def close(self) -> None:
        """End the workers; a later comparison starts new ones."""
        with self._lock:
            self._kill()
        atexit.unregister(self.close)

    def _ensure(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._kill()
        command = [sys.executable, "-P", str(WORKER), str(self.settings.slots), str(self.settings.memory_mb)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True, bufsize=0,
        )  # fmt: skip
        self._buffer = b""
        atexit.unregister(self.close)
        atexit.register(self.close)
        try:
            self._receive(START_SECONDS)
        except (OSError, TimeoutError) as error:
            self._kill()
            raise RuntimeError(f"the symbolic workers did not start ({' '.join(command)})") from error

    def _send(self, index: int, gold: str, answer: str) -> None:
        request = {"id": index, "gold": gold, "answer": answer, "seconds": self.settings.seconds}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise _Gone from error

    def _receive(self, seconds: float) -> dict:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            stdout = self._process.stdout
            # poll, not select: a trainer may have more than a thousand files open
            poll = select.poll()
            poll.register(stdout, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            chunk = os.read(stdout.fileno(), 1 << 16)
            if not chunk:
                raise _Gone("the symbolic workers ended")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, 9)
        process.wait()
        process.stdin.close()
        process.stdout.close()

    def _forget(self) -> None:
        """In a forked child: the workers are the parent's; close our copies of the pipes and start anew when needed."""
        process, self._process = self._process, None
        self._lock = threading.Lock()
        if process is not None:
            process.stdin.close()
            process.stdout.close()
            process.returncode = 0  # not ours to wait for
