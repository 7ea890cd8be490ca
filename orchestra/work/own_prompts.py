"""Prompts that a file's rows carry themselves, beside the one in which evaluation asks.

Solutions that were written under "Problem/Solution" and are imitated under "Question/Answer" are another format,
however right they are. Where a file says what its solutions were written under, that is compared letter by letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.prompts import render_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from orchestra.work.resources import Resources
    from rewards.problems import Problem, Prompt

SHOWN = 60  # characters of each prompt where two differ


def prompt_mismatches(resources: Resources, sources: Sequence[str], stages: frozenset[str]) -> dict[str, str]:
    """What to say of each file whose rows have a `prompt` other than what their question is asked in when evaluated.

    Args:
        stages: names that stand for stages; their traces were asked for in the evaluation's own words.
    """
    found = {}
    for source in dict.fromkeys(sources):
        problems = [] if source in stages else resources.problems(source, "train")
        pairs = [(problem, *_prompts(resources, problem)) for problem in problems if problem.prompt is not None]
        differing = [(problem, own, asked) for problem, own, asked in pairs if own != asked]
        if differing:
            problem, own, asked = differing[0]
            shown_own, shown_asked = _where_they_part(own, asked)
            found[source] = (
                f"{source}: `prompt` of {len(differing)} of {len(problems)} rows is not what evaluation asks: row "
                f"{problem.id!r} has {shown_own}, evaluation {shown_asked}; write the solutions under that prompt "
                "(problems.format, model.prompt), delete `prompt` where they do not depend on it, or let the preflight "
                "go on with mismatch: warn"
            )
    return found


def _prompts(resources: Resources, problem: Problem) -> tuple[str, str]:
    """A row's own prompt and the evaluation's, as text."""
    tokenizer = resources.tokenizer()
    asked = render_prompt(tokenizer, resources.format.messages(problem.question))
    return as_text(tokenizer, problem.prompt), asked


def as_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """Text as it is; messages as the base's template renders them."""
    from jinja2 import TemplateError

    if isinstance(prompt, str):
        return prompt
    try:
        return render_prompt(tokenizer, [{"role": role, "content": content} for role, content in prompt])
    except TemplateError:  # roles that the base's template does not know
        return "\n".join(f"{role}: {content}" for role, content in prompt)


def _where_they_part(one: str, other: str) -> tuple[str, str]:
    """Both texts around the first place at which they differ, quoted."""
    same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, same - SHOWN // 3)

    def shown(text: str) -> str:
        part = repr(text[start : start + SHOWN])
        return f"{'...' if start else ''}{part}{'...' if len(text) > start + SHOWN else ''}"

    return shown(one), shown(other)
