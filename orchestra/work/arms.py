"""What the arms of a panel, the base and its experts, answer: each asked the same problems, and asked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evals.evaluate import Evaluation
from models.experts import BASE, Panel
from orchestra.work.context import StageContext
from orchestra.work.panels import routed_engine
from orchestra.work.policies import answered
from settings.files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel

    from evals.settings import Evaluate
    from rewards.problems import Asked

ANSWERS = "answers"


@dataclass(frozen=True)
class Arms:
    """The arms of a panel whose experts are on a model.

    Fields:
        folder: of the panel; model: see `on_base`.
    """

    context: StageContext
    panel: Panel
    folder: Path
    model: PeftModel

    @property
    def names(self) -> tuple[str, ...]:
        """The base first, then the experts in the panel's order."""
        return (BASE, *self.panel.names)

    def ask(self, asked: Asked, draw: str, samples: int, seed: int) -> dict[str, Evaluation]:
        """Every arm's answers to the same problems, by its name. What a killed run has asked is not asked again.

        Args:
            draw: names these answers among the stage's.
            samples: completions per problem; seed: of the draw.
        """
        settings = self.context.stage.evaluation(self.context.recipe)
        settings = settings.model_copy(update={"samples": samples, "greedy": False, "pass_at_k": ()})
        return {name: self._answers(name, asked, draw, settings, seed) for name in self.names}

    def _answers(self, name: str, asked: Asked, draw: str, settings: Evaluate, seed: int) -> Evaluation:
        context = self.context
        path = context.folder / ANSWERS / f"{draw}-{name}.json"
        if context.once(path.is_file):
            return Evaluation.from_json(path.read_text(encoding="utf-8"))
        routes = [name] * len(asked.problems)
        engine = routed_engine(context, self.model, self.panel, self.folder, routes)
        found = answered(context, asked, f"ask {name} ({draw})", engine=engine, settings=settings, seed=seed)
        context.once(lambda: _write(path, found))
        return found


def correct_APS(answers: Mapping[str, Evaluation], names: Sequence[str]) -> np.ndarray:
    """Arms x problems x samples of 1, 0 and nan."""
    return np.stack([answers[name].sampled.correct_PS for name in names])


def solved_AP(answers: Mapping[str, Evaluation], names: Sequence[str]) -> np.ndarray:
    """Arms x problems: the share of an arm's samples that are right; nan where none was graded."""
    graded_APS = correct_APS(answers, names)
    count_AP = (~np.isnan(graded_APS)).sum(axis=2)
    return np.where(count_AP > 0, np.nansum(graded_APS, axis=2) / np.maximum(count_AP, 1), np.nan)


def _write(path: Path, found: Evaluation) -> None:
    path.parent.mkdir(exist_ok=True)
    write_whole(path, found.to_json().encode())
