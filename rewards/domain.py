"""A domain: one kind of task, with its problems, its formats, its judge and its rewards.

A domain is a folder of this package that holds a `domain.py` with one object, `DOMAIN`. Nothing else names it: a recipe
says `problems: {domain: math}`, and distillation, GRPO and evaluation ask the object. What a domain does not say for
itself it inherits: problems from files and the Hub, two boxed formats, the last box as the answer, a gold that must be
met letter by letter, and the reward components of rewards/scoring.py.

    class Reverse(Domain):
        name = "reverse"
        sources = {"words": draw_words}    # problems: {domain: reverse, train: words, test: words}

    DOMAIN = Reverse()
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import rewards
from rewards.formats import FORMATS, Format, boxes, split_completion
from rewards.problems import Problem, Source, Split, load_problems
from rewards.scoring import RewardSet, build_rewards
from rewards.verdict import Judgement, Verdict
from settings import near

if TYPE_CHECKING:
    from rewards.settings import Reward


class Judge(Protocol):
    """Whoever judges completions as a domain does."""

    def judge(self, completions: Sequence[str], golds: Sequence[str]) -> list[Judgement]:
        """See `Domain.judge`."""
        ...


class DomainError(ValueError):
    """A domain or a format that does not exist; the message has the near miss and the known ones."""

    user_message = True


class Domain:
    """One kind of task; see the module docstring. It has no state that a run could change.

    Fields:
        name: the folder's.
        formats: prompt and answer contracts by name.
        sources: problems the domain makes itself, by the name a recipe gives as `train` or `test`.
    """

    name: ClassVar[str]
    formats: ClassVar[Mapping[str, Format]] = FORMATS
    sources: ClassVar[Mapping[str, Source]] = {}

    def format(self, name: str) -> Format:
        """Look a format up by name.

        Raises:
            DomainError: the domain has none of this name.
        """
        if name not in self.formats:
            known = ", ".join(self.formats)
            raise DomainError(f"format: {name!r} is not a format (known: {known}){near(name, self.formats)}")
        return self.formats[name]

    def problems(self, source: str, split: Split, *, limit: int | None, seed: int) -> list[Problem]:
        """The problems of one split; see `load_problems`.

        Raises:
            ProblemError: unknown source or split, rows that cannot be used, no problems.
        """
        return load_problems(self, source, split, limit=limit, seed=seed)

    def gold(self, answer: str) -> str:
        """The gold in a row's `answer`: what stands behind the last `####`; all of it where there is none."""
        return answer.rsplit("####", 1)[-1].strip()

    def solution(self, text: str) -> str:
        """The reasoning in a row's `solution`: all but lines that begin with `####`."""
        return "\n".join(line.rstrip() for line in text.split("\n") if not line.startswith("####")).strip()

    def answer(self, completion: str) -> str:
        """The answer a completion stands by, "" where there is none: here the last box behind the think block."""
        found = boxes(split_completion(completion)[1])
        return found[-1][2].strip() if found else ""

    def judge(self, completions: Sequence[str], golds: Sequence[str]) -> list[Judgement]:
        """A judgement of each completion against its gold: here the answer must be the gold, letter by letter.

        Never raises for the content of a text.

        Raises:
            ValueError: not as many golds as completions.
        """
        pairs = zip(completions, golds, strict=True)
        return [_letter_by_letter(self.answer(completion), gold.strip()) for completion, gold in pairs]

    def rewards(self, reward: Reward, format: Format, max_completion_tokens: int) -> RewardSet:
        """The reward functions of a recipe, as TRL calls them.

        Args:
            format: the contract that the component `format` pays for.
            max_completion_tokens: the longest completion allowed, in tokens.

        Raises:
            RewardError: weights, a name or a file that cannot be used.
        """
        return build_rewards(reward, self, format, max_completion_tokens)


def domain_names() -> list[str]:
    """The domains there are, none of them imported."""
    return sorted({path.parent.name for folder in rewards.__path__ for path in Path(folder).glob("*/domain.py")})


def get_domain(name: str) -> Domain:
    """Import a domain by its name.

    Raises:
        DomainError: there is none of this name.
    """
    names = domain_names()
    if name not in names:
        raise DomainError(f"domain: {name!r} is not a domain (known: {', '.join(names)}){near(name, names)}")
    return importlib.import_module(f"rewards.{name}.domain").DOMAIN


def _letter_by_letter(answer: str, gold: str) -> Judgement:
    if not gold:
        return Judgement(Verdict.UNGRADABLE, grounds="the gold is empty")
    if not answer:
        return Judgement(Verdict.WRONG, grounds="no answer")
    if answer == gold:
        return Judgement(Verdict.CORRECT, grounds="same text")
    return Judgement(Verdict.WRONG, grounds="another text")
