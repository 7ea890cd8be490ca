"""What a stage is handed when it is run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from models.processes import Processes

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.config.stage import Stage
    from orchestra.run.ledger import StageResult
    from orchestra.run.progress import Progress
    from orchestra.work.resources import Resources

ADAPTER = "adapter"
T = TypeVar("T")


@dataclass(frozen=True)
class StageContext:
    """One stage of one run, as its `run` sees it. Where a run has several processes, each runs the stage.

    Fields:
        recipe: validated, scale and overrides applied.
        stage: the stage itself.
        folder: the stage's folder; it exists, and may hold what a killed run left (checkpoints/, traces.jsonl).
        run_dir: the run's folder.
        earlier: folders of the finished stages before this one by name, `base` included.
        parents: the earlier stages whose policies this one takes up; none is the base with a fresh adapter.
        resources: made once per run and shared by its stages.
        progress: bars and lines for the user; everything printed otherwise goes to the stage's log.txt.
        processes: that run the stage together; what the first one returns is the stage's result.
    """

    recipe: Recipe
    stage: Stage
    folder: Path
    run_dir: Path
    earlier: Mapping[str, Path]
    parents: tuple[str, ...]
    resources: Resources
    progress: Progress
    processes: Processes = field(default_factory=Processes)

    def once(self, work: Callable[[], T]) -> T:
        """Do what only one process may, writing a file above all; all of them wait for it and get what it gives."""
        return self.processes.once(work)

    @property
    def parent(self) -> str | None:
        """The one stage whose policy is taken up; None is the base.

        Raises:
            ValueError: there are several, and the kind must say which it means.
        """
        if len(self.parents) > 1:
            raise ValueError(f"stage {self.stage.name!r} has several parents: {', '.join(self.parents)}")
        return self.parents[0] if self.parents else None

    @property
    def seed(self) -> int:
        """The stage's own, whatever stands before it in the recipe."""
        from orchestra.work.resources import stage_seed

        return stage_seed(self.recipe, self.stage.name)

    def adapter_of(self, stage: str) -> Path:
        """The folder of an earlier stage's policy."""
        return self.earlier[stage] / ADAPTER

    def result_of(self, stage: str) -> StageResult:
        """What an earlier stage had to say."""
        from orchestra.run.ledger import StageResult

        return StageResult.from_json(json.loads((self.earlier[stage] / "result.json").read_text(encoding="utf-8")))

    def result(self, **extra: float | str) -> StageResult:
        """A result of this stage that has nothing but `extra` yet."""
        from orchestra.run.ledger import StageResult

        return StageResult(name=self.stage.name, kind=self.stage.kind, extra=extra)
