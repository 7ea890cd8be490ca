"""Stages on the tiny model whose data are files of solved problems, and whose engine is transformers' generate."""

import json
from collections.abc import Sequence
from pathlib import Path

import tiny
from rich.console import Console

from models.engines.protocol import Engine
from orchestra.config.recipe import Recipe
from orchestra.run.progress import Progress
from orchestra.work.context import StageContext
from orchestra.work.resources import Resources


def rows(count: int = 4, **more: object) -> list[dict[str, object]]:
    """Solved problems that are none of the held-out ones."""
    return [
        {"question": question, "answer": "7", "solution": f"{at} + {at} = 7", **more}
        for at, question in enumerate(tiny.QUESTIONS[:count])
    ]


def held_out(solution: str | None = "30 - 11 = 19") -> list[dict[str, object]]:
    """The last two of the tiny questions; the first of them is solved if any is."""
    first = {"question": tiny.QUESTIONS[5], "answer": "19"} | ({"solution": solution} if solution else {})
    return [first, {"question": tiny.QUESTIONS[4], "answer": "7"}]


def recipe(
    base: Path, folder: Path, stages: Sequence[dict[str, object]], *,
    test: Sequence[dict[str, object]], dropout: float = 0.0, **sections: object,
) -> Recipe:  # fmt: skip
    """A recipe whose stages may name `folder/*.jsonl`."""
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in test))
    return Recipe.model_validate(
        {
            "name": "small",
            "model": {"base": str(base), "lora": {"rank": 4, "alpha": 8, "dropout": dropout}},
            "problems": {"train": str(folder / "test.jsonl"), "test": str(folder / "test.jsonl")},
            "rollouts": {"engine": "transformers", "max_completion_tokens": 12, "max_prompt_tokens": 100,
                         "group_size": 2},
            "stages": list(stages),
            **sections,
        }
    )  # fmt: skip


def written(path: Path, lines: Sequence[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def context(recipe: Recipe, stage: str, run: Path, engine: Engine) -> StageContext:
    """Of a stage whose folder is `run/<stage>`; those of the stages before it are there where they have run."""
    folder = run / stage
    folder.mkdir(parents=True, exist_ok=True)
    resources = Resources(recipe)
    resources._own[recipe.model.base] = engine
    earlier = {one.name: run / one.name for one in recipe.before(stage) if (run / one.name).is_dir()}
    progress = Progress(Console(record=True, width=2000))
    parents = recipe.parents_of(stage)
    own = recipe.stage(stage)
    return StageContext(
        recipe, own, folder, run, earlier, parents, resources, progress,
        panel=recipe.panel_of(stage), expert=own.trains,
    )  # fmt: skip


def said(context: StageContext) -> list[str]:
    """What was told of it on the terminal so far."""
    return context.progress.console.export_text(clear=False).splitlines()
