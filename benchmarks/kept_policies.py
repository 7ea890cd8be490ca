"""Accuracy of the policies that a benchmark's workers kept, all under one evaluator: the recipe's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.grpo_cases import Start
from benchmarks.grpo_task import kept, recipe_of, start_policy
from evals.evaluate import Evaluation
from rewards.problems import Asked

SFT = 0


def evaluated(
    start: Start, folders: Mapping[str, Path], problems: int | None, log: Path
) -> dict[str, dict[int, Evaluation]]:
    """Each side's policies by step; `SFT` is where both started.

    The recipe's engine serves each in turn (pushed and probed as in training), asked the same held-out problems with
    the same seeds; sampled only.

    Args:
        folders: of what each side kept.
        problems: the first so many held-out problems; None is all.
        log: gets what libraries print.
    """
    from evals.evaluate import evaluate
    from models.adapters import read_adapter, write_adapter
    from orchestra.run.progress import Progress, chatter_to
    from orchestra.work.resources import Resources

    recipe = recipe_of(Path(start.run))
    stage, resources, progress = recipe.stage(start.stage), Resources(recipe), Progress()
    settings = stage.evaluation(recipe).model_copy(update={"greedy": False, "pass_at_k": ()})
    with chatter_to(log):
        every = resources.test(stage)
        asked = Asked(every.problems[:problems], every.prompts[:problems], every.tokens[:problems])
        policy, served = start_policy(start), resources.served()

        def accuracy_of(name: str) -> Evaluation:
            served.push(policy)
            found = evaluate(
                served.engine,
                asked,
                settings,
                resources.domain,
                resources.format,
                seed=recipe.seed,
                stop_token_ids=resources.stops(),
            )
            progress.say(f"  {name}: {found.sampled.accuracy.estimate:.3f}")
            return found

        sft = accuracy_of("SFT")
        sides: dict[str, dict[int, Evaluation]] = {}
        for side, folder in folders.items():
            sides[side] = {SFT: sft}
            for step in filter(start.keeps, range(1, start.steps + 1)):
                write_adapter(policy, read_adapter(kept(folder, step)), source=str(folder))
                sides[side][step] = accuracy_of(f"{side}, step {step}")
        resources.close()
    return sides
