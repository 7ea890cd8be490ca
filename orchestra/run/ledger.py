"""What a run has finished: one JSON file, written whole or not at all, beside the stages' folders."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from orchestra.config.faults import UserError
from settings.files import write_whole

VERSION = 1
PART = ": "
"""In a key of `StageResult.extra`, between one of the stage's sources and what is said of it (`traces: nll`)."""


@dataclass(frozen=True)
class StageResult:
    """What a finished stage has to say. None where it does not apply (a distill stage has no accuracy).

    Fields:
        accuracy, low, high: sampled accuracy with its interval; greedy_accuracy: at temperature 0.
        difference, difference_low, difference_high, p_value: paired, to the evaluated stage before.
        base_difference, base_p_value: paired, to the untrained base.
        beta: weight of the KL penalty; kl: mean KL to the reference over the last quarter of the steps.
        steps: optimizer steps; seconds: of wall-clock time; tokens: generated or trained on.
        adapter_sha256: of adapter/adapter_model.safetensors.
        mean_length: tokens a completion; format_rate, truncation_rate: shares of the sampled completions.
        gate: GO or NO-GO where the stage has a gate; set by the runner.
        extra: whatever else the kind of stage reports.
    """

    name: str
    kind: str
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    greedy_accuracy: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    base_difference: float | None = None
    base_p_value: float | None = None
    beta: float | None = None
    kl: float | None = None
    steps: int | None = None
    seconds: float = 0.0
    tokens: int = 0
    adapter_sha256: str | None = None
    mean_length: float | None = None
    format_rate: float | None = None
    truncation_rate: float | None = None
    gate: str | None = None
    extra: dict[str, float | str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the order of the fields. What is no number is None, and left out of `extra`."""
        values = _without_nan(dataclasses.asdict(self))
        return values | {"extra": {name: value for name, value in values["extra"].items() if value is not None}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Keys of other versions are left out."""
        known = {one.name for one in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


@dataclass(frozen=True)
class Fingerprint:
    """What a stage's outcome depends on.

    Fields:
        config: the resolved settings by dotted key; inputs: sha256 of what it reads, by a name for people;
        code: sha256 of the source files it uses, comments and docstrings left out.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    code: Mapping[str, str]

    @property
    def digest(self) -> str:
        """sha256 over everything."""
        text = json.dumps([self.config, self.inputs, self.code], sort_keys=True, ensure_ascii=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()

    def changes_since(self, old: Fingerprint) -> list[str]:
        """What is different now, a phrase each: `beta 0.0 -> 0.001`, `code rl/kl.py`."""
        changes = []
        for key in sorted({*self.config, *old.config}):
            before, after = (_plain(config.get(key, "(not set)")) for config in (old.config, self.config))
            if before != after:
                changes.append(f"{key.removeprefix('stage.')} {before} -> {after}")
        for name in sorted({*self.inputs, *old.inputs}):
            if self.inputs.get(name) != old.inputs.get(name):
                changes.append(f"{name} is another" if name in self.inputs and name in old.inputs else name)
        for name in sorted({*self.code, *old.code}):
            if self.code.get(name) != old.code.get(name):
                changes.append(f"code {name}")
        return changes


def _plain(value: object) -> str:
    return json.dumps(value, default=list) if not isinstance(value, str) else value


@dataclass(frozen=True)
class LedgerEntry:
    """One finished stage: its folder's name, fingerprint, the sha256 of what it wrote, and its result."""

    folder: str
    fingerprint: Fingerprint
    outputs: Mapping[str, str]
    result: StageResult


class Ledger:
    """The finished stages of a run, in order. Every change is on disk before the call returns."""

    def __init__(self, run_dir: Path) -> None:
        """Raises UserError where the file cannot be read as a ledger."""
        self.path = run_dir / "ledger.json"
        self.entries: dict[str, LedgerEntry] = {}
        if not self.path.exists():
            return
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            if stored["version"] != VERSION:
                raise UserError(f"{self.path}: version {stored['version']}; this program writes {VERSION}")
            for values in stored["stages"]:
                entry = LedgerEntry(
                    folder=values["folder"],
                    fingerprint=Fingerprint(**values["fingerprint"]),
                    outputs=values["outputs"],
                    result=StageResult.from_json(values["result"]),
                )
                self.entries[entry.result.name] = entry
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path} is damaged ({type(error).__name__}: {error}); "
                "move it away, and the stages' folders with it, to start again"
            ) from error

    def record(self, entry: LedgerEntry) -> None:
        """Add a finished stage, or replace its entry."""
        self.entries[entry.result.name] = entry
        self._write()

    def forget(self, names: list[str]) -> None:
        """Take stages out."""
        self.entries = {name: entry for name, entry in self.entries.items() if name not in names}
        self._write()

    def _write(self) -> None:
        stages = [
            {
                "folder": entry.folder,
                "fingerprint": dataclasses.asdict(entry.fingerprint),
                "digest": entry.fingerprint.digest,
                "outputs": dict(entry.outputs),
                "result": entry.result.to_json(),
            }
            for entry in self.entries.values()
        ]
        write_json(self.path, {"version": VERSION, "stages": stages})


def write_json(path: Path, value: object) -> None:
    """Write a JSON file so that a reader, or a crash at any moment, sees the old or the new content, never a part.

    What is no number is written as null.
    """
    content = json.dumps(_without_nan(value), indent=1, default=list, allow_nan=False)
    write_whole(path, f"{content}\n".encode())


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN and no infinity: None in their places."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return value
