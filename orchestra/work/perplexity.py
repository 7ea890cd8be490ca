"""Perplexity beside accuracy: after a stage that trains, how likely its policy finds the texts that were trained on so
far and the held-out problems' written solutions, text for text beside the policy that it started from.

The texts of a source are the same in every stage, so what an earlier stage has measured of a policy counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evals.evaluate import Evaluation, compare
from evals.modelled import Change, Modelled
from evals.perplexity import Perplexity, perplexity, perplexity_ratio
from models.reference import Reference
from orchestra.work.policies import EVALUATION
from orchestra.work.settings import PERPLEXITY, PreflightLimits
from orchestra.work.texts import Text, drawn, scored, shown_names
from orchestra.work.traces import read_source
from sft.distill import traces_of_solutions

if TYPE_CHECKING:
    from peft import PeftModel

    from evals.statistics import PairedDifference
    from orchestra.work.context import StageContext

HELD_OUT = "held-out text"
"""What the held-out problems' solutions are called; a stage cannot be."""


def measure(context: StageContext, policy: PeftModel, evaluation: Evaluation) -> Modelled | None:
    """Measure, and write perplexity.json.

    Args:
        policy: as trained by this stage; evaluation: its own.

    Returns:
        what was found; None where there is no text, or none is asked for (`evaluate.perplexity`).
    """
    count = context.stage.evaluation(context.recipe).perplexity
    chosen = dict(_chosen(context, count)) if count else {}
    if not chosen:
        return None
    begun, start = context.start, context.start_name
    digests = {name: _digest(texts) for name, texts in chosen.items()}
    known = context.once(lambda: _known(context.earlier.values()))
    unknown = {name: texts for name, texts in chosen.items() if (start, digests[name]) not in known}
    reference = Reference(start, None) if begun is None else Reference.saved(start, begun.folder)
    after = _under(context, policy, chosen)
    before = {name: known.get((start, digest)) for name, digest in digests.items()}
    if unknown:
        reference.replace(policy)
        with reference.active(policy):
            before |= _under(context, policy, unknown)
    bootstrap = {"confidence": context.stage.evaluation(context.recipe).confidence, "seed": context.recipe.seed}
    changes = {
        name: Change(digests[name], before[name], after[name], perplexity_ratio(after[name], before[name], **bootstrap))
        for name in chosen
    }
    found = Modelled(context.called, start, changes, _accuracy(context, evaluation, start))
    context.once(lambda: (context.folder / PERPLEXITY).write_text(found.to_json()))
    return found


def _chosen(context: StageContext, count: int) -> Iterator[tuple[str, list[Text]]]:
    """By name the texts of every source that this stage or one before it trains on, and of the held-out problems.

    What stages after it train on is left out: it may change when this stage is finished.
    """
    recipe, resources = context.recipe, context.resources
    longest: dict[str, int] = {}
    for stage in (*recipe.before(context.stage.name), context.stage):
        for source, tokens in stage.imitates(recipe).items():
            longest[source] = max(tokens, longest.get(source, 0))
    for source, name in zip(longest, shown_names(list(longest)), strict=True):
        if texts := drawn(resources, read_source(context, source)[0], count, max_length=longest[source]):
            yield name, texts
    problems = resources.test(context.stage).problems
    solved = [problem for problem in problems if problem.solution]
    source = Path(context.stage.held_out(recipe)[0]).name
    if len(solved) < len(problems):
        there = f"{len(solved):,} of the {len(problems):,}" if solved else f"none of the {len(problems):,}"
        context.progress.say(f"    held-out text: {there} problems in {source} has a written solution")
    if solved:
        traces = traces_of_solutions(solved, resources.format, resources.tokenizer(), source)
        limit = recipe.rollouts.max_prompt_tokens + recipe.rollouts.max_completion_tokens
        if texts := drawn(resources, traces, count, max_length=limit):
            yield HELD_OUT, texts


def _digest(texts: Sequence[Text]) -> str:
    return hashlib.sha256(json.dumps([(text.asked, text.answer) for text in texts]).encode()).hexdigest()


def _known(folders: Sequence[Path]) -> dict[tuple[str, str], Perplexity]:
    """What stages have measured, by policy and texts."""
    known: dict[tuple[str, str], Perplexity] = {}
    for folder in folders:
        # a file of another version is measured anew
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = Modelled.from_json((folder / PERPLEXITY).read_text())
            for one in found.sources.values():
                known |= {(found.start, one.texts): one.before, (found.policy, one.texts): one.after}
    return known


def _under(context: StageContext, policy: PeftModel, texts: Mapping[str, Sequence[Text]]) -> dict[str, Perplexity]:
    """The perplexity of each source as the model computes now."""
    rare_below = PreflightLimits.model_fields["rare_below"].default
    sequences = [(text.asked, text.answer) for of_source in texts.values() for text in of_source]
    found = iter(scored(context, policy, sequences, rare_below=rare_below))
    bootstrap = {"confidence": context.stage.evaluation(context.recipe).confidence, "seed": context.recipe.seed}
    return {name: perplexity([next(found) for _ in of_source], **bootstrap) for name, of_source in texts.items()}


def _accuracy(context: StageContext, evaluation: Evaluation, start: str) -> PairedDifference | None:
    path = context.earlier[start] / EVALUATION if start in context.earlier else None
    if path is None or not path.is_file():
        return None
    before = Evaluation.read(path)
    if set(before.problem_ids) != set(evaluation.problem_ids):
        return None
    return compare(evaluation, before, seed=context.recipe.seed)
