"""The process that does symbolic work: one keeper without opinions, a few forked children that may hang.

Run as ``python -P symbolic_worker.py SLOTS MEMORY_MB`` and spoken to in JSON lines over its stdin and stdout.
The keeper imports sympy and math-verify once, forks SLOTS children (a fork of a single-threaded process that never
touched torch), hands each request to an idle child and waits. A child that is not done at the deadline is killed and
replaced in a few milliseconds; that request is answered ``timeout`` and no other is touched. A child also arms a
kernel timer whose default action is death, so that it ends even if the keeper is gone.

The model's text reaches only math-verify's LaTeX grammar (an ANTLR parser). The plain-expression extractor of
math-verify, which ends in sympy's ``parse_expr`` and so in ``eval``, is not used; and children can neither write
files nor start programs (resource limits).

Request:  {"id": int, "gold": str, "answer": str, "seconds": float}
Reply:    {"id": int, "outcome": "equal" | "different" | "unknown" | "timeout" | "crash"}
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque


def compare(gold: str, answer: str) -> str:
    """``equal``, ``different`` or ``unknown`` (one side could not be read) for two LaTeX expressions without ``$``."""
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(try_extract_without_anchor=True)]
    read = [
        parse(f"${text}$", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)
        for text in (gold, answer)
    ]
    if not read[0] or not read[1]:
        return "unknown"
    return "equal" if verify(read[0], read[1], strict=True, timeout_seconds=None) else "different"


def _limit(memory_mb: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve(channel: socket.socket, memory_mb: int) -> None:
    """A child's life: read a request, answer it, again."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(memory_mb)
    stream = channel.makefile("rwb")
    for line in stream:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 0.5)
        try:
            outcome = compare(request["gold"], request["answer"])
        except Exception:  # noqa: BLE001 - whatever a parser throws at hostile text means: not readable
            outcome = "unknown"
        signal.setitimer(signal.ITIMER_REAL, 0)
        stream.write(outcome.encode() + b"\n")
        stream.flush()


class _Child:
    def __init__(self, memory_mb: int, inherited: list[int]):
        mine, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            mine.close()
            for descriptor in inherited:
                os.close(descriptor)
            try:
                _serve(theirs, memory_mb)
            finally:
                os._exit(0)
        theirs.close()
        self.channel = mine
        self.request: dict | None = None
        self.deadline = 0.0

    def give(self, request: dict) -> None:
        self.request = request
        self.deadline = time.monotonic() + request["seconds"]
        self.channel.sendall(json.dumps(request).encode() + b"\n")

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.channel.close()


class _Keeper:
    def __init__(self, slots: int, memory_mb: int, out: int):
        self.slots, self.memory_mb, self.out = slots, memory_mb, out
        self.waiting: deque[dict] = deque()
        self.children: list[_Child] = []
        self.selector = selectors.DefaultSelector()
        self.selector.register(0, selectors.EVENT_READ, None)
        self.buffer = b""

    def reply(self, request: dict, outcome: str) -> None:
        os.write(self.out, json.dumps({"id": request["id"], "outcome": outcome}).encode() + b"\n")

    def fork(self) -> None:
        inherited = [0, self.out, self.selector.fileno(), *(c.channel.fileno() for c in self.children)]
        child = _Child(self.memory_mb, inherited)
        self.children.append(child)
        self.selector.register(child.channel, selectors.EVENT_READ, child)

    def drop(self, child: _Child, outcome: str) -> None:
        self.selector.unregister(child.channel)
        child.end()
        self.children.remove(child)
        if child.request is not None:
            self.reply(child.request, outcome)
        self.fork()

    def finished(self, child: _Child) -> None:
        try:
            outcome = child.channel.recv(64).strip().decode()
        except OSError:
            outcome = ""
        if not outcome:
            self.drop(child, "crash")
            return
        request, child.request = child.request, None
        self.reply(request, outcome)

    def read(self) -> bool:
        """Take requests from stdin; False when the parent has gone."""
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return False
        *lines, self.buffer = (self.buffer + chunk).split(b"\n")
        self.waiting.extend(json.loads(line) for line in lines)
        return True

    def run(self) -> None:
        for _ in range(self.slots):
            self.fork()
        os.write(self.out, b'{"id": -1, "outcome": "ready"}\n')
        alive = True
        while alive:
            for child in self.children:
                if child.request is None and self.waiting:
                    child.give(self.waiting.popleft())
            deadlines = [child.deadline for child in self.children if child.request is not None]
            timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            for key, _ in self.selector.select(timeout):
                if key.data is None:
                    alive = self.read()
                elif key.data in self.children:
                    self.finished(key.data)
            now = time.monotonic()
            for child in [c for c in self.children if c.request is not None and c.deadline <= now]:
                self.drop(child, "timeout")
        for child in self.children:
            child.end()


def main() -> None:
    slots, memory_mb = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # replies have a descriptor of their own, so that a library's print cannot be taken for one
    out = os.dup(1)
    os.dup2(2, 1)
    import logging

    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(3000)
    compare(r"\frac{1}{2}", r"\sqrt{x}")  # the grammar's tables are built at first use
    _Keeper(slots, memory_mb, out).run()


if __name__ == "__main__":
    main()
