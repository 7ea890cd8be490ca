"""Where a run is now, as its folder shows it: also while its files are being written, so none of them need be whole."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestra.run.folder import in_progress
from orchestra.run.progress import Done
from orchestra.text import number

BARS = "progress.json"
"""In a run's folder while it is run: how far the long steps are that are being done. See orchestra/run/live.py."""
STEPS = "steps"
"""The unit of the bar that counts optimizer steps."""
COURSE = {"loss": "loss", "reward": "reward", "kl": "KL", "entropy": "entropy"}
"""Of a line of metrics.jsonl, what is told of a stage in progress where it has it, and in which words."""
TAIL = 1 << 16
"""Bytes read from the end of metrics.jsonl; a line has about one thousand."""
FOLDER = re.compile(r"^\d{2,}-(.+)$")


@dataclass(frozen=True)
class Current:
    """A stage that has begun and is not finished.

    Fields:
        number: of the stage, the base being 0.
        running: a process works on it; else it was stopped, or killed.
        began: seconds since 1970 at which the process that works (or worked) on it began.
        step, steps: optimizer steps done, and in all, where it has any.
        bars: the long steps that are being done, the outermost first; none where no process works on it.
        last: the last line of its metrics.jsonl.
    """

    name: str
    kind: str
    number: int
    running: bool
    began: float
    step: int | None = None
    steps: int | None = None
    bars: tuple[Done, ...] = ()
    last: Mapping[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Its folder's name."""
        return f"{self.number:02}-{self.name}"

    @property
    def bar(self) -> Done | None:
        """The long step that tells most: the optimizer's, or else the innermost."""
        return next((bar for bar in self.bars if bar.unit == STEPS), self.bars[-1] if self.bars else None)

    @property
    def doing(self) -> tuple[str, ...]:
        """The long steps, a phrase each; what a bar notes of the last step is in `last_step`, if anything is."""
        return tuple((replace(bar, note="") if self.last else bar).text() for bar in self.bars)

    @property
    def last_step(self) -> tuple[str, ...]:
        """Of the last step, a phrase each: `step 12 of 40`, unless a bar says so, then `reward 0.41` and the like."""
        counted = any(bar.unit == STEPS for bar in self.bars) or self.step is None
        of = f" of {self.steps:,}" if self.steps else ""
        first = () if counted else (f"step {self.step:,}{of}",)
        return first + tuple(f"{name} {number(self.last[key], 3)}" for key, name in COURSE.items() if key in self.last)

    @property
    def status(self) -> str:
        """`in progress`, or `stopped`."""
        return "in progress" if self.running else "stopped"

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "began": self.began,
            "step": self.step,
            "steps": self.steps,
            "doing": [
                {one.name: getattr(bar, one.name) for one in fields(bar)} | {"seconds_left": bar.left}
                for bar in self.bars
            ],
            "last": dict(self.last),
        }


def current_stage(run_dir: Path, finished: frozenset[str]) -> Current | None:
    """The stage in which a run is, or was stopped; None where there is none (before, between and after the stages).

    Args:
        finished: the names of its finished stages.
    """
    running = in_progress(run_dir)
    for place in sorted(run_dir.glob("[0-9][0-9]*-*")):
        match = FOLDER.match(place.name)
        if match is None or match[1] in finished:
            continue
        config = _tree(_read(place / "config.json").get("stage"))
        try:
            began = (place / "config.json").stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):  # the folder alone is no beginning, and a file none at all
            continue
        last = last_line(place / "metrics.jsonl")
        bars = _bars(run_dir / BARS, match[1], began) if running else ()
        counted = [bar.done for bar in bars if bar.unit == STEPS]
        if "step" in last:
            counted.append(int(last["step"]))
        steps = config.get("steps")
        return Current(
            name=match[1],
            kind=str(config.get("kind", "?")),
            number=int(place.name.partition("-")[0]),
            running=running,
            began=began,
            step=max(counted, default=None),
            steps=steps if isinstance(steps, int) else None,
            bars=bars,
            last=last,
        )
    return None


def stages_of(run_dir: Path) -> int | None:
    """How many stages a run has, the base's evaluation with them; None where it does not say so yet."""
    stages = _tree(_read(run_dir / "run.json").get("recipe")).get("stages")
    return 1 + len(stages) if isinstance(stages, list) else None


def last_line(path: Path) -> dict[str, float]:
    """The numbers of the last whole line of a metrics.jsonl; none where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            values = _tree(json.loads(line))
        except ValueError:  # the line that is being written, or the first one read, cut in two
            continue
        if "step" in values:
            numbers = {key: value for key, value in values.items() if type(value) in (int, float)}
            return {key: value for key, value in numbers.items() if isfinite(value)}
    return {}


def bars_json(stage: str, bars: list[Done], now: float) -> str:
    """What BARS holds."""
    return json.dumps(asdict(_Told(stage, now, tuple(bars))))


@dataclass(frozen=True)
class _Told:
    stage: str
    written: float
    bars: tuple[Done, ...]


def _bars(path: Path, stage: str, began: float) -> tuple[Done, ...]:
    """Those of this stage by the process that works on it; a killed one may have left its file."""
    try:
        told = TypeAdapter(_Told).validate_json(path.read_bytes())
    except (OSError, ValidationError):  # not there (yet), or of another version
        return ()
    return told.bars if told.stage == stage and told.written >= began else ()


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return _tree(json.loads(path.read_text(encoding="utf-8", errors="replace")))
    except (OSError, ValueError):  # not there (yet), or not whole; the runner tells of what is damaged
        return {}


def _tree(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
