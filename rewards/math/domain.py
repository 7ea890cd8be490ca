"""The domain of mathematics: school problems from a generator of its own, golds compared by value, not by spelling."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

from rewards.domain import Domain
from rewards.math.extract import extract
from rewards.math.verifier import default_verifier
from rewards.problems import Problem, Source, Split
from rewards.verdict import Judgement

STORIES = ("arithmetic", "multi-step")
EMBEDDED_SIZES: Mapping[Split, int] = {"train": 4000, "test": 500}

_NUMBER = re.compile(r"(-?)\\?\$?\s?(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)\.?")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def _embedded(part: str, split: Split, limit: int | None, seed: int) -> list[Problem]:
    """Generated problems with their solutions in words, as those of a textbook are."""
    from rewards.generator.draw import DOMAINS, generate, told

    domains = {"": DOMAINS, "stories": STORIES, "formal": tuple(one for one in DOMAINS if one not in STORIES)}[part]
    problems = generate(split, limit or EMBEDDED_SIZES[split], seed, domains)
    return [replace(problem, solution=told(problem.solution)) for problem in problems]


class Math(Domain):
    """See rewards/math/__init__.py for how an answer is read and compared."""

    name = "math"
    sources: ClassVar[Mapping[str, Source]] = {
        "embedded": partial(_embedded, ""),
        "embedded:stories": partial(_embedded, "stories"),
        "embedded:formal": partial(_embedded, "formal"),
    }

    def gold(self, answer: str) -> str:
        """As everywhere; a number also without thousands commas, currency and a final full stop.

        >>> DOMAIN.gold("48 + 24 = 72\\n#### 1,072")
        '1072'
        """
        gold = super().gold(answer)
        number = _NUMBER.fullmatch(gold)
        return (number[1] + number[2]).replace(",", "") if number else gold

    def solution(self, text: str) -> str:
        """As everywhere, and without GSM8K's calculator annotations (`<<48/2=24>>`)."""
        return super().solution(_CALCULATOR.sub("", text))

    def answer(self, completion: str) -> str:
        return extract(completion).text

    def judge(self, completions: Sequence[str], golds: Sequence[str]) -> list[Judgement]:
        return default_verifier().judge_batch(completions, golds)


DOMAIN = Math()
