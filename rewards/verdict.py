"""What grading says of a completion: a verdict, and on what grounds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """correct, wrong, or ungradable: the *gold* is empty or malformed, so nothing can be said of the completion."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNGRADABLE = "ungradable"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict; whether a deadline cut the grading short (it is then wrong); and the rule that decided, in words."""

    verdict: Verdict
    timed_out: bool = False
    grounds: str = ""
