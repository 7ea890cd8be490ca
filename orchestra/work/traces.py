"""The traces of a source that a stage names: an earlier stage's, or a file's written solutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestra.work.resources import Resources
from sft.distill import TRACES, read_traces, traces_of_solutions

if TYPE_CHECKING:
    from pathlib import Path

    from orchestra.work.context import StageContext
    from sft.distill import Trace


def traces_of(context: StageContext, source: str) -> tuple[list[Trace], int]:
    """The traces of a source, and how many problems are left out because they overlap with held-out ones, which is
    said: an earlier stage has left them out itself."""
    traces, gone = read_source(context, source)
    if gone:
        there = len(traces) + gone
        context.progress.say(f"    {source}: {gone} of {there} problems overlap with held-out ones: left out")
    return traces, gone


def read_source(context: StageContext, source: str) -> tuple[list[Trace], int]:
    """The same without a word."""
    if source in context.earlier:
        return read_traces(context.earlier[source] / TRACES), 0
    resources = context.resources
    problems = resources.problems(source, "train")
    apart = resources.apart(problems)
    traces = traces_of_solutions(apart, resources.format, resources.tokenizer(), source)
    return traces, len(problems) - len(apart)


def written_solutions(resources: Resources, like: Path | None) -> tuple[list[Trace], int]:
    """The written solutions of the training problems, and how many problems are left out (see `Resources.train`).

    Args:
        like: folder of a stage that gives traces; only problems of which it has one.

    Raises:
        DistillError: a problem has no solution, or nothing is left.
    """
    asked = resources.train()
    known = None if like is None else {trace.problem_id for trace in read_traces(like / TRACES)}
    problems = [problem for problem in asked.problems if known is None or problem.id in known]
    source = resources.recipe.problems.train
    return traces_of_solutions(problems, resources.format, resources.tokenizer(), source), asked.left_out
