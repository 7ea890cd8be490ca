"""Texts of data sources: the tokens that training would see, which of them are measured, and how a policy finds them.

Of a problem with several texts one counts, so that texts are as independent as problems; which problems are taken
depends on their questions alone, so that sources compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evals.perplexity import Scored, score
from models.base import trained_arithmetic
from models.prompts import render_prompt
from orchestra.work.policies import rows_at_once
from sft.examples import example_tokens

if TYPE_CHECKING:
    from peft import PeftModel

    from orchestra.work.context import StageContext
    from orchestra.work.resources import Resources
    from sft.distill import Trace

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class Text:
    """One text of a source: tokens of the evaluation's prompt, and of the text under it, as training sees them."""

    trace: Trace
    asked: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.asked) + len(self.answer)


def as_trained(resources: Resources, trace: Trace) -> Text:
    """A trace as a training example."""
    tokenizer = resources.tokenizer()
    prompt = render_prompt(tokenizer, resources.format.messages(trace.question))
    asked, answer = example_tokens(tokenizer, prompt, trace.completion)
    return Text(trace, tuple(asked), tuple(answer))


def by_chance(questions: Iterable[str]) -> list[str]:
    """Each question once, in an order that has nothing to do with the source's."""
    return sorted(set(questions), key=lambda question: hashlib.sha256(question.encode("utf-8", "replace")).digest())


def drawn(resources: Resources, traces: Sequence[Trace], count: int, *, max_length: int) -> list[Text]:
    """The first text that is not too long of each of so many problems; fewer where there are no more."""
    of_question: dict[str, list[Trace]] = {}
    for trace in traces:
        of_question.setdefault(trace.question, []).append(trace)
    found: list[Text] = []
    for question in by_chance(of_question):
        if len(found) == count:
            break
        texts = (as_trained(resources, trace) for trace in of_question[question])
        found += [text for text in texts if text.length <= max_length][:1]
    return found


def shown_names(sources: Sequence[str]) -> list[str]:
    """Without the folders of files, unless two are called alike."""
    names = [Path(source).name for source in sources]
    return [name if names.count(name) == 1 else source for name, source in zip(names, sources, strict=True)]


def scored(context: StageContext, policy: PeftModel, sequences: Sequences, *, rare_below: float) -> list[Scored]:
    """Every (prompt, completion) under the policy. Batches are the same however many processes share them, of
    sequences of like length."""
    policy.eval()
    order = sorted(range(len(sequences)), key=lambda at: sum(map(len, sequences[at])))
    rows = rows_at_once(policy, sequences)
    batches = [order[at : at + rows] for at in range(0, len(order), rows)]
    with context.progress.bar(f"{context.stage.name}: read", len(sequences), "texts") as bar:

        def own_part(numbers: Sequence[int]) -> list[list[Scored]]:
            found = []
            with trained_arithmetic(policy):
                for number in numbers:
                    batch = [sequences[at] for at in batches[number]]
                    found.append(score(policy, batch, rare_below=rare_below, rows=rows, device=policy.device))
                    bar.advance(len(batch) * context.processes.count)
            return found

        parts = context.processes.shared(len(batches), own_part)
    of = {at: one for batch, part in zip(batches, parts, strict=True) for at, one in zip(batch, part, strict=True)}
    return [of[at] for at in range(len(sequences))]
