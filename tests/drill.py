"""Kill drills: a recipe in a process of its own, killed without a word, and everything that says what came of it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

WHOLE = (
    *("adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "traces.jsonl", "panel.json"),
    *("router.json", "router.safetensors", "growth.json", "routes.json", "panel-evaluation.json"),
)
TIMED = ("second", "peak_memory_bytes", "routing_time_share")


def start(folder):
    """The folder's mini.yaml, as a user runs it."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestra", "run", str(folder / "mini.yaml"), "--scale", "none", "--runs", str(folder)],
        stdout=open(folder / "out.txt", "a"), stderr=subprocess.STDOUT, start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def finished(folder):
    """Run it to its end, and say what came out."""
    assert start(folder).wait(timeout=900) == 0, (folder / "out.txt").read_text()
    return outcome(folder)


def without(value):
    """Without what is of when and where it ran: times, rates, memory."""
    if isinstance(value, dict):
        return {key: without(one) for key, one in value.items() if not any(word in key for word in TIMED)}
    return [without(one) for one in value] if isinstance(value, list) else value


def outcome(folder):
    """Every file that says what came out: byte for byte, or of evaluations and results without the times."""
    found = {}
    for path in sorted((folder / "mini-none").rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in WHOLE:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "metrics.jsonl":
            found[name] = [without(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name in ("result.json", "evaluation.json") or path.parent.name == "answers":
            found[name] = without(json.loads(path.read_text()))
    return found


def killed_when(folder, there):
    """Start it and kill -9 it as soon as this is there; says whether it was."""
    process = start(folder)
    deadline = time.monotonic() + 500
    while process.poll() is None and time.monotonic() < deadline:
        if there(folder / "mini-none"):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
            return True
        time.sleep(0.005)
    return False


def steps(run, pattern, least):
    """Whether a stage's metrics have so many lines."""
    found = sorted(run.glob(pattern))
    return bool(found) and found[-1].read_text().count("\n") >= least
