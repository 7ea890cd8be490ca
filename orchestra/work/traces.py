"""The traces of a source that a stage names: an earlier stage's, or a file's written solutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft.distill import TRACES, read_traces, traces_of_solutions

if TYPE_CHECKING:
    from orchestra.work.context import StageContext
    from sft.distill import Trace


def traces_of(context: StageContext, source: str) -> tuple[list[Trace], int]:
    """The traces of a source, and how many problems are left out because they overlap with held-out ones: an earlier
    stage has left them out itself."""
    if source in context.earlier:
        return read_traces(context.earlier[source] / TRACES), 0
    resources = context.resources
    problems = resources.problems(source, "train")
    apart = resources.apart(problems)
    gone = len(problems) - len(apart)
    if gone:
        context.progress.say(f"    {source}: {gone} of {len(problems)} problems overlap with held-out ones: left out")
    return traces_of_solutions(apart, resources.format, resources.tokenizer(), source), gone
