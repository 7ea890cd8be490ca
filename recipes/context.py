"""What a stage function is handed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from recipes.progress import Progress
from recipes.schema import Recipe, Stage


class Resources(Protocol):
    """What is made once per run and shared by its stages: engines, tokenizers, problems."""

    def close(self) -> None:
        """Give everything back."""


@dataclass(frozen=True)
class StageContext:
    """One stage of one run, as its function sees it.

    Fields:
        recipe: validated, scale and overrides applied.
        stage: the stage's own config (`BaseStage` for stage 00).
        index: 0 for the base, then 1, 2, ... in the order of the recipe.
        folder: the stage's folder; it exists, and may hold what a killed run left (checkpoints/, traces.jsonl).
        run_dir: the run's folder.
        earlier: folders of the finished stages before this one by name, `base` included.
        parent: the earlier stage whose policy this one takes up; None is the base with a fresh adapter.
        resources: made once per run by `recipes.stages.make_resources`.
        progress: bars and lines for the user; everything printed otherwise goes to the stage's log.txt.
    """

    recipe: Recipe
    stage: Stage
    index: int
    folder: Path
    run_dir: Path
    earlier: Mapping[str, Path]
    parent: str | None
    resources: Resources
    progress: Progress
