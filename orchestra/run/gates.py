"""Gates: GO or NO-GO for a stage, from its numbers and those of an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestra.config.recipe import BASE, Recipe
from orchestra.config.stage import Stage
from orchestra.run.ledger import PART, LedgerEntry, StageResult
from orchestra.text import clock

GO, NO_GO = "GO", "NO-GO"


@dataclass(frozen=True)
class GateVerdict:
    """`word` is GO or NO-GO; `sentence` gives it with the numbers."""

    word: str
    sentence: str


def judge(recipe: Recipe, stage: Stage, results: Mapping[str, StageResult]) -> GateVerdict | None:
    """The verdict on a finished stage, its kind's own first; None where it has no gate. A metric that is missing is a
    NO-GO."""
    own = stage.verdict(results[stage.name])
    if own is not None and not own.go:
        return GateVerdict(NO_GO, f"{NO_GO}: {own.reason}")
    gate = stage.gate
    if gate is None:
        return None
    against = previous(recipe, stage.name) if gate.against == "previous" else gate.against
    own = getattr(results[stage.name], gate.metric)
    other = getattr(results[against], gate.metric) if against in results else None
    if own is None or other is None:
        who = stage.name if own is None else against
        return GateVerdict(NO_GO, f"{NO_GO}: stage {who!r} has no {gate.metric}")
    difference = own - other
    word = GO if difference >= gate.min_difference else NO_GO
    sign = ">=" if word == GO else "<"
    numbers = f"{gate.metric} {own:.4f} against {other:.4f} of {against!r}"
    return GateVerdict(word, f"{word}: {numbers}, difference {difference:+.4f} {sign} {gate.min_difference:+.4f}")


def previous(recipe: Recipe, name: str) -> str:
    """The evaluated stage before this one, `base` if there is none."""
    return [BASE, *(stage.name for stage in recipe.before(name) if "evaluation" in stage.gives)][-1]


def best_so_far(run_dir: Path, entries: Mapping[str, LedgerEntry]) -> str:
    """The finished stage with the highest accuracy, and where its adapter is."""
    measured = [(entry.result.accuracy, name) for name, entry in entries.items() if entry.result.accuracy is not None]
    if not measured:
        return "no stage has been evaluated yet"
    accuracy, name = max(measured)
    adapter = run_dir / entries[name].folder / "adapter"
    where = f", {adapter}" if adapter.is_dir() else ""
    return f"best so far: {name!r} with accuracy {accuracy:.4f}{where}"


def sentence(result: StageResult) -> str:
    """One line for a stage that has just been finished."""
    parts = []
    if result.accuracy is not None:
        interval = f" [{result.low:.3f}, {result.high:.3f}]" if None not in (result.low, result.high) else ""
        parts.append(f"accuracy {result.accuracy:.3f}{interval}")
    if result.difference is not None:
        p_value = f" (p = {result.p_value:.2g})" if result.p_value is not None else ""
        parts.append(f"{result.difference:+.3f}{p_value}")
    if result.kl is not None:
        parts.append(f"KL {result.kl:.2g}")
    parts += [f"{key.replace('_', ' ')} {value:.4g}"
              for key, value in result.extra.items()
              if result.accuracy is None and isinstance(value, int | float)
              and not key.endswith("_bytes") and PART not in key]  # fmt: skip
    return ", ".join([*parts, clock(result.seconds)])
