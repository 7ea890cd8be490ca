"""A panel that grows on the tiny model: experts are trained for real, and what the arms answer stands in a table."""

import contextlib
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import solved

from evals.evaluate import Evaluation, Pass
from evals.statistics import accuracy
from models.engines.protocol import Engine
from orchestra.config.recipe import Recipe
from orchestra.run.ledger import StageResult
from orchestra.work import arms, imitating, panels, policies
from orchestra.work.context import StageContext

SFT = {"kind": "sft", "steps": 1, "batch_size": 2, "learning_rate": 1e-2, "warmup_ratio": 0, "preflight": False}
BEFORE = ("old", "useless")
GROW = {
    "name": "grow", **SFT, "kind": "grow", "rounds": 6, "window": 8, "learn": 24, "gain": 16, "samples": 2,
    "oracle_samples": 2, "growth": {"windows": 2, "cooldown": 1, "at_most": 3, "unsolved_above": 0.05}, "may_cost": 0.2,
    "audit": {"folds": 2},
}  # fmt: skip
Solves = Mapping[str, Collection[str]]
"""By an arm's name the domains whose problems it solves."""
GOOD: Solves = {"sums": ("sums",), "words": ("words",)}


def problems(count: int, first: int = 0) -> list[dict[str, object]]:
    """Of two domains in turn, which any two layers tell apart."""
    asked = (("sums", "What is {} + {}?"), ("words", "Spell the name of number {} backwards, then that of {}."))
    return [
        {"question": asked[at % 2][1].format(at, at + 1), "answer": str(at), "solution": f"it is {at}",
         "domain": asked[at % 2][0]}
        for at in range(first, first + count)
    ]  # fmt: skip


def recipe(
    base: Path, folder: Path, *, only: str | None = None, more: tuple[dict[str, object], ...] = (), **grow: object
):
    """Two experts, of which one will be of no use, and a stage that lets their panel grow.

    Args:
        only: the one domain of which there are traces; more: stages behind it; grow: keys of the stage.
    """
    train = problems(88)
    data = solved.written(folder / "train.jsonl", train)
    few = solved.written(folder / "few.jsonl", [line for line in train if only in (None, line["domain"])])
    stages = [
        {"name": "old", "expert": "sums", "domains": ["sums"], "data": data, **SFT},
        {"name": "useless", "expert": "idle", "data": data, **SFT},
        {**GROW, "data": few, **grow},
        *more,
    ]
    return solved.recipe(
        base, folder, stages, test=problems(4, 100), evaluate={"perplexity": 0, "samples": 2, "greedy": False},
        problems={"train": data, "test": str(folder / "test.jsonl")},
    )  # fmt: skip


def trained(recipe: Recipe, run: Path, engine: Engine) -> Path:
    """The run's folder with the panel that is to grow."""
    for name in BEFORE:
        context = solved.context(recipe, name, run, engine)
        context.stage.run(context)
    return run


@dataclass
class Grown:
    """What a grow stage did.

    Fields:
        asked, trained: in their order; a run that was to stop has no result.
    """

    context: StageContext
    asked: list[str] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    result: StageResult | None = None

    @property
    def said(self) -> list[str]:
        return [line.strip() for line in solved.said(self.context)]

    def decisions(self) -> list[str]:
        """Of each window."""
        return [line.split(": ")[1] for line in self.said if line.startswith("window ")]

    def files(self) -> dict[str, bytes]:
        """What came out, but for times."""
        return {
            str(path.relative_to(self.context.folder)): path.read_bytes()
            for path in sorted(self.context.folder.rglob("*"))
            if path.is_file() and path.name in WHOLE
        }


WHOLE = ("adapter_model.safetensors", "adapter_config.json", "panel.json", "router.json", "router.safetensors",
         "growth.json", "removal.json", "panel-evaluation.json", "routes.json")  # fmt: skip


class Stop(Exception):
    """As if the process was killed."""


def run(
    recipe: Recipe, before: Path, folder: Path, engine: Engine, solves: Solves = GOOD, *,
    stop_asking: str = "", stop_training: str = "", during: Callable[[str], None] = lambda _: None,
) -> Grown:  # fmt: skip
    """The grow stage in a folder of its own.

    Args:
        before: the run with the panel; solves: what the arms answer.
        stop_asking, stop_training: stops before this is asked, or this expert is trained.
        during: called with an expert's name while it is trained.
    """
    for name in BEFORE:
        if not (folder / name).exists():
            shutil.copytree(before / name, folder / name)
    grown = Grown(solved.context(recipe, "grow", folder, engine))
    train = imitating.train_sft

    def training(policy: object, tokenizer: object, prompts: object, completions: object, settings: object,
                 folder: Path, **named: object) -> object:  # fmt: skip
        if folder.name == stop_training:
            raise Stop
        grown.trained.append(folder.name)
        during(folder.name)
        return train(policy, tokenizer, prompts, completions, settings, folder, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms, "answered", answering(solves, grown.asked, stop_asking))
        patch.setattr(imitating, "train_sft", training)
        for module in (panels, policies):
            patch.setattr(module, "free_memory", lambda: None)  # half of the time of these tests
        with contextlib.suppress(Stop):
            grown.result = grown.context.stage.run(grown.context)
    return grown


def answering(solves: Solves, asked: list[str], stop: str = "") -> Callable[..., Evaluation]:
    """In the place of `answered`: an arm solves the problems of its domains each time, and no other."""

    def answered(context: StageContext, asking: object, doing: str, *, settings: object, seed: int, **_: object):
        if doing == stop:
            raise Stop
        asked.append(doing)
        domains = solves.get(doing.split()[1], ())
        correct = tuple((int(one.domain in domains),) * settings.samples for one in asking.problems)
        count = len(correct) * settings.samples
        graded = Pass(1.0, correct, accuracy(correct, 0.95), 3.0, 0.0, 1.0, 0, 3 * count, 0.1)
        ids, of = (tuple(getattr(one, key) for one in asking.problems) for key in ("id", "domain"))
        return Evaluation(ids, of, graded, None, {}, (), seed)

    return answered
